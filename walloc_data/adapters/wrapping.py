"""What training wraps around a module: DDP, FSDP, EMA, `torch.compile`, in any order."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

__all__ = ["bare_module", "bare_names"]

# Names under which wrappers keep the module: torch.compile, FSDP, and DDP, DataParallel, timm's and torch's EMA.
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "module")
_Value = TypeVar("_Value")


def bare_module(model: nn.Module) -> Any:
    """The innermost module: what was wrapped, however often."""
    inner: Any = model
    while True:
        # Registered submodules alone: a compiled module hands on every other attribute that it is asked for.
        children = inner._modules
        name = next((name for name in _INNER if isinstance(children.get(name), nn.Module)), None)
        if name is None:
            return inner
        inner = children[name]


def bare_names(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """A state dict's entries by the names that they have in the innermost module.

    Compiled parts of a model leave `_orig_mod.` inside names as well, wrappers of all of it at the front of each.
    """
    names = [name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "") for name in state]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return dict(zip(names, state.values(), strict=True))
