"""Pictures of samples of an open data set, and its contact sheet in a notebook."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walloc_data import LatentDataset, encode_dataset, load_codec
from walloc_data.errors import FormatError
from walloc_data.pictures import decoded_pixels
from walloc_data.report import picture, show


@pytest.fixture(scope="module")
def data(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    out = tmp_path_factory.mktemp("notebook")
    encode_dataset(imagenette_folder, out / "latents", size_px=100, progress=False)  # padded to 104
    return LatentDataset(out / "latents", cache_folder=out / "cache")


def test_a_picture_is_what_the_codec_decodes_of_the_sample(data: LatentDataset) -> None:
    codec, _ = load_codec(data.store.local_path / "codec")
    part = data.subset(rows=[3, 7])
    for sample, found in ((data[3], picture(data, 3)), (data[7], picture(part, -1))):
        expected = decoded_pixels(codec.decode(sample[0][None])[0], height=100, width=100, cell_px=8)
        assert np.array_equal(np.asarray(found), expected)
    with pytest.raises(IndexError, match="sample 2 of 2"):
        picture(part, 2)


def test_a_notebook_draws_the_sheet_of_a_part(data: LatentDataset) -> None:
    part = data.subset(classes=[0], relabel=True)
    sheet = show(part, num_samples=2)
    assert repr(sheet).startswith("ContactSheet('latents · train', ")
    with Image.open(io.BytesIO(sheet._repr_png_())) as drawn:
        assert drawn.size == sheet.picture.size
        assert np.array_equal(np.asarray(drawn), np.asarray(sheet.picture))
    assert sheet._repr_html_().startswith('<img alt="latents · train" style="max-width: 100%" src="data:image/png;base')
    assert show(part, positions=[0]).picture.height < sheet.picture.height
    with pytest.raises(FormatError, match="0 samples to show"):
        show(part, positions=[])
    with pytest.raises(FormatError, match=r"num_samples must be in \[1, 200\], not -1"):
        show(part, num_samples=-1)
