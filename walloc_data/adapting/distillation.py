"""Distillation: a latent model learns to reproduce the outputs of a pixel model on the same pictures, without labels.

First the new parts (the stem, and layers that changed width) learn the first stage that both models have, then the full
model learns all compared stages and the logits. Latents and pictures share crops, sizes and flips.
"""

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data.adapters import compared_stages, freeze_except, relative_error, stage_outputs, unfreeze
from walloc_data.adapting.pairs import Batch, PairedViews, Pairs
from walloc_data.adapting.settings import AdaptConfig

__all__ = ["Distillation", "Progress", "distill"]

Phase = Literal["stem", "whole"]
_WARMUP = 0.05  # of a phase's steps
_READERS = max(1, min(8, (os.cpu_count() or 2) // 2))  # threads that read batches ahead


@dataclass
class Distillation:
    """State of a run of `distill`.

    Args:
        model: the latent model, which is trained in place.
        pixel_model: the teacher.
        pairs: latents and pictures.
        views: augmentation of both.
        rows: rows of the split to train on.
        mean, std: normalisation of the pixel model, for pixels in [0, 1].
        config: learning rates and lengths.

    Example:
        >>> import timm
        >>> import torch
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> from walloc_data.adapters import picture_size
        >>> from walloc_data.adapting import AdaptConfig, Distillation, PairedViews, Pairs, distill
        >>> from walloc_data.pictures import original_pictures
        >>> from walloc_data.sources import open_source
        >>> data = LatentDataset("my-latents")
        >>> pairs = Pairs(data, original_pictures(open_source("pictures"), settings=data.manifest.settings))
        >>> teacher = timm.create_model("test_resnet", num_classes=2)
        >>> model = create_latent_model("test_resnet", dataset=data, pretrained=teacher)
        >>> views = PairedViews((12, 12), picture_size(model), cell_px=8)
        >>> config = AdaptConfig(stem_epochs=1, epochs=1, batch_size=4)
        >>> run = Distillation(model, teacher, pairs, views, range(8), mean=(0.5,) * 3, std=(0.5,) * 3, config=config)
        >>> for progress in distill(run):
        ...     print(progress.phase, progress.step, progress.num_steps)
        stem 1 4
        stem 2 4
        whole 3 4
        whole 4 4
    """

    model: Any
    pixel_model: nn.Module
    pairs: Pairs
    views: PairedViews
    rows: npt.ArrayLike
    mean: Sequence[float]
    std: Sequence[float]
    config: AdaptConfig = field(default_factory=AdaptConfig)
    step: int = 0
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self.config = self.config.resolved(foldable=False)
        self.rows = np.asarray(self.rows)
        self.device = next(self.model.parameters()).device
        self.pixel_model.to(self.device).eval().requires_grad_(False)
        self.views.to(self.device)
        self.stages = compared_stages(self.model, self.pixel_model)
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        steps_an_epoch = max(1, len(self.rows) // self.config.batch_size)
        self.lengths: dict[Phase, int] = {
            "stem": math.ceil((self.config.stem_epochs or 0) * steps_an_epoch),
            "whole": math.ceil((self.config.epochs or 0) * steps_an_epoch),
        }
        self.steps_an_epoch = steps_an_epoch

    @property
    def num_steps(self) -> int:
        """Number of steps of both phases."""
        return sum(self.lengths.values())

    def phase_of(self, step: int) -> tuple[Phase, int]:
        """Return the phase of a step, and the number of the step in it."""
        return ("stem", step) if step < self.lengths["stem"] else ("whole", step - self.lengths["stem"])

    def normalised(self, pictures: Tensor) -> Tensor:
        """Normalise uint8 pictures for the pixel model, on its device."""
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.mean, self.std))
        pixels = (pictures.to(self.device).float() / 255 - mean) / std
        return pixels.contiguous(memory_format=torch.channels_last)

    def state(self) -> dict[str, Any]:
        """Return the state for resuming: tensors, numbers and strings."""
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {"step": self.step, "model": self.model.state_dict(), "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a `state()`."""
        self.model.load_state_dict(state["model"])
        self.step = int(state["step"])
        self.optimizer = None
        # The optimizer belongs to the phase of the step that was taken last.
        if state["optimizer"] is not None and self.phase_of(self.step)[1] > 0:
            self.optimizer = self.build_optimizer(self.phase_of(self.step)[0])
            self.optimizer.load_state_dict(state["optimizer"])

    def new_parts(self) -> list[str]:
        """Return the names of parameters that do not come from the pixel model, besides the stem."""
        site = self.model.stem_site
        # Of a stage whose stride was taken out, the weights are the pixel model's and their meaning is not.
        unstrided = [site.feeds] if site.feeds and self.model.latent_config.stem_blocks is None else []
        return [*site.fresh, *unstrided]

    def build_optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """Build AdamW for the parameters of the phase, and disable gradients of others."""
        new = set(freeze_except(self.model, "stem", *self.new_parts()))
        if phase == "whole":
            unfreeze(self.model)
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name in new, parameter.ndim > 1), []).append(parameter)
        scale = self.config.new_lr_scale if phase == "whole" else 1.0
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "peak_lr": self.config.stem_lr * scale if is_new else self.config.lr,
                    "weight_decay": self.config.weight_decay if is_matrix else 0.0,
                }
                for (is_new, is_matrix), parameters in groups.items()
            ],
            betas=(0.9, 0.98),
        )

    def read(self, step: int) -> Batch:
        """Read the pictures of a step and their stored latents: a function of (seed, step)."""
        epoch, position = divmod(step, self.steps_an_epoch)
        rows: Any = self.rows
        order = np.random.default_rng((self.config.seed, epoch)).permutation(rows)
        return self.pairs.read(order[position * self.config.batch_size : (position + 1) * self.config.batch_size])

    def augmented(self, batch: Batch, step: int) -> Batch:
        """Return a batch on the model's device, cropped, resized and flipped by a function of (seed, step)."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        latents, pictures = (item.to(self.device, non_blocking=True) for item in batch[:2])
        return self.views(Batch(latents, pictures, batch.labels), generator=generator)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches from `step` on; the next ones are read while one is used."""
        with ThreadPoolExecutor(_READERS) as pool:
            steps = iter(range(self.step, self.num_steps))
            reading = deque(pool.submit(self.read, step) for step in itertools.islice(steps, 2 * _READERS))
            try:
                for step in range(self.step, self.num_steps):
                    batch = reading.popleft().result()
                    reading.extend(pool.submit(self.read, ahead) for ahead in itertools.islice(steps, 1))
                    yield self.augmented(batch, step)
            finally:
                for future in reading:
                    future.cancel()

    def losses(self, batch: Batch, phase: Phase) -> tuple[Tensor, Tensor | None]:
        """Return the mean relative error of the compared stages and the divergence of the logits (None: stem only)."""
        stop = phase == "stem"
        stages = self.stages[:1] if stop else self.stages
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            with torch.no_grad():
                targets, wanted = stage_outputs(self.pixel_model, self.normalised(batch.pictures), stages, stop=stop)
            given, logits = stage_outputs(self.model, batch.latents, stages, stop=stop)
        errors = [
            relative_error(ours.float(), theirs.float(), channels_last=self.channels_last)
            for ours, theirs in zip(given, targets, strict=True)
        ]
        if logits is None or wanted is None:
            return torch.stack(errors).mean(), None
        temperature = self.config.temperature
        ours, theirs = logits.float() / temperature, wanted.float() / temperature
        divergence = F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")
        return torch.stack(errors).mean(), divergence * temperature**2


@dataclass(frozen=True)
class Progress:
    """Progress after a step of a distillation.

    Example:
        >>> from walloc_data.adapting import Progress
        >>> Progress("stem", 1, 4, 0.9, None, 0.1).phase
        'stem'
    """

    phase: Phase
    step: int  # steps taken
    num_steps: int
    feature_error: float  # mean over the compared stages, relative to their variance
    divergence: float | None  # of the logits, in nats; None while the stem alone is trained
    seconds: float  # since this process began


def rate(position: float) -> float:
    """Return the learning rate factor at a position in [0, 1): warm-up, then a cosine decay to 0.01."""
    if position < _WARMUP:
        return (position + 1e-3) / _WARMUP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (position - _WARMUP) / (1 - _WARMUP)))


def distill(run: Distillation) -> Iterator[Progress]:
    """Train one step per yielded item. The state between two items can be saved and resumed.

    Example: see `Distillation`.

        >>> from walloc_data.adapting import distill
        >>> distill.__name__
        'distill'
    """
    begun = time.monotonic()
    for batch in run.batches():
        phase, number = run.phase_of(run.step)
        if run.optimizer is None or number == 0:
            run.optimizer = run.build_optimizer(phase)
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate(number / run.lengths[phase])
        _set_mode(run, phase)
        # What the model itself draws (stochastic depth) is a function of the step as well.
        with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
            torch.manual_seed(run.config.seed * 1_000_003 + run.step)
            features, divergence = run.losses(batch, phase)
        loss = features if divergence is None else divergence + run.config.feature_weight * features
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for g in run.optimizer.param_groups for p in g["params"]], 5.0)
        run.optimizer.step()
        run.step += 1
        yield Progress(
            phase,
            run.step,
            run.num_steps,
            float(features.detach()),
            None if divergence is None else float(divergence.detach()),
            time.monotonic() - begun,
        )
    run.optimizer = None
    unfreeze(run.model)
    run.model.eval()


def _set_mode(run: Distillation, phase: Phase) -> None:
    """Set the train mode of trained modules, but keep the statistics of the pixel model's batch norms.

    Statistics of these pictures would normalise away their difference from other pictures.
    """
    run.model.train(phase == "whole")
    for module in run.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for part in (run.model.stem_site.path, *run.new_parts()):
        run.model.get_submodule(part).train()
