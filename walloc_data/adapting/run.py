"""Adaptation of a timm model trained on pixels to latents: `adapt_model`."""

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from walloc_data.adapters import (
    Geometry,
    PixelPrediction,
    Pretrained,
    create_latent_model,
    find_family,
    fold_stem,
    input_normalisation,
    input_size,
    latent_config,
    load_latent_model,
    match_moments,
    picture_size,
    pixel_model,
    save_latent_model,
    summarize,
)
from walloc_data.adapting.checkpoint import RunFolder, weights_sha256
from walloc_data.adapting.distillation import Distillation, distill
from walloc_data.adapting.pairs import PairedViews, Pairs
from walloc_data.adapting.report import compare, name_classes
from walloc_data.adapting.settings import AdaptConfig, AdaptReport
from walloc_data.dataset import LatentDataset
from walloc_data.deprecated import renamed_arguments
from walloc_data.devices import usable_device
from walloc_data.errors import BusyError, ModelError, StorageError
from walloc_data.pictures import original_pictures
from walloc_data.serving import attach_codec
from walloc_data.sources import Source, open_split
from walloc_data.storage import file_lock
from walloc_data.transforms import LatentOperators

__all__ = ["adapt_model"]

Log = Callable[[str], None]
_LOG_SECONDS = 15.0
# A model whose own input is nearly as large as what is stored takes the middle of it, as its evaluation does of pixels.
_SMALLEST_CROP = 0.8


@renamed_arguments(say="log")
def adapt_model(
    model: str | nn.Module,
    *,
    dataset: LatentDataset | str | os.PathLike[str],
    pictures: Source | str | os.PathLike[str],
    pretrained: Pretrained = True,
    num_classes: int | None = None,
    output: str | os.PathLike[str] | None = None,
    config: AdaptConfig | None = None,
    device: str = "cpu",
    resume: bool = True,
    log: Log | None = None,
) -> tuple[nn.Module, AdaptReport]:
    """Turn a classifier of pixels into a classifier of latents, without labels.

    The weights are copied, the stem is folded in closed form if possible, and the model learns to reproduce features
    and logits of the pixel model on the pictures that were encoded.

    Args:
        model: name of a timm model, "hf_hub:OWNER/REPOSITORY", or a pixel model.
        dataset: a `LatentDataset`, or the folder or URL of an encoded data set.
        pictures: source that its split was encoded from, readable by position (a folder, local tars, `hf:NAME`); a
            folder may hold one folder per split.
        pretrained: True for timm's weights; the path of a state dict; "hf_hub:OWNER/REPOSITORY"; or a module.
        num_classes: number of classes of the result; None: that of the pixel model. If it is that of the data set,
            whose class names are WordNet ids of ImageNet, the classifier keeps the weights of these classes. Otherwise
            a different number makes it new, to be trained with labels before it predicts anything.
        output: folder for the model, its codec, its report and checkpoints. The same call resumes an interrupted run,
            with identical results.
        config: geometry, stem, learning rates and lengths.
        device: device for training, e.g. "cuda".
        resume: False starts again.
        log: receives each line of progress.

    Returns:
        The model, in eval mode on `device`, as returned by `load_latent_model`; and a report on held-out pictures.

    Raises:
        ModelError: the weights do not match, the model is not supported, or the pictures are not those of the data set.
        SettingsMismatchError: `output` has a run with other settings, or other files.
        BusyError: another process works in `output`.

    Example:
        >>> import timm
        >>> from walloc_data import adapt_model
        >>> from walloc_data.adapting import AdaptConfig
        >>> from walloc_data.serving import predict
        >>> teacher = timm.create_model("test_resnet", num_classes=2)  # or a name, and pretrained=
        >>> config = AdaptConfig(epochs=2, batch_size=4)
        >>> model, report = adapt_model(
        ...     teacher, dataset="my-latents", pictures="pictures", output="adapted", config=config
        ... )
        >>> report.num_steps, report.num_held_out
        (2, 1)
        >>> predict("adapted", ["pictures/cat/0.jpg"])[0].name in ("cat", "coffee")
        True
    """
    log = log or (lambda line: None)
    config = config or AdaptConfig()
    target = usable_device(device)
    data = dataset if isinstance(dataset, LatentDataset) else LatentDataset(dataset, split=config.split)
    source = open_split(pictures, split=config.split)
    pairs = Pairs(data, original_pictures(source, settings=data.manifest.settings))
    pixel, build, config = _models(model, pretrained, data=data, config=config)
    pairs.check()
    if num_classes is not None and num_classes < 1:
        raise ModelError(f"num_classes must be 1 or more, not {num_classes}")
    settings = config.to_dict() | {
        "model": build["name"], "weights": weights_sha256(pixel), "data": data.identity, "num_classes": num_classes,
    }  # fmt: skip
    if output is None:
        return _adapt(
            pixel, build, pairs, config=config, num_classes=num_classes, device=target, run_folder=None, log=log
        )
    run_folder = RunFolder(output, settings=settings, resume=resume)
    with file_lock(run_folder.folder / ".adapting.lock", wait=False) as held:
        if held is None:
            raise BusyError(f"{run_folder.folder}: another process adapts a model there")
        if (report := run_folder.finished()) is not None:
            log(f"{run_folder.folder}: already done")
            return load_latent_model(run_folder.folder, device=device), AdaptReport(**report)
        return _adapt(
            pixel, build, pairs, config=config, num_classes=num_classes, device=target, run_folder=run_folder, log=log
        )


def _models(
    model: str | nn.Module, pretrained: Pretrained, *, data: LatentDataset, config: AdaptConfig
) -> tuple[Any, dict[str, Any], AdaptConfig]:
    """Return the pixel model, and the arguments that build the latent model of the same weights."""
    cell, stored = data.manifest.codec.cell_px, data.latent_shape
    if stored is None:
        raise ModelError(f"{data.url}: its pictures are of several sizes: encode them with size_px=")
    pixel: Any
    if isinstance(model, nn.Module):
        pixel, model_name = model, str(getattr(model, "pretrained_cfg", {}).get("architecture", ""))
        if not model_name:
            raise ModelError(f"{type(model).__name__} is not a timm model: it names no architecture in pretrained_cfg")
    elif isinstance(pretrained, nn.Module):
        pixel, model_name = pretrained, model
    else:
        pixel = None
        model_name = model
        if model.startswith(("hf_hub:", "hf-hub:")) or str(pretrained).startswith(("hf_hub:", "hf-hub:")):
            pixel = pixel_model(model, pretrained, **config.model_kwargs)
            model_name = pixel.pretrained_cfg["architecture"]
    family = find_family(model_name)
    geometry = config.geometry or ("pixel_grid" if "pixel_grid" in family.geometries else family.geometries[0])
    cells = _input_cells(pixel or model_name, geometry, config, stored=stored[1:], cell_px=cell)
    build: dict[str, Any] = {
        "name": model_name,
        "dataset": data,
        "geometry": geometry,
        "input_shape": (stored[0], *cells),
        "view": "whole" if cells == stored[1:] else "crop",
        "stem_padding": "circular",
        "stem_bias": True,
        "stem_kernel_cells": config.stem_kernel_cells,
    }
    size = family.picture(geometry, cells, cell_px=cell)
    kwargs = dict(config.model_kwargs)
    build |= kwargs
    kwargs |= {"img_size": size} if family.sized else {}
    # Before the weights are read: a model that takes no latents is refused first.
    like = create_latent_model(**build, num_classes=1)
    if pixel is None:
        pixel = pixel_model(model_name, pretrained, **kwargs)
    else:
        pixel = copy.deepcopy(pixel)  # it is frozen, resized and moved; the caller's is not
        if family.sized and hasattr(pixel, "set_input_size"):
            pixel.set_input_size(img_size=size)
    config = config.resolved(foldable=_is_foldable(like, pixel))
    if not config.stem_linear:
        build |= {"stem_blocks": config.stem_blocks, "stem_hidden_channels": config.stem_channels}
    return pixel, build, config


def _is_foldable(model: Any, pixel: nn.Module) -> bool:
    """Return whether a stem has a closed form."""
    try:
        PixelPrediction.for_model(model, pixel)
    except ModelError:
        return False
    return True


def _input_cells(
    model: Any, geometry: Geometry, config: AdaptConfig, *, stored: tuple[int, int], cell_px: int
) -> tuple[int, int]:
    """Return (h, w) in cells of what the latent model takes, of `stored` cells."""
    if config.input_cells is not None:
        own = (config.input_cells, config.input_cells)
        if max(own) > min(stored) or min(own) < 1:
            raise ModelError(
                f"input_cells must be 1 to {min(stored)} for latents of {stored[0]} x {stored[1]} cells, not {own[0]}"
            )
        return own
    stage_px = {"all_stages": 4, "skip_early": 8, "pixel_grid": cell_px}[geometry]
    height, width = (side // stage_px for side in input_size(model))
    fits = all(_SMALLEST_CROP * have <= want <= have for want, have in zip((height, width), stored, strict=True))
    return (height, width) if fits else stored


def _adapt(
    pixel: Any,
    build: dict[str, Any],
    pairs: Pairs,
    *,
    config: AdaptConfig,
    num_classes: int | None,
    device: torch.device,
    run_folder: RunFolder | None,
    log: Log,
) -> tuple[Any, AdaptReport]:
    begun = time.monotonic()
    data, codec = pairs.dataset, pairs.dataset.manifest.codec
    mean, std = input_normalisation(pixel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = create_latent_model(**build, num_classes=pixel.num_classes, pretrained=pixel)
    model = model.to(device).to(memory_format=torch.channels_last)
    order = np.random.default_rng((config.seed, 2**31)).permutation(len(pairs))
    held = order[: min(config.held_out, max(1, len(pairs) // 8))]
    rows = order[len(held) :] if len(pairs) > 1 else order
    whole = PairedViews(latent_config(model).input_shape[1:], picture_size(model), cell_px=codec.cell_px)
    views = PairedViews(
        *_training_size(model, config),
        cell_px=codec.cell_px,
        operators=_operators(data, log=log),
        scale=config.scale,
        flip_p=config.flip_p,
    )
    run = Distillation(model, pixel, pairs, views, rows, mean=mean, std=std, config=config)
    log(f"{summarize(model)}; {len(rows)} pictures to learn from, {len(held)} held out; stages {', '.join(run.stages)}")
    train(run, whole, rows, run_folder=run_folder, log=log)
    report = compare(run, held, views=whole, seconds=time.monotonic() - begun)
    log(str(report))
    if name_classes(model, data, num_classes=num_classes):
        report = replace(report, is_untrained=True)
        log(f"its classifier of {num_classes} classes is new and untrained: train it with labels before it predicts")
    if model.num_classes != pixel.num_classes:
        log(f"the numbers above are of the pixel model's {pixel.num_classes} classes")
    if run_folder is not None:
        save_latent_model(model, run_folder.folder)
        attach_codec(run_folder.folder, dataset=data.store.root)
        run_folder.finish(report.to_dict())
    return model.eval(), report


def _training_size(model: Any, config: AdaptConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sides of the views that are trained on: of latents in cells, of pictures in pixels."""
    cells, pixels = latent_config(model).input_shape[1:], picture_size(model)
    if config.train_cells is None:
        return cells, pixels
    if find_family(latent_config(model).name).sized:
        raise ModelError(f"{latent_config(model).name} takes latents of one size: leave out train_cells")
    side = config.train_cells
    return (side, side), (pixels[0] * side // cells[0], pixels[1] * side // cells[1])


def _operators(data: LatentDataset, *, log: Log) -> LatentOperators | None:
    try:
        return LatentOperators.load(data.store.root, spec=data.manifest.codec)
    except StorageError:
        log(
            f"{data.url}: its codec has no fitted operators: crops alone, no flips or sizes (walloc-data fit-operators)"
        )
        return None


def _fold(run: Distillation, rows: npt.NDArray[Any], *, log: Log) -> None:
    """Set the stem in closed form, where the pixel model's stem and the window allow it."""
    try:
        sums = PixelPrediction.for_model(run.model, run.pixel_model)
    except ModelError as error:
        log(f"no closed form for this stem ({error}): it is trained from random weights")
        return
    for batch in run.pairs.batches(rows, size=run.config.batch_size):
        sums.update(batch.latents, batch.pictures)
    fold_stem(run.model, run.pixel_model, prediction=sums, mean=tuple(run.mean), std=tuple(run.std))
    log(f"folded from {len(rows)} pictures: the stem sees pixels at {sums.psnr_db(sums.solve()):.1f} dB")


def _match(run: Distillation, views: PairedViews, rows: npt.NDArray[Any], *, log: Log) -> None:
    """Match normalisation layers, on the middle of some pictures."""
    if not len(rows):
        return
    latents, pictures, _ = views.middle(run.pairs.read(np.sort(rows)))
    count = match_moments(run.model, run.pixel_model, inputs=latents.to(run.device), pictures=run.normalised(pictures))
    log(f"matched {count} normalisation layers to the pixel model's, on {len(rows)} pictures")


def train(
    run: Distillation, whole: PairedViews, rows: npt.NDArray[Any], *, run_folder: RunFolder | None, log: Log
) -> None:
    """Fold the stem or resume, then distill; layers are matched once the stem has been trained.

    Args:
        run: the run, at its beginning.
        whole: views of complete pictures, for matching.
        rows: rows of the split, shuffled; the first serve for folding and matching.
        run_folder: folder of checkpoints.
        log: receives each line of progress.
    """
    config = run.config
    state = None if run_folder is None else run_folder.load()
    if state is not None:
        run.load(state)
        log(f"resuming at step {run.step} of {run.num_steps}")
    elif run.model.stem_site.feeds is None:
        _fold(run, rows[: config.fold_pictures], log=log)
    matched = rows[: config.match_pictures]
    saved = said = time.monotonic()
    errors: list[tuple[float, float]] = []
    first = run.step
    if run.step == run.lengths["stem"] == 0:
        _match(run, whole, matched, log=log)
    for progress in distill(run):
        if progress.step == run.lengths["stem"]:
            _match(run, whole, matched, log=log)
        errors.append((progress.feature_error, progress.divergence or 0.0))
        now = time.monotonic()
        if run_folder is not None and (now - saved >= config.checkpoint_seconds or progress.step == progress.num_steps):
            run_folder.save(run.state())
            saved = now
        if now - said >= _LOG_SECONDS or progress.step == progress.num_steps:
            feature, divergence = np.mean(errors, 0)
            left = (progress.num_steps - progress.step) * progress.seconds / (progress.step - first)
            text = f"{progress.phase} {progress.step}/{progress.num_steps}: feature error {feature:.3f}"
            text += f", divergence {divergence:.3f}" if progress.phase == "whole" else ""
            log(f"{text}, {left / 60:.0f} min left")
            said, errors = now, []
