"""Parts of a data set: chosen rows, splits, folds, and what they leave out."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.epoch import SharedEpoch
from walloc_data.dataset.form import LABEL
from walloc_data.dataset.order import Ints, shares
from walloc_data.dataset.samples import LatentSamples
from walloc_data.errors import LoaderError
from walloc_data.permutations import derive_key, permute

__all__ = ["PartOfSplit", "rows_chosen"]

_PARTS = 3  # what a derived key is for, besides those of `latent_dataset`


@dataclass(frozen=True, eq=False)
class _Whole:
    """Data set that a part was taken from."""

    identity: str
    rows: Ints | None
    classes: Ints | None
    whole: "_Whole | None"


class PartOfSplit(LatentSamples):
    """Some rows of a split, always in stored order: the shuffles and the reading by shards rest upon that."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: Ints | None = None  # ascending, in the split's index; None: all of them
        self._classes: Ints | None = None  # of a relabelled part: stored labels, ascending; the label is the place here
        self._whole: _Whole | None = None

    def _column(self, name: str) -> Any:
        """Return a column of the index for all rows of this part."""
        raise NotImplementedError

    def _labelled(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the labels of this part for stored ones; -1 stays -1."""
        return labels if self._classes is None else np.where(labels < 0, labels, np.searchsorted(self._classes, labels))

    def _part(self, rows: Ints, *, relabel: bool = False, classes: Sequence[int] | None = None) -> Self:
        """Make a part of ascending positions here; relabelled, of `classes` if given, else of those that are left."""
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
        """Make a data set of rows of the split's index, taken from what has this identity."""
        result = copy.copy(self)
        result._item_epoch = SharedEpoch(self._item_epoch.value)
        result._rows = rows
        digest = hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        result.identity = hashlib.sha256(json.dumps([identity, digest.hexdigest()]).encode()).hexdigest()[:32]
        return result

    def complement(self) -> Self:
        """Return what `subset`, `split` or `folds` left out: the samples of what this was taken from that are not here.

        Labels are those of what it was taken from.

        Raises:
            LoaderError: it was not taken from another data set.
        """
        if self._whole is None or self._rows is None:
            raise LoaderError(f"{self!r} is whole: complement() is for what subset(), split() or folds() gave")
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
        """Divide the samples at random: a first part of ``round(fraction * len(self))`` samples, and the rest.

        Args:
            fraction: of the first part, in (0, 1).
            stratify: divide every class in this proportion, to within one sample; the name of another column divides
                every one of its values so.
            seed: of the division, which is a function of it and of the samples here.

        Raises:
            LoaderError: a part would have no sample, or there are no labels to stratify by.

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
                f"{len(self)} samples do not divide into {fraction} and the rest: the fraction is in (0, 1), and each "
                "part has a sample"
            )
        groups = self._groups(stratify, seed)
        chosen = np.zeros(len(self), np.bool_)
        for rows, taken in zip(groups, shares(count, [len(rows) for rows in groups]), strict=True):
            chosen[rows[:taken]] = True
        return self._part(np.flatnonzero(chosen)), self._part(np.flatnonzero(~chosen))

    def folds(self, num_folds: int, *, stratify: bool | str = False, seed: int = 0) -> list[tuple[Self, Self]]:
        """Divide the samples into folds for cross-validation: pairs of all others to train on, and the fold.

        Args:
            num_folds: at least 2. Their sizes differ by one sample at most.
            stratify: divide every class evenly, to within one sample; the name of another column divides every one of
                its values so.
            seed: of the division, which is a function of it and of the samples here.

        Raises:
            LoaderError: there are fewer samples than folds, or no labels to stratify by.

        Example:
            >>> from walloc_data import LatentDataset
            >>> folds = LatentDataset("my-latents").folds(4, stratify=True, seed=0)
            >>> [(len(train), val.labels.tolist()) for train, val in folds]
            [(6, [0, 1]), (6, [0, 1]), (6, [0, 1]), (6, [0, 1])]
        """
        if not isinstance(num_folds, int | np.integer) or not 2 <= num_folds <= len(self):
            raise LoaderError(f"{len(self)} samples do not divide into {num_folds} folds: at least 2, of a sample each")
        fold = np.empty(len(self), np.int64)
        fold[np.concatenate(self._groups(stratify, seed))] = np.arange(len(self)) % num_folds
        return [
            (self._part(np.flatnonzero(fold != number)), self._part(np.flatnonzero(fold == number)))
            for number in range(num_folds)
        ]

    def _groups(self, stratify: bool | str, seed: int) -> list[Ints]:
        """Return positions of each stratum, both strata and positions in random order."""
        numbers = np.zeros(len(self), np.int64)
        if stratify is not False:
            name = LABEL if stratify is True else stratify
            numbers = _numbered(name, self._column(name))
            if name == LABEL and (self.labels < 0).any():
                raise LoaderError(
                    "stratify=True needs labels, and some samples here have none: name a column instead, such as "
                    "stratify='patient_group'"
                )
        rows = np.argsort(numbers, kind="stable")
        groups = np.split(rows, np.cumsum(np.bincount(numbers))[:-1])
        # Strata too: what a small one is rounded to must not depend upon its place.
        places = permute(np.arange(len(groups)), size=len(groups), key=derive_key(seed, _PARTS))
        return [
            groups[i][permute(np.arange(len(groups[i])), size=len(groups[i]), key=derive_key(seed, _PARTS, i))]
            for i in places.tolist()
        ]


def _numbered(name: str, values: Any) -> npt.NDArray[np.int64]:
    """Return (n,) one number for each different value of a column."""
    if isinstance(values, np.ndarray):
        axis = 0 if values.ndim > 1 else None
        return np.unique(values, axis=axis, return_inverse=True)[1].reshape(-1).astype(np.int64)
    numbers: dict[Any, int] = {}
    try:
        return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
    except TypeError:
        raise LoaderError(f"column {name!r} holds lists or structs: there are no equal values to stratify by") from None


def rows_chosen(rows: Any, num_rows: int) -> npt.NDArray[np.bool_]:
    """Return (n,) which rows are chosen, by position or by a mask.

    Raises:
        LoaderError: a position is not there, or named twice.
    """
    given = np.asarray(rows)
    if given.dtype == np.bool_ and given.shape == (num_rows,):
        return given
    chosen = np.zeros(num_rows, np.bool_)
    if given.size == 0:
        return chosen
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise LoaderError(
            f"rows are positions, or a mask of {num_rows} booleans, not {given.dtype} of shape {given.shape}"
        )
    if (outside := (given < -num_rows) | (given >= num_rows)).any():
        raise LoaderError(f"no row {given[outside][0]} among these {num_rows}")
    chosen[given] = True
    if chosen.sum() < len(given):
        raise LoaderError("rows names a row twice: a part has each of its samples once. loader(weights=...) repeats")
    return chosen
