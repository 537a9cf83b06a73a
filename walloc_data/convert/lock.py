"""Locks that allow one conversion, or several parts of one, in a data set at a time.

They use `flock` directly, because lock libraries support neither shared locks nor inheritance. The kernel releases the
lock when its last holder ends in any way, so a killed conversion blocks nothing. Worker processes inherit the
descriptor, so a folder stays locked while an orphaned worker could still write.

For a data set in an object store, or on a file system without locks, the lock is a file on this machine, named after
the URL or path. It does not exclude conversions on other machines: in an object store these publish the same bytes, and
the plan refuses other settings. Without `fcntl` (Windows) a conversion and a part of it do not exclude each other.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from walloc_data.errors import BusyError, StorageError, WallocDataError
from walloc_data.storage import Store, file_lock, lock_path, machine_folder

__all__ = ["conversion_lock", "disk_errors", "lock_folder", "plan_lock", "staging_folder"]

# A worker whose parent was killed notices between two windows of pictures.
PATIENCE_S = 5.0


def lock_folder(store: Store) -> Path:
    """Return the folder of a data set's lock files."""
    if store.local_path is not None:
        folder = store.local_path / ".walloc"
    else:
        folder = machine_folder() / hashlib.sha256(store.url.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755 if store.local_path is not None else 0o700)
    except OSError as error:
        raise StorageError(f"{store.url}: cannot be written ({error.strerror}: {error.filename})") from error
    return folder


@contextmanager
def disk_errors(store: Store) -> Iterator[None]:
    """Context: turn errors of the local disk into a StorageError with a remedy."""
    try:
        yield
    except WallocDataError:
        raise
    except OSError as error:
        raise StorageError(
            f"{store.url}: {error.strerror or error} ({error.filename or 'while writing'}); finished shards are kept, "
            "run the same command to resume"
        ) from error


@contextmanager
def conversion_lock(store: Store, *, part: str | None = None) -> Iterator[tuple[int, ...]]:
    """Lock a data set for writing; yield the descriptors that workers must inherit.

    A conversion excludes all others; a part excludes only the same part.

    Raises:
        BusyError: another conversion holds the lock.
    """
    folder = lock_folder(store)
    with ExitStack() as stack:
        held = stack.enter_context(_held(folder / "lock", store=store, shared=part is not None))
        if part is not None:
            held += stack.enter_context(_held(folder / f"lock-{part}", store=store, shared=False))
        yield held


@contextmanager
def plan_lock(store: Store) -> Iterator[None]:
    """Lock the plan while it is compared or written; parts that start at the same time wait for each other."""
    with _held(lock_folder(store) / "lock-plan", store=store, shared=False, patience_s=120.0):
        yield


@contextmanager
def _held(path: Path, *, store: Store, shared: bool, patience_s: float | None = None) -> Iterator[tuple[int, ...]]:
    """Hold one lock; yield its descriptor if it has one."""
    deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    with ExitStack() as stack:
        while True:
            try:
                held = _take(path, stack, shared=shared)
            except WallocDataError:
                raise
            except OSError as error:
                raise StorageError(
                    f"{store.url}: cannot be written ({error.strerror}: {error.filename or path})"
                ) from error
            if held is not None:
                break
            if time.monotonic() > deadline:
                raise BusyError(
                    f"{store.url}: another conversion is writing there (it holds {path}); wait until it ends, "
                    "or write to another folder"
                )
            time.sleep(0.05)
        yield held


def _take(path: Path, stack: ExitStack, *, shared: bool) -> tuple[int, ...] | None:
    """Acquire a lock until the stack is closed; return its descriptor, if any, or None if another process holds it."""
    try:
        import fcntl
    except ImportError:
        taken = shared or stack.enter_context(file_lock(path, wait=False)) is not None
        return () if taken else None
    place, _ = lock_path(path)
    try:
        descriptor = os.open(place, os.O_RDWR)  # NFS grants exclusive locks only on files open for writing
    except PermissionError:  # owned by another user
        descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    stack.callback(os.close, descriptor)
    # Before closing: a process forked meanwhile may have a copy of the descriptor, which would keep the lock.
    stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
    return (descriptor,)


@contextmanager
def staging_folder(store: Store, *, tag: str) -> Iterator[Path]:
    """Create an empty folder for unfinished files; inside a local data set, so that publishing is a rename."""
    if store.local_path is None:
        with tempfile.TemporaryDirectory(prefix="walloc_data-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder = lock_folder(store) / "staging" / tag
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be created ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # fails if another part uses it
