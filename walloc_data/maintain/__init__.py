"""Changes of finished data sets (append, remove, merge, retry), and adoption of published latents."""

from walloc_data.maintain.adopt import AdoptedSource, adopt_dataset
from walloc_data.maintain.append import append_dataset, retry_failures
from walloc_data.maintain.merge import merge_datasets
from walloc_data.maintain.remove import remove_samples, remove_split
from walloc_data.maintain.summary import EditSummary

__all__ = [
    "AdoptedSource",
    "EditSummary",
    "adopt_dataset",
    "append_dataset",
    "merge_datasets",
    "remove_samples",
    "remove_split",
    "retry_failures",
]
