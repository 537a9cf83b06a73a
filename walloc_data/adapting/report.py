"""Evaluation of an adaptation on held-out pictures, and the class names of the model."""

from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from walloc_data.adapters import imagenet_classes, latent_config, relative_error, stage_outputs, summarize
from walloc_data.adapting.distillation import Distillation
from walloc_data.adapting.pairs import PairedViews
from walloc_data.adapting.settings import AdaptReport
from walloc_data.dataset import LatentDataset
from walloc_data.errors import ModelError

__all__ = ["compare", "labels_as_classes", "name_classes"]


@torch.inference_mode()
def compare(run: Distillation, rows: npt.NDArray[Any], *, views: PairedViews, seconds: float) -> AdaptReport:
    """Compare both models on held-out pictures."""
    run.model.eval()
    classes = labels_as_classes(run.pairs.dataset, num_classes=int(run.model.num_classes))
    feature_error, equal, right, right_on_pixels, labelled, seen = 0.0, 0, 0, 0, 0, 0
    for batch in run.pairs.batches(rows, size=run.config.batch_size):
        latents, pictures, labels = views.middle(batch)
        targets, wanted = stage_outputs(run.pixel_model, run.normalised(pictures), run.stages[-1:])
        given, logits = stage_outputs(run.model, latents.to(run.device), run.stages[-1:])
        error = relative_error(given[0], targets[0], channels_last=run.channels_last)
        feature_error, seen = feature_error + float(error) * len(labels), seen + len(labels)
        if logits is None or wanted is None:
            raise ModelError("the model gave no logits")
        ours, theirs = logits.argmax(1).cpu(), wanted.argmax(1).cpu()
        equal += int((ours == theirs).sum())
        if classes is not None:
            known = labels >= 0
            truth = classes[labels[known]]
            labelled += len(truth)
            right += int((ours[known] == truth).sum())
            right_on_pixels += int((theirs[known] == truth).sum())
    summary = summarize(run.model)
    return AdaptReport(
        name=summary.name,
        geometry=summary.geometry,
        num_held_out=seen,
        feature_error=feature_error / max(1, seen),
        agreement=equal / max(1, seen),
        pixel_accuracy=right_on_pixels / labelled if labelled else None,
        accuracy=right / labelled if labelled else None,
        num_macs=summary.num_macs,
        num_steps=run.step,
        seconds=seconds,
    )


def labels_as_classes(data: LatentDataset, *, num_classes: int) -> Tensor | None:
    """Return the pixel model's class of each label of the data set, None where they share no names."""
    names = data.class_names
    if names is None:
        return None
    known = imagenet_classes(num_classes)
    if known is not None:
        number = {wordnet: i for i, (wordnet, _) in enumerate(known)}
        if all(name in number for name in names):
            return torch.tensor([number[name] for name in names])
    return torch.arange(len(names)) if len(names) == num_classes else None


def name_classes(model: Any, data: LatentDataset, *, num_classes: int | None) -> bool:
    """Replace the classifier if requested, and set the class names.

    Returns:
        Whether the classifier is new. It is not if the weights of the data set's classes were kept.
    """
    is_new = False
    if num_classes is not None and num_classes != model.num_classes:
        chosen = labels_as_classes(data, num_classes=int(model.num_classes))
        before = model.get_classifier()
        model.reset_classifier(num_classes)
        after = model.get_classifier()
        model.to(next(model.parameters()).device)
        linear = isinstance(before, nn.Linear) and isinstance(after, nn.Linear)
        if linear and chosen is not None and len(chosen) == num_classes:
            _keep_rows(before, after, rows=chosen)
        else:
            is_new = True
    names, classes = data.class_names, model.num_classes
    if names is None or len(names) != classes:
        known = imagenet_classes(classes)
        names = None if known is None else tuple(words for _, words in known)
    model.latent_config = replace(latent_config(model), num_classes=classes, class_names=names)
    model.pretrained_cfg["num_classes"] = classes
    return is_new


@torch.no_grad()
def _keep_rows(before: nn.Linear, after: nn.Linear, *, rows: Tensor) -> None:
    """Copy the weights of some classes of one linear classifier to another."""
    kept = rows.to(before.weight.device)
    after.weight.copy_(before.weight[kept])
    if after.bias is not None and before.bias is not None:
        after.bias.copy_(before.bias[kept])
