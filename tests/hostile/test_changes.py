"""Changes of damaged data sets, and the cache: a result or one error, and after an error the data set of before."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from tests.hostile import mutations
from tests.hostile.test_data_sets import STEERS
from walloc_data import LatentDataset
from walloc_data.cli import main
from walloc_data.errors import WallocDataError

Within = Callable[..., AbstractContextManager[None]]


def arguments(command: str, root: Path, whole: Path) -> list[str]:
    pictures = str(whole.parent / "pictures")
    return {
        "append": ["append", pictures, str(root)],
        "remove keys": ["remove", str(root), "--split", "train", "--keys", "000000003"],
        "remove classes": ["remove", str(root), "--split", "train", "--classes", "cat"],
        "remove split": ["remove", str(root), "--split", "train"],
        "merge": ["merge", str(root), str(whole), "-o", "merged"],
        "merge second": ["merge", str(whole), str(root), "-o", "merged"],
        "retry": ["retry", pictures, str(root)],
        "adopt": ["adopt", f"wds:{root}/data/*.tar", "adopted", "--codec", "klt-16x"],
    }[command]


COMMANDS = ("append", "remove keys", "remove classes", "remove split", "merge", "merge second", "retry", "adopt")


def published(root: Path) -> dict[str, bytes]:
    """The files that a reader of a data set opens."""
    folders = ("data", "index", "codec", "failures")
    paths = [root / "walloc.json", *(path for name in folders for path in (root / name).glob("*"))]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.stat().st_size < 2**25}


def change(command: str, root: Path, whole: Path, within: Within, capsys: pytest.CaptureFixture[str]) -> int:
    before = published(root)
    with within():
        code = main(arguments(command, root, whole))
    said = capsys.readouterr()
    assert not set(STEERS) & set(said.out + said.err)
    if code:
        assert said.err.splitlines()[-1].startswith("walloc-data: ")  # lines of progress may come first
        assert published(root) == before, "an error changed the data set"
    return code


INDEX = [name for name in mutations.MUTATIONS if name.startswith("index_")]


@pytest.mark.slow
@pytest.mark.parametrize("name", INDEX)
def test_rows_that_lie_are_neither_merged_nor_left_out_in_silence(
    name: str, root: Path, whole: Path, within: Within, capsys: pytest.CaptureFixture[str]
) -> None:
    mutations.MUTATIONS[name](root)
    if change("merge", root, whole, within, capsys) == 0:
        assert len(LatentDataset("merged")) == 14
        assert main(["verify", str(root)]) == main(["verify", "merged"])


# One kind of damage of each file; `benchmarks.fuzz` tries the others.
DAMAGES = [name for name in mutations.MUTATIONS if name.endswith("_garbage") and not name.startswith("index_")]


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_every_change_of_a_damaged_data_set_ends_with_a_result_or_one_error(
    name: str, root: Path, whole: Path, within: Within, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, command in enumerate(COMMANDS):
        damaged = root.parent / f"damaged-{number}"
        shutil.copytree(root, damaged)
        mutations.MUTATIONS[name](damaged)
        change(command, damaged, whole, within, capsys)
        for made in ("merged", "adopted"):
            shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "zero", "sparse", "empty", "dangling", "garbage"])
def test_the_cache_is_listed_cleared_and_read_whatever_lies_in_it(
    kind: str, root: Path, tmp_path: Path, within: Within, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    whole = [batch for batch, _ in LatentDataset(root, cache="array", cache_folder=folder).loader(batch_size=7)]
    assert list(folder.rglob("*.lock"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        path.unlink()
        mutations.SPECIAL[kind](path)
    with within(), suppress(WallocDataError):
        list(LatentDataset(root, cache="array", cache_folder=folder).loader(batch_size=7))
    with within():
        assert main(["cache", "list", "--folder", str(folder)]) == 0
        assert main(["cache", "clear", "--folder", str(folder)]) in (0, 1)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    again = LatentDataset(root, cache="array", cache_folder=tmp_path / "other")
    assert [batch.tolist() for batch, _ in again.loader(batch_size=7)] == [batch.tolist() for batch in whole]
    assert Path("/dev/zero").exists()  # a link was removed, not what it leads to
