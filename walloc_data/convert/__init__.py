"""From pictures to shards: a pure plan, pure workers, and a data set that is the same however it was made."""

from walloc_data.convert.encode import encode_dataset
from walloc_data.convert.finish import finish_dataset
from walloc_data.convert.progress import Progress
from walloc_data.convert.summary import ConversionSummary

__all__ = ["ConversionSummary", "Progress", "encode_dataset", "finish_dataset"]
