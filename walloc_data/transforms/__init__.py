"""Augmentations of latents: on batches, on their device, with the interface of torchvision's v2.

For mixup and cutmix, apply `timm.data.Mixup` to `latents.float()`.
"""

from walloc_data.transforms.base import Compose, LatentTransform, RandomApply
from walloc_data.transforms.colour import ColorJitter, QuantizationNoise, RandomGrayscale
from walloc_data.transforms.geometric import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomTranslate,
)
from walloc_data.transforms.operators import OPERATORS_NAME, LatentOperators, fit_operators
from walloc_data.transforms.rescaling import FACTORS, RescalingMap
from walloc_data.transforms.resizing import DrawnCrops, RandomResizedCrop, Resize

__all__ = [
    "FACTORS",
    "OPERATORS_NAME",
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "DrawnCrops",
    "LatentOperators",
    "LatentTransform",
    "QuantizationNoise",
    "RandomApply",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomTranslate",
    "RescalingMap",
    "Resize",
    "fit_operators",
]
