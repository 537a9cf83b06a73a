"""Fuzzing: data sets, models, pictures and a store's answers are damaged at random, each case a function of its seed.

    python -m benchmarks.fuzz --minutes 30

Every case must end with a result or with one error of ours, within a minute and 1.5 GB of address space; nothing that
could steer a terminal is printed; and latents that are read without an error are the right ones wherever a checksum
could tell. Cases run in a process of their own, which may die of them. Seeds that fail are kept in
tests/hostile/seeds.json, which the tests run again.
"""

import argparse
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from benchmarks.fuzz_cases import Base, Case
from benchmarks.fuzz_inputs import register_faulty

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "tests" / "hostile" / "seeds.json"
STEERS = set("\x1b\x9b\x07\x08\u202e")
SECONDS = 60.0


def run_case(seed: int, base: Base) -> str:
    """Run one case; returns what is wrong, "" where nothing is."""
    import logging
    import warnings

    said = io.StringIO()
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=base.folder))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    case = Case(seed, base, folder)
    silenced = logging.root.manager.disable
    try:
        with (
            warnings.catch_warnings(),
            base.limits(seconds=SECONDS),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            logging.disable()
            case.run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]
        ]
        return f"{case.kind}: {type(error).__name__}: {str(error)[:200]!r} at {' > '.join(frames)}"
    finally:
        logging.disable(silenced)
        shutil.rmtree(folder, ignore_errors=True)
    if found := STEERS & set(said.getvalue()):
        return f"{case.kind}: printed {sorted(map(ascii, found))}"
    return ""


def child(first: int, folder: Path) -> None:
    """Run cases one after the other, a line before and one after each."""
    os.environ |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    register_faulty()
    base = Base(folder)
    for seed in range(first, first + 10**9):
        print(f"begin {seed}", flush=True)
        print(f"end {seed} {run_case(seed, base)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first-seed", type=int, default=None, help="random seed (default: by the clock)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    first = args.first_seed if args.first_seed is not None else int(time.time())
    if args.child is not None:
        child(first, args.child)
        return
    until, seed, count, failed = time.monotonic() + 60 * args.minutes, first, 0, dict[int, str]()
    with tempfile.TemporaryDirectory(prefix="walloc-fuzz-") as folder:
        while time.monotonic() < until:
            command = [sys.executable, "-m", "benchmarks.fuzz", "--child", folder, "--first-seed", str(seed)]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, cwd=ROOT
            ) as process:
                assert process.stdout is not None
                begun = None
                while select.select([process.stdout], [], [], 3 * SECONDS)[0] and (line := process.stdout.readline()):
                    word, number, what = (*line.decode().rstrip("\n").split(" ", 2), "")[:3]
                    if word == "begin":
                        begun = int(number)
                    elif word == "end":
                        begun, count, seed = None, count + 1, int(number) + 1
                        if what:
                            failed[int(number)] = what
                            print(f"{number}: {what}", flush=True)
                    if time.monotonic() > until:
                        break
                process.kill()  # it has ended, the time has, or it hangs
                code = process.wait()
            if begun is not None and time.monotonic() < until:
                failed[begun] = f"its process ended with {code}, or did nothing for three minutes"
                print(f"{begun}: {failed[begun]}", flush=True)
                seed = begun + 1
    print(f"{count} cases from seed {first} on, {len(failed)} failed")
    if failed:
        known = json.loads(SEEDS.read_text()) if SEEDS.exists() else {}
        SEEDS.write_text(json.dumps(known | {str(seed): what for seed, what in failed.items()}, indent=1) + "\n")
        print(Counter(what.partition(" at ")[0] for what in failed.values()).most_common())
        raise SystemExit(1)


if __name__ == "__main__":
    main()
