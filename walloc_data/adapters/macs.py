"""Check of a model's input shape, and count of its multiply-accumulates."""

import logging
from typing import Any

import torch
from torch import nn

from walloc_data.errors import ModelError

__all__ = ["check_input_shape", "count_macs", "fake_forward"]


def check_input_shape(model: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Run one latent through a model on the meta device, which checks shapes without computing.

    Raises:
        ModelError: the model cannot take latents of this shape.
    """
    training = model.training
    tensors = [*model.named_parameters(), *model.named_buffers()]
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            latent = torch.zeros((1, *input_shape), dtype=torch.int8)
            torch.func.functional_call(model, {name: value.to("meta") for name, value in tensors}, latent)
    except Exception:  # a size that does not fit, or a layer that the meta device does not know
        count_macs(model, input_shape)  # decides, in five times the time, and raises
    finally:
        model.train(training)


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of convolutions and matrix products for one latent of a shape.

    Raises:
        ModelError: the model cannot take latents of this shape.
    """
    return fake_forward(model, input_shape)[1]


def fake_forward(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Any, int]:
    """Return the output for one latent of a shape, and its multiply-accumulates.

    It runs through fake tensors, which take no memory and a second at most.

    Raises:
        ModelError: the model cannot take latents of this shape.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    log = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback for every refusal
    disabled = log.disabled
    model.eval()
    try:
        log.disabled = True
        # The fused attention kernels of the CPU are invisible to the counter; the plain one is two products.
        with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            output = model(torch.zeros((1, *input_shape), dtype=torch.int8, device=device))
    except Exception as error:  # whatever timm's layers raise on a size that does not fit
        raise ModelError(f"cannot take latents of shape {input_shape}: {error}") from error
    finally:
        log.disabled = disabled
        model.train(training)
    return output, int(counter.get_total_flops()) // 2
