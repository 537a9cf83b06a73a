"""Parts of a data set: subsets, random splits, folds, and complements."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.arguments import check_integer
from walloc_data.dataset.epoch import SharedEpoch
from walloc_data.dataset.form import LABEL
from walloc_data.dataset.order import Ints, shares
from walloc_data.dataset.samples import LatentSamples
from walloc_data.errors import LoaderError
from walloc_data.permutations import derive_key, permute

__all__ = ["PartOfSplit", "rows_chosen"]

_PARTS = 3  # purpose of a derived random key, besides those of `latent_dataset`


@dataclass(frozen=True, eq=False)
class _Whole:
    """Data set from which a part was taken."""

    identity: str
    rows: Ints | None
    classes: Ints | None
    whole: "_Whole | None"


class PartOfSplit(LatentSamples):
    """Some rows of a split, always in stored order, on which shuffles and reading by shards rely."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: Ints | None = None  # ascending rows of the split's index; None: all
        self._classes: Ints | None = None  # if relabelled: ascending stored labels; new labels are positions
        self._whole: _Whole | None = None

    def _column(self, name: str) -> Any:
        """Return a column of the index for all rows of this part."""
        raise NotImplementedError

    def _labelled(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Map stored labels to labels of this part; -1 stays -1."""
        return labels if self._classes is None else np.where(labels < 0, labels, np.searchsorted(self._classes, labels))

    def _part(self, rows: Ints, *, relabel: bool = False, classes: Sequence[int] | None = None) -> Self:
        """Return the part with these ascending positions; relabelled by `classes` if given, else by its own classes."""
        result = self._with(rows if self._rows is None else self._rows[rows], self.identity)
        result._whole = _Whole(self.identity, self._rows, self._classes, self._whole)
        if relabel:
            labels = np.unique(self.labels[rows] if classes is None else np.array(classes, dtype=np.int64))
            labels = labels[labels >= 0]
            if self._classes is not None:
                labels = self._classes[labels[labels < len(self._classes)]]
            result._classes = labels
            named = [result.identity, hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()]
            result.identity = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]
        return result

    def _with(self, rows: Ints, identity: str) -> Self:
        """Return the data set of rows of the split's index, taken from a data set with this identity."""
        result = copy.copy(self)
        result._item_epoch = SharedEpoch(self._item_epoch.value)
        result._rows = rows
        digest = hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        result.identity = hashlib.sha256(json.dumps([identity, digest.hexdigest()]).encode()).hexdigest()[:32]
        return result

    def complement(self) -> Self:
        """Return the samples that `subset`, `split` or `folds` left out of this part.

        The labels are those of the original data set.

        Raises:
            LoaderError: this is not a part of another data set.
        """
        if self._whole is None or self._rows is None:
            raise LoaderError(f"{self!r} is not a part: complement() is for results of subset(), split() or folds()")
        within = self._whole.rows
        if within is None:
            left = np.ones(self._num_rows_of_split(), np.bool_)
            left[self._rows] = False
            rows = np.flatnonzero(left)
        else:
            rows = within[~np.isin(within, self._rows, assume_unique=True)]
        result = self._with(rows, self._whole.identity)
        result._classes = self._whole.classes
        return result

    def _num_rows_of_split(self) -> int:
        raise NotImplementedError

    def split(self, fraction: float, *, stratify: bool | str = False, seed: int = 0) -> tuple[Self, Self]:
        """Divide the samples at random into a part of ``round(fraction * len(self))`` samples and the rest.

        Args:
            fraction: size of the first part, in (0, 1).
            stratify: divide every class in this proportion, to within one sample; or the name of a column whose values
                are divided in this way.
            seed: seed; the division depends only on it and on the samples.

        Raises:
            LoaderError: a part would be empty, or there are no labels to stratify by.

        Example:
            >>> from walloc_data import LatentDataset
            >>> train, val = LatentDataset("my-latents").split(0.75, stratify=True, seed=0)
            >>> train.labels.tolist(), val.labels.tolist()
            ([0, 1, 0, 1, 0, 1], [0, 1])
        """
        given: Any = fraction
        if not isinstance(given, int | float | np.number):
            raise LoaderError(
                f"fraction is one number in (0, 1), the first part's share of all samples, not {fraction!r}: split "
                "what is left again for a third part"
            )
        count = round(len(self) * fraction) if 0 < fraction < 1 else 0
        if not 0 < count < len(self):
            raise LoaderError(
                f"{len(self)} samples cannot be divided by the fraction {fraction}: it must be in (0, 1), and no part "
                "may be empty"
            )
        groups = self._groups(stratify, seed)
        chosen = np.zeros(len(self), np.bool_)
        for rows, taken in zip(groups, shares(count, [len(rows) for rows in groups]), strict=True):
            chosen[rows[:taken]] = True
        return self._part(np.flatnonzero(chosen)), self._part(np.flatnonzero(~chosen))

    def folds(self, num_folds: int, *, stratify: bool | str = False, seed: int = 0) -> list[tuple[Self, Self]]:
        """Divide the samples into folds for cross-validation; return (training part, fold) pairs.

        Args:
            num_folds: number of folds, at least 2. Their sizes differ by at most one sample.
            stratify: divide every class evenly, to within one sample; or the name of a column whose values are divided
                in this way.
            seed: seed; the division depends only on it and on the samples.

        Raises:
            LoaderError: there are fewer samples than folds, or no labels to stratify by.

        Example:
            >>> from walloc_data import LatentDataset
            >>> folds = LatentDataset("my-latents").folds(4, stratify=True, seed=0)
            >>> [(len(train), val.labels.tolist()) for train, val in folds]
            [(6, [0, 1]), (6, [0, 1]), (6, [0, 1]), (6, [0, 1])]
        """
        if not isinstance(num_folds, int | np.integer) or not 2 <= num_folds <= len(self):
            raise LoaderError(
                f"{len(self)} samples cannot be divided into {num_folds} folds: use at least 2, none of them empty"
            )
        fold = np.empty(len(self), np.int64)
        fold[np.concatenate(self._groups(stratify, seed))] = np.arange(len(self)) % num_folds
        return [
            (self._part(np.flatnonzero(fold != number)), self._part(np.flatnonzero(fold == number)))
            for number in range(num_folds)
        ]

    def _groups(self, stratify: bool | str, seed: int) -> list[Ints]:
        """Return the positions of each stratum; strata and positions are in random order."""
        numbers = np.zeros(len(self), np.int64)
        if stratify is not False:
            name = LABEL if stratify is True else stratify
            numbers = _numbered(name, self._column(name))
            if name == LABEL and (self.labels < 0).any():
                raise LoaderError(
                    "stratify=True needs labels, and some samples here have none: name a column instead, such as "
                    "stratify='patient_group'"
                )
        check_integer("seed", seed)
        rows = np.argsort(numbers, kind="stable")
        groups = np.split(rows, np.cumsum(np.bincount(numbers))[:-1])
        # Strata are shuffled, too, because rounding of small strata depends on their order.
        places = permute(np.arange(len(groups)), size=len(groups), key=derive_key(seed, _PARTS))
        return [
            groups[i][permute(np.arange(len(groups[i])), size=len(groups[i]), key=derive_key(seed, _PARTS, i))]
            for i in places.tolist()
        ]


def _numbered(name: str, values: Any) -> npt.NDArray[np.int64]:
    """Return (n,) numbers of the distinct values of a column."""
    if isinstance(values, np.ndarray):
        axis = 0 if values.ndim > 1 else None
        return np.unique(values, axis=axis, return_inverse=True)[1].reshape(-1).astype(np.int64)
    numbers: dict[Any, int] = {}
    try:
        return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
    except TypeError:
        raise LoaderError(f"column {name!r} holds lists or structs, by which samples cannot be stratified") from None


def rows_chosen(rows: Any, num_rows: int) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of rows given by position or by a mask.

    Raises:
        LoaderError: a position does not exist, or occurs twice.
    """
    given = np.asarray(rows)
    if given.dtype == np.bool_ and given.shape == (num_rows,):
        return given
    chosen = np.zeros(num_rows, np.bool_)
    if given.size == 0:
        return chosen
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise LoaderError(
            f"rows must be positions or a mask of {num_rows} booleans, not {given.dtype} of shape {given.shape}"
        )
    if (outside := (given < -num_rows) | (given >= num_rows)).any():
        raise LoaderError(f"no row {given[outside][0]} among these {num_rows}")
    chosen[given] = True
    if chosen.sum() < len(given):
        raise LoaderError("rows contains a row twice; use loader(weights=...) to draw samples more often")
    return chosen
