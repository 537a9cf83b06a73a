"""Gradients of convolutions' weights as matrix products, for a CPU with bfloat16 units.

On layers of few cells and many channels, the last ones of a ResNet, oneDNN's own kernel is the slower one. The result
is the same up to rounding: products of bfloat16, summed in float32.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_CELLS = 64  # of an output, up to which the product is the quicker one


def windows(x: Tensor, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Unfold (N, C, H, W), channels last, into rows of one window each: (N * rows * columns, kh * kw * C)."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    x = x.permute(0, 2, 3, 1)
    if ph or pw:
        x = F.pad(x, (0, 0, pw, pw, ph, ph))
    n, height, width, c = x.shape
    rows, columns = (height - kh) // sh + 1, (width - kw) // sw + 1
    a, b, d, e = x.stride()
    view = x.as_strided((n, rows, columns, kh, kw, c), (a, b * sh, d * sw, b, d, e), x.storage_offset())
    return view.reshape(n * rows * columns, kh * kw * c)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        few = grad.shape[2] * grad.shape[3] <= FEW_CELLS
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not few, False]
        to_x, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, needed
        )
        if ctx.needs_input_grad[1] and few:
            out_dim, in_dim, *kernel = weight.shape
            rows = windows(x, kernel=(kernel[0], kernel[1]), stride=ctx.stride, padding=ctx.padding)
            product = grad.permute(0, 2, 3, 1).reshape(-1, out_dim).t() @ rows
            to_weight = product.view(out_dim, *kernel, in_dim).permute(0, 3, 1, 2)
        return to_x, to_weight, None, None


class MatmulGradConv2d(nn.Conv2d):
    """A convolution whose weights' gradient is a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W), under autocast in its precision."""
        weight = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        y = cast(Tensor, _Convolution.apply(x, weight, self.stride, self.padding))
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


def with_matmul_gradients(model: nn.Module) -> nn.Module:
    """Change every plain convolution of the model in place: ungrouped, undilated, padded with zeros."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            module.__class__ = MatmulGradConv2d
    return model
