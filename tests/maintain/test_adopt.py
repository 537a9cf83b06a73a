"""Latents that exist already become a data set of ours: byte for byte where they can, integer for integer always."""

import io
import os
import random
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.convert.conftest import Warm, hashes, make_folder, picture
from tests.maintain.conftest import assert_whole
from walloc_data import LatentDataset, encode_dataset
from walloc_data.cli import main
from walloc_data.codec import load_codec, save_codec
from walloc_data.convert import verify_dataset
from walloc_data.convert.adopted import read_packed
from walloc_data.errors import CodecError, FormatError, SettingsMismatchError, SourceError
from walloc_data.format import CodecSpec
from walloc_data.latents import pack
from walloc_data.maintain import AdoptedSource, adopt_dataset, append_dataset
from walloc_data.pictures import PictureError
from walloc_data.sources import open_source

NUMBER = 12


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A parquet file as the codec's author publishes: Pillow's WebP bytes in `image`, a label; and the latents."""
    codec, _ = load_codec()
    import torch

    latents, rows = [], []
    for number in range(NUMBER):
        height, width = ((288, 384), (320, 288))[number % 2]
        pixels = np.asarray(picture(number, width=width // 4, height=height // 4))
        latent = codec.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        buffer = io.BytesIO()
        Image.fromarray(pack(latent)[0]).save(buffer, "WEBP", lossless=True)
        latents.append(latent[0].numpy())
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 3})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])})
    path = tmp_path_factory.mktemp("published") / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path, latents


def by_position(out: Path) -> dict[int, Any]:
    data = LatentDataset(out)
    table = pyarrow.parquet.read_table(out / data.record.index_name("train"))
    return {i: latent.numpy() for i, (latent, _) in zip(table["source_index"].to_pylist(), data, strict=True)}


def test_a_column_of_webp_becomes_a_data_set_with_the_same_integers_and_bytes(
    published: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    path, latents = published
    command = ["adopt", str(path), str(tmp_path / "out"), "--codec", "rgb-16x-v1", "--samples-per-shard", "5"]
    assert main(command) == 0
    assert_whole(tmp_path / "out")
    data = LatentDataset(tmp_path / "out")
    assert data.manifest.class_names == ("ant", "bee", "cow")
    assert len(data.record.shards) == 3
    found = by_position(tmp_path / "out")
    assert sorted(found) == list(range(NUMBER))
    for number, latent in enumerate(latents):
        np.testing.assert_array_equal(found[number], latent)
    files = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    stored = {bytes(row["image"]["bytes"]) for row in files.cast_column("image", datasets.Image(decode=False))}
    with tarfile.open(tmp_path / "out" / "data" / "train-00000.tar") as tar:
        members = [tar.extractfile(member).read() for member in tar if member.name.endswith(".webp")]  # type: ignore[union-attr]
    assert len(members) == 5
    assert set(members) <= stored
    source = AdoptedSource(open_source(path))
    assert verify_dataset(tmp_path / "out", split="train", source=source, progress=False).problems == ()
    assert main([*command, "--json"]) == 0


def test_an_adopted_split_is_a_split_like_any_other(published: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    path, _ = published
    adopt_dataset(path, tmp_path / "out", codec="rgb-16x-v1", progress=False)
    data = LatentDataset(tmp_path / "out", shuffle=True, seed=1)
    batch, _ = next(iter(data.loader(batch_size=4, bucket_by_shape=True)))
    assert batch.shape[:2] == (4, 12)
    encode_dataset(make_folder(tmp_path / "pictures"), tmp_path / "val", split="val", progress=False)
    append_dataset([(np.asarray(picture(5)), "dog")], tmp_path / "out", progress=False)
    assert_whole(tmp_path / "out")
    assert len(LatentDataset(tmp_path / "out")) == NUMBER + 1
    assert LatentDataset(tmp_path / "out").manifest.class_names == ("ant", "bee", "cow", "dog")


def test_settings_say_how_the_pictures_were_prepared(published: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    path, _ = published
    adopt_dataset(path, tmp_path / "out", codec="rgb-16x-v1", resize="shorter:72", progress=False)
    assert LatentDataset(tmp_path / "out").manifest.settings.resize == "shorter"
    assert_whole(tmp_path / "out")
    with pytest.raises(FormatError, match="mirrored latents need the pictures"):
        adopt_dataset(path, tmp_path / "other", codec="rgb-16x-v1", mirror=True)
    with pytest.raises(SettingsMismatchError, match="begun differently"):  # its pictures are no latents
        encode_dataset(path, tmp_path / "out", progress=False)


def lossy(pixels: np.ndarray) -> bytes:
    return as_file(pixels, "WEBP", quality=80)


def as_file(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_other_lossless_files_are_stored_as_webp_and_what_is_no_latent_is_a_failure(
    published: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    import torch

    _, latents = published
    packed = [pack(torch.from_numpy(latent)[None])[0] for latent in latents]
    exif = Image.Exif()
    exif[0x0112] = 6  # an orientation, which means nothing for a latent
    items = [
        as_file(packed[0], "PNG"),
        as_file(packed[1], "TIFF"),
        as_file(packed[2], "WEBP", lossless=True, exif=exif.tobytes()),  # a container with metadata
        as_file(packed[3], "WEBP", lossless=True) + b"more",
        packed[4],  # an array
        lossy(packed[5]),
        as_file(packed[6], "JPEG"),
        as_file(np.dstack([packed[7], packed[7][..., 0]]), "WEBP", lossless=True, exact=True),
        as_file(packed[8][:-1], "WEBP", lossless=True),
        as_file(packed[9][..., 0], "PNG"),
        b"",
        as_file(packed[11], "WEBP", lossless=True)[:-40],
    ]
    summary = adopt_dataset(items, tmp_path / "out", codec="rgb-16x-v1", progress=False)
    assert (summary.num_samples, summary.num_failures) == (5, 7)
    assert_whole(tmp_path / "out")
    found = by_position(tmp_path / "out")
    for number in range(5):
        np.testing.assert_array_equal(found[number], latents[number])
    reasons = (tmp_path / "out" / "failures" / "train.jsonl").read_text()
    for reason in (
        "a lossy WebP file, which does not contain the exact values of a latent",
        "not a lossless picture (WEBP, PNG, TIFF, BMP, PPM)",
        "a picture of mode RGBA, and the codec packs 3 colours without alpha",
        "do not split into 2 x 2 tiles, as the codec packs them",
        "a picture of mode L, and the codec packs 3 colours",
        "0 bytes",
    ):
        assert reason in reasons, reason


def test_photographs_are_not_taken_for_latents(kodak: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"not latents: decoded by codec 'rgb-16x-v1' .* If these are pictures"):
        adopt_dataset([path.read_bytes() for path in kodak[:3]], tmp_path / "out", codec="rgb-16x-v1", progress=False)
    with pytest.raises(SourceError, match="holds no latents of this codec: 0: not a lossless picture"):
        adopt_dataset([b"text"], tmp_path / "out", codec="rgb-16x-v1", progress=False)
    assert not (tmp_path / "out").exists()


def test_values_outside_the_codecs_bits_are_refused() -> None:
    spec = CodecSpec.from_dict({**load_codec(decoder=False)[0].spec.to_dict(), "latent_bits": 4}, context="test")
    packed = np.full((8, 8, 3), 128, np.uint8)
    packed[0, 0] = (120, 135, 128)
    assert read_packed(as_file(packed, "PNG"), spec=spec)[1] == (32, 32)
    packed[0, 0] = (136, 128, 128)
    with pytest.raises(PictureError, match=r"values from 128 to 136; of 4 bits they lie within 128 \+- 8"):
        read_packed(as_file(packed, "PNG"), spec=spec)


@pytest.mark.slow
def test_killed_and_resumed_by_other_numbers_of_workers_the_bytes_are_the_same(
    published: tuple[Path, list[np.ndarray]], warm_maintain: Warm, tmp_path: Path
) -> None:
    path, _ = published
    options = {"codec": "rgb-16x-v1", "samples_per_shard": 2, "progress": False}
    adopt_dataset(path, tmp_path / "reference", **options)
    expected = hashes(tmp_path / "reference")
    moments, killed = random.Random(1), 0
    out = tmp_path / "out"
    for number in range(8):
        process = warm_maintain.start(["adopt_dataset", [str(path), str(out)], options])
        time.sleep(moments.uniform(0.1, 1.5))
        os.kill(process, signal.SIGKILL)
        code, _ = warm_maintain.end()
        killed += code == -signal.SIGKILL
        if (out / "walloc.json").exists():
            assert hashes(out) == expected
            out = tmp_path / f"out-{number}"
    assert killed >= 2
    adopt_dataset(path, out, workers=2, **options)
    assert hashes(out) == expected


def test_latents_of_another_codec_folder_are_adopted_by_it(tmp_path: Path) -> None:
    save_codec(load_codec()[0], tmp_path / "codec", name="mine")
    stored = [pack(load_codec()[0].encode(_images()))[0]]
    adopt_dataset(stored, tmp_path / "out", codec=tmp_path / "codec", progress=False)
    assert LatentDataset(tmp_path / "out").manifest.codec.name == "mine"
    assert_whole(tmp_path / "out")


def _images() -> Any:
    import torch

    return torch.from_numpy(np.asarray(picture(0)).copy()).permute(2, 0, 1)[None]
