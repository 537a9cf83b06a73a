"""Weighted mixtures of data sets."""

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from walloc_data.dataset.arguments import check_integer
from walloc_data.dataset.batch_size import BatchSize
from walloc_data.dataset.batching import Batching, Last
from walloc_data.dataset.latent_dataset import LatentDataset
from walloc_data.dataset.order import EpochOrder, Ints, WeightedShuffle, shares
from walloc_data.dataset.samples import LatentSamples, RowValues
from walloc_data.errors import LoaderError
from walloc_data.format import ChannelStatistics, Manifest

__all__ = ["LatentMixture"]


class LatentMixture(LatentSamples):
    """Mixture of several data sets, with fixed shares of every epoch.

    Every sample of a data set is drawn once before any is drawn again, also across epochs, so shares are exact and the
    samples of a data set are used equally often. By position, the data sets are concatenated.

    Args:
        datasets: data sets of one codec, with the same classes.
        weights: share of each data set; None: its number of samples. With weights, `loader` does not accept weights of
            samples, class_balanced or bucket_by_shape, which would change the shares.
        num_samples: draws per epoch, at least 1; None: the number of samples of all data sets.
        seed: seed of the draws. The seed of each data set determines its random transforms.

    Example:
        >>> import torch
        >>> from walloc_data.dataset import LatentDataset, LatentMixture
        >>> data = LatentDataset("my-latents")
        >>> parts = [data.subset(classes=["cat"]), data.subset(classes=["coffee"])]
        >>> mixture = LatentMixture(parts, weights=[3, 1])
        >>> torch.cat([labels for _, labels in mixture.loader(batch_size=4)]).bincount().tolist()
        [6, 2]
    """

    shuffle = True

    def __init__(
        self,
        datasets: Sequence[LatentDataset],
        *,
        weights: Sequence[float] | None = None,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given: Any = datasets
        if not isinstance(given, Sequence):
            raise LoaderError(f"a mixture takes a list of LatentDatasets, such as [a, b], not {given!r}")
        seed = check_integer("seed", seed)
        if num_samples is not None:
            num_samples = check_integer("num_samples", num_samples, low=1)
        if not datasets:
            raise LoaderError("a mixture needs at least one data set")
        for given in datasets:
            if not isinstance(given, LatentDataset):
                raise LoaderError(
                    f"a mixture takes a list of LatentDatasets, not {type(given).__name__}: give the data sets of a "
                    "mixture one by one, with their shares as weights"
                )
        first = datasets[0]
        for other in datasets[1:]:
            for name, mine, theirs in (
                ("codec", first.manifest.codec.encoder_sha256, other.manifest.codec.encoder_sha256),
                ("class names", first.class_names, other.class_names),
            ):
                if mine != theirs:
                    raise LoaderError(f"{first.url} and {other.url} cannot be mixed: their {name} differ")
            if other.form != first.form:
                raise LoaderError(
                    f"{first.url} and {other.url} cannot be mixed: open them with the same columns, target and as_dict "
                    f"({first.form} and {other.form})"
                )
        self.form = first.form
        self._forms = {name: _joined_form(name, datasets) for name in self.form.names}
        sizes = tuple(len(dataset) for dataset in datasets)
        try:
            weights = tuple(float(weight) for weight in (sizes if weights is None else weights))
        except (TypeError, ValueError):
            raise LoaderError(f"weights must be {len(sizes)} numbers, one per data set, not {weights!r}") from None
        if len(weights) != len(sizes) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise LoaderError(f"{len(sizes)} data sets need as many weights of at least 0, not all 0: got {weights}")
        self.datasets, self.weights, self.seed = tuple(datasets), weights, seed
        self._sizes = sizes
        # An empty data set starts at the same position as the next one, which must be found.
        self._first_rows = np.cumsum([0, *sizes[:-1]])
        self._first_shards = np.cumsum([0, *(len(dataset.record.shards) for dataset in datasets[:-1])])
        self._draws = shares(sum(sizes) if num_samples is None else num_samples, weights)
        named = [[dataset.identity for dataset in datasets], self._draws]
        self.identity = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        parts = ", ".join(f"{share} of {dataset!r}" for share, dataset in zip(self._draws, self.datasets, strict=True))
        return f"LatentMixture({parts})"

    def __len__(self) -> int:
        return sum(self._sizes)

    @property
    def manifest(self) -> Manifest:
        """Manifest of the first data set; all have its codec."""
        return self.datasets[0].manifest

    @property
    def split_name(self) -> str:
        """Name of the split of the first data set."""
        return self.datasets[0].split_name

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names by label, equal in all data sets."""
        return self.datasets[0].class_names

    @property
    def column_classes(self) -> Mapping[str, tuple[str, ...]]:
        """Class names of columns that contain class numbers, if equal in all data sets, by column."""
        first, *others = (dataset.column_classes for dataset in self.datasets)
        return {name: names for name, names in first.items() if all(o.get(name) == names for o in others)}

    @property
    def num_classes(self) -> int | None:
        return self.datasets[0].num_classes

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of every stored latent; None if shapes differ."""
        shapes = {dataset.latent_shape for dataset in self.datasets}
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def statistics(self) -> ChannelStatistics:
        """Statistics of the stored integers of all data sets with a positive weight."""
        drawn = {(d.url, d.split_name): d for d, share in zip(self.datasets, self._draws, strict=True) if share}
        return reduce(operator.add, (dataset.statistics for dataset in drawn.values()))

    def column_form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return the dtype and shape of a column's values in batches, or "list"."""
        return self._forms[name]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.concatenate([dataset.labels for dataset in self.datasets])

    def epoch_order(self) -> EpochOrder:
        return WeightedShuffle(self._sizes, self._draws, self.seed, name="mixture")

    def _batching(self, size: BatchSize, last: Last, **asked: Any) -> Batching:
        given = [name for name, value in asked.items() if value is not None and value is not False]
        if given and self._draws != self._sizes:
            raise LoaderError(
                f"{given[0]} draws from all samples alike, and this mixture in shares of its own ({self._draws} of "
                f"{self._sizes} samples): leave out the mixture's weights and num_samples, or {given[0]}"
            )
        return super()._batching(size, last, **asked)

    @property
    def may_vary(self) -> bool:
        plain = [dataset for dataset in self.datasets if dataset.transform is None]
        shapes = {dataset.latent_shape for dataset in plain}
        if not plain or (len(shapes) == 1 and None not in shapes):
            return False
        if len(plain) < len(self.datasets):
            raise LoaderError(
                "data sets of different latent shapes can be mixed if all have a transform to one size, or none has one"
            )
        return True

    def latent_sides(self) -> npt.NDArray[np.int64] | None:
        shapes = {dataset.latent_shape for dataset in self.datasets}
        if not self.may_vary and len(shapes) == 1 and None not in shapes:
            return None
        parts = []
        for dataset in self.datasets:
            if (sides := dataset.latent_sides()) is None:
                assert dataset.latent_shape is not None  # noqa: S101
                sides = np.tile(np.array(dataset.latent_shape[1:]), (len(dataset), 1))
            parts.append(sides)
        return np.concatenate(parts)

    def shards(self, rows: Ints) -> Ints:
        found = np.empty(len(rows), np.int64)
        for number, at in self._parts(rows):
            dataset = self.datasets[number]
            found[at] = self._first_shards[number] + dataset.shards(rows[at] - self._first_rows[number])
        return found

    def fetch(self, shard: int) -> None:
        number = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        self.datasets[number].fetch(shard - int(self._first_shards[number]))

    @property
    def num_prefetch_shards(self) -> int:
        return sum(dataset.num_prefetch_shards for dataset in self.datasets)

    def read(self, rows: Ints, *, epoch: int | None) -> RowValues:
        latents: list[Tensor] = [torch.empty(0)] * len(rows)
        values = {name: self._empty_values(name, len(rows)) for name in self.form.names}
        for number, at in self._parts(rows):
            found, columns = self.datasets[number].read(rows[at] - self._first_rows[number], epoch=epoch)
            for place, latent in zip(at.tolist(), found, strict=True):
                latents[place] = latent
            for name, column in columns.items():
                if isinstance(values[name], np.ndarray):
                    values[name][at] = column
                else:
                    for place, value in zip(at.tolist(), column, strict=True):
                        values[name][place] = value
        return RowValues(latents, values)

    def _empty_values(self, name: str, num_rows: int) -> Any:
        """Return an empty array or list for a column's values from several data sets."""
        dtype, shape = self._forms[name]
        return [None] * num_rows if dtype == "list" else np.empty((num_rows, *shape), dtype)

    def _parts(self, rows: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield the number of each data set that rows belong to, and the positions of its rows in `rows`."""
        owner = np.searchsorted(self._first_rows, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            yield number, np.flatnonzero(owner == number)


def _joined_form(name: str, datasets: Sequence[LatentDataset]) -> tuple[str, tuple[int, ...]]:
    """Return the joint type of a column in all data sets."""
    forms = [dataset.column_form(name) for dataset in datasets]
    if len({(dtype == "list", shape) for dtype, shape in forms}) > 1:
        held = ", ".join(f"{dtype} {shape}" for dtype, shape in dict.fromkeys(forms))
        raise LoaderError(f"column {name!r} has different types in these data sets, which cannot be mixed: {held}")
    if forms[0][0] == "list":
        return forms[0]
    return str(np.result_type(*(np.dtype(dtype) for dtype, _ in forms))), forms[0][1]
