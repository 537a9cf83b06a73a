"""The README is held to itself: its code runs, its tables come from committed results, its commands exist."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from walloc_data.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_every_python_block_runs_in_order(
    imagenette_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").symlink_to(imagenette_folder)
    namespace: dict[str, Any] = {}
    code = blocks("python")
    assert code
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    assert tuple(namespace["latents"].shape) == (8, 12, 20, 20)
    assert torch.equal(namespace["third"], next(namespace["batches"])[0])


def test_every_walloc_data_command_parses() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("walloc-data ")]
    assert lines
    for line in lines:
        assert build_parser().parse_args(shlex.split(line, comments=True)[1:]).run


def test_the_two_set_up_commands_are_one_line_each() -> None:
    for marker in ("demo command", "test command"):
        [command] = re.findall(rf"<!-- {marker} -->\n```sh\n(.*)\n```", README)
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


@pytest.mark.slow
def test_tables_are_generated_from_committed_results() -> None:
    warm.run(["-m", "benchmarks.readme", "--check"], cwd=ROOT, check=True)


def test_no_machine_is_named_in_what_is_committed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        data = (ROOT / name).read_bytes()
        assert b"/work" + b"/" not in data, f"{name} names a path of one machine"
