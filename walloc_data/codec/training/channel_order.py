"""The order of channels in the packed picture: the same latents in fewer bytes.

WebP predicts the three colours of a pixel by one rule per block, and one colour from another, so it matters which
channels share a tile and with what sign. Exchanging channels changes neither the encoder's nor the decoder's work.
The search is greedy: exchanges of two channels, then signs, as long as bytes fall.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from walloc_data.codec.decoders import Decoder
from walloc_data.codec.model import WallocCodec
from walloc_data.codec.training.closed_form import whole_cells
from walloc_data.codec.training.picture_sets import Pixels
from walloc_data.codec.training.rate_model import measured_bytes
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import CodecError

__all__ = ["arrange_channels"]

Signs = list[int]

_LOG_EVERY_S = 20.0


@renamed_arguments(say="log")
def arrange_channels(
    codec: WallocCodec, pictures: Iterable[Pixels], *, rounds: int = 2, log: Callable[[str], None] | None = None
) -> float:
    """Reorder and negate a codec's latent channels and their statistics, in place, for the fewest bytes on `pictures`.

    Every exchange of two channels is tried, by packing all pictures again: C (C + 1) / 2 trials a round, each of which
    takes time in proportion to the channels. 12 channels take a minute or so, 48 sixty times as long.

    Args:
        codec: whose channels are arranged.
        pictures: (H, W, 3) uint8.
        rounds: at most so many times.
        log: takes a line at the start, and one every 20 seconds.

    Returns:
        Bytes after as a part of the bytes before, at most 1.

    Raises:
        CodecError: no picture is as large as one latent cell, or the decoder is not of this package.
    """
    trials = codec.latent_dim * (codec.latent_dim + 1) // 2
    progress = _Progress(log, total=rounds * trials)
    latents = [codec.encode(images) for images in whole_cells(pictures, J=codec.J)]
    order, signs = list(range(codec.latent_dim)), [1] * codec.latent_dim
    if not latents:
        raise CodecError(f"no picture is as large as one latent cell, {2**codec.J} px: use larger pictures")
    start = best = _bytes(latents, order, signs, colours=codec.channels)
    for number in range(rounds):
        before = best
        for done, (i, j) in enumerate(combinations(range(codec.latent_dim), 2), number * trials):
            progress.show(done, saved=1 - best / start)
            trial = list(order)
            trial[i], trial[j] = trial[j], trial[i]
            if (cost := _bytes(latents, trial, signs, colours=codec.channels)) < best:
                best, order = cost, trial
        for i in range(codec.latent_dim):
            flipped = [-sign if k == i else sign for k, sign in enumerate(signs)]
            if (cost := _bytes(latents, order, flipped, colours=codec.channels)) < best:
                best, signs = cost, flipped
        if best == before:
            break
    _apply(codec, order, torch.tensor(signs, dtype=torch.float32))
    if codec.statistics is not None:
        mean, std = codec.statistics
        codec.statistics = (
            tuple(sign * mean[i] for sign, i in zip(signs, order, strict=True)),
            tuple(std[i] for i in order),
        )
    return best / start


class _Progress:
    """Lines that say how far the search is."""

    def __init__(self, log: Callable[[str], None] | None, *, total: int) -> None:
        self.log, self.total = log or (lambda line: None), total
        self._started = self._said = time.monotonic()
        self.log(f"arranging channels for the fewest bytes: up to {total} trials")

    def show(self, done: int, *, saved: float) -> None:
        now = time.monotonic()
        if now - self._said >= _LOG_EVERY_S:
            self._said = now
            left = math.ceil((now - self._started) / max(1, done) * (self.total - done) / 60)
            self.log(
                f"arranging channels: {done} of at most {self.total} trials, {saved:.1%} fewer bytes, "
                f"at most {left} min left"
            )


def _bytes(latents: Sequence[Tensor], order: Sequence[int], signs: Signs, *, colours: int) -> int:
    sign = torch.tensor(signs, dtype=torch.int16)[:, None, None]
    return sum(measured_bytes((z[:, order] * sign).clamp(-128, 127).to(torch.int8), colours=colours) for z in latents)


def _apply(codec: WallocCodec, order: Sequence[int], signs: Tensor) -> None:
    """Set new channel i to signs[i] times old channel order[i]. Companding is odd, so signs pass through it."""
    network = codec.decoder[1]
    if not isinstance(network, nn.Conv2d | Decoder):
        raise CodecError("only codecs with a linear or a convolutional decoder can be arranged")
    first = [network] if isinstance(network, nn.Conv2d) else [network.entry, network.skip]
    linear = codec.linear_decoder
    if linear is not None and linear is not network:
        first.append(linear)
    with torch.no_grad():
        for layer in first:
            layer.weight.copy_(layer.weight[:, order] * signs[None, :, None, None])
        encoder = codec.encoder[0].state_dict()
        codec.encoder[0].load_state_dict(
            {"weight": encoder["weight"][order] * signs[:, None, None, None], "bias": encoder["bias"][order] * signs}
        )
