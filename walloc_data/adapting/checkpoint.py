"""Checkpoint of an adaptation: one file, replaced atomically, and read without running anything."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from walloc_data.errors import ModelError, SettingsMismatchError, StorageError
from walloc_data.files import atomic_file
from walloc_data.format import dump_json, load_json

__all__ = ["RunFolder", "weights_sha256"]

_RUN, _CHECKPOINT, _FINISHED = ".adapting", "checkpoint.pt", "adapted.json"
_MAX_CHECKPOINT_BYTES, _MAX_JSON_BYTES = 2**35, 2**22


def weights_sha256(model: nn.Module) -> str:
    """Return a hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class RunFolder:
    """The folder of a run: its checkpoint while it goes on, its report once it is done.

    Args:
        folder: of the model that is made.
        settings: what decides every number of the run; a checkpoint of others is refused.
        resume: False begins again.

    Raises:
        SettingsMismatchError: the folder holds a run of other settings, or other files; names what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], *, settings: dict[str, Any], resume: bool) -> None:
        self.folder, self.settings = Path(folder), settings
        self.run = self.folder / _RUN
        if not self.run.exists() and not (self.folder / _FINISHED).exists():
            self._refuse_other_files()
        if not resume:
            shutil.rmtree(self.run, ignore_errors=True)
            (self.folder / _FINISHED).unlink(missing_ok=True)
        try:
            self.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written to ({error.strerror})") from error
        for leftover in self.run.glob(".*.partial"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def _refuse_other_files(self) -> None:
        others = sorted(path.name for path in self.folder.glob("*") if not path.name.startswith("."))
        if others:
            raise SettingsMismatchError(
                f"{self.folder}: holds other files ({', '.join(others[:3])}), which an adaptation might replace: give "
                "it a folder of its own"
            )

    def finished(self) -> dict[str, Any] | None:
        """Return the report of a finished run of these settings, None where there is none."""
        path = self.folder / _FINISHED
        if not path.exists():
            return None
        value = load_json(_read(path, limit=_MAX_JSON_BYTES), context=str(path))
        self._check(value.get("settings"))
        report: dict[str, Any] = value["report"]
        return report

    def load(self) -> dict[str, Any] | None:
        """Load the state from which a run of these settings resumes."""
        path = self.run / _CHECKPOINT
        if not path.exists():
            return None
        if (size := path.stat().st_size) > _MAX_CHECKPOINT_BYTES:
            raise ModelError(f"{path}: {size} bytes; at most {_MAX_CHECKPOINT_BYTES} are read")
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values alone
            state: dict[str, Any] = value["state"]
        except Exception as error:  # the unpickler raises many kinds
            raise ModelError(
                f"{path}: not a checkpoint ({type(error).__name__}): begin again with resume=False (--restart)"
            ) from error
        self._check(value.get("settings"))
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, or leave the one that is there."""
        with atomic_file(self.run / _CHECKPOINT) as unfinished:
            torch.save({"settings": self.settings, "state": state}, unfinished)

    def finish(self, report: dict[str, Any]) -> None:
        """Write the report; the checkpoint goes."""
        with atomic_file(self.folder / _FINISHED) as unfinished:
            unfinished.write_text(dump_json({"settings": self.settings, "report": report}))
        shutil.rmtree(self.run, ignore_errors=True)

    def _check(self, begun: Any) -> None:
        begun = begun if isinstance(begun, dict) else {}
        names = sorted((set(begun) | set(self.settings)) - {"checkpoint_seconds"})
        if differing := [
            f"{name} {begun.get(name)!r}, now {self.settings.get(name)!r}"
            for name in names
            if begun.get(name) != self.settings.get(name)
        ]:
            raise SettingsMismatchError(
                f"{self.folder}: the adaptation there was begun with other settings: {'; '.join(differing[:5])}. "
                "Repeat those, use another folder, or begin again with resume=False (--restart)"
            )


def _read(path: Path, *, limit: int) -> bytes:
    if path.stat().st_size > limit:
        raise ModelError(f"{path}: larger than {limit} bytes: not a report of adapt_model")
    return path.read_bytes()
