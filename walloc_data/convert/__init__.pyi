from .decode import decode_dataset
from .encode import encode_dataset
from .finish import finish_dataset
from .inspect import DatasetInfo, dataset_info
from .progress import ConversionSummary, Progress
from .splits import encode_splits
from .verify import Verification, verify_dataset

__all__ = [
    "ConversionSummary",
    "DatasetInfo",
    "Progress",
    "Verification",
    "dataset_info",
    "decode_dataset",
    "encode_dataset",
    "encode_splits",
    "finish_dataset",
    "verify_dataset",
]
