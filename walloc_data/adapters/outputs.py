"""Number and names of a model's outputs, from the target of its data set."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from walloc_data.adapters.config import Task
from walloc_data.errors import ModelError
from walloc_data.format import ChannelStatistics

__all__ = ["HasTarget", "Outputs", "names_of_target", "outputs_of", "task_of"]

Outputs = tuple[int | None, tuple[str, ...] | None]  # how many, and their names


@runtime_checkable
class HasTarget(Protocol):
    """A `LatentDataset` or a `LatentMixture`."""

    form: Any

    @property
    def split_name(self) -> str: ...
    @property
    def statistics(self) -> ChannelStatistics: ...
    @property
    def latent_shape(self) -> tuple[int, int, int] | None: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def column_classes(self) -> Mapping[str, tuple[str, ...]]: ...
    def column_form(self, name: str) -> tuple[str, tuple[int, ...]]: ...


def names_of_target(data: HasTarget) -> tuple[str, ...] | None:
    """Return the class names of a data set's target; None if it has none."""
    target = data.form.target
    return data.class_names if target in (None, "label") else data.column_classes.get(target)


def task_of(data: HasTarget, *, num_classes: int) -> Task:
    """Return the task of a model with this number of outputs on a data set's target."""
    target = data.form.target
    if target in (None, "label"):
        return "classes"
    dtype, shape = data.column_form(target)
    if len(shape) == 1:
        return "numbers" if dtype.startswith("float") else "labels"
    if dtype in ("list", "bool"):
        return "labels"
    return "classes" if num_classes > 1 else "numbers"


def outputs_of(data: HasTarget) -> Outputs:
    """Return the number of outputs for a data set's target, and their names, if any.

    The number of classes if the target is the label or a column of class numbers, 1 for numbers, K for lists of K.

    Raises:
        ModelError: the number cannot be derived from the target.
    """
    target, names = data.form.target, names_of_target(data)
    if target in (None, "label"):
        return (None if names is None else len(names)), names
    dtype, shape = data.column_form(target)
    if len(shape) == 1:
        return shape[0], names if names is not None and len(names) == shape[0] else None
    if names is not None:
        return len(names), names
    if shape == () and (dtype.startswith("float") or dtype == "bool"):
        return 1, None
    what = "a list or text" if dtype == "list" else f"{dtype} of shape {shape}" if shape else f"{dtype} without names"
    raise ModelError(
        f"the target {target!r} is {what}: pass num_classes=, 1 to regress a number, or the number of classes"
    )
