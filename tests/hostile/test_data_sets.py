"""Damaged and hostile data sets: every command ends, within seconds and little memory, with a result or one error."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from walloc_data import LatentDataset
from walloc_data.cli import main
from walloc_data.errors import WallocDataError

Within = Callable[..., AbstractContextManager[None]]


def _mutations() -> Any:
    spec = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutations = _mutations()
STEERS = "\x1b\x9b\x07\x08\u202e"


def dataset(root: Path) -> int:
    """Read all of it, by both readers."""
    failed = 0
    for cache in ("shards", "array"):
        try:
            for _ in LatentDataset(root, cache=cache).loader(batch_size=3):
                pass
        except WallocDataError as error:
            failed = 1
            print(error)  # looked through like all that is printed
    return failed


COMMANDS: dict[str, Callable[[Path], int]] = {
    "info": lambda root: main(["info", str(root)]),
    "info --json": lambda root: main(["info", "--json", str(root)]),
    "dataset": dataset,
    "verify": lambda root: main(["verify", str(root)]),
    "decode": lambda root: main(["decode", str(root), "-o", "decoded"]),
    "preview": lambda root: main(["preview", str(root), "-o", "preview.webp", "--num-samples", "7"]),
    "report": lambda root: main(["report", str(root), "-o", "report.html"]),
    "push": lambda root: main(["push", str(root), f"memory://{root}"]),
}
# What each mutation is tried with in the fast tests; the slow one tries all.
FAST = ("info", "dataset", "verify")
# What leaves a data set whole, if odd.
STILL_WHOLE = {
    "manifest_index_sha256_absent", "manifest_notes_of_numbers", "manifest_notes_escapes", "manifest_location_escapes",
    "manifest_class_names_escapes", "manifest_class_names_long", "index_null_crc32", "failures_half_character",
    "failures_escapes",
}  # fmt: skip
# Files that readers of latents do not open: the codec's other decoder, cards, and what only the converter goes by.
NOT_READ = ("decoder_", "card_", "plan_", "done_", "log_")


@pytest.fixture(autouse=True)
def empty_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "store", {})


def run(root: Path, command: str, within: Within, capsys: pytest.CaptureFixture[str]) -> int:
    with within():
        code = COMMANDS[command](root)
    said = capsys.readouterr()
    assert not set(STEERS) & set(said.out + said.err), "what could steer a terminal was printed"
    assert "Traceback" not in said.err
    if code and command != "dataset":
        assert said.err.startswith("walloc-data: ") or command == "verify"
    return code


SLOW = [f"{file}_{how}" for file in mutations.FILES for how in mutations.SPECIAL if how not in ("fifo", "loop")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in mutations.MUTATIONS]
)
def test_a_damaged_data_set_is_read_checked_and_described_or_named(
    name: str, root: Path, within: Within, capsys: pytest.CaptureFixture[str]
) -> None:
    mutations.MUTATIONS[name](root)
    codes = {command: run(root, command, within, capsys) for command in FAST}
    if not name.startswith(NOT_READ):
        assert (codes["verify"] == 0) == (name in STILL_WHOLE), "verify overlooks it, or finds what is not there"


# Whatever opens a file refuses what is none in the same words, which FAST has seen for each; so of most files only what
# would hang, never end or be parsed is tried with every command.
WHOLLY = ("manifest", "index", "shard")
SEEN = {
    f"{file}_{how}"
    for file in mutations.FILES
    for how in mutations.SPECIAL
    if file not in WHOLLY and how not in ("fifo", "zero", "garbage")
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in mutations.MUTATIONS if name not in SEEN])
def test_every_command_ends_with_a_result_or_one_error(
    name: str, root: Path, within: Within, capsys: pytest.CaptureFixture[str]
) -> None:
    mutations.MUTATIONS[name](root)
    for command in COMMANDS:
        if command not in FAST:
            run(root, command, within, capsys)


def test_the_whole_data_set_passes_everything(root: Path, within: Within, capsys: pytest.CaptureFixture[str]) -> None:
    assert {command: run(root, command, within, capsys) for command in COMMANDS} == dict.fromkeys(COMMANDS, 0)
