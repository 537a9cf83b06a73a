"""From pictures to shards: a pure plan, pure workers, and a data set that is the same however it was made."""

from walloc_data.convert.decode import decode_dataset
from walloc_data.convert.encode import encode_dataset
from walloc_data.convert.finish import finish_dataset
from walloc_data.convert.info import DatasetInfo, dataset_info
from walloc_data.convert.progress import Progress
from walloc_data.convert.splits import encode_splits
from walloc_data.convert.summary import ConversionSummary
from walloc_data.convert.verify import Verification, verify_dataset

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
