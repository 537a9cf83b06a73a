"""Every file that is written under another name first has the mode of any new file, and is whole or not there."""

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.adapters import save_latent_model
from walloc_data.codec import PictureSet, TrainConfig, load_codec, save_codec, train_codec
from walloc_data.files import atomic_file
from walloc_data.fitting import fit_codec_operators
from walloc_data.report import add_preview, preview, report
from walloc_data.serving import attach_codec
from walloc_data.storage import Store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def photographs(number: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    small = [generator.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(number)]
    return [np.asarray(Image.fromarray(item).resize((64, 64), Image.Resampling.BICUBIC)) for item in small]


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o027, 0o002], indirect=True, ids=oct)
def test_every_file_of_every_command_has_the_mode_that_the_umask_gives(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i, picture in enumerate(photographs(16)):
        (tmp_path / "pictures" / f"class {i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"class {i % 2}" / f"{i}.png")
    data = tmp_path / "latents"
    encode_dataset(tmp_path / "pictures", data, samples_per_shard=4, progress=False)
    fit_codec_operators(data, pictures=tmp_path / "pictures", num_pictures=14)
    add_preview(data, num_samples=1)
    preview(data, tmp_path / "preview.png", num_samples=1)
    report(data, tmp_path / "report.html")
    for cache in ("shards", "array"):
        list(LatentDataset(data, cache=cache).loader(batch_size=6))
    list(LatentDataset(f"file://{data}").loader(batch_size=6))
    model = create_latent_model("test_convnext", dataset=data, num_classes=2)
    attach_codec(save_latent_model(model, tmp_path / "model"), dataset=data)
    save_codec(load_codec("klt-16x")[0], tmp_path / "codec")
    config = TrainConfig(
        name="mine", steps=2, batch_size=2, crop_px=(64, 64), arrange=False, decoder_width=16, decoder_blocks=1
    )
    train_codec([PictureSet("noise", photographs(16))], tmp_path / "trained", config=config)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    endings = {".html", ".json", ".jsonl", ".npy", ".parquet", ".png", ".safetensors", ".tar", ".webp", ".int8"}
    assert endings <= {path.suffix for path in files}
    assert {"model", "codec", "trained", "latents"} <= {
        path.relative_to(tmp_path).parts[0] for path in files if path.suffix == ".safetensors"
    }
    locks = {path for path in files if "lock" in path.name}  # for every user of a shared cache
    others = set(files) - locks
    wrong = {str(path.relative_to(tmp_path)): oct(mode(path)) for path in others if mode(path) != 0o666 & ~umask}
    assert wrong == {}
    assert [path for path in files if path.suffix == ".partial"] == []


def test_a_file_that_a_writer_replaced_has_the_mode_all_the_same(umask: int, tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as unfinished:
        handle, name = tempfile.mkstemp(dir=tmp_path)  # as safetensors' writer does
        os.close(handle)
        Path(name).replace(unfinished)
        assert mode(unfinished) == 0o600
    assert mode(tmp_path / "a") == 0o666 & ~umask


def test_stores_keep_the_mode_too(umask: int, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.write_bytes("a/b", b"1")
    store.download("a/b", tmp_path / "c")
    assert {mode(tmp_path / "store/a/b"), mode(tmp_path / "c")} == {0o666 & ~umask}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def write_and_fail(write: Callable[[Path], object]) -> None:
        with atomic_file(tmp_path / "a") as unfinished:
            write(unfinished)
            raise ZeroDivisionError

    def fail(write: Callable[[Path], object]) -> None:
        with pytest.raises(ZeroDivisionError):
            write_and_fail(write)

    (tmp_path / "a").write_text("old")
    fail(lambda path: path.write_text("half"))
    fail(lambda path: path.unlink())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_many_threads_may_write_one_file(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with atomic_file(tmp_path / "a") as unfinished:
                unfinished.write_text(str(number) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = (tmp_path / "a").read_text()
    assert text == text[0] * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
