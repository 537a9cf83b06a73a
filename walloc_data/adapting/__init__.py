"""Bring your own classifier: a pixel-pretrained timm model becomes a latent classifier, without labels."""

from walloc_data.adapting.distillation import Distillation, Progress, distill
from walloc_data.adapting.pairs import Batch, PairedViews, Pairs
from walloc_data.adapting.run import adapt_model
from walloc_data.adapting.settings import AdaptConfig, AdaptReport

__all__ = [
    "AdaptConfig",
    "AdaptReport",
    "Batch",
    "Distillation",
    "PairedViews",
    "Pairs",
    "Progress",
    "adapt_model",
    "distill",
]
