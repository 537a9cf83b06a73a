"""The codec as a torch module, with the module structure and state-dict names of published WaLLoC checkpoints.

    x (N,3,H,W) --analysis--> X (N,192,h,w) --encoder: 1x1 convolution, compand, round--> z (N,12,h,w)
    z --decoder: expand, network--> X^ (N,192,h,w) --synthesis--> x^ (N,3,H,W)            h, w = H/8, W/8

`forward` computes this step by step, for training and for comparison. `encode` is fast and exact
(`walloc_data.codec.encoding`); `decode` inverts it.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walloc_data.codec.decoders import Decoder, decode_tiled, decode_tiles, halo_cells
from walloc_data.codec.encoding import LinearEncoder
from walloc_data.codec.wavelets import DEC_HI, DEC_LO, REC_HI, REC_LO, wavelet_analysis, wavelet_synthesis
from walloc_data.errors import CodecError
from walloc_data.format import CodecSpec, encoder_sha256
from walloc_data.latents import compand, expand

__all__ = ["Companding", "Expanding", "NoDecoder", "Round", "WallocCodec"]

# Cells of a picture that is decoded in one piece: 4.2 megapixels for J = 3. Larger ones go by tiles.
_WHOLE_CELLS = 2**16


def _grey_levels(pictures: Tensor) -> Tensor:
    """Round values in [-1/2, 1/2] to uint8, on the CPU."""
    return ((pictures + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).cpu()


class Companding(nn.Module):
    """`walloc_data.latents.compand` as a module."""

    def __init__(self, latent_bits: int) -> None:
        super().__init__()
        self.latent_bits = latent_bits

    def forward(self, v: Tensor) -> Tensor:
        return compand(v, latent_bits=self.latent_bits)


class Round(nn.Module):
    """Round to integers; in training, add noise uniform in (-1/2, 1/2) instead, which has a gradient."""

    def forward(self, u: Tensor) -> Tensor:
        return u + (torch.rand_like(u) - 0.5) if self.training else torch.round(u)


class Expanding(nn.Module):
    """`walloc_data.latents.expand` as a module."""

    def __init__(self, latent_bits: int) -> None:
        super().__init__()
        self.latent_bits = latent_bits

    def forward(self, u: Tensor) -> Tensor:
        return expand(u, latent_bits=self.latent_bits)


class NoDecoder(nn.Module):
    """Placeholder for the decoder of a codec that was loaded only to encode."""

    def forward(self, v: Tensor) -> Tensor:
        raise CodecError("this codec was loaded with decoder=False, or its folder holds none: it only encodes")


class _Filters(nn.Module):
    """Wavelet filters as buffers, because published state dicts have them. `wavelets` holds those that are used."""

    def __init__(self, low: str, high: str, *, taps: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        super().__init__()
        for axis, shape in (("col", (1, 1, 10, 1)), ("row", (1, 1, 1, 10))):
            for name, values in zip((low, high), taps, strict=True):
                self.register_buffer(f"{name}_{axis}", torch.tensor(values).reshape(shape))


class WallocCodec(nn.Module):
    """WaLLoC for pictures, with a linear encoder (arXiv 2412.09405).

    Args:
        channels: of the picture.
        J: wavelet-packet levels; a latent cell is 2^J pixels wide and high.
        latent_dim, latent_bits: channels and bits of a latent.
        decoder: maps expanded latents (N, latent_dim, h, w) to coefficients (N, channels * 4^J, h, w); None builds the
            linear one, a 1x1 convolution.
        linear_decoder: the linear map as well, where `decoder` is another; `decode(..., linear=True)` uses it.

    Attributes:
        name: by which data sets name the codec.
        statistics: (mean, std) of the latents' integers, per channel, on the training pictures.
        card: the text of the model card.

    Example:
        >>> import torch
        >>> from walloc_data.codec import WallocCodec
        >>> codec = WallocCodec(latent_dim=48).eval()  # untrained; load_codec gives trained ones
        >>> codec.encode(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).shape
        torch.Size([1, 48, 8, 12])
        >>> x_hat, pixel_error, coefficient_error = codec(torch.zeros(1, 3, 64, 96))
        >>> x_hat.shape
        torch.Size([1, 3, 64, 96])
    """

    name: str = "unnamed"
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    card: str = ""

    def __init__(
        self,
        *,
        channels: int = 3,
        J: int = 3,
        latent_dim: int = 12,
        latent_bits: int = 8,
        decoder: nn.Module | None = None,
        linear_decoder: nn.Conv2d | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.J, self.latent_dim, self.latent_bits = channels, J, latent_dim, latent_bits
        bands = channels * 4**J
        self.wt = _Filters("h0", "h1", taps=(DEC_LO[::-1], DEC_HI[::-1]))
        self.iwt = _Filters("g0", "g1", taps=(REC_LO, REC_HI))
        self.clamp = nn.Hardtanh(-0.5, 0.5)
        self.encoder = nn.Sequential(nn.Conv2d(bands, latent_dim, 1), Companding(latent_bits), Round())
        self.decoder = nn.Sequential(
            Expanding(latent_bits), nn.Conv2d(latent_dim, bands, 1) if decoder is None else decoder
        )
        self._linear_decoder = linear_decoder
        # The fused encoder, on every device it was asked for, and copies of the weights and biases that it is of.
        self._fused: tuple[Tensor, Tensor, dict[torch.device, LinearEncoder]] | None = None

    @property
    def linear_decoder(self) -> nn.Conv2d | None:
        """The 1x1 convolution from expanded latents to coefficients, where the codec has one."""
        main = self.decoder[1]
        return main if isinstance(main, nn.Conv2d) and main.kernel_size == (1, 1) else self._linear_decoder

    def wavelet_analysis(self, x: Tensor, J: int = 3) -> Tensor:
        """Return the coefficients of pictures: (N, C, H, W) to (N, C * 4^J, H / 2^J, W / 2^J)."""
        return wavelet_analysis(x, J)

    def wavelet_synthesis(self, X: Tensor, J: int = 3) -> Tensor:
        """Return pictures from coefficients, the inverse of `wavelet_analysis`."""
        return wavelet_synthesis(X, J)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction clamped to [-1/2, 1/2], and the mean squared errors of the pixels (before clamping)
        and of the coefficients.

        Args:
            x: (N, C, H, W) float in [-1/2, 1/2], sides multiples of 2^J.
        """
        X = self.wavelet_analysis(x, J=self.J)  # (N, C * 4^J, h, w)
        X_hat = self.decoder(self.encoder(X))
        x_hat = self.wavelet_synthesis(X_hat, J=self.J)
        return self.clamp(x_hat), F.mse_loss(x, x_hat), F.mse_loss(X, X_hat)

    def encode(self, images: Tensor) -> Tensor:
        """Encode pictures to latents, fast and exact.

        Args:
            images: (N, C, H, W) uint8, or float in [-1/2, 1/2]; sides multiples of 2^J. uint8 pictures have one
                latent, whatever the batch, the device and the number of threads.

        Returns:
            (N, latent_dim, H / 2^J, W / 2^J) int8, on the pictures' device.
        """
        return self.linear_encoder(images.device).encode(images)

    def decode(self, latents: Tensor, *, linear: bool = False) -> Tensor:
        """Decode latents to pictures. Large ones are decoded tile by tile where the decoder allows, in bounded memory.

        Args:
            latents: (N, latent_dim, h, w), int8 or whole floats.
            linear: use the linear decoder: much faster, and worse by what the model card says.

        Returns:
            (N, C, 2^J * h, 2^J * w) float32, clamped to [-1/2, 1/2].
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_dim:
            raise CodecError(f"decode takes latents (N, {self.latent_dim}, h, w), not {tuple(latents.shape)}")
        network = self.linear_decoder if linear else self.decoder[1]
        if network is None:
            raise CodecError("this codec has no linear decoder: decode with linear=False")
        parameter = next(network.parameters(), None)
        with torch.no_grad():
            v = expand(latents.float(), latent_bits=self.latent_bits)
            if parameter is not None:
                v = v.to(device=parameter.device, dtype=parameter.dtype)
            halo = halo_cells(network)
            if halo is None or v.shape[2] * v.shape[3] <= _WHOLE_CELLS:
                pictures = self.wavelet_synthesis(network(v).float(), J=self.J)
            else:
                # Coefficients take 2^J times the pixels' memory and a network several times that: only a tile's worth.
                align = network.align_cells if isinstance(network, Decoder) else 1
                pictures = decode_tiled(lambda piece: network(piece).float(), v, J=self.J, halo=halo, align=align)
            return pictures.clamp_(-0.5, 0.5)

    def decode_bands(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode one latent to grey levels, from top to bottom: what `decode` gives, in memory that does not grow with
        the picture's height.

        Args:
            latent: (latent_dim, h, w) int8.

        Yields:
            (C, rows, 2^J * w) uint8, on the CPU; one band of all rows where the picture is small, or where the decoder
            sees all of it at once.
        """
        network = self.decoder[1]
        halo = halo_cells(network)
        if halo is None or latent.shape[1] * latent.shape[2] <= _WHOLE_CELLS:
            yield _grey_levels(self.decode(latent[None])[0])
            return
        parameter = next(network.parameters())
        width = latent.shape[2] << self.J

        def coefficients(piece: Tensor) -> Tensor:
            v = expand(piece.float(), latent_bits=self.latent_bits)
            result: Tensor = network(v.to(device=parameter.device, dtype=parameter.dtype)).float()
            return result

        align = network.align_cells if isinstance(network, Decoder) else 1
        with torch.no_grad():
            band = None
            for _, left, tile in decode_tiles(coefficients, latent[None], J=self.J, halo=halo, align=align):
                if left == 0:
                    if band is not None:
                        yield band
                    band = torch.empty(self.channels, tile.shape[2], width, dtype=torch.uint8)
                assert band is not None  # noqa: S101  # a row of tiles begins at the left
                band[:, :, left : left + tile.shape[3]] = _grey_levels(tile[0])
            if band is not None:
                yield band

    @property
    def spec(self) -> CodecSpec:
        """The codec's shape, name and hash, as data sets record them."""
        return CodecSpec(
            name=self.name, channels=self.channels, J=self.J, latent_dim=self.latent_dim,
            latent_bits=self.latent_bits, wavelet="bior4.4", encoder_sha256=self.encoder_sha256,
        )  # fmt: skip

    @property
    def encoder_sha256(self) -> str:
        """`walloc_data.format.encoder_sha256` of the present weights."""
        spec = {
            "channels": self.channels, "J": self.J, "latent_dim": self.latent_dim, "latent_bits": self.latent_bits,
            "wavelet": "bior4.4",
        }  # fmt: skip
        if (fused := self._fused_encoders()) is not None:
            encoder = next(iter(fused.values()))  # the float32 weights, also where the module was cast since
            weight, bias = encoder.weight, encoder.bias
        else:
            weight, bias = (parameter.detach().float().cpu() for parameter in self._float32_encoder_weights())
        return encoder_sha256(spec, weight.flatten().tolist(), bias.tolist())

    def linear_encoder(self, device: torch.device | str = "cpu") -> LinearEncoder:
        """Return the fused encoder for the present weights; it is kept until they change."""
        fused_by_device = self._fused_encoders()
        if fused_by_device is None:
            weight, bias = self._float32_encoder_weights()
            fused = LinearEncoder(
                weight.flatten(1), bias, channels=self.channels, J=self.J, latent_bits=self.latent_bits
            )
            fused_by_device = {fused.device: fused}
            self._keep(fused_by_device)
        device = torch.device(device)
        if device not in fused_by_device:
            fused_by_device[device] = next(iter(fused_by_device.values())).to(device)
        return fused_by_device[device]

    def _encoder_weights(self) -> tuple[Tensor, Tensor]:
        convolution = self.encoder[0]
        if not isinstance(convolution, nn.Conv2d) or convolution.bias is None:
            raise CodecError("the encoder must be a 1x1 convolution with a bias")
        return convolution.weight, convolution.bias

    def _float32_encoder_weights(self) -> tuple[Tensor, Tensor]:
        weight, bias = self._encoder_weights()
        if weight.dtype not in (torch.float32, torch.float64):
            raise CodecError(f"encode takes float32 encoder weights, not {weight.dtype}: load the codec anew")
        return weight, bias

    def _fused_encoders(self) -> dict[torch.device, LinearEncoder] | None:
        """Return the fused encoders by device; None if there are none, or if the weights have changed since.

        Values are compared, because neither addresses nor version counters show every change (`parameter.data`), and
        tensors that were made in inference mode have no counters.
        """
        if self._fused is None:
            return None
        *copies, encoders = self._fused
        for now, copy in zip(self._encoder_weights(), copies, strict=True):
            if (now.dtype, now.device) != (copy.dtype, copy.device) or not torch.equal(now, copy):
                return None
        return encoders

    def _keep(self, encoders: dict[torch.device, LinearEncoder]) -> None:
        weight, bias = self._encoder_weights()
        self._fused = (weight.detach().clone(), bias.detach().clone(), encoders)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WallocCodec":
        # Moving or casting the module does not change which codec it is: a codec in bfloat16 still encodes with the
        # float32 weights that it was loaded with.
        fused, self._fused = self._fused_encoders(), None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if fused is not None:
            self._keep(fused)
        return self
