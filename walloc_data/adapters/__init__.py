"""timm models over latents. The only room that imports timm."""

from walloc_data.adapters.checkpoints import check_codec, load_latent_model, model_from_config, save_latent_model
from walloc_data.adapters.families import FAMILIES, Family, Geometry
from walloc_data.adapters.finetune import freeze_except, parameter_groups, unfreeze
from walloc_data.adapters.folding import PixelPrediction, copy_pixel_weights, fit_stem, fold_stem, stage_output
from walloc_data.adapters.models import (
    LatentModelConfig,
    LatentModelSummary,
    create_latent_model,
    latent_config,
    stem_of,
    summarize,
)
from walloc_data.adapters.stem import LatentConv2d, TwoLayerStem

__all__ = [
    "FAMILIES",
    "Family",
    "Geometry",
    "LatentConv2d",
    "LatentModelConfig",
    "LatentModelSummary",
    "PixelPrediction",
    "TwoLayerStem",
    "check_codec",
    "copy_pixel_weights",
    "create_latent_model",
    "fit_stem",
    "fold_stem",
    "freeze_except",
    "latent_config",
    "load_latent_model",
    "model_from_config",
    "parameter_groups",
    "save_latent_model",
    "stage_output",
    "stem_of",
    "summarize",
    "unfreeze",
]
