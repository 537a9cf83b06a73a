"""One conversion at a time in one folder; parts of one conversion side by side.

`flock` itself, as no library shares a lock or lets it be inherited: the kernel frees it when its last holder ends,
however it ends, so a killed conversion blocks nobody. Worker processes inherit the descriptor, so a folder stays locked
for as long as an orphaned worker could still write.
For a data set in an object store, or on a file system without locks, the lock is a file of this machine, named after
the URL or path: it stops two conversions here. Two machines are not stopped; in an object store they publish the same
bytes, in a folder the parts of one conversion do, and other settings are refused by the plan. Without `fcntl` (Windows)
a whole conversion and a part of it do not exclude each other.
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
    """Return where a data set's lock files lie."""
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
    """Turn a full or vanished local disk into an error that says what to do."""
    try:
        yield
    except WallocDataError:
        raise
    except OSError as error:
        raise StorageError(
            f"{store.url}: {error.strerror or error} ({error.filename or 'while writing'}); what is published stays, "
            "and the same command goes on from there"
        ) from error


@contextmanager
def conversion_lock(store: Store, *, part: str | None = None) -> Iterator[tuple[int, ...]]:
    """Hold a data set for writing; yields the descriptors that workers must inherit.

    A whole conversion excludes everything else; parts exclude only themselves.

    Raises:
        BusyError: another conversion holds it.
    """
    folder = lock_folder(store)
    with ExitStack() as stack:
        held = stack.enter_context(_held(folder / "lock", store=store, shared=part is not None))
        if part is not None:
            held += stack.enter_context(_held(folder / f"lock-{part}", store=store, shared=False))
        yield held


@contextmanager
def plan_lock(store: Store) -> Iterator[None]:
    """Lock the plan while it is compared or written down; a hundred parts that begin at once wait for each other."""
    with _held(lock_folder(store) / "lock-plan", store=store, shared=False, patience_s=120.0):
        yield


@contextmanager
def _held(path: Path, *, store: Store, shared: bool, patience_s: float | None = None) -> Iterator[tuple[int, ...]]:
    """Hold one lock; yields its descriptor where it has one."""
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
                    f"{store.url}: another conversion is writing there (it holds {path}); wait until it has ended, "
                    "or write to another folder"
                )
            time.sleep(0.05)
        yield held


def _take(path: Path, stack: ExitStack, *, shared: bool) -> tuple[int, ...] | None:
    """Take a lock, until the stack is closed; return its descriptor where it has one, None where another holds it."""
    try:
        import fcntl
    except ImportError:
        taken = shared or stack.enter_context(file_lock(path, wait=False)) is not None
        return () if taken else None
    place, _ = lock_path(path)
    try:
        descriptor = os.open(place, os.O_RDWR)  # NFS takes an exclusive lock for writing only
    except PermissionError:  # another user's
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
    # First of the two: it frees the lock though a process that was forked meanwhile may have a copy of the descriptor.
    stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
    return (descriptor,)


@contextmanager
def staging_folder(store: Store, *, tag: str) -> Iterator[Path]:
    """Make an empty folder for unfinished files: inside a local data set, so that publishing is a rename."""
    if store.local_path is None:
        with tempfile.TemporaryDirectory(prefix="walloc_data-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder = lock_folder(store) / "staging" / tag
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left there
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # unless another part works there
