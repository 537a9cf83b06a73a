"""Structure of samples, and collation of samples to batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walloc_data.errors import LoaderError

__all__ = ["LABEL", "LATENT", "SampleForm", "TrainerCollator", "collate_samples"]

LATENT, LABEL, VALID = "latent", "label", "valid"
Values = Any  # of a column: (n, ...) array, or a list


@dataclass(frozen=True)
class SampleForm:
    """Structure of a sample: latent, target and columns as a tuple or dict, or the latent alone.

    Attributes:
        target: name of the column that is the target; None: no target.
        columns: names of the other columns.
        as_dict: whether samples and batches are dicts.
    """

    target: str | None = LABEL
    columns: tuple[str, ...] = ()
    as_dict: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the target and the columns, in order."""
        return (*((self.target,) if self.target is not None else ()), *self.columns)

    def samples(self, latents: Sequence[Tensor] | Tensor, values: Mapping[str, Values]) -> list[Any]:
        """Return the samples of rows."""
        columns = [_items(name, values[name]) for name in self.names]
        return [self._assemble(parts) for parts in zip(latents, *columns, strict=True)]

    def batch(self, latents: Tensor, values: Mapping[str, Values], valid: Tensor | None) -> Any:
        """Return one batch, with numbers and arrays as tensors and other values as lists."""
        columns = [_tensor(values[name]) for name in self.names]
        return self._assemble((latents, *columns), valid)

    def _assemble(self, parts: tuple[Any, ...], valid: Tensor | None = None) -> Any:
        if self.as_dict:
            made = dict(zip((LATENT, *self.names), parts, strict=True))
            return made if valid is None else made | {VALID: valid}
        if valid is not None:
            parts = (*parts, valid)
        return parts if len(parts) > 1 else parts[0]


def _tensor(values: Values) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values


def _items(name: str, values: Values) -> Sequence[Any]:
    """Return the values of samples: labels as integers, other numbers as tensors of their dtype."""
    if not isinstance(values, np.ndarray):
        return list(values)
    if name == LABEL:
        return values.tolist()  # type: ignore[no-any-return]
    return list(torch.from_numpy(np.ascontiguousarray(values)))


def collate_samples(samples: Sequence[Any]) -> Any:
    """Collate samples like `LatentDataset.loader`; use it as the `collate_fn` of a DataLoader.

    Unlike torch's default collation, it accepts lists of different lengths and missing values.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.dataset import collate_samples
        >>> data = LatentDataset("my-latents", columns=["source_name"])
        >>> latents, labels, names = next(iter(DataLoader(data, batch_size=2, collate_fn=collate_samples)))
        >>> latents.shape, labels.dtype, len(names)
        (torch.Size([2, 12, 12, 12]), torch.int64, 2)
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: _stacked([sample[name] for sample in samples]) for name in first}
    if isinstance(first, tuple):
        return tuple(_stacked(list(parts)) for parts in zip(*samples, strict=True))
    return _stacked(list(samples))


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return torch.tensor(values)
    return values


@dataclass(frozen=True)
class TrainerCollator:
    """Collator for the Hugging Face `Trainer`: returns ``{"pixel_values": ..., "labels": ...}``.

    Samples may be tuples or dicts. Columns besides the target keep their names.

    Args:
        inputs: key of the latents in the result, the first argument of the model.
        labels: key of the target in the result, from which `Trainer` computes metrics.
        target: key of the target in samples that are dicts; None: "label".
        columns: names of the values after the target in samples that are tuples.

    Raises:
        LoaderError: a tuple has more values than `columns` names.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.dataset import TrainerCollator
        >>> data = LatentDataset("my-latents")
        >>> batch = TrainerCollator()([data[0], data[1]])
        >>> batch["pixel_values"].shape, batch["labels"]
        (torch.Size([2, 12, 12, 12]), tensor([0, 1]))
    """

    inputs: str = "pixel_values"
    labels: str = "labels"
    target: str | None = None
    columns: tuple[str, ...] = ()

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        batch = collate_samples(samples)
        if isinstance(batch, dict):
            target: str = self.target or LABEL
            renamed: dict[str, str] = {LATENT: self.inputs, target: self.labels}
            return {str(renamed.get(name, name)): value for name, value in batch.items()}
        parts = batch if isinstance(batch, tuple) else (batch,)
        names_of_parts = (self.inputs, self.labels, *self.columns)
        if len(parts) > len(names_of_parts):
            raise LoaderError(
                f"a sample has {len(parts)} parts: name those after the target with TrainerCollator(columns=...), or "
                "read the data set with as_dict=True"
            )
        return dict(zip(names_of_parts, parts, strict=False))
