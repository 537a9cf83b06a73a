"""Cases of fuzzing: what is damaged, and what is done with it; all of it follows from a seed."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.fuzz_inputs import changed, mutated

__all__ = ["Base", "Case"]

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "bytes": 2, "json": 3, "index": 2, "latent": 1, "named": 2, "columns": 2, "store": 2, "model": 1, "picture": 1,
    "maintain": 2, "cache": 1, "source": 3, "adopt": 1,
}  # fmt: skip


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", ROOT / "tests" / "hostile" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Base:
    """Inputs that are damaged: a data set, one with columns of its source, their true latents, a model, archives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mutations, self.limits = _load("mutations"), _load("conftest").limits
        if not (folder / "model").exists():
            self._make()
        self.latents = {name: self._read(folder / name, "shards") for name in ("set", "rich")}

    def _make(self) -> None:
        from walloc_data import LatentDataset
        from walloc_data.adapters import create_latent_model, save_latent_model
        from walloc_data.serving import attach_codec

        _load("conftest").make_whole(self.folder)
        train = LatentDataset(self.folder / "set", cache_folder=self.folder / "cache")
        model = create_latent_model("vit_tiny_patch16_224", dataset=train, depth=1)
        attach_codec(save_latent_model(model, self.folder / "model"), dataset=self.folder / "set")
        self._make_rich()
        self._make_sources()

    def _make_rich(self) -> None:
        """Make a data set with columns, whose shards are listed in a file of their own."""
        from walloc_data import encode_dataset
        from walloc_data.storage import Store, read_manifest, write_manifest

        shutil.copytree(self.folder / "pictures", self.folder / "captioned")
        for i, path in enumerate(sorted((self.folder / "captioned").rglob("*.png"))):
            path.with_suffix(".txt").write_text(f"picture {i}")
            about = {"age": i, "tags": ["a", "b"][: i % 3], "box": [0.5, i], "about": {"x": f"{i}"}}
            path.with_suffix(".json").write_text(json.dumps(about))
        encode_dataset(
            self.folder / "captioned", self.folder / "rich", size_px=48, samples_per_shard=3, codec="klt-16x",
            progress=False,
        )  # fmt: skip
        store = Store(self.folder / "rich")
        write_manifest(store, read_manifest(store), max_listed_shards=1)

    def _make_sources(self) -> None:
        """Make the same pictures as archives of every kind, and as parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sources = self.folder / "sources"
        sources.mkdir()
        pictures = sorted((self.folder / "captioned").rglob("*.*"))
        for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz"), ("pax.tar", "w")):
            kind = tarfile.PAX_FORMAT if name == "pax.tar" else tarfile.GNU_FORMAT
            with tarfile.open(sources / name, mode, format=kind) as tar:  # type: ignore[call-overload]
                for path in pictures:
                    tar.add(path, f"{path.parent.name}/{path.name}")
        for name, method in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
            with zipfile.ZipFile(sources / name, "w", method) as archive:
                for path in pictures:
                    archive.write(path, f"{path.parent.name}/{path.name}")
        with tarfile.open(sources / "samples.tar", "w") as tar:
            for i, path in enumerate(path for path in pictures if path.suffix == ".png"):
                tar.add(path, f"{i:03d}.png")
                (sources / "cls").write_text(str(i % 2))
                tar.add(sources / "cls", f"{i:03d}.cls")
                tar.add(path.with_suffix(".json"), f"{i:03d}.json")
        (sources / "cls").unlink()
        rows = [path.read_bytes() for path in pictures if path.suffix == ".png"]
        table = pa.table({"image": rows, "label": [0, 1] * (len(rows) // 2)})
        pq.write_table(table, sources / "rows.parquet")

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
        self.kind = self.random.choices(list(KINDS), weights=list(KINDS.values()))[0]
        self.name = "rich" if self.kind == "columns" or self.random.random() < 0.3 else "set"

    def run(self) -> None:
        """Raise whatever a case must not raise."""
        if self.kind in ("model", "picture"):
            return self._predict()
        if self.kind in ("source", "adopt"):
            return self._encode()
        shutil.copytree(self.base.folder / self.name, self.root)
        if self.kind == "store":
            return self._store()
        if self.kind == "cache":
            return self._cache()
        damage = self.random.choice(["bytes", "json", "index", "named"]) if self.kind == "maintain" else self.kind
        damage = self.random.choice(["bytes", "json", "index"]) if self.kind == "columns" else damage
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            manifest = self.root / "walloc.json"
            if not manifest.is_file() or manifest.stat().st_size > 2**26:  # a change before made a pipe of it
                break
            with contextlib.suppress(Exception):  # a second change may find nothing to change
                getattr(self, f"_{damage}")()
        commands = ["info", "dataset", "array", "verify", "decode", "preview", "report", "push"]
        if self.kind == "columns":
            commands = ["columns", "arrow", "verify", "report"]
        if self.kind == "maintain":
            commands = ["append", "remove", "merge", "retry", "adopt"]
        for command in self.random.sample(commands, 2):
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
        for shard in split.get("shards", ()):
            data = (self.root / shard["name"]).read_bytes()
            shard |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        if (listed := split.get("shards_file")) is not None:
            listed["sha256"] = hashlib.sha256((self.root / listed["name"]).read_bytes()).hexdigest()
        (self.root / "walloc.json").write_text(json.dumps(manifest))

    # What is done with it.

    def _command(self, command: str) -> None:
        from walloc_data.cli import main
        from walloc_data.errors import WallocDataError

        print(f"  {command}", file=sys.__stderr__)
        if command in ("dataset", "array", "columns", "arrow"):
            try:
                if command == "columns":
                    return self._read_columns()
                if command == "arrow":
                    return self._to_arrow()
                found = self.base._read(self.root, "array" if command == "array" else "shards")
            except WallocDataError as error:
                print(error)
                return None
            if self.kind == "bytes" and not self.told and found != self.base.latents[self.name]:
                raise AssertionError("other latents than were encoded, and no error")
            return None
        other, pictures = str(self.base.folder / "set"), str(self.base.folder / "pictures")
        target = str(self.work / f"{command}-out")
        removed = self.random.choice([["--classes", "cat"], ["--keys", "000000003"]])
        arguments = {
            "decode": [self.root, "-o", target], "report": [self.root, "-o", self.work / "r.html"],
            "preview": [self.root, "-o", self.work / "p.webp"], "push": [self.root, f"memory://{self.work.name}"],
            "append": [pictures, self.root], "retry": [pictures, self.root],
            "remove": [self.root, "--split", "train", *removed],
            "merge": [*self.random.sample([str(self.root), other], 2), "-o", target],
            "adopt": [f"wds:{self.root}/data/*.tar", target, "--codec", str(self.root / "codec")],
        }  # fmt: skip
        given = [str(argument) for argument in arguments.get(command, [self.root])]
        sound = command == "adopt" or (command == "merge" and main(["verify", str(self.root)]) == 0)
        code = main([command, *given])
        if code == 0 and sound and main(["verify", target]) != 0:
            raise AssertionError(f"{command} made a data set that is damaged")
        return None

    def _read_columns(self) -> None:
        from walloc_data import LatentDataset
        from walloc_data.dataset import collate_samples

        names = ["age", "tags", "box", "about", "txt", "source_name", "key"]
        dataset = LatentDataset(
            self.root, columns=self.random.sample(names, 3), target=self.random.choice(["label", "age", None]),
            cache_folder=tempfile.mkdtemp(dir=self.base.folder),
        )  # fmt: skip
        where = self.random.choice([("age", ">", 3), ("tags", "has", "a"), ("txt", "in", ["picture 1"])])
        for i in range(len(dataset)):
            collate_samples([dataset[i]])
        print(len(dataset.subset(where=[where])))

    def _to_arrow(self) -> None:
        from walloc_data import LatentDataset

        dataset = LatentDataset(self.root, cache_folder=tempfile.mkdtemp(dir=self.base.folder))
        dataset.to_arrow()
        print(len(list(dataset.keys)))

    def _cache(self) -> None:
        """Read with a cache whose files change between two readings, and list and clear it."""
        from walloc_data import LatentDataset
        from walloc_data.cli import main
        from walloc_data.errors import WallocDataError

        folder = self.work / "kept"
        for cache in self.random.choices(["shards", "array"], k=3):
            try:
                dataset = LatentDataset(self.root, cache=cache, cache_folder=folder)  # type: ignore[arg-type]
                found = [latent.numpy().tobytes() for batch, _ in dataset.loader(batch_size=3) for latent in batch]
                if found != self.base.latents[self.name]:
                    raise AssertionError("other latents than were encoded, and no error")
            except WallocDataError as error:
                print(error)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
            for path in self.random.sample(files, min(2, len(files))):
                how = self.random.choice(["bytes", "folder", "link", "fifo"])
                data = path.read_bytes() if how == "bytes" else b""
                path.unlink()
                if how == "bytes":
                    path.write_bytes(mutated(data, self.random))
                elif how == "folder":
                    path.mkdir()
                elif how == "link":
                    path.symlink_to(self.random.choice([path.name, "/dev/zero", "nowhere"]))
                else:
                    os.mkfifo(path)
            main(["cache", self.random.choice(["list", "list", "clear"]), "--folder", str(folder)])

    def _encode(self) -> None:
        """Encode from a damaged archive; what succeeds is whole."""
        from walloc_data.cli import main

        out = self.work / "out"
        if self.kind == "adopt":
            shutil.copytree(self.base.folder / "set" / "data", self.work / "data")
            path = self.random.choice(sorted((self.work / "data").glob("*.tar")))
            path.write_bytes(mutated(path.read_bytes(), self.random))
            code = main(["adopt", f"wds:{self.work}/data/*.tar", str(out), "--codec", "klt-16x"])
        else:
            path = self.random.choice(sorted((self.base.folder / "sources").iterdir()))
            damaged = self.work / path.name
            damaged.write_bytes(mutated(path.read_bytes(), self.random))
            spec = f"wds:{damaged}" if path.name == "samples.tar" or self.random.random() < 0.2 else str(damaged)
            options = ["--size", "48", "--codec", "klt-16x", "--samples-per-shard", "3"]
            if path.suffix == ".parquet":
                options += ["--image-column", "image", *self.random.choice([[], ["--streaming"]])]
            options += self.random.choice([[], ["--on-error", "record-unreadable"]])
            code = main(["encode", spec, str(out), *options])
        if code == 0 and main(["verify", str(out)]) != 0:
            raise AssertionError("a data set was made that is damaged")

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
            if self.base._read(store, self.random.choice(["shards", "array"])) != self.base.latents[self.name]:
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
        codec = ["--codec", str(self.base.folder / "set")] if self.random.random() < 0.3 else []
        main(["predict", str(model), str(picture), *codec])
