"""The exceptions of walloc_data.

    WallocDataError
    ├── FormatError            (ValueError)    an invalid manifest, record, index or key
    │   └── CorruptShardError                  a shard that does not match its record
    ├── CodecError             (ValueError)    a codec that cannot be loaded, or does not match the latents
    ├── DeviceError            (ValueError)    a device that is unknown to torch or not usable on this machine
    ├── SourceError            (ValueError)    a source of pictures that cannot be read
    │   └── UnreadableError                    a picture that exists but cannot be read from the disk or store
    ├── SettingsMismatchError  (ValueError)    settings that differ from those of the existing data set
    ├── LoaderError            (ValueError)    a request for batches that the data set cannot fulfil
    ├── StateError             (ValueError)    a loader state of another data set, batch size or format
    ├── ModelError             (ValueError)    a model that cannot take these latents
    ├── TransformError         (ValueError)    a transform with invalid parameters, or that does not match the latents
    ├── StorageError           (OSError)       a storage request that failed, after retries
    ├── BusyError              (RuntimeError)  a lock held by another process
    ├── ConversionError        (RuntimeError)  a conversion that stopped before its end
    ├── WorkerError            (RuntimeError)  a loader process that died, or has no shared memory
    └── MissingExtraError      (ImportError)   a missing optional package; the message names the extra

Each class also derives from the builtin in parentheses. Messages name the file or object, the value, and the remedy.
"""

from walloc_data.text import printable

__all__ = [
    "BusyError",
    "CodecError",
    "ConversionError",
    "CorruptShardError",
    "DeviceError",
    "FormatError",
    "LoaderError",
    "MissingExtraError",
    "ModelError",
    "SettingsMismatchError",
    "SourceError",
    "StateError",
    "StorageError",
    "TransformError",
    "UnreadableError",
    "WallocDataError",
    "WorkerError",
]


class WallocDataError(Exception):
    """Base class of all exceptions of this package.

    Messages contain names of files and classes, which are untrusted: `str` escapes terminal control characters.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class FormatError(WallocDataError, ValueError):
    """A manifest, record, index or key is not valid by the rules of `walloc_data.format`."""


class CorruptShardError(FormatError):
    """The bytes of a shard do not match its record."""


class CodecError(WallocDataError, ValueError):
    """A codec cannot be loaded, or does not match the latents."""


class DeviceError(WallocDataError, ValueError):
    """A device is unknown to torch, or not usable on this machine."""


class SourceError(WallocDataError, ValueError):
    """A source of pictures cannot be read."""


class UnreadableError(SourceError):
    """A picture exists but cannot be read, because of an error of the disk or the store.

    Attributes:
        name: name of the file, without folders.
        reason: message of the system or the store.
    """

    name: str = ""
    reason: str = ""


class SettingsMismatchError(WallocDataError, ValueError):
    """Settings differ from those of the existing data set; the message names each of them."""


class LoaderError(WallocDataError, ValueError):
    """The requested batches cannot be made from this data set."""


class StateError(WallocDataError, ValueError):
    """A saved loader state does not belong to this loader."""


class ModelError(WallocDataError, ValueError):
    """A model cannot take these latents."""


class TransformError(WallocDataError, ValueError):
    """The parameters of a transform are invalid, or do not match the latents."""


class StorageError(WallocDataError, OSError):
    """A storage request failed; transient errors were retried before."""


class BusyError(WallocDataError, RuntimeError):
    """Another process holds the lock."""


class ConversionError(WallocDataError, RuntimeError):
    """A conversion stopped before its end; it can be resumed."""


class WorkerError(WallocDataError, RuntimeError):
    """A loader process died, or has no shared memory for its batches."""


class MissingExtraError(WallocDataError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'walloc_data[{extra}]'")
