"""Reading of safetensors files into modules, with checks that the module does not exceed the file."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from walloc_data.errors import CodecError
from walloc_data.files import read_regular

__all__ = ["MAX_WEIGHTS_BYTES", "fill", "read_tensors"]

MAX_WEIGHTS_BYTES = 2**28  # 67 million numbers; the bundled decoders have two million


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file of at most 256 MiB.

    Raises:
        CodecError: it cannot be read, is longer, or is no such file.
    """
    try:
        data = read_regular(path, max_bytes=MAX_WEIGHTS_BYTES)
        tensors: dict[str, Tensor] = load(data)
        (length,) = struct.unpack_from("<Q", data)
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except OSError as error:
        raise CodecError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, KeyError, struct.error, ValueError, RecursionError) as error:
        raise CodecError(f"{path}: not a safetensors file ({error})") from error
    return tensors, metadata


def fill(module: nn.Module, weights: Mapping[str, Tensor], *, prefix: str = "", context: Path) -> None:
    """Load `prefix`-ed tensors into a module: all of them, of its shapes; trailing 1s of 1x1 kernels may be absent.

    A module on the "meta" device, which has shapes and no memory, takes the tensors as its own.

    Raises:
        CodecError: names the first tensor that is absent, left over, or of another shape.
    """
    wanted = module.state_dict()
    given = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if missing := sorted(set(wanted) - set(given)):
        raise CodecError(f"{context}: {prefix}{missing[0]} is absent ({len(missing)} tensors are)")
    if unknown := sorted(set(given) - set(wanted)):
        raise CodecError(f"{context}: {prefix}{unknown[0]} belongs to no part of this codec")
    for name, tensor in given.items():
        expected = wanted[name].shape
        if tensor.shape != expected and (*tensor.shape, 1, 1) != expected:
            raise CodecError(f"{context}: {prefix}{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")
    state = {name: tensor.to(torch.float32).reshape(wanted[name].shape) for name, tensor in given.items()}
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    module.load_state_dict(state, assign=on_meta)
