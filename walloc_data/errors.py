"""Every error that walloc_data raises on purpose.

    WallocDataError
    ├── FormatError            (ValueError)    a manifest, record, index or key that breaks the contract on disk
    │   └── CorruptShardError                  a shard whose bytes are not what its record promised
    ├── CodecError             (ValueError)    a codec that cannot be loaded, or does not fit the latents
    ├── DeviceError            (ValueError)    a device that torch does not know, or cannot use on this machine
    ├── SourceError            (ValueError)    a source of pictures that cannot be read as asked
    │   └── UnreadableError                    a picture that is there and that the machine or the store will not give
    ├── SettingsMismatchError  (ValueError)    resuming or extending with other settings than were used before
    ├── LoaderError            (ValueError)    batches that cannot be made as asked from these samples
    ├── StateError             (ValueError)    a loader state of another data set, batch size or format
    ├── ModelError             (ValueError)    a timm model that cannot take latents, or a checkpoint of another codec
    ├── TransformError         (ValueError)    a transform with impossible parameters, or that does not fit the latents
    ├── StorageError           (OSError)       a store that refuses or fails, after the retries it deserves
    ├── BusyError              (RuntimeError)  another process holds what this one needs
    ├── ConversionError        (RuntimeError)  a conversion that stopped before its end
    ├── WorkerError            (RuntimeError)  a process that reads batches died, or has no shared memory
    └── MissingExtraError      (ImportError)   an optional package is absent; names the extra to install

Each leaf is also the builtin that a caller would catch. A message says what was being processed, the value, the
rule, and the remedy.
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
    """The root of every error in this package.

    Messages name files, classes and members of tars: as text, they hold nothing that could steer a terminal.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class FormatError(WallocDataError, ValueError):
    """Something on disk breaks the contract of `walloc_data.format`."""


class CorruptShardError(FormatError):
    """A shard's bytes are not what its record promised."""


class CodecError(WallocDataError, ValueError):
    """A codec cannot be loaded, or does not fit the latents it is given."""


class DeviceError(WallocDataError, ValueError):
    """A device that torch does not know, or cannot use on this machine."""


class SourceError(WallocDataError, ValueError):
    """A source of pictures cannot be read as asked."""


class UnreadableError(SourceError):
    """A picture cannot be read, by no fault of its own.

    Attributes:
        name: of the file, without its folders.
        reason: what the system or the store said.
    """

    name: str = ""
    reason: str = ""


class SettingsMismatchError(WallocDataError, ValueError):
    """A data set was begun with other settings; names every one that differs."""


class LoaderError(WallocDataError, ValueError):
    """Batches cannot be made as asked from these samples."""


class StateError(WallocDataError, ValueError):
    """A saved loader state does not belong to this loader."""


class ModelError(WallocDataError, ValueError):
    """A model cannot take these latents."""


class TransformError(WallocDataError, ValueError):
    """A transform's parameters are impossible, or do not fit the latents."""


class StorageError(WallocDataError, OSError):
    """A store refused, or failed after the retries that it deserved."""


class BusyError(WallocDataError, RuntimeError):
    """Another process holds the lock on what this one needs."""


class ConversionError(WallocDataError, RuntimeError):
    """A conversion stopped before its end; what was published stays and can be resumed."""


class WorkerError(WallocDataError, RuntimeError):
    """A process that reads batches died, or has no shared memory for them."""


class MissingExtraError(WallocDataError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'walloc_data[{extra}]'")
