"""Encode image data sets once into WaLLoC latents, stream them into training, and train timm classifiers on them.

The public names below load on first use, so that importing the package imports neither torch nor timm.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from walloc_data.adapters import create_latent_model
    from walloc_data.codec import load_codec
    from walloc_data.convert import encode_dataset, encode_splits
    from walloc_data.dataset import LatentDataset
    from walloc_data.errors import WallocDataError
    from walloc_data.format import Manifest

__version__ = "0.1.0"

_ROOMS = {
    "LatentDataset": "walloc_data.dataset",
    "Manifest": "walloc_data.format",
    "WallocDataError": "walloc_data.errors",
    "create_latent_model": "walloc_data.adapters",
    "encode_dataset": "walloc_data.convert",
    "encode_splits": "walloc_data.convert",
    "load_codec": "walloc_data.codec",
}

__all__ = [
    "LatentDataset",
    "Manifest",
    "WallocDataError",
    "__version__",
    "create_latent_model",
    "encode_dataset",
    "encode_splits",
    "load_codec",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
