"""Cases that fuzzing (`python -m benchmarks.fuzz`) has found: each failed once, and must never again."""

import json
import logging
from pathlib import Path

import pytest

from benchmarks import fuzz

FOUND = json.loads(fuzz.SEEDS.read_text()) if fuzz.SEEDS.exists() else {}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Base:
    fuzz.register_faulty()
    return fuzz.Base(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*map(int, FOUND), 1, 2, 3])
def test_a_case_ends_with_a_result_or_one_error(
    seed: int, base: fuzz.Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fuzz.run_case(seed, base) == ""
    assert not logging.root.manager.disable  # later tests of this process read log records
