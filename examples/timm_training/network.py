"""The network of `train_timm.py`, new or saved, and the sizes of input that it takes."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from walloc_data import LatentDataset, create_latent_model
from walloc_data.adapters import latent_config


def new_network(args: argparse.Namespace, train: LatentDataset, *, num_outputs: int, resized: bool) -> Any:
    """Create the model that the arguments describe."""
    return create_latent_model(
        args.model,
        dataset=train,
        num_classes=num_outputs,
        geometry=args.geometry,
        normalization=args.normalization,
        stem_hidden_channels=args.stem_hidden_channels or None,
        input_shape=(train.manifest.codec.latent_dim, args.val_cells, args.val_cells) if resized else None,
        view="resize" if resized else "whole",
        **args.model_kwargs,
    )


def saved_network(model: Any, fresh: Any, *, log: Callable[[str], None]) -> Any:
    """Fit a saved model to a data set: its classifier is replaced unless its classes are those of the data set.

    Args:
        model: of `load_latent_model`.
        fresh: a new model of the same network for the data set, which knows its classes and how it was encoded.
    """
    config, wanted = latent_config(model), latent_config(fresh)
    if (config.num_classes, config.class_names) != (wanted.num_classes, wanted.class_names):
        log(f"a new classifier of {wanted.num_classes} classes in place of the saved one of {config.num_classes}")
        model.reset_classifier(wanted.num_classes)
    names = ("class_names", "task", "size_px", "resize", "filter", "snap")
    view = "crop" if config.view == "crop" and wanted.view != "whole" else wanted.view
    model.latent_config = replace(latent_config(model), view=view, **{name: getattr(wanted, name) for name in names})
    return model


@torch.no_grad()
def check_sides(model: nn.Module, sides: set[int]) -> None:
    """Try a network on every size that it will be trained on.

    Args:
        model: of `create_latent_model`.
        sides: cells a side.

    Raises:
        SystemExit: it takes its own size only.
    """
    config = latent_config(model)
    channels, own, _ = config.input_shape
    model.eval()
    for side in sorted(sides - {own}):
        try:
            model(torch.zeros(1, channels, side, side))
        except (AssertionError, RuntimeError) as error:
            raise SystemExit(
                f"{config.name} takes {own} cells a side only, not {side} ({error}): leave out --val-cells and "
                "--progressive-from, or, for a transformer, give --model-kwargs '{\"dynamic_img_size\": true}'"
            ) from error
