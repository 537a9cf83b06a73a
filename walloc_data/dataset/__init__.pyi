from .latent_dataset import LatentDataset
from .loader import LatentLoader
from .mixture import LatentMixture
from .sampler import LatentBatchSampler

__all__ = ["LatentBatchSampler", "LatentDataset", "LatentLoader", "LatentMixture"]
