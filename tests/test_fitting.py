"""Operators are fitted from any source into the codec folder that a data set carries."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from walloc_data import encode_dataset
from walloc_data.codec import bundled_codecs
from walloc_data.errors import CodecError, SourceError
from walloc_data.fitting import fit_codec_operators
from walloc_data.regression import WindowRegression
from walloc_data.transforms import LatentOperators


@pytest.mark.slow
def test_a_data_set_gets_its_operators(imagenette_folder: Path, tmp_path: Path):
    encode_dataset(imagenette_folder, tmp_path, split="train", size_px=64, progress=False)
    some = {"pictures": imagenette_folder, "factors": [Fraction(1, 2)]}
    fitted = fit_codec_operators(tmp_path, **some)
    assert (tmp_path / "codec" / "operators.safetensors").is_file()
    loaded = LatentOperators.load(tmp_path)
    assert loaded.held_out_error == fitted.held_out_error
    assert loaded.held_out_error["flip"] < 0.25 * loaded.held_out_error["flip_naive"]
    assert loaded.factors == (Fraction(1, 2), 1)
    assert loaded.held_out_error["rescale 1/2 x 1/2"] < 0.1
    # The same pictures are drawn again.
    again = fit_codec_operators(tmp_path, **some, write=False)
    assert again.held_out_error == fitted.held_out_error


def test_what_cannot_be_fitted_is_refused(imagenette_folder: Path, tmp_path: Path):
    with pytest.raises(CodecError, match="operators are written into a codec's folder, and this is not one"):
        fit_codec_operators(bundled_codecs()[0], pictures=imagenette_folder)
    few = tmp_path / "few"
    few.mkdir()
    (few / "one.jpg").write_bytes(next(imagenette_folder.rglob("*.JPEG")).read_bytes())
    with pytest.raises(SourceError, match="1 pictures are too few"):
        fit_codec_operators(bundled_codecs()[0], pictures=few, write=False)


def test_black_latents_have_a_map_too() -> None:
    sums = WindowRegression(2, num_targets=1, window_cells=(1, 1))
    sums.update(torch.zeros(1, 2, 8, 8), torch.full((1, 1, 8, 8), 3.0))
    fitted = sums.solve()
    assert fitted.weight.abs().max() == 0
    assert fitted.bias.item() == pytest.approx(3)
