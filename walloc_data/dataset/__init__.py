"""Reading latents for training: exact, resumable orders; local, streamed or decoded once into an array."""

from walloc_data.dataset.latent_dataset import LatentDataset
from walloc_data.dataset.loader import LatentLoader
from walloc_data.dataset.mixture import LatentMixture
from walloc_data.dataset.sampler import LatentBatchSampler

__all__ = ["LatentBatchSampler", "LatentDataset", "LatentLoader", "LatentMixture"]
