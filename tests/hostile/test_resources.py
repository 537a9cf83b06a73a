"""Disks that are full, files that are cut under a reader, caches that others write into, claims that cost memory."""

import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.hostile.mutations import SPECIAL
from walloc_data import LatentDataset, encode_dataset
from walloc_data.adapters import create_latent_model, save_latent_model
from walloc_data.cli import main
from walloc_data.codec import load_codec
from walloc_data.codec.checkpoints import BUNDLED
from walloc_data.codec.decoder_files import load_decoder
from walloc_data.dataset import index as dataset_index
from walloc_data.errors import CodecError, CorruptShardError, FormatError, LoaderError, SourceError, StorageError
from walloc_data.format import ChannelStatistics, EncodeSettings, Manifest, ShardRecord, SplitRecord
from walloc_data.format.json_text import MAX_JSON_BYTES, MAX_JSON_VALUES
from walloc_data.latents import check_packed_pixels, decode_webp
from walloc_data.report import preview
from walloc_data.serving import PictureClassifier, attach_codec, load_classifier
from walloc_data.storage import ShardCache, Store, read_manifest

Within = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a disk of so many bytes, in memory; root alone may."""
    made: list[Path] = []

    def make(num_bytes: int) -> Path:
        folder = tmp_path / f"disk-{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("needs mount")
        if done.returncode:
            pytest.skip("only root may mount a disk")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("cache", ["shards", "array"])
def test_a_full_disk_under_the_index_is_named(
    root: Path, small_disk: Callable[[int], Path], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(8192)
    (disk / "filler").write_bytes(bytes(8192))
    with pytest.raises(
        StorageError, match=r"no space for the index of .* \(\d+ bytes are free on the disk\): free some"
    ):
        LatentDataset(root, cache=cache, cache_folder=disk)  # type: ignore[arg-type]
    assert not list(disk.rglob("*.npy"))


def test_a_full_disk_in_memory_under_the_array_is_named_and_kills_nobody(
    root: Path, small_disk: Callable[[int], Path]
) -> None:
    """On tmpfs a hole that is read where there is no room ends the process (SIGBUS)."""
    disk = small_disk(16384)
    reader = LatentDataset(root, cache="array", cache_folder=disk)
    (disk / "filler").write_bytes(bytes(4096))
    with pytest.raises(
        StorageError, match=r"no space for decoded latents \(3024 bytes in all; none with cache='shards'"
    ):
        list(reader.loader(batch_size=3))
    (disk / "filler").unlink()
    assert len(list(reader.loader(batch_size=3))) == 3


@pytest.mark.parametrize("cache", ["shards", "array"])
def test_a_shard_that_is_cut_under_a_reader_is_named(root: Path, cache: str) -> None:
    reader = LatentDataset(root, cache=cache)  # type: ignore[arg-type]
    assert reader[3][0].shape == (12, 6, 6)  # of the second shard, which is open now
    os.truncate(root / "data" / "train-00001.tar", 100)
    if cache == "array":  # decoded already
        assert reader[4][0].shape == (12, 6, 6)
        return
    with pytest.raises(
        CorruptShardError,
        match=r"train-00001.tar: ends before byte \d+, but its record says 10240 bytes: it was truncated",
    ):
        reader[4]


def test_what_is_cut_in_the_cache_under_a_reader_kills_nobody(root: Path, tmp_path: Path) -> None:
    """The table of the index is named, the array of decoded latents is made anew."""
    reader = LatentDataset(root, cache="array")
    first = [latent for latent, _ in reader[:]]
    [array] = (tmp_path / "cache").rglob("latents.int8")
    os.truncate(array, 10)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, reader[:], strict=True))
    assert array.stat().st_size == 3024
    [table] = (tmp_path / "cache").rglob("*.npy")
    os.truncate(table, 10)
    with pytest.raises(FormatError, match=r"\.npy: truncated while it was in use: open the data set again"):
        reader[0]
    assert len(LatentDataset(root)[:]) == 7


def test_a_column_that_is_cut_in_the_cache_under_a_reader_is_named(tmp_path: Path) -> None:
    """Both are mapped: a read beyond the file's end would end the process (SIGBUS)."""
    rows = [{"image": np.full((8, 8, 3), i, np.uint8), "age": i, "caption": f"picture {i}"} for i in range(4)]
    encode_dataset(rows, tmp_path / "set", codec="klt-16x", progress=False)
    for name, suffix in (("age", ".npy"), ("caption", ".arrow")):
        folder = tmp_path / name
        LatentDataset(tmp_path / "set", cache_folder=folder)
        places = set(folder.rglob("*"))
        reader = LatentDataset(tmp_path / "set", columns=(name,), target=None, cache_folder=folder)
        assert sorted(int(str(reader[i][1]).split()[-1].strip("tensor()")) for i in range(4)) == [0, 1, 2, 3]
        [path] = set(folder.rglob(f"*{suffix}")) - places
        os.truncate(path, 10)
        with pytest.raises(FormatError, match=rf"\{suffix}: truncated while it was in use: open the data set again"):
            reader[0]
        again = LatentDataset(tmp_path / "set", columns=(name,), target=None, cache_folder=folder)
        assert len([again[i] for i in range(4)]) == 4


def test_what_others_put_into_the_cache_is_left_alone(root: Path, tmp_path: Path) -> None:
    store, shards = Store(root), read_manifest(Store(root)).splits["train"].shards
    cache = ShardCache(tmp_path / "cache", max_bytes=shards[0].num_bytes)
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    (folder / "theirs").mkdir()
    (folder / ("a" * 64 + ".tar")).mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "loop").symlink_to("loop")
    (folder / ("b" * 64 + ".tar")).symlink_to("b" * 64 + ".tar")
    os.mkfifo(folder / "pipe")
    before = sorted(folder.iterdir())
    for shard in shards:
        assert len(cache.open(store, shard)) == shard.num_bytes
    assert sorted(folder.iterdir()) == sorted([*before, cache.path(shards[-1])])


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop"])
def test_a_cached_shard_that_is_no_file_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    store, shard = Store(root), read_manifest(Store(root)).splits["train"].shards[0]
    cache = ShardCache(tmp_path / "cache")
    path = cache.path(shard)
    path.parent.mkdir(parents=True)
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[kind]()
    with pytest.raises(
        StorageError, match=r"\.tar: (a folder, not a file|a named pipe, |Too many levels).*: remove it"
    ):
        cache.open(store, shard)


@pytest.mark.parametrize("kind", ["index", "arrays", "locks"])
def test_a_file_where_the_cache_has_a_folder_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / kind).write_text("a file")
    if kind == "locks":
        shard = read_manifest(Store(root)).splits["train"].shards[0]
        with pytest.raises(StorageError, match=r"cannot store .*train-00000.tar"):
            ShardCache(tmp_path / "here").open(Store(root), shard)
        return
    with pytest.raises(StorageError, match="cannot store"):
        list(LatentDataset(root, cache="array", cache_folder=tmp_path / "here").loader(batch_size=3))


# Claims of size.


@pytest.mark.parametrize(
    "decoder",
    [
        {"kind": "unet", "width": 2048, "blocks": 64, "groups": 1, "half_blocks": 64, "quarter_blocks": 64},
        {"kind": "conv", "width": 2048, "blocks": 64, "groups": 1},
    ],
    ids=["unet", "conv"],
)
def test_a_codec_that_claims_gigabytes_takes_none(tmp_path: Path, within: Within, decoder: dict[str, Any]) -> None:
    value = json.loads((BUNDLED / "rgb-16x-v1" / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(value | {"decoder": decoder, "decoder_files": {}}))
    (tmp_path / "model.safetensors").write_bytes((BUNDLED / "rgb-16x-v1" / "model.safetensors").read_bytes())
    with (
        within(num_bytes=2**29),
        pytest.raises(CodecError, match=r"model.safetensors: decoder\.\S+ (is absent|has shape)"),
    ):
        load_codec(tmp_path)


@pytest.mark.parametrize(("J", "latent_dim"), [(8, 12), (8, 3888), (3, 3888)])
def test_an_encoder_that_its_weights_do_not_bear_out_takes_no_memory(
    tmp_path: Path, within: Within, J: int, latent_dim: int
) -> None:
    value = json.loads((BUNDLED / "klt-16x" / "codec.json").read_text()) | {"J": J, "latent_dim": latent_dim}
    value.pop("statistics", None)
    (tmp_path / "codec.json").write_text(json.dumps(value))
    (tmp_path / "model.safetensors").write_bytes((BUNDLED / "klt-16x" / "model.safetensors").read_bytes())
    with (
        within(num_bytes=2**29),
        pytest.raises(CodecError, match=r"encoder.weight has shape \(12, 192.*\), codec.json says"),
    ):
        load_codec(tmp_path)


def test_a_decoder_file_that_claims_gigabytes_takes_none(tmp_path: Path, within: Within) -> None:
    codec, _ = load_codec("klt-16x")
    decoder = {"kind": "conv", "width": 2048, "blocks": 64, "groups": 1}
    description = {"format_version": 1, "version": "2", "encoder_sha256": codec.encoder_sha256, "decoder": decoder}
    header = json.dumps({"__metadata__": {"walloc_data_decoder": json.dumps(description)}}).encode()
    (tmp_path / "decoder.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with within(num_bytes=2**29), pytest.raises(CodecError, match=r"decoder.safetensors: \S+ is absent"):
        load_decoder(tmp_path / "decoder.safetensors", codec=codec)


def test_a_packed_latent_of_all_of_webp_is_refused_and_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CorruptShardError, match=r"x: a packed latent of 16383 x 16382 pixels; at most 33554432 are read"
    ):
        check_packed_pixels(16382, 16383, context="x")
    monkeypatch.setenv("WALLOC_DATA_MAX_PACKED_PIXELS", str(2**28))
    check_packed_pixels(16382, 16383, context="x")
    monkeypatch.setenv("WALLOC_DATA_MAX_PACKED_PIXELS", "many")
    with pytest.raises(CodecError, match="WALLOC_DATA_MAX_PACKED_PIXELS=many: expected a number of pixels"):
        check_packed_pixels(1, 1, context="x")


def test_34_bytes_of_webp_take_no_memory(within: Within) -> None:
    bits = 16382 | 16382 << 14
    stream = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08" + b"\0" * 6
    data = b"RIFF" + struct.pack("<I", len(stream) + 12) + b"WEBPVP8L" + struct.pack("<I", len(stream)) + stream
    with within(seconds=5, num_bytes=2**28), pytest.raises(CorruptShardError, match="exceeds limit"):
        decode_webp(data)  # by Pillow's own limit; ours is lower


def test_an_index_is_converted_in_memory_that_does_not_grow_with_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, which agree with one piece."""
    whole = LatentDataset(root, cache_folder=tmp_path / "one").index
    monkeypatch.setattr(dataset_index, "_CHUNK_ROWS", 2)
    chunked = LatentDataset(root, cache_folder=tmp_path / "many").index
    assert np.array_equal(whole, chunked)
    files = [next((tmp_path / name).rglob("*.npy")).read_bytes() for name in ("one", "many")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_manifest_has_room_for_a_billion_pictures_and_is_read_in_seconds(within: Within) -> None:
    """Of a tenth of them: every number grows in step with the pictures."""
    spec = load_codec("klt-16x", decoder=False)[1].spec
    shards = tuple(
        ShardRecord(f"data/train-{i:05d}.tar", 2048, 2048 * 8000 + i, f"{i:064x}") for i in range(10**8 // 2048)
    )
    num_samples = 2048 * len(shards)
    split = SplitRecord(
        {"num_items": num_samples}, num_samples, 0, shards, (12, 32, 32), True, ChannelStatistics.zero(spec)
    )
    text = Manifest(spec, EncodeSettings(), None, {"train": split}, {"walloc_data": "0.1.0"}).to_json()
    assert 10 * len(text) < MAX_JSON_BYTES
    assert 10 * sum(map(text.count, ",[{")) < MAX_JSON_VALUES
    began = time.process_time()
    with within(num_bytes=3 * 2**29 // 10):
        assert Manifest.from_json(text.encode(), context="walloc.json").splits["train"].num_samples == num_samples
    assert time.process_time() - began < 5


def test_a_manifest_that_nobody_could_read_is_not_written() -> None:
    spec = load_codec("klt-16x", decoder=False)[1].spec
    split = SplitRecord({"notes": ["," * 2**22]}, 0, 0, (), None, False, ChannelStatistics.zero(spec))
    with pytest.raises(FormatError, match=r"a manifest of 0 shards would be longer .* \(samples_per_shard\)"):
        Manifest(spec, EncodeSettings(), None, {"train": split}, {}).to_json()


# Looking, decoding, serving.


@pytest.mark.parametrize("size", [(20000, 16), (16, 20000), (1, 1)], ids=str)
def test_a_picture_of_any_shape_is_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "pictures" / "cat" / "0.png")
    encode_dataset(tmp_path / "pictures", tmp_path / "set", codec="klt-16x", progress=False)
    for command in (["preview", "-o", str(tmp_path / "p.webp")], ["report", "-o", str(tmp_path / "r.html")]):
        assert main([command[0], str(tmp_path / "set"), *command[1:]]) == 0


def test_a_class_name_of_any_length_is_drawn_at_once(root: Path, within: Within, tmp_path: Path) -> None:
    manifest = json.loads((root / "walloc.json").read_text())
    manifest["class_names"] = ["c" * 10**6, "d" * 10**6]
    (root / "walloc.json").write_text(json.dumps(manifest))
    with within(seconds=30):
        preview(root, tmp_path / "p.webp", num_samples=2)


def test_pictures_that_cannot_be_written_end_in_one_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    assert main(["decode", str(root), "-o", "file"]) == 1
    assert capsys.readouterr().err.startswith("walloc-data: file: a file, or below a file; choose a folder")


def test_an_output_that_vanishes_while_it_is_written_ends_in_one_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from walloc_data.codec import WallocCodec
    from walloc_data.convert import decode_dataset

    decode, seen = WallocCodec.decode, []

    def vanishing(self: WallocCodec, latents: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(len(latents))
        if len(seen) == 3:
            shutil.rmtree("decoded")
        return decode(self, latents, **options)

    monkeypatch.setattr(WallocCodec, "decode", vanishing)
    with pytest.raises(StorageError, match=r"decoded: cannot write pictures \(No such file or directory\) after 2"):
        decode_dataset(root, "decoded")


@pytest.fixture(scope="module")
def classifier(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PictureClassifier]:
    folder = tmp_path_factory.mktemp("model")
    train = LatentDataset(whole, cache_folder=folder / "cache")
    model = create_latent_model("vit_tiny_patch16_224", dataset=train, depth=1)
    attach_codec(save_latent_model(model, folder / "model"), dataset=whole)
    return folder / "model", load_classifier(folder / "model")


def test_pictures_are_read_one_at_a_time(whole: Path, classifier: tuple[Path, PictureClassifier]) -> None:
    picture = whole.parent / "pictures" / "cat" / "0.png"
    done: list[int] = []
    hook = classifier[1].model.register_forward_hook(lambda *_: done.append(1))

    def paths() -> Iterator[Path]:
        for i in range(3):
            assert len(done) == i, "a picture was read before the one before it was classified"
            yield picture

    try:
        assert len(classifier[1].predict_files(paths())) == 3
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "zero", "sparse", "empty", "absent", "bomb", "cut"])
def test_what_is_no_picture_is_named_by_predict(
    kind: str, whole: Path, tmp_path: Path, within: Within, classifier: tuple[Path, PictureClassifier]
) -> None:
    path = tmp_path / "picture.webp"
    if kind in SPECIAL:
        SPECIAL[kind](path)
    elif kind == "bomb":
        bits = 16382 | 16382 << 14
        stream = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08" + b"\0" * 6
        path.write_bytes(b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", len(stream)) + stream)
    elif kind == "cut":
        path.write_bytes((whole.parent / "pictures" / "cat" / "0.png").read_bytes()[:200])
    with (
        within(seconds=20, num_bytes=2**29),
        pytest.raises(SourceError, match=r"picture.webp: (cannot be classified|no pictures below it)"),
    ):
        classifier[1].predict_files([path])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "codec/codec.json", "codec/model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "zero", "sparse", "empty", "garbage"])
def test_a_damaged_model_is_named_by_predict(
    name: str,
    kind: str,
    whole: Path,
    tmp_path: Path,
    within: Within,
    classifier: tuple[Path, PictureClassifier],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    model, picture = tmp_path / "model", whole.parent / "pictures" / "cat" / "0.png"
    shutil.copytree(classifier[0], model)
    path = model / name
    path.unlink()
    SPECIAL[kind](path)
    with within():
        code = main(["predict", str(model), str(picture)])
    said = capsys.readouterr().err
    if name == "codec/codec.json" and code == 0:  # the bundled codec of the same encoder serves
        return
    assert code == 1
    assert said.startswith("walloc-data: ")
    assert len(said.splitlines()) == 1


def test_one_pass_over_a_loader_at_a_time(root: Path) -> None:
    for num_workers in (0, 1):
        loader = LatentDataset(root).loader(batch_size=2, num_workers=num_workers)
        outer = iter(loader)
        next(outer)
        assert sum(1 for _ in loader) == 4
        with pytest.raises(LoaderError, match=r"another iteration over this loader was started; .* a second loader"):
            next(outer)
        assert [len(batch) for batch, _ in loader] == [2, 2, 2, 1]
