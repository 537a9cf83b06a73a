"""Unwrapping of modules from DDP, FSDP, EMA and `torch.compile`, in any order."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["bare_module", "bare_names", "whole_state"]

# Names under which wrappers keep the module: torch.compile, FSDP, and DDP, DataParallel, timm's and torch's EMA.
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "module")
_Value = TypeVar("_Value")


def bare_module(model: nn.Module) -> Any:
    """Return the innermost module, however often it was wrapped."""
    inner: Any = model
    while True:
        # Registered submodules alone: a compiled module hands on every other attribute that it is asked for.
        children = inner._modules
        name = next((name for name in _INNER if isinstance(children.get(name), nn.Module)), None)
        if name is None:
            return inner
        inner = children[name]


def bare_names(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return a state dict's entries by the names that they have in the innermost module.

    Compiled parts of a model leave `_orig_mod.` inside names as well, wrappers of all of it at the front of each.
    """
    names = [name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "") for name in state]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return dict(zip(names, state.values(), strict=True))


def whole_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the innermost module's state dict with whole tensors on the CPU, also where FSDP shards them.

    Of a sharded model this is a collective call: every rank must make it. Rank 0 gets the tensors, the others None.
    """
    inner: Any = model
    while "_fsdp_wrapped_module" not in inner._modules:  # FSDP alone can put its shards together
        name = next((name for name in _INNER if isinstance(inner._modules.get(name), nn.Module)), None)
        if name is None:
            break
        inner = inner._modules[name]
    sharded = any("_fsdp_wrapped_module" in module._modules for module in inner.modules())
    if sharded or any(hasattr(parameter, "full_tensor") for parameter in inner.parameters()):
        from torch import distributed
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Mapping[str, Any] = get_model_state_dict(inner, options=options)
        if distributed.get_rank() != 0:
            return None
    else:
        state = inner.state_dict()
    return {name: value.detach().cpu().contiguous().clone() for name, value in bare_names(state).items()}
