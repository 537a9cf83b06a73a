from .boxes import boxes_to_cells, boxes_to_pixels
from .form import TrainerCollator, collate_samples
from .latent_dataset import LatentDataset
from .loader import LatentLoader
from .mixture import LatentMixture
from .sampler import LatentBatchSampler
from .stats import LoaderStats

__all__ = [
    "LatentBatchSampler",
    "LatentDataset",
    "LatentLoader",
    "LatentMixture",
    "LoaderStats",
    "TrainerCollator",
    "boxes_to_cells",
    "boxes_to_pixels",
    "collate_samples",
]
