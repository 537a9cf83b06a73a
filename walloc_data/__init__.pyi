from .adapters import create_latent_model
from .adapting import adapt_model
from .codec import load_codec
from .convert import encode_dataset, encode_splits
from .dataset import LatentDataset
from .errors import WallocDataError
from .format import Manifest

__version__: str

__all__ = [
    "LatentDataset",
    "Manifest",
    "WallocDataError",
    "__version__",
    "adapt_model",
    "create_latent_model",
    "encode_dataset",
    "encode_splits",
    "load_codec",
]
