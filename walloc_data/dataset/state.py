"""The state of a run over batches: a few integers, and names that say what they belong to."""

from collections.abc import Mapping
from typing import Any, Protocol

from walloc_data.dataset.batching import Batching
from walloc_data.errors import StateError

__all__ = ["STATE_VERSION", "check_state", "make_state"]

STATE_VERSION = 1


class _Named(Protocol):
    identity: str
    seed: int


def make_state(samples: _Named, plan: Batching, batch_size: int, *, epoch: int, position: int) -> dict[str, Any]:
    """Return a state that says that `position` batches of `epoch` are done."""
    return {
        "version": STATE_VERSION,
        "identity": samples.identity,
        "order": plan.name,
        "seed": samples.seed,
        "batch_size": batch_size,
        "num_batches": plan.num_batches,
        "epoch": epoch,
        "position": position,
    }


def check_state(state: Mapping[str, Any], samples: _Named, plan: Batching, batch_size: int) -> tuple[int, int]:
    """Return (epoch, position) of a state that belongs to these batches.

    Raises:
        StateError: it belongs to others; names the difference.
    """
    mine = make_state(samples, plan, batch_size, epoch=0, position=0)
    if missing := sorted(set(mine) - set(state)):
        raise StateError(f"not a loader state: no {missing[0]!r}")
    remedies = {
        "version": "it was saved by another walloc_data",
        "identity": "it is of another data set or subset",
        "order": "pass the same shuffle, window_shards and sampling as when it was saved",
        "seed": "pass the same seed as when it was saved",
        "batch_size": "pass the same global batch size as when it was saved",
        "num_batches": "pass the same drop_last as when it was saved",
    }
    for name, remedy in remedies.items():
        if state[name] != mine[name]:
            raise StateError(f"this state has {name} {state[name]!r}, the loader {mine[name]!r}: {remedy}")
    epoch, position = state["epoch"], state["position"]
    for name, value in (("epoch", epoch), ("position", position)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise StateError(f"{name} must be an integer of at least 0, not {value!r}")
    if position > plan.num_batches:
        raise StateError(f"position {position} lies behind the last of {plan.num_batches} batches")
    return epoch, position
