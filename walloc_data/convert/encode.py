"""`encode_dataset`: from a source of pictures to an encoded split, resuming whatever is there already."""

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from walloc_data import __version__
from walloc_data.convert.engine import OnError, Task, WorkSetup, fetch_codec, run_here
from walloc_data.convert.finish import (
    check_siblings,
    done_marks,
    finished_shards,
    join_split,
    read_manifest,
    read_plan,
)
from walloc_data.convert.lock import conversion_lock, lock_folder
from walloc_data.convert.overwrite import clean_leftovers, remove_split
from walloc_data.convert.plan import Plan, differences, parse_part
from walloc_data.convert.progress import Progress, ProgressMeter, ProgressPrinter
from walloc_data.convert.records import Failure, ShardDone, end_name, plan_name, work_folder
from walloc_data.convert.spool import write_spool
from walloc_data.convert.summary import ConversionSummary
from walloc_data.convert.worker import Tally
from walloc_data.errors import ConversionError, FormatError, SettingsMismatchError, StorageError
from walloc_data.format import MANIFEST_NAME, EncodeSettings, check_name, dump_json
from walloc_data.sources import Sample, Source, open_source
from walloc_data.storage import Store

__all__ = ["encode_dataset"]


def encode_dataset(
    source: Any,
    out: str | Path,
    *,
    split: str = "train",
    codec: Any = None,
    settings: EncodeSettings | None = None,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    device: str = "cpu",
    on_error: OnError = "record",
    max_failures: int | None = None,
    overwrite: bool = False,
    part: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool | Callable[[Progress], None] = True,
    **fields: Any,
) -> ConversionSummary:
    """Encode a source of pictures as one split of a data set of latents.

    Run again after any interruption, the same call does only what is not done yet, and the result has the same bytes
    as an uninterrupted one, for any number of workers and any engine.

    Args:
        source: what `open_source` takes, or what it returns.
        out: a local folder or ``s3://bucket/prefix``.
        split: the split's name.
        codec: a codec, or what `load_codec` takes; None is the data set's own where it has one, else the bundled one.
        settings: an `EncodeSettings`; or give its fields here (``size_px=256``).
        workers: processes; 1 works in this process. With Ray, tasks at a time.
        engine: "local", or "ray" for a Ray cluster at `address`.
        device: "cpu" or "cuda"; latents are the same.
        on_error: "record" lists a broken picture in ``failures/``; "stop" raises at the first.
        max_failures: stop when more pictures than this are broken.
        overwrite: delete this split first, if there is one.
        part: ``"I/N"`` does the I-th of N parts of the shards, for schedulers; `finish_dataset` joins them.
        storage_options: for remote file systems, of `out` and of remote tars.
        progress: True writes to stderr; or a callable that gets a `Progress` several times a second.

    Raises:
        SourceError: the source cannot be read as asked.
        SettingsMismatchError: `out` was begun with other settings, another codec or another source.
        BusyError: another conversion writes to `out`.
        ConversionError: stopped before the end; what is published stays, and the same call goes on from there.
    """
    check_name(split, what="split", where="encode")
    settings = _settings(settings, fields)
    where = parse_part(part) if part is not None else (0, 1)
    if workers < 1:
        raise FormatError(f"workers must be 1 or more, not {workers}")
    if overwrite and part is not None:
        raise FormatError("overwrite and part exclude each other: parts of one conversion run side by side")
    store = Store(out, storage_options=storage_options)
    opened: Source = open_source(source, split=split, storage_options=storage_options)
    _check_folder(store)
    printer = ProgressPrinter() if progress is True else None
    callback = printer if printer is not None else (progress if callable(progress) else None)
    with ExitStack() as stack:
        if printer is not None:
            stack.callback(printer.close)
        locks = stack.enter_context(conversion_lock(store, part=_part_tag(split, where) if part else None))
        staging = stack.enter_context(_staging(store, tag=_part_tag(split, where)))
        if part is None:
            clean_leftovers(store, split)
        if overwrite:
            remove_split(store, split)
        loaded = _load_codec(store, codec, staging=staging, device=device)
        plan = _begin(store, _plan(opened, split, settings, loaded), loaded, staging=staging)
        if printer is not None:
            for note in opened.notes:
                printer.note(f"{opened.location}: {note}")
            if opened.num_items is None and settings.shuffle_seed is not None:
                printer.note(f"{opened.location}: a stream is not shuffled; the shards keep its order")
        setup = WorkSetup(
            plan, opened if opened.num_items is not None else None, store, staging, device=device, on_error=on_error
        )
        run = _Run(setup, opened, where=where, max_failures=max_failures, callback=callback)
        started = time.perf_counter()
        try:
            run.go(workers=workers, engine=engine, address=address, locks=locks, codec=loaded)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{run.progress_text()}; the same command goes on from there") from None
        finally:
            seconds = time.perf_counter() - started
            run.write_log(seconds=seconds)
        if part is not None:
            return run.summary(store, seconds=seconds, part=part)
        summary = join_split(store, split)
        return replace(summary, new_samples=run.new_samples, seconds=seconds)


def _settings(settings: EncodeSettings | None, fields: dict[str, Any]) -> EncodeSettings:
    try:
        return replace(settings if settings is not None else EncodeSettings(), **fields)
    except TypeError as error:
        raise TypeError(f"encode_dataset: {error}; its settings are {sorted(EncodeSettings().to_dict())}") from error


def _part_tag(split: str, where: tuple[int, int]) -> str:
    return f"{split}-{where[0] + 1}-of-{where[1]}"


def _check_folder(store: Store) -> None:
    """Refuse a folder with somebody else's files in it."""
    folder = store.local_path
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(f"{folder}: not a folder")
    if any((folder / name).exists() for name in (MANIFEST_NAME, ".walloc")):
        return
    others = sorted(entry.name for entry in folder.iterdir())
    if others:
        raise StorageError(
            f"{folder}: not empty, and not a data set of latents (it holds {others[0]!r}): choose a new folder"
        )


def _staging(store: Store, *, tag: str) -> Any:
    """A folder for unfinished files: inside a local data set, so that publishing is a rename."""
    if store.local_path is None:
        return _temporary()
    return _emptied(lock_folder(store) / "staging" / tag)


class _emptied:  # noqa: N801 (a context manager)
    """An empty folder; what a killed run left in it is deleted first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made ({error.strerror})") from error
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()  # unless another part works there


class _temporary(tempfile.TemporaryDirectory[str]):  # noqa: N801
    def __init__(self) -> None:
        super().__init__(prefix="walloc_data-", ignore_cleanup_errors=True)

    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


def _load_codec(store: Store, codec: Any, *, staging: Path, device: str) -> Any:
    """The codec asked for, with its decoder, so that it can be copied into the data set."""
    from walloc_data.codec import load_codec

    if codec is not None and not isinstance(codec, str | Path):
        return codec.to(device)
    if codec is None and store.exists("codec/codec.json"):
        codec = fetch_codec(store, staging)
    return load_codec(codec, device=device)[0]


def _plan(source: Source, split: str, settings: EncodeSettings, codec: Any) -> Plan:
    from PIL import features

    shuffled = source.num_items is not None and settings.shuffle_seed is not None
    return Plan(
        split=split,
        source=source.describe() | {"shuffled": shuffled},
        settings=settings,
        codec=codec.spec,
        class_names=source.class_names,
        written_by={
            "walloc_data": __version__,
            "libwebp": str(features.version("webp")),
            "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg")),
        },
    )


def _begin(store: Store, plan: Plan, codec: Any, *, staging: Path) -> Plan:
    """The plan to follow: the one there, if this one agrees with it, else this one, now written down."""
    begun = read_plan(store, plan.split)
    manifest = read_manifest(store)
    if begun is not None:
        same = plan if plan.num_items is not None or begun.num_items is None else plan.with_num_items(begun.num_items)
        if found := differences(begun, same):
            raise SettingsMismatchError(
                f"{store.url}: split {plan.split!r} was begun differently:\n  "
                + "\n  ".join(found)
                + "\nRun with what it was begun with, write to another folder, or overwrite the split (--overwrite)"
            )
    if manifest is not None and plan.split in manifest.splits and begun is None:
        raise SettingsMismatchError(
            f"{store.url}: split {plan.split!r} is there already, and without a plan to resume: overwrite it "
            "(--overwrite), or name another split"
        )
    check_siblings(store, plan, manifest)
    if begun is not None:
        return begun
    from walloc_data.codec import save_codec

    if not store.exists("codec/codec.json"):
        folder = staging / "codec-to-publish"
        save_codec(codec, folder)
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == "codec.json", path.name)):
            path.chmod(0o644)  # safetensors makes files that only their owner may read
            store.publish(path, f"codec/{path.name}")
    store.write_bytes(plan_name(plan.split), dump_json(plan.to_dict()).encode())
    return plan


class _Run:
    """One run of one split: tasks out, done marks in."""

    def __init__(
        self,
        setup: WorkSetup,
        source: Source,
        *,
        where: tuple[int, int],
        max_failures: int | None,
        callback: Callable[[Progress], None] | None,
    ) -> None:
        self.setup, self.source, self.where, self.max_failures = setup, source, where, max_failures
        self.store, self.plan = setup.store, setup.plan
        self.finished = finished_shards(self.store, self.plan.split)
        self.new_samples, self.num_failures, self.num_done = 0, 0, 0
        self.first_failures: list[Failure] = []
        for done in done_marks(self.store, self.plan.split, sorted(self.finished)):
            if self._is_mine(done.first // self.plan.settings.samples_per_shard):
                self._count(done)
        self.stages = Tally()
        self._live: dict[int, Tally] = {}  # of shards under way
        self.meter = ProgressMeter(callback, split=self.plan.split, num_items=self._num_items(), num_done=self.num_done)

    def _num_items(self) -> int | None:
        """Of this part."""
        if self.plan.num_items is None or self.where[1] == 1:
            return self.plan.num_items
        size = self.plan.settings.samples_per_shard
        mine = range(self.where[0], self.plan.num_shards or 0, self.where[1])
        return sum(min(size, self.plan.num_items - shard * size) for shard in mine)

    def _count(self, done: ShardDone) -> None:
        self.num_done += done.last - done.first
        self.num_failures += len(done.failures)
        self.first_failures = [*self.first_failures, *done.failures][:3]

    def progress_text(self) -> str:
        total = self.plan.num_shards
        return (
            f"{len(self.finished)}{'' if total is None else f' of {total}'} shards of split {self.plan.split!r} are "
            f"published in {self.store.url}"
        )

    def go(self, *, workers: int, engine: str, address: str | None, locks: tuple[int, ...], codec: Any) -> None:
        self._check_failures()
        self.tick()
        tasks = self._tasks() if self.setup.source is not None else self._stream_tasks()
        if engine == "ray":
            from walloc_data.convert.ray_engine import run_ray

            run_ray(self.setup, tasks, tasks_at_once=workers, address=address, on_done=self.on_done, on_tick=self.tick)
        elif workers == 1:
            run_here(self.setup, tasks, codec=codec, on_report=self.on_report, on_done=self.on_done)
        else:
            from walloc_data.convert.pool import run_processes

            run_processes(
                self.setup,
                tasks,
                workers=workers,
                locks=locks,
                on_report=self.on_report,
                on_lost=self.on_lost,
                on_done=self.on_done,
                on_tick=self.tick,
            )

    def _is_mine(self, shard: int) -> bool:
        return shard % self.where[1] == self.where[0]

    def _is_due(self, shard: int) -> bool:
        return self._is_mine(shard) and shard not in self.finished

    def _tasks(self) -> Iterator[Task]:
        return (Task(shard) for shard in range(self.plan.num_shards or 0) if self._is_due(shard))

    def _stream_tasks(self) -> Iterator[Task]:
        """Read the stream once, in order; shards that are done are read past."""
        if self.plan.num_shards is not None and not any(map(self._is_due, range(self.plan.num_shards))):
            return
        size = self.plan.settings.samples_per_shard
        number = 0
        stream = self.source.stream()
        for shard in itertools.count():
            chunk: Iterator[Sample] = itertools.islice(stream, size)
            if self._is_due(shard):
                spool = self.setup.staging / f"spool-{shard}"
                read = write_spool(spool, chunk)
                if read:
                    yield Task(shard, spool)
                else:
                    spool.unlink()
            else:
                read = sum(1 for _ in chunk)
            number += read
            if read < size:
                break
        if number == 0:
            raise ConversionError(f"{self.source.location}: the stream is empty")
        self.store.write_bytes(end_name(self.plan.split), dump_json({"num_items": number}).encode())

    def on_report(self, task: Task, tally: Tally) -> None:
        """A worker tells what it did since it told last."""
        self._live.setdefault(task.shard, Tally()).add(tally)
        self.stages.add(tally)
        self.tick()
        self._check_failures()

    def on_lost(self, task: Task) -> None:
        """A worker died with its unfinished shard."""
        self._live.pop(task.shard, None)

    def on_done(self, task: Task, done: ShardDone) -> None:
        """A shard is published."""
        self._live.pop(task.shard, None)
        self.finished.add(task.shard)
        self.new_samples += done.num_samples
        self._count(done)
        if task.spool is not None:
            task.spool.unlink(missing_ok=True)
        self._check_failures()

    def tick(self) -> None:
        """Show where things stand."""
        live = self._live.values()
        self.meter.tick(
            num_done=self.num_done + sum(tally.samples + tally.failures for tally in live),
            num_failures=self.num_failures + sum(tally.failures for tally in live),
        )

    def _check_failures(self) -> None:
        number = self.num_failures + sum(tally.failures for tally in self._live.values())
        if self.max_failures is not None and number > self.max_failures:
            some = "".join(f"\n  {failure}" for failure in self.first_failures)
            raise ConversionError(
                f"{number} pictures could not be encoded, more than max_failures={self.max_failures}. "
                f"{self.progress_text()}; the same command with a higher limit goes on from there.{some}"
            )

    def write_log(self, *, seconds: float) -> None:
        """Append this run's speed to the log, which is no part of the data set."""
        if self.store.local_path is None or not self.stages.samples:
            return
        stages = {name: round(value, 3) for name, value in sorted(self.stages.seconds.items())}
        line = {"seconds": round(seconds, 3), "samples": self.stages.samples, "stages_s": stages}
        path = self.store.local_path / work_folder(self.plan.split) / "log.jsonl"
        with suppress(OSError), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def summary(self, store: Store, *, seconds: float, part: str | None) -> ConversionSummary:
        """Of one part."""
        mine = sorted(shard for shard in self.finished if shard % self.where[1] == self.where[0])
        marks = list(done_marks(store, self.plan.split, mine))
        return ConversionSummary(
            url=store.url,
            split=self.plan.split,
            num_samples=sum(done.num_samples for done in marks),
            num_failures=sum(len(done.failures) for done in marks),
            num_shards=sum(done.shard is not None for done in marks),
            source_bytes=sum(done.source_bytes for done in marks),
            shard_bytes=sum(done.shard.num_bytes for done in marks if done.shard),
            webp_bytes=sum(done.webp_bytes for done in marks),
            num_pixels=sum(done.num_pixels for done in marks),
            new_samples=self.new_samples,
            seconds=seconds,
            part=part,
        )
