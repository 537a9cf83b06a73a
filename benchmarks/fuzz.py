"""Fuzzing: data sets, models, pictures and a store's answers are damaged at random, each case a function of its seed.

    python -m benchmarks.fuzz --minutes 30

Every case must end with a result or with one error of ours, within a minute and 1.5 GB of address space; nothing that
could steer a terminal is printed; and latents that are read without an error are the right ones wherever a checksum
could tell. Cases run in a process of their own, which may die of them. Seeds that fail are kept in
tests/hostile/seeds.json, which the tests run again.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "tests" / "hostile" / "seeds.json"
STEERS = set("\x1b\x9b\x07\x08\u202e")
NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 2**31, 2**40, 2**62, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, "", "x", "0",
    "\x1b[2J", "../../x", "/etc/passwd", "\u202e", "\ud800", "x" * 5000, [], {}, [[]], [None], {"": None}, [1] * 1000,
]  # fmt: skip
SECONDS = 60.0


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", ROOT / "tests" / "hostile" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Base:
    """Inputs that are damaged: a data set, its true latents, and a model trained on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mutations, self.limits = _load("mutations"), _load("conftest").limits
        if not (folder / "model").exists():
            self._make()
        self.latents = self._read(folder / "set", "shards")

    def _make(self) -> None:
        from walloc_data import LatentDataset
        from walloc_data.adapters import create_latent_model, save_latent_model
        from walloc_data.serving import attach_codec

        _load("conftest").make_whole(self.folder)
        train = LatentDataset(self.folder / "set", cache_folder=self.folder / "cache")
        model = create_latent_model("vit_tiny_patch16_224", dataset=train, depth=1)
        attach_codec(save_latent_model(model, self.folder / "model"), dataset=self.folder / "set")

    def _read(self, url: Any, cache: str) -> list[bytes]:
        from walloc_data import LatentDataset

        dataset = LatentDataset(url, cache=cache, cache_folder=tempfile.mkdtemp(dir=self.folder))  # type: ignore[arg-type]
        return [latent.numpy().tobytes() for batch, _ in dataset.loader(batch_size=3) for latent in batch]


class Case:
    """One damaged thing and what is done with it; both follow from the seed."""

    def __init__(self, seed: int, base: Base, work: Path) -> None:
        self.random, self.base, self.work = random.Random(seed), base, work
        self.root = work / "set"
        self.told = False  # whether checksums were made to fit the damage
        self.kind = self.random.choice(
            [
                "bytes",
                "bytes",
                "json",
                "json",
                "json",
                "index",
                "index",
                "latent",
                "named",
                "store",
                "store",
                "model",
                "picture",
            ]
        )

    def run(self) -> None:
        """Raise whatever a case must not raise."""
        if self.kind in ("model", "picture"):
            return self._predict()
        shutil.copytree(self.base.folder / "set", self.root)
        if self.kind == "store":
            return self._store()
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            with contextlib.suppress(Exception):  # a second change may find nothing to change
                getattr(self, f"_{self.kind}")()
        for command in self.random.sample(
            ["info", "dataset", "array", "verify", "decode", "preview", "report", "push"], 2
        ):
            self._command(command)
        return None

    # What is damaged.

    def _bytes(self) -> None:
        path = self.random.choice([path for path in sorted(self.root.rglob("*")) if path.is_file()])
        path.write_bytes(mutated(path.read_bytes(), self.random))
        if self.random.random() < 0.5:
            self._tell()

    def _json(self) -> None:
        names = ["walloc.json"] * 4 + ["codec/codec.json"] * 3 + ["_info.json", "index/train.wids.json"]
        names += [
            ".walloc/train/plan.json",
            ".walloc/train/00000.json",
            "failures/train.jsonl",
            ".walloc/train/log.jsonl",
        ]
        path = self.root / self.random.choice(names)
        value = json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())
        path.write_text(json.dumps(changed(value, self.random)))

    def _index(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(self.root / "index" / "train.parquet")
        rows, name = table.to_pylist(), self.random.choice(table.column_names)
        field = table.schema.field(name)
        how = self.random.choice(["value", "value", "value", "all", "drop", "kind", "rows"])
        if how == "drop":
            table = table.drop_columns([name])
        elif how == "rows":
            table = table.take([self.random.randrange(len(rows)) for _ in range(self.random.choice([0, 3, 7, 5000]))])
        elif how == "kind":
            kind = self.random.choice(
                [pa.string(), pa.float64(), pa.int8(), pa.uint64(), pa.bool_(), pa.list_(pa.int64())]
            )
            values = [None if self.random.random() < 0.2 else row[name] for row in rows]
            with contextlib.suppress(pa.ArrowException):
                table = table.set_column(
                    table.schema.get_field_index(name), name, pa.array(values).cast(kind, safe=False)
                )
        else:
            values = [row[name] for row in rows]
            for i in range(len(values)) if how == "all" else [self.random.randrange(len(values))]:
                values[i] = self.random.choice(
                    [None, -1, 0, 1, 2**31 - 1, 65528, "x", "../x", "\x1b[2J", 2**62, -(2**62)]
                )
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, field.type))
        compression = self.random.choice(["snappy", "zstd", "gzip", "none"])
        pq.write_table(table, self.root / "index" / "train.parquet", compression=compression)
        self._tell()

    def _latent(self) -> None:
        import pyarrow.parquet as pq

        row = self.random.randrange(7)
        entry = pq.read_table(self.root / "index" / "train.parquet").to_pylist()[row]
        shard = (self.root / f"data/train-{entry['shard']:05d}.tar").read_bytes()
        data = mutated(shard[entry["offset"] : entry["offset"] + entry["length"]], self.random)[: entry["length"]]
        if self.random.random() < 0.3:
            data = self.base.mutations.lying_webp(
                self.random.choice([1, 12, 5000, 16383]), self.random.choice([1, 12, 16383])
            )
        self.base.mutations.rewrite_sample(self.root, row, data)
        self.told = True

    def _named(self) -> None:
        self.told = True  # some of them change what checksums are of
        self.base.mutations.MUTATIONS[self.random.choice(sorted(self.base.mutations.MUTATIONS))](self.root)

    def _tell(self) -> None:
        """Make the manifest's checksums and lengths those of the files."""
        import hashlib

        self.told = True
        manifest = json.loads((self.root / "walloc.json").read_text())
        split = manifest["splits"]["train"]
        split["index_sha256"] = hashlib.sha256((self.root / "index" / "train.parquet").read_bytes()).hexdigest()
        for shard in split["shards"]:
            data = (self.root / shard["name"]).read_bytes()
            shard |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        (self.root / "walloc.json").write_text(json.dumps(manifest))

    # What is done with it.

    def _command(self, command: str) -> None:
        from walloc_data.cli import main
        from walloc_data.errors import WallocDataError

        print(f"  {command}", file=sys.__stderr__)
        if command in ("dataset", "array"):
            try:
                found = self.base._read(self.root, "array" if command == "array" else "shards")
            except WallocDataError as error:
                print(error)
                return
            if self.kind == "bytes" and not self.told and found != self.base.latents:
                raise AssertionError("other latents than were encoded, and no error")
            return
        arguments = {
            "decode": ["-o", str(self.work / "decoded")], "report": ["-o", str(self.work / "r.html")],
            "preview": ["-o", str(self.work / "p.webp")], "push": [f"memory://{self.work.name}"],
        }  # fmt: skip
        main([command, str(self.root), *arguments.get(command, [])])

    def _store(self) -> None:
        """Read over a file system that answers wrongly, late or not at all."""
        import fsspec

        from walloc_data.errors import WallocDataError
        from walloc_data.storage import Store

        memory, name = fsspec.filesystem("memory"), f"/fuzz-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            memory.rm(name, recursive=True)
        memory.put(str(self.root), name, recursive=True)
        store = Store(
            f"faulty://{name}",
            storage_options={"seed": self.random.randrange(2**32)},
            max_attempts=3,
            retry_seconds=1.5,
        )
        try:
            if self.base._read(store, self.random.choice(["shards", "array"])) != self.base.latents:
                raise AssertionError("other latents than were encoded, and no error")
        except WallocDataError as error:
            print(error)

    def _predict(self) -> None:
        from walloc_data.cli import main

        model, picture = self.work / "model", self.work / "picture"
        shutil.copytree(self.base.folder / "model", model)
        picture.write_bytes((self.base.folder / "pictures" / "cat" / "0.png").read_bytes())
        if self.kind == "picture":
            from PIL import Image

            image = Image.open(picture).convert(self.random.choice(["RGB", "L", "P", "RGBA", "CMYK"]))
            with contextlib.suppress(OSError, ValueError):  # not every mode goes into every format
                image.save(picture, self.random.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
            picture.write_bytes(mutated(picture.read_bytes(), self.random))
        elif self.random.random() < 0.5:
            path = self.random.choice([model / "config.json", model / "codec" / "codec.json"])
            path.write_text(json.dumps(changed(json.loads(path.read_text()), self.random)))
        else:
            path = self.random.choice([path for path in sorted(model.rglob("*")) if path.is_file()])
            path.write_bytes(mutated(path.read_bytes(), self.random))
        main(["predict", str(model), str(picture)])


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are nearly these."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        place = rng.randrange(len(result) + 1) if rng.random() < 0.7 else rng.randrange(min(len(result), 200) + 1)
        how = rng.choice(["flip", "byte", "cut", "insert", "delete", "repeat", "zeros", "number", "swap"])
        if how == "flip" and place < len(result):
            result[place] ^= 1 << rng.randrange(8)
        elif how == "byte" and place < len(result):
            result[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif how == "cut" and rng.random() < 0.3:
            del result[place:]
        elif how == "insert":
            result[place:place] = rng.randbytes(rng.choice([1, 4, 100]))
        elif how == "delete":
            del result[place : place + rng.choice([1, 4, 100])]
        elif how == "repeat":
            result[place:place] = result[place : place + rng.choice([8, 512])] * rng.choice([1, 3])
        elif how == "zeros":
            length = min(rng.choice([4, 512]), len(result) - place)
            result[place : place + length] = bytes(length)
        elif how == "number" and place + 8 <= len(result):
            value = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
            result[place : place + 8] = value.to_bytes(8, rng.choice(["little", "big"]))
        elif how == "swap" and place + 64 <= len(result):
            result[place : place + 32], result[place + 32 : place + 64] = (
                result[place + 32 : place + 64],
                result[place : place + 32],
            )
    return bytes(result)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it changed: replaced, removed, added, renamed, or put one level deeper."""
    places: list[tuple[Any, Any]] = []

    def walk(outer: Any) -> None:
        items = (
            list(outer.items())
            if isinstance(outer, dict)
            else list(enumerate(outer))
            if isinstance(outer, list)
            else []
        )
        for name, item in items[:12]:
            places.append((outer, name))
            walk(item)

    walk(value)
    outer, name = rng.choice(places)
    how = rng.choice(["replace"] * 6 + ["remove", "add", "rename", "deepen", "double"])
    if how == "remove":
        del outer[name]
    elif how == "add" and isinstance(outer, dict):
        outer[rng.choice(["", "x", "\x1b", "name", "kind"])] = rng.choice(NASTY)
    elif how == "rename" and isinstance(outer, dict):
        outer[f"{name}_"] = outer.pop(name)
    elif how == "deepen":
        for _ in range(rng.choice([1, 40, 900])):
            outer[name] = [outer[name]]
    elif how == "double" and isinstance(outer, list):
        outer.append(outer[name])
    elif isinstance(outer[name], int) and rng.random() < 0.5:
        outer[name] += rng.choice([-1, 1, 1000, -outer[name], 2**40])
    else:
        outer[name] = rng.choice(NASTY)
    return value


def register_faulty() -> None:
    """A file system in memory whose answers are sometimes errors, and sometimes lies; by its seed."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Faulty(MemoryFileSystem):  # type: ignore[misc]
        protocol, cachable = "faulty", False

        def __init__(self, seed: int = 0, **options: Any) -> None:
            super().__init__(**options)
            self.rng = random.Random(seed)
            self.share = self.rng.choice([0.02, 0.1, 0.4])

        def fault(self) -> str:
            if self.rng.random() > self.share:
                return ""
            fault = self.rng.choice(["reset", "time", "503", "gone", "refused", "cut", "flip", "empty", "long"])
            errors = {
                "reset": ConnectionResetError("by peer"), "time": TimeoutError("timed out"), "503": OSError("503"),
                "gone": FileNotFoundError("no such key"), "refused": PermissionError("403"),
            }  # fmt: skip
            if fault in errors:
                raise errors[fault]
            return fault

        def lie(self, data: bytes) -> bytes:
            fault = self.fault()
            if fault == "flip" and data:
                place = self.rng.randrange(len(data))
                return data[:place] + bytes([data[place] ^ 1 << self.rng.randrange(8)]) + data[place + 1 :]
            return {"cut": data[: len(data) // 2], "empty": b"", "long": data + data}.get(fault, data)

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
            return self.lie(super().cat_file(path, start=start, end=end))

        def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
            Path(lpath).write_bytes(self.lie(super().cat_file(rpath)))

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            found = dict(super().info(path))
            if (fault := self.fault()) and found.get("size"):
                found["size"] = {"cut": found["size"] // 2, "empty": 0, "long": 10**15, "flip": None}[fault]
            return found

        def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
            return [] if self.fault() else super().ls(path, detail=detail)

    fsspec.register_implementation("faulty", Faulty, clobber=True)


def run_case(seed: int, base: Base) -> str:
    """Run one case; returns what is wrong, "" where nothing is."""
    import logging
    import warnings

    said = io.StringIO()
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=base.folder))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    case = Case(seed, base, folder)
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
        shutil.rmtree(folder, ignore_errors=True)
    if found := STEERS & set(said.getvalue()):
        return f"{case.kind}: printed {sorted(map(ascii, found))}"
    return ""


def child(first: int, folder: Path) -> None:
    """Run cases one after the other, a line before and one after each."""
    register_faulty()
    base = Base(folder)
    for seed in range(first, first + 10**9):
        print(f"begin {seed}", flush=True)
        print(f"end {seed} {run_case(seed, base)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first-seed", type=int, default=None, help="(default: the clock's)")
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
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
            ) as process:
                assert process.stdout is not None
                begun = None
                for line in process.stdout:
                    word, number, what = (*line.rstrip("\n").split(" ", 2), "")[:3]
                    if word == "begin":
                        begun = int(number)
                    elif word == "end":
                        begun, count, seed = None, count + 1, int(number) + 1
                        if what:
                            failed[int(number)] = what
                            print(f"{number}: {what}", flush=True)
                    if time.monotonic() > until:
                        process.kill()
                        break
                code = process.wait()
            if begun is not None and time.monotonic() < until:
                failed[begun] = f"its process ended with {code}"
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
