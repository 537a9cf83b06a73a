"""A uint8 picture has one latent: the formula's, on whatever path it is computed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from walloc_data.codec import LinearEncoder, WallocCodec, encoding, wavelet_analysis
from walloc_data.errors import CodecError
from walloc_data.latents import compand


def formula(codec: WallocCodec, picture: Tensor) -> tuple[Tensor, Tensor]:
    """The companded values, and their rounding, all in float64: analysis, projection, companding."""
    encoder = codec.linear_encoder()
    X = wavelet_analysis(picture.double() / 255 - 0.5, codec.J)
    v = torch.einsum("oc,nchw->nohw", encoder.weight.double(), X) + encoder.bias.double()[:, None, None]
    u = compand(v, latent_bits=codec.latent_bits)
    return u, torch.round(u).to(torch.int8)


def crops(picture: Tensor, count: int = 16) -> Tensor:
    rows = [picture[0, :, 16 * i : 16 * i + 256, 24 * i : 24 * i + 256] for i in range(count)]
    return torch.stack(rows)


def random_codec(*, channels: int = 3, J: int = 3, latent_dim: int = 12, latent_bits: int = 8) -> WallocCodec:
    torch.manual_seed(J + latent_dim)
    codec = WallocCodec(channels=channels, J=J, latent_dim=latent_dim, latent_bits=latent_bits)
    torch.nn.init.orthogonal_(codec.encoder[0].weight, gain=10)
    return codec.eval()


@pytest.mark.slow
def test_latents_are_the_float64_formula_everywhere(
    codec: WallocCodec, kodak_pictures: list[Tensor], imagenette_pictures: list[Tensor]
) -> None:
    for picture in [*kodak_pictures, *imagenette_pictures]:
        assert torch.equal(codec.encode(picture), formula(codec, picture)[1])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def onednn(enabled: bool) -> Iterator[None]:
    """torch.backends.mkldnn.flags also sets TF32, which warns on a CPU."""
    torch._C._set_mkldnn_enabled(enabled)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "num_threads", "mkldnn"), [(1, 2, True), (3, 1, False), (3, 2, False), (16, 1, True)]
)
def test_latents_do_not_depend_on_batch_threads_or_kernels(
    codec: WallocCodec, kodak_pictures: list[Tensor], batch: int, num_threads: int, mkldnn: bool
) -> None:
    pictures = crops(kodak_pictures[0])
    expected = torch.cat([formula(codec, picture[None])[1] for picture in pictures])
    with threads(num_threads), onednn(mkldnn):
        found = torch.cat([codec.encode(part) for part in pictures.split(batch)])
    assert torch.equal(found, expected)


def test_latents_do_not_depend_on_layout_or_strips(
    codec: WallocCodec, kodak_pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = kodak_pictures[1]
    expected = codec.encode(picture)
    assert torch.equal(codec.encode(picture.contiguous()), expected)
    assert torch.equal(codec.encode(torch.cat((picture, picture), dim=3)[:, :, :, : picture.shape[3]]), expected)
    for pixels in (2**11, 2**14, 2**30):
        monkeypatch.setattr(encoding, "_STRIP_PIXELS", {"cpu": pixels})
        assert torch.equal(codec.encode(picture), expected)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_latents_do_not_depend_on_precision_switches(
    codec: WallocCodec, kodak_pictures: list[Tensor], precision: str, autocast: bool
) -> None:
    picture = kodak_pictures[0]
    switch = torch.backends.mkldnn.matmul
    before, switch.fp32_precision = switch.fp32_precision, precision
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.inference_mode():
            found = codec.encode(picture)
            values = codec.linear_encoder().values(picture)
        assert switch.fp32_precision == precision  # as the program had it
    finally:
        switch.fp32_precision = before
    u, expected = formula(codec, picture)
    assert torch.equal(found, expected)
    assert (compand(values, latent_bits=8) - u).abs().max() < codec.linear_encoder().margin


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_latents_of_a_gpu_are_those_of_a_cpu(codec: WallocCodec, kodak_pictures: list[Tensor]) -> None:
    for picture in kodak_pictures:
        assert torch.equal(codec.encode(picture.cuda()).cpu(), codec.encode(picture))


@pytest.mark.parametrize("size", [(8, 8), (8, 64), (16, 8), (24, 40), (56, 72)])
def test_pictures_smaller_than_a_filter_are_exact(codec: WallocCodec, size: tuple[int, int]) -> None:
    pictures = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(pictures), formula(codec, pictures)[1])


@pytest.mark.parametrize(
    ("channels", "J", "latent_dim", "latent_bits"),
    [(1, 3, 4, 8), (3, 1, 3, 6), (3, 2, 12, 8), (3, 3, 48, 5), (1, 4, 16, 8)],
)
def test_other_shapes_of_codec_are_exact(channels: int, J: int, latent_dim: int, latent_bits: int) -> None:
    codec = random_codec(channels=channels, J=J, latent_dim=latent_dim, latent_bits=latent_bits)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, channels, 64, 96), dtype=torch.uint8, generator=generator)
    assert torch.equal(codec.encode(pictures), formula(codec, pictures)[1])


def adversary(codec: WallocCodec) -> Tensor:
    """Pictures that drive each latent channel as far as pixels can: every pixel black or white by its tap's sign."""
    kernel = codec.linear_encoder()._exact_kernel.view(57, 57, 3, codec.latent_dim).permute(3, 2, 0, 1)
    pictures = torch.zeros(2 * codec.latent_dim, 3, 120, 120, dtype=torch.uint8)
    pictures[:, :, 28:85, 28:85] = torch.cat((kernel > 0, kernel < 0)).to(torch.uint8) * 255
    return pictures


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("mkldnn", [True, False])
def test_the_float32_filter_errs_by_less_than_half_its_margin(
    codec: WallocCodec, kodak_pictures: list[Tensor], mkldnn: bool, device: str
) -> None:
    encoder = codec.linear_encoder().to(torch.device(device))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8, generator=generator)
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    with onednn(mkldnn):
        for pictures in [*kodak_pictures[:4], noise, noise // 255 * 255, white, adversary(codec)]:
            u = compand(encoder.values(pictures.to(device)).cpu(), latent_bits=8)
            assert (u - formula(codec, pictures)[0]).abs().max() < encoder.margin / 2


def test_no_pictures_have_no_latents(codec: WallocCodec) -> None:
    none = torch.zeros(0, 3, 64, 96, dtype=torch.uint8)
    assert codec.encode(none).shape == codec.linear_encoder().values(none).shape == (0, 12, 8, 12)


def test_threads_share_the_precision_switch(codec: WallocCodec, kodak_pictures: list[Tensor]) -> None:
    switch = torch.backends.mkldnn.matmul
    pictures = torch.cat([kodak_pictures[0]] * 6)
    expected = codec.encode(kodak_pictures[0]).expand(6, -1, -1, -1)
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(codec.encode, pictures.split(1)))
        assert switch.fp32_precision == "bf16"  # put back by the last, whatever order they ended in
    finally:
        switch.fp32_precision = before
    assert torch.equal(torch.cat(found), expected)


def test_a_picture_of_nothing_but_doubtful_values_is_settled(
    codec: WallocCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A flat picture, and a bias that puts all its values on a rounding boundary.
    flat = torch.full((1, 3, 256, 256), 77, dtype=torch.uint8)
    twin = WallocCodec()
    twin.load_state_dict(codec.state_dict())
    encoder = codec.linear_encoder()
    v = (encoder.weight.double() @ wavelet_analysis(flat[:, :, :64, :64].double() / 255 - 0.5)[0, :, 4, 4]).tolist()
    edges = [float(edge) for edge in encoder._edges()]
    with torch.no_grad():
        twin.encoder[0].bias.copy_(torch.tensor([edges[130 + i] - value for i, value in enumerate(v)]))
    windows: list[int] = []
    gather = encoding.gather_windows
    monkeypatch.setattr(encoding, "gather_windows", lambda w, index: windows.append(len(index[0])) or gather(w, index))
    latent = twin.encode(flat)
    assert sum(windows) == 32 * 32 * 12
    assert max(windows) * 57 * 57 * 3 * 8 <= encoding._WINDOW_BYTES["cpu"]
    assert (latent == latent[:, :, :1, :1]).all()  # one colour, one value
    assert torch.equal(latent, twin.encode(flat.contiguous()))


def test_sums_of_the_second_pass_are_exact_integers(codec: WallocCodec) -> None:
    encoder = codec.linear_encoder()
    taps = encoder._exact_kernel / 2
    assert torch.equal(taps, taps.round())
    largest = (taps.abs().sum(0) * 255).max().item()
    assert 2**50 < largest < 2**53  # as fine a grid as float64 can sum without rounding
    window = torch.randint(0, 256, (len(taps),), generator=torch.Generator().manual_seed(0)) * 2 - 255
    whole = sum(int(tap) * int(pixel) for tap, pixel in zip(taps[:, 0].tolist(), window.tolist(), strict=True))
    for order in (slice(None), torch.randperm(len(taps), generator=torch.Generator().manual_seed(1))):
        assert (taps[order, 0] @ window[order].double()).item() == whole


def test_no_boundary_lies_where_another_math_library_would_round_it_elsewhere(codec: WallocCodec) -> None:
    # Boundaries lie on a grid of 2^-32. None is so near to the middle of two points that an error in the last place
    # of the inverse normal distribution could move it.
    from statistics import NormalDist

    for bits in range(2, 9):
        largest = 2 ** (bits - 1) - 1
        normal, m = NormalDist(sigma=largest / 1.85), largest + 0.499
        for k in range(largest):
            value = normal.inv_cdf((k + 0.5) / (2 * m) + 0.5) * 2**32
            assert abs(value - int(value) - 0.5) > 1e-4  # an error in the last place is below 1e-5 here


def test_float_pictures_take_the_same_path(codec: WallocCodec, kodak_pictures: list[Tensor]) -> None:
    picture = kodak_pictures[0]
    found = codec.encode(picture.float() / 255 - 0.5).int()
    difference = (found - codec.encode(picture).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-4


def test_memory_is_bounded_by_a_strip_not_by_the_picture(codec: WallocCodec) -> None:
    import resource

    side = 4096  # 50 MB of uint8; one float32 copy would be 200 MB, and pass 1 has three
    picture = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    picture[0, ::7, ::5] = 200
    codec.encode(picture[:, :64, :64].permute(0, 3, 1, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    latent = codec.encode(picture.permute(0, 3, 1, 2))
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert latent.shape == (1, 12, side // 8, side // 8)
    assert grown_mb < 80
    # The middle does not see the wrap: a part of the picture alone gives the same.
    assert torch.equal(
        codec.encode(picture[:, 2800:3080, 2800:3080].permute(0, 3, 1, 2))[0, :, 4:-4, 4:-4],
        latent[0, :, 354:381, 354:381],
    )


def test_wrong_pictures_are_refused_by_name(codec: WallocCodec) -> None:
    with pytest.raises(CodecError, match=r"takes pictures \(N, 3, H, W\), not \(1, 4, 8, 8\)"):
        codec.encode(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(CodecError, match=r"multiples of 8, not 8 x 12: pad the picture first"):
        codec.encode(torch.zeros(1, 3, 8, 12, dtype=torch.uint8))
    with pytest.raises(CodecError, match=r"uint8 pictures, or floats in \[-0.5, 0.5\], not torch.int32"):
        codec.encode(torch.zeros(1, 3, 8, 8, dtype=torch.int32))
    with pytest.raises(CodecError, match="NaN or infinity"):
        LinearEncoder(torch.full((12, 192), float("nan")), torch.zeros(12), channels=3, J=3, latent_bits=8)
    with pytest.raises(CodecError, match="too large"):
        LinearEncoder(torch.full((12, 192), 1e5), torch.zeros(12), channels=3, J=3, latent_bits=8)
    with pytest.raises(CodecError, match="1 to 4 wavelet levels, not J=5"):
        LinearEncoder(torch.zeros(4, 1024), torch.zeros(4), channels=1, J=5, latent_bits=8)


@pytest.mark.parametrize(
    ("value", "found"), [(200.0, "from 0 to 200"), (-1.5, "from -1.5 to 0"), (float("nan"), "from nan to nan")]
)
def test_floats_of_another_range_are_refused(codec: WallocCodec, value: float, found: str) -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[0, 1, 2, 3] = value
    for encode in (codec.encode, codec.linear_encoder().values):
        with pytest.raises(CodecError, match=rf"encode takes floats in \[-0.5, 0.5\], not {found}: give uint8"):
            encode(images)
