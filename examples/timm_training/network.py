"""The network of `train_timm.py`, new or saved."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
        input_shape=(train.manifest.codec.latent_dim, args.size_cells, args.size_cells) if resized else None,
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
