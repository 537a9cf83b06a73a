"""timm models on latents. This is the only package that imports timm."""

from walloc_data.adapters.checkpoints import check_codec, load_latent_model, model_from_config, save_latent_model
from walloc_data.adapters.config import LatentModelConfig, latent_config, stem_of
from walloc_data.adapters.families import FAMILIES, Family, Geometry, find_family
from walloc_data.adapters.feature_maps import LatentFeatures
from walloc_data.adapters.features import (
    compared_stages,
    picture_size,
    relative_error,
    stage_output,
    stage_outputs,
)
from walloc_data.adapters.finetune import freeze_except, parameter_groups, unfreeze
from walloc_data.adapters.folding import PixelPrediction, copy_pixel_weights, fit_stem, fold_stem
from walloc_data.adapters.matching import match_moments
from walloc_data.adapters.models import LatentModelSummary, create_latent_model, summarize
from walloc_data.adapters.pixel_facts import imagenet_classes, input_normalisation, input_size
from walloc_data.adapters.pretrained import Pretrained, pixel_model
from walloc_data.adapters.residual_stem import ResidualStem
from walloc_data.adapters.stem import LatentConv2d, TwoLayerStem

__all__ = [
    "FAMILIES",
    "Family",
    "Geometry",
    "LatentConv2d",
    "LatentFeatures",
    "LatentModelConfig",
    "LatentModelSummary",
    "PixelPrediction",
    "Pretrained",
    "ResidualStem",
    "TwoLayerStem",
    "check_codec",
    "compared_stages",
    "copy_pixel_weights",
    "create_latent_model",
    "find_family",
    "fit_stem",
    "fold_stem",
    "freeze_except",
    "imagenet_classes",
    "input_normalisation",
    "input_size",
    "latent_config",
    "load_latent_model",
    "match_moments",
    "model_from_config",
    "parameter_groups",
    "picture_size",
    "pixel_model",
    "relative_error",
    "save_latent_model",
    "stage_output",
    "stage_outputs",
    "stem_of",
    "summarize",
    "unfreeze",
]
