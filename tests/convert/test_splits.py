"""Several splits in one command, and sequences through workers: encoded, resumed, whole."""

import inspect
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FakeData

from tests import warm
from walloc_data import LatentDataset, encode_dataset, encode_splits
from walloc_data.cli import main
from walloc_data.convert import verify_dataset
from walloc_data.convert.splits import EncodeOptions
from walloc_data.errors import ConversionError, SourceError
from walloc_data.format import EncodeSettings


@pytest.fixture
def archive(imagenette_folder: Path, tmp_path: Path) -> Path:
    """40 photographs in train/ and val/ of a tar.gz."""
    path = tmp_path / "imagenette.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for number, file in enumerate(sorted(imagenette_folder.rglob("*.JPEG"))):
            split = "val" if number % 4 == 3 else "train"
            member = tarfile.TarInfo(f"imagenette/{split}/{file.parent.name}/{file.name}")
            member.size = file.stat().st_size
            tar.addfile(member, io.BytesIO(file.read_bytes()))
    return path


@pytest.mark.slow
def test_all_splits_of_an_archive_are_encoded_by_one_command(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["encode", str(archive), str(tmp_path / "out"), "--split", "all", "--size", "64", "--json"]
    assert main(command) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert {name: (of["num_samples"], of["new_samples"]) for name, of in splits.items()} == {
        "train": (30, 30),
        "val": (10, 10),
    }
    assert verify_dataset(tmp_path / "out", progress=False).problems == ()
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)["splits"]
    assert [of["new_samples"] for of in again.values()] == [0, 0]
    assert main([*command[:4], "val,test"]) == 1
    assert "no splits ['test']; it has ['train', 'val']" in capsys.readouterr().err


def test_splits_that_were_interrupted_go_on_where_they_were(tmp_path: Path) -> None:
    pictures = [(np.full((16, 16, 3), number, np.uint8), number % 2) for number in range(8)]
    broken = [*pictures[:6], (b"no picture", 0), pictures[7]]
    splits = {"val": broken, "train": pictures}
    with pytest.raises(ConversionError, match="max_failures"):
        encode_splits(splits, tmp_path / "out", max_failures=0, samples_per_shard=2, progress=False)
    found = encode_splits(splits, tmp_path / "out", samples_per_shard=2, progress=False)
    assert list(found) == ["train", "val"]
    assert (found["train"].new_samples, found["val"].num_samples, found["val"].num_failures) == (0, 7, 1)
    assert verify_dataset(tmp_path / "out", progress=False).problems == ()


def test_a_split_that_cannot_be_opened_is_named_before_anything_is_encoded(tmp_path: Path) -> None:
    pictures = [(np.zeros((8, 8, 3), np.uint8), 0)]
    with pytest.raises(SourceError, match=r"split 'val': python:list: no items. Nothing was encoded"):
        encode_splits({"train": pictures, "val": []}, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_every_option_of_encode_dataset_is_one_of_splits_and_no_other(tmp_path: Path) -> None:
    given = set(inspect.signature(encode_splits).parameters) - {"source", "dataset", "splits", "streaming", "options"}
    of_one = set(inspect.signature(encode_dataset).parameters) - {"source", "dataset", "split", "fields"}
    assert given | set(EncodeOptions.__annotations__) == of_one | set(EncodeSettings().to_dict())
    splits = {"train": [(np.zeros((8, 8, 3), np.uint8), 0)]}
    with pytest.raises(TypeError, match=r"encode_splits: unknown options \['size', 'split'\]; it takes \['address',"):
        encode_splits(splits, tmp_path / "out", size=64, split="val", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_torchvision_data_set_gives_the_same_bytes_by_one_worker_and_by_two(tmp_path: Path) -> None:
    data = FakeData(24, (3, 32, 32), num_classes=4)
    for workers in (1, 2):
        encode_dataset(data, tmp_path / str(workers), workers=workers, samples_per_shard=8, progress=False)
    shards = [path.name for path in sorted((tmp_path / "1" / "data").iterdir())]
    assert len(shards) == 3
    assert all((tmp_path / "1/data" / s).read_bytes() == (tmp_path / "2/data" / s).read_bytes() for s in shards)
    found = LatentDataset(tmp_path / "2")
    assert sorted(found.labels.tolist()) == sorted(int(target) for _, target in data)


@pytest.mark.slow
def test_a_data_set_defined_in_the_script_is_encoded_by_one_worker_and_refused_to_two(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport numpy as np\nfrom walloc_data import encode_dataset\n"
        "class Own:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return np.full((8, 8, 3), i, np.uint8), i\n"
        "print(encode_dataset(Own(), sys.argv[1], workers=int(sys.argv[2]), progress=False).num_samples)\n"
    )
    one, two = (warm.run([script, tmp_path / f"out{workers}", workers]) for workers in ("1", "2"))
    assert (one.returncode, one.stdout) == (0, "4\n")
    assert two.returncode == 1
    assert "uses classes or functions of the main script" in two.stderr
