"""The later life of a data set: pictures added or removed, data sets joined, failures done again."""

from walloc_data.maintain.append import append_dataset, retry_failures
from walloc_data.maintain.merge import merge_datasets
from walloc_data.maintain.remove import remove_samples, remove_split
from walloc_data.maintain.summary import EditSummary

__all__ = ["EditSummary", "append_dataset", "merge_datasets", "remove_samples", "remove_split", "retry_failures"]
