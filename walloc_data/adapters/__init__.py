"""timm models over latents. The only room that imports timm."""

from walloc_data.adapters.families import FAMILIES, Family, Geometry
from walloc_data.adapters.models import (
    LatentModelConfig,
    LatentModelSummary,
    create_latent_model,
    latent_config,
    stem_of,
    summarize,
)
from walloc_data.adapters.stem import LatentConv2d

__all__ = [
    "FAMILIES",
    "Family",
    "Geometry",
    "LatentConv2d",
    "LatentModelConfig",
    "LatentModelSummary",
    "create_latent_model",
    "latent_config",
    "stem_of",
    "summarize",
]
