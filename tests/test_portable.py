"""Systems and file systems that lack what Linux has on a local disk."""

import json
from pathlib import Path

import pytest
import torch

from tests import warm
from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert.lock import conversion_lock
from walloc_data.devices import usable_device
from walloc_data.errors import BusyError, DeviceError
from walloc_data.storage import Store

# Everything that Windows or macOS does not have and that this package, or a module that it replaces, has used.
BARE = """
import os, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
import datasets, fsspec, PIL.Image, pyarrow.parquet, torch  # what they ask of the system is their own affair
for name in ("fdatasync", "getuid", "pwrite", "O_CLOEXEC", "fchmod"):
    if hasattr(os, name):
        delattr(os, name)
import json
from walloc_data import LatentDataset, encode_dataset
source, folder = sys.argv[1:]
out = f"{folder}/bare"
for part in ("1/2", "2/2", None):
    encode_dataset(source, out, size_px=32, samples_per_shard=4, part=part, progress=False)
sums = []
for url in (out, f"local://{out}"):
    for cache in ("shards", "array"):
        loader = LatentDataset(url, cache=cache, cache_folder=f"{folder}/cache").loader(batch_size=8)
        sums.append([float(latents.double().sum()) for latents, _ in loader])
print(json.dumps(sums))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        values = torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(values.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_encoding_and_reading_need_no_unix_module(pictures: Path, tmp_path: Path) -> None:
    done = warm.run(["-c", BARE, pictures, tmp_path])
    assert done.returncode == 0, done.stderr[-3000:]
    encode_dataset(pictures, tmp_path / "here", size_px=32, samples_per_shard=4, progress=False)
    here = LatentDataset(tmp_path / "here", cache_folder=tmp_path / "c")
    expected = [float(latents.double().sum()) for latents, _ in here.loader(batch_size=8)]
    assert json.loads(done.stdout.splitlines()[-1]) == [expected] * 4
    for shard in sorted((tmp_path / "here" / "data").iterdir()):
        assert (tmp_path / "bare" / "data" / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.slow
def test_a_conversion_on_a_file_system_without_locks_goes_on_after_an_interruption(
    pictures: Path, no_flock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walloc_data.convert.lock.PATIENCE_S", 0.1)
    out = no_flock / "out"

    def stop(progress: object) -> None:
        if list((out / "data").glob("*.tar")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
        encode_dataset(pictures, out, size_px=32, samples_per_shard=4, progress=stop)
    assert 1 <= len(list((out / "data").glob("*.tar"))) < 3
    with conversion_lock(Store(out)), pytest.raises(BusyError, match="another conversion is writing there"):
        encode_dataset(pictures, out, size_px=32, samples_per_shard=4, progress=False)
    encode_dataset(pictures, out, size_px=32, samples_per_shard=4, workers=2, progress=False)
    encode_dataset(pictures, tmp_path / "here", size_px=32, samples_per_shard=4, progress=False)
    for shard in sorted((tmp_path / "here" / "data").iterdir()):
        assert (out / "data" / shard.name).read_bytes() == shard.read_bytes()


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's is, with torch's own words; there is none here."""
    zeros = torch.zeros

    def on_apple(*size: int, dtype: torch.dtype | None = None, device: object = None) -> torch.Tensor:
        if dtype is torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return zeros(*size, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", on_apple)
    with pytest.raises(
        DeviceError, match=r"device 'mps' cannot be used here \(Cannot convert .*float64.*\): use 'cpu'"
    ):
        usable_device("mps")
