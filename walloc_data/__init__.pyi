from . import transforms
from .adapters import create_latent_model, load_latent_model, save_latent_model
from .adapting import adapt_model
from .codec import load_codec
from .convert import encode_dataset, encode_splits, verify_dataset
from .dataset import LatentDataset
from .errors import WallocDataError
from .format import EncodeSettings, Manifest
from .serving import PictureClassifier
from .sources import open_source

__version__: str

__all__ = [
    "EncodeSettings",
    "LatentDataset",
    "Manifest",
    "PictureClassifier",
    "WallocDataError",
    "__version__",
    "adapt_model",
    "create_latent_model",
    "encode_dataset",
    "encode_splits",
    "load_codec",
    "load_latent_model",
    "open_source",
    "save_latent_model",
    "transforms",
    "verify_dataset",
]
