"""Augmentations do to latents what they claim, draw from seeds, and are measured against the same thing on pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup
from torch import Tensor

from walloc_data.codec import load_codec
from walloc_data.errors import CodecError, StorageError, TransformError
from walloc_data.format import CodecSpec
from walloc_data.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    LatentOperators,
    QuantizationNoise,
    RandomApply,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomTranslate,
    Resize,
    fit_operators,
)


def load(path: Path) -> Tensor:
    """(1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].contiguous()


@pytest.fixture(scope="module")
def codec():
    return load_codec(None, decoder=False)[0]


@pytest.fixture(scope="module")
def photographs(kodak: list[Path]) -> Tensor:
    """(11, 3, 256, 384) uint8: the middle of each Kodak photograph."""
    pictures = [load(path) for path in kodak]
    return torch.cat([p[..., 128:384, 64:448] if p.shape[3] > p.shape[2] else p[..., 64:320, 64:448] for p in pictures])


@pytest.fixture(scope="module")
def operators(codec, photographs) -> LatentOperators:
    return fit_operators(
        codec, photographs[:8].split(1), held_out=photographs[8:].split(1), flip_window_cells=(1, 5), factors=[]
    )


@pytest.fixture
def latents() -> Tensor:
    return torch.randint(-100, 100, (64, 12, 8, 10), generator=torch.Generator().manual_seed(0)).to(torch.int8)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Squared error relative to the variance, averaged over channels."""
    error = (got.float() - expected.float()).square().mean((0, 2, 3))
    return float((error / expected.float().var((0, 2, 3)).clamp_min(1e-6)).mean())


def test_a_fitted_flip_is_much_nearer_to_the_mirrored_picture_than_reversing_cells(codec, photographs, operators):
    held_out = photographs[8:]
    z, mirrored = codec.encode(held_out), codec.encode(held_out.flip(-1))
    fitted = RandomHorizontalFlip(operators.flip, p=1.0)(z)
    naive = RandomHorizontalFlip(p=1.0)(z)
    assert torch.equal(naive, z.flip(-1))
    assert relative_error(naive, mirrored) > 0.3
    assert relative_error(fitted, mirrored) < 0.2 * relative_error(naive, mirrored)
    # What the fit reported of pictures it had not seen is what is measured here.
    assert operators.held_out_error["flip"] == pytest.approx(relative_error(fitted, mirrored), rel=0.05)
    assert operators.held_out_error["flip_naive"] == pytest.approx(relative_error(naive, mirrored), rel=0.05)


def test_flipping_twice_nearly_returns(codec, photographs, operators):
    z = codec.encode(photographs[8:])
    flip = RandomHorizontalFlip(operators.flip, p=1.0)
    assert relative_error(flip(flip(z)), z) < 0.1


def test_brightness_and_contrast_match_the_pixels(codec, photographs, operators):
    x = photographs[8:].float() / 255 * 0.5 + 0.25  # room on both sides: pixel clipping is not modelled
    z = codec.encode((x * 255).round().to(torch.uint8))
    for jitter, pixels in [
        (ColorJitter(operators, brightness=(1.3, 1.3)), x * 1.3),
        (ColorJitter(operators, brightness=(0.6, 0.6)), x * 0.6),
        (ColorJitter(operators, contrast=(0.5, 0.5)), _contrast(x, 0.5)),
        (ColorJitter(operators, contrast=(1.4, 1.4)), _contrast(x, 1.4)),
    ]:
        expected = codec.encode((pixels * 255).round().clamp(0, 255).to(torch.uint8))
        got = jitter(z)
        # Both sides were rounded: half a step each is the noise of storing integers, scaled by the factor.
        assert (got - expected.float()).abs().max() < 2.2
        assert (got - expected.float()).square().mean().sqrt() < 0.6


def _contrast(x: Tensor, factor: float) -> Tensor:
    luma = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    return factor * x + (1 - factor) * luma


def test_grey_and_saturation_match_the_pixels_by_a_fitted_map(codec, photographs, operators):
    x = photographs[8:]
    luma = (x.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    z = codec.encode(x)
    grey = codec.encode(luma.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous())
    got = RandomGrayscale(operators, p=1.0)(z)
    assert (got - grey.float()).square().mean() < 0.02 * grey.float().var()
    halfway = codec.encode((0.5 * x.float() + 0.5 * luma).round().to(torch.uint8))
    got = ColorJitter(operators, saturation=(0.5, 0.5))(z)
    assert (got - halfway.float()).square().mean() < 0.02 * halfway.float().var()


def test_a_jitter_of_nothing_changes_nothing(operators, latents):
    unchanged = ColorJitter(operators, brightness=(1, 1), contrast=(1, 1), saturation=(1, 1))(latents)
    torch.testing.assert_close(unchanged, latents.float(), rtol=0, atol=1e-2)


def test_a_crop_at_whole_cells_is_the_crop_of_the_picture_but_for_a_ring(codec, photographs):
    x = photographs[:2]
    z = codec.encode(x)
    crop = CenterCrop((24, 32))(z)
    expected = codec.encode(x[..., 32:224, 64:320].contiguous())
    inner = (..., slice(4, -4), slice(4, -4))
    assert torch.equal(crop[inner], expected[inner])


def test_crops_come_from_everywhere_and_keep_values(latents):
    z = torch.arange(8 * 10).reshape(1, 1, 8, 10).expand(500, 2, 8, 10).to(torch.int8)
    out = RandomCrop((3, 4))(z, generator=torch.Generator().manual_seed(0))
    assert out.shape == (500, 2, 3, 4)
    assert out.dtype == torch.int8
    corners = out[:, 0, 0, 0].long()
    assert set(corners.tolist()) == {10 * row + column for row in range(6) for column in range(7)}
    assert (out[:, 0, 2, 3].long() == corners + 23).all()


def test_translation_fills_with_what_is_asked(latents):
    fill = torch.arange(12) - 6
    out = RandomTranslate(3, fill=fill)(latents, generator=torch.Generator().manual_seed(3))
    assert out.shape == latents.shape
    assert out.dtype == torch.int8
    moved = 0
    for before, after in zip(latents, out, strict=True):
        found = False
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                expected = fill.to(torch.int8)[:, None, None].expand(12, 14, 16).clone()
                expected[:, 3:11, 3:13] = before
                if torch.equal(expected[:, 3 + dy : 11 + dy, 3 + dx : 13 + dx], after):
                    found, moved = True, moved + ((dy, dx) != (0, 0))
        assert found
    assert moved > 50


def test_erasing_fills_one_rectangle_of_each_chosen_sample(latents):
    out = RandomErasing(p=0.5, scale=(0.1, 0.4), fill=[7] * 12)(latents, generator=torch.Generator().manual_seed(0))
    changed = (out != latents).any(1)
    erased = changed.flatten(1).any(1)
    assert 20 < int(erased.sum()) < 44
    for before, after in zip(latents[erased], out[erased], strict=True):
        rows, columns = (after == 7).all(0).any(1).nonzero()[:, 0], (after == 7).all(0).any(0).nonzero()[:, 0]
        box = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert (after[box] == 7).all()
        rest = after.clone()
        rest[box] = before[box]
        assert torch.equal(rest, before)


def test_crops_without_a_size_are_exact_windows(latents):
    exact = RandomResizedCrop(scale=(0.3, 0.3), ratio=(1, 1))(latents, generator=torch.Generator().manual_seed(0))
    assert exact.shape == (64, 12, 5, 5)
    assert exact.dtype == torch.int8
    windows = latents[0].unfold(1, 5, 1).unfold(2, 5, 1)  # (12, 4, 6, 5, 5)
    assert (windows == exact[0][:, None, None]).all(4).all(3).all(0).any()


def test_noise_stays_within_the_quantisation_step(latents):
    noise = QuantizationNoise()(latents) - latents
    assert noise.min() >= -0.5
    assert noise.max() <= 0.5
    assert noise.var() == pytest.approx(1 / 12, rel=0.02)


def test_each_sample_draws_its_own_coin(latents):
    flipped = (RandomHorizontalFlip(p=0.3)(latents, generator=torch.Generator().manual_seed(1)) != latents).any(3)
    assert 10 < int(flipped.any(2).any(1).sum()) < 30
    half = RandomApply(QuantizationNoise(), p=0.5)(latents, generator=torch.Generator().manual_seed(1))
    assert 20 < int((half != latents).any(3).any(2).any(1).sum()) < 44


@pytest.mark.parametrize("which", ["generator", "global seed"])
def test_the_same_seed_gives_the_same_batch(which, operators, latents):
    augment = Compose(
        [
            RandomTranslate(1),
            RandomHorizontalFlip(operators.flip),
            RandomCrop((6, 8)),
            ColorJitter(operators, brightness=0.3, contrast=0.3, saturation=0.3),
            RandomGrayscale(operators, p=0.2),
            RandomErasing(),
            QuantizationNoise(),
        ]
    )

    def run(seed: int) -> Tensor:
        if which == "generator":
            torch.manual_seed(seed + 1000)
            return augment(latents, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        return augment(latents)

    assert run(5).shape == (64, 12, 6, 8)
    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))


def test_a_single_latent_is_taken_as_well(latents):
    assert RandomCrop(4)(latents[0]).shape == (12, 4, 4)
    with pytest.raises(TransformError, match=r"CenterCrop takes latents \(N, C, h, w\) or \(C, h, w\), not \(8, 10\)"):
        CenterCrop(4)(latents[0, 0])


class _Crops(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensor:
        ramp = torch.arange(80).reshape(1, 8, 10).to(torch.int8)
        return RandomCrop(2)(ramp)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_draw_from_their_own_seeds(num_workers):
    def epoch(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        loader = torch.utils.data.DataLoader(
            _Crops(), batch_size=16, num_workers=num_workers, generator=generator, multiprocessing_context=None
        )
        return [int(value) for batch in loader for value in batch[:, 0, 0, 0]]

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert first == again
    assert first != other
    assert first[:16] != first[16:]  # not the same draws in each worker


def test_timm_mixup_and_cutmix_work_on_latents(latents):
    np.random.seed(0)
    mixed, target = Mixup(mixup_alpha=0.4, cutmix_alpha=1.0, num_classes=5)(latents.float(), torch.arange(64) % 5)
    assert mixed.shape == latents.shape
    assert target.shape == (64, 5)


def test_operators_are_kept_with_the_codec_and_refuse_another(operators, codec, tmp_path):
    operators.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["operators.safetensors"]
    again = LatentOperators.load(tmp_path, spec=codec.spec)
    assert torch.equal(again.flip.weight, operators.flip.weight)
    assert torch.equal(again.brightness, operators.brightness)
    assert again.held_out_error == operators.held_out_error
    (tmp_path / "dataset" / "codec").mkdir(parents=True)
    operators.save(tmp_path / "dataset" / "codec")
    assert LatentOperators.load(tmp_path / "dataset").encoder_sha256 == codec.encoder_sha256
    other = CodecSpec(**codec.spec.to_dict() | {"name": "other", "encoder_sha256": "a" * 64})
    with pytest.raises(CodecError, match="these latents are of 'other'"):
        LatentOperators.load(tmp_path, spec=other)
    (tmp_path / "operators.safetensors").write_bytes(b"\x80\x04junk")
    with pytest.raises(CodecError, match="not a file of latent operators"):
        LatentOperators.load(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"no operators.safetensors there.*fit it with walloc-data fit-operators"):
        LatentOperators.load(empty)
    with pytest.raises(StorageError, match="nowhere: no such folder, of a codec or of an encoded data set"):
        LatentOperators.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda ops: RandomHorizontalFlip(p=1.5), r"a probability lies in \[0, 1\], not 1.5"),
        (lambda ops: RandomCrop(0), "a size in cells is at least 1"),
        (lambda ops: CenterCrop(True), r"an integer or a pair \(rows, columns\) of integers, not True"),
        (lambda ops: Resize(15.5, operators=ops), "of integers, not 15.5"),
        (lambda ops: Resize("16", operators=ops), "of integers, not '16'"),
        (lambda ops: RandomResizedCrop((24,), operators=ops), r"of integers, not \(24,\)"),
        (lambda ops: RandomTranslate(-1), "max_cells must be at least 0"),
        (lambda ops: ColorJitter(ops, contrast=-0.5), "contrast must be a strength of at least 0 or a range"),
        (lambda ops: RandomCrop(9)(torch.zeros(1, 12, 8, 8)), "a crop of 9 x 9 cells does not fit latents of 8 x 8"),
    ],
)
def test_impossible_parameters_are_refused(make, words, operators):
    with pytest.raises(TransformError, match=words):
        make(operators)
