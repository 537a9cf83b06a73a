"""States of loaders: the position, and names that identify the data set and the order."""

from collections.abc import Mapping
from typing import Any

from walloc_data.dataset.batching import Batching
from walloc_data.dataset.sharded import BatchSource
from walloc_data.errors import StateError

__all__ = ["STATE_VERSION", "check_state", "make_state", "sizes"]

STATE_VERSION = 2


def make_state(
    samples: BatchSource, batching: Batching, world_size: int, *, epoch: int, position: int
) -> dict[str, Any]:
    """Return the state after `position` batches of `epoch`."""
    return {
        "version": STATE_VERSION,
        "identity": samples.identity,
        "order": batching.name,
        "seed": samples.seed,
        "global_batch_size": batching.batch_size,
        "world_size": world_size,  # for messages: a state fits any number of ranks with this global batch
        "num_batches": batching.num_batches,
        "epoch": epoch,
        "position": position,
    }


def check_state(state: Mapping[str, Any], samples: BatchSource, batching: Batching, world_size: int) -> tuple[int, int]:
    """Return (epoch, position) of a state, after checking that it is for these batches.

    Raises:
        StateError: the state is for other batches; the message names the difference.
    """
    given: Any = state
    if not isinstance(given, Mapping):
        raise StateError(f"not a loader state: {type(given).__name__}, but state_dict() returns a dict")
    if state.get("version") == 1 and "batch_size" in state:  # its name of the global batch size
        state = {**state, "version": STATE_VERSION, "global_batch_size": state["batch_size"], "world_size": None}
    mine = make_state(samples, batching, world_size, epoch=0, position=0)
    if missing := sorted(set(mine) - set(state)):
        raise StateError(f"not a loader state: no {missing[0]!r}")
    remedies = {
        "version": "it was saved by another walloc_data",
        "identity": "it is of another data set or subset",
        "order": "pass the same shuffle, window_shards and sampling as when it was saved",
        "seed": "pass the same seed as when it was saved",
        "global_batch_size": "",
        "num_batches": "pass the same drop_last as when it was saved",
    }
    for name, remedy in remedies.items():
        if state[name] != mine[name]:
            if name == "global_batch_size":
                raise StateError(_other_size(state[name], state["world_size"], batching.batch_size, world_size))
            raise StateError(f"the state has {name} {state[name]!r}, but the loader has {mine[name]!r}: {remedy}")
    epoch, position = state["epoch"], state["position"]
    for name, value in (("epoch", epoch), ("position", position)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise StateError(f"{name} must be an integer of at least 0, not {value!r}")
    if position > batching.num_batches:
        raise StateError(f"position {position} is beyond the last of {batching.num_batches} batches")
    return epoch, position


def sizes(global_batch_size: Any, world_size: Any) -> str:
    """Format a global batch size for messages: ``16 (4 ranks x 4)``, or ``16`` for one rank."""
    whole = all(isinstance(value, int) for value in (global_batch_size, world_size))
    if not whole or world_size < 2 or global_batch_size % world_size:
        return repr(global_batch_size)
    return f"{global_batch_size} ({world_size} ranks x {global_batch_size // world_size})"


def _other_size(saved: Any, saved_ranks: Any, ours: int, world_size: int) -> str:
    fits = isinstance(saved, int) and saved > 0 and saved % world_size == 0
    remedy = f"pass global_batch_size={saved!r}"
    remedy += f" (or batch_size={saved // world_size})" if fits else ", on a number of ranks that divides it"
    if world_size == 1 and saved_ranks != 1:
        remedy += "; in one of several ranks, load the state after torch.distributed.init_process_group"
    return (
        f"the state has global batches of {sizes(saved, saved_ranks)}, but the loader has "
        f"{sizes(ours, world_size)}: {remedy}"
    )
