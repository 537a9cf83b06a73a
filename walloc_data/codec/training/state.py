"""Files of a training run: its checkpoint, its log, the plot of the log, and the model card."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from walloc_data.codec.info import CodecInfo
from walloc_data.codec.training.picture_sets import Corpus, PictureSet
from walloc_data.errors import CodecError, SettingsMismatchError
from walloc_data.files import atomic_file
from walloc_data.format import CodecSpec

__all__ = ["Checkpoint", "append_log", "decoder_card", "draw_log", "model_card", "open_run"]

_FILE = "checkpoint.safetensors"
_MAX_BYTES = 2**32
_STATE_TYPES = {
    "step": int, "total_steps": int, "seconds": float, "frozen": bool, "log_weight": float, "mean_bpp": float,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """State for resuming a run, in one file, so that it is always consistent."""

    config: Mapping[str, Any]
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def save(self, folder: Path) -> None:
        """Replace the checkpoint of `folder`, or leave the one that is there."""
        metadata = {"walloc_data_training": json.dumps({"config": dict(self.config), "state": dict(self.state)})}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        for leftover in folder.glob(f".{_FILE}.*.partial"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        with atomic_file(folder / _FILE) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)

    @classmethod
    def load(cls, folder: Path, *, state_types: Mapping[str, type] | None = None) -> "Checkpoint | None":
        """Return the checkpoint of `folder`, None if there is none. Tensors and JSON: reading it runs nothing.

        `state_types` names the fields of the state and their types; those of joint training if not given.
        """
        path = folder / _FILE
        if not path.exists():
            return None
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise CodecError(f"{path}: {size} bytes; at most {_MAX_BYTES} are read")
        try:
            with safe_open(path, framework="pt") as file:
                value = json.loads((file.metadata() or {}).get("walloc_data_training", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config, state = value["config"], value["state"]
            if not isinstance(config, dict) or any(
                type(state[name]) is not kind for name, kind in (state_types or _STATE_TYPES).items()
            ):
                raise ValueError("a field of another type")
        except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise CodecError(f"{path}: not a training checkpoint ({error}): delete {folder} to start again") from error
        return cls(config, state, tensors)


def append_log(output: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to OUTPUT/log.jsonl. After a kill, lines past the checkpoint appear a second time."""
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def open_run(
    output: Path,
    pictures: Sequence[PictureSet],
    settings: Mapping[str, Any],
    *,
    resume: bool,
    log: Callable[[str], None],
    state_types: Mapping[str, type] | None = None,
) -> tuple[Corpus, Checkpoint | None]:
    """Return the decoded pictures of a run in `output`, and its checkpoint where one was begun with these settings."""
    work = output / ".training"
    if not resume and work.exists():
        shutil.rmtree(work)
        (output / "log.jsonl").unlink(missing_ok=True)
    checkpoint = Checkpoint.load(work, state_types=state_types)
    if checkpoint is not None:
        _check_settings(checkpoint.config, settings, context=output)
    corpus = Corpus(work) if Corpus.exists(work) else Corpus.build(pictures, work)
    log(f"{len(corpus)} pictures, {corpus.shapes.prod(1).sum() / 1e6:.0f} MP, {len(corpus.held_out)} held out")
    return corpus, checkpoint


def _check_settings(begun: Mapping[str, Any], now: Mapping[str, Any], *, context: Path) -> None:
    """Raise SettingsMismatchError if a resumed run had other settings."""
    names = sorted((set(begun) | set(now)) - {"checkpoint_seconds", "validate_seconds"})
    if differing := [
        f"{name} {begun.get(name)!r}, now {now.get(name)!r}" for name in names if begun.get(name) != now.get(name)
    ]:
        raise SettingsMismatchError(
            f"{context}: training was begun with other settings: {'; '.join(differing)}. "
            "Repeat those, use another folder, or start again with resume=False (--restart)"
        )


def _read_log(log: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, without lines that a full disk or a power failure has cut short."""
    entries = []
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        with suppress(ValueError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def draw_log(log: Path, path: Path) -> bool:
    """Plot a log's validation points: quality over time and over the rate. Return False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    entries = _read_log(log)
    points = [entry for entry in entries if "validation_psnr_db" in entry]
    figure = Figure(figsize=(9, 4), layout="constrained")
    plane, course = figure.subplots(1, 2)
    psnr = [entry["validation_psnr_db"] for entry in points]
    if any("validation_bpp" in entry for entry in points):
        bpp = [entry["validation_bpp"] for entry in points]
        plane.plot(bpp, psnr, ".-", color="0.7")
        marks = plane.scatter(bpp, psnr, c=[entry["step"] for entry in points])
        figure.colorbar(marks, ax=plane, label="step")
        plane.set(xlabel="bits per pixel", ylabel="PSNR, dB", title="Held-out pictures")
    else:  # the encoder is fixed, and with it the rate
        losses = [entry for entry in entries if "loss" in entry]
        plane.plot([entry["step"] for entry in losses], [entry["loss"] for entry in losses], lw=0.7)
        plane.set(xlabel="step", ylabel="loss", title="Training crops")
    course.plot([entry["seconds"] / 60 for entry in points], psnr, ".-")
    course.set(xlabel="minutes", ylabel="PSNR, dB", title="Over time")
    figure.savefig(path, dpi=100)
    return True


def model_card(info: CodecInfo, config: Mapping[str, Any], *, corpus: Corpus, result: Mapping[str, Any]) -> str:
    """Return the README.md of a codec: its training data, method and measured quality."""
    spec = info.spec
    sources = "\n".join(f"| {name} | {weight:g} |" for name, weight in zip(corpus.names, corpus.weights, strict=True))
    recipe = (
        "Closed form: the KLT of wavelet-packet coefficients, and a linear decoder by least squares."
        if config["closed_form"]
        else "Encoder and decoder jointly by gradient descent (`walloc_data.codec.training.codec`), from a KLT start."
    )
    return f"""# {spec.name}

A walloc_data codec, written on {datetime.now(UTC):%Y-%m-%d}.

- Shape: {spec.channels} colours, J {spec.J}, {spec.latent_dim} latent channels of {spec.latent_bits} bits:
  {spec.dimensionality_reduction:g} times fewer values, one cell for {spec.cell_px} x {spec.cell_px} pixels
- Encoder: one linear layer on wavelet-packet coefficients. Decoder: {info.decoder}
- {recipe}
- Encoder hash: `{spec.encoder_sha256}`

## Data

{len(corpus)} pictures, {corpus.shapes.prod(1).sum() / 1e6:.0f} megapixels.
Licence of the data: {config["data_licence"]}.

| source | weight |
|---|---|
{sources}

## Rate and quality

Means over {result["held_out_pictures"]} pictures that were held out of training; bytes are lossless WebP.

| decoder | bits per pixel | PSNR, dB |
|---|---|---|
| {info.decoder} | {result["bpp"]} | {result["psnr_db"]} |
| linear | {result["bpp"]} | {result["linear_psnr_db"]} |

## Settings

```json
{json.dumps(config, indent=1, sort_keys=True)}
```

Steps taken: {result["steps"]}.
"""


def decoder_card(spec: CodecSpec, settings: Mapping[str, Any], *, corpus: Corpus, steps: int, psnr_db: float) -> str:
    """Return README.md of a decoder: what it decodes, what it learned from, how, and how well it does."""
    sources = "\n".join(f"| {name} | {weight:g} |" for name, weight in zip(corpus.names, corpus.weights, strict=True))
    return f"""# Decoder {settings["version"]} of {spec.name}

Trained by `walloc-data train-codec --encoder`, written on {datetime.now(UTC):%Y-%m-%d}. The encoder was not changed:
its hash is `{spec.encoder_sha256}`, and this network decodes every latent of it.

- Network: {json.dumps(settings["decoder"])}
- Training: {steps} steps on rounded latents; the loss is the mean over crops of log(squared pixel error + 10)
- Held-out pictures: {psnr_db:.3f} dB, mean over {len(corpus.held_out)}

## Data

{len(corpus)} pictures, {corpus.shapes.prod(1).sum() / 1e6:.0f} megapixels.
Licence of the data: {settings["data_licence"]}.

| source | weight |
|---|---|
{sources}

## Settings

```json
{json.dumps(dict(settings), indent=1, sort_keys=True)}
```
"""
