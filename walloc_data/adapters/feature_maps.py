"""Feature maps of latent models, like those of timm's `features_only=True`."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from walloc_data.adapters.config import LatentModelConfig, latent_config
from walloc_data.adapters.macs import fake_forward
from walloc_data.errors import ModelError

__all__ = ["LatentFeatures"]

_LAST_BLOCKS = 3  # of models whose blocks all have one grid: as timm has it


class LatentFeatures(nn.Module):
    """Latent model without classifier: maps int8 latents (N, latent_dim, h, w) to a list of (N, C, h, w) feature maps.

    Made by ``create_latent_model(..., features_only=True)``; saved and loaded like other latent models.

    Args:
        model: a latent model, which is modified: layers that no map needs are removed.
        out_indices: indices of kept stages, from 0 to -1. None: all, or the last three for models whose blocks all have
            one grid.

    Attributes:
        feature_info: timm's `FeatureInfo`. `channels()` and `reduction()` describe the returned maps; reductions are
            relative to pixels, as in pixel models, and "reduction_cells" in each item of `info` to latents.

    Raises:
        ModelError: timm's model does not support feature maps, or a stage does not exist.

    Example:
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> train = LatentDataset("my-latents")
        >>> model = create_latent_model("resnet18", dataset=train, features_only=True)
        >>> latents, _ = next(iter(train.loader(batch_size=2)))  # (2, 12, 12, 12): of 96 x 96 px pictures
        >>> [tuple(features.shape) for features in model(latents)]
        [(2, 128, 12, 12), (2, 256, 6, 6), (2, 512, 3, 3)]
        >>> model.feature_info.channels(), model.feature_info.reduction()
        ([128, 256, 512], [8, 16, 32])
    """

    def __init__(self, model: Any, *, out_indices: Sequence[int] | None = None) -> None:
        from timm.models import FeatureInfo

        super().__init__()
        config = latent_config(model)
        if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
            raise ModelError(f"{config.name}: timm's {type(model).__name__} does not support features_only=True")
        model.reset_classifier(0)
        self.model = model
        self.latent_config: LatentModelConfig = config
        self.out_indices: list[int] | None = None
        found = self._kept_stages(config)
        last = len(found) - _LAST_BLOCKS
        one_grid = len({info["reduction"] for info in found}) == 1
        chosen = list(range(max(0, last) if one_grid else 0, len(found))) if out_indices is None else list(out_indices)
        if not chosen or not all(type(i) is int and -len(found) <= i < len(found) for i in chosen):
            raise ModelError(
                f"{config.name}: out_indices {out_indices} name other than its {len(found)} kept stages: "
                f"{', '.join(str(info['module']) for info in found)}"
            )
        chosen = sorted({i % len(found) for i in chosen})
        self.feature_info = FeatureInfo([{**info, "index": i} for i, info in enumerate(found)], chosen)
        self.out_indices = [found[i]["index"] for i in chosen]
        if hasattr(model, "prune_intermediate_layers"):
            self.out_indices = list(model.prune_intermediate_layers(self.out_indices, prune_norm=True))
        self.latent_config = replace(config, num_classes=0, class_names=None, features=tuple(chosen))
        self.num_classes = 0
        site = model.stem_site
        self.stem_site = replace(
            site,
            path=f"model.{site.path}",
            fresh=tuple(f"model.{name}" for name in site.fresh),
            skipped=tuple(f"model.{name}" for name in site.skipped),
            feeds=None if site.feeds is None else f"model.{site.feeds}",
        )
        self.in_chans, self.pretrained_cfg = model.in_chans, model.pretrained_cfg | {"num_classes": 0}
        self.default_cfg = self.pretrained_cfg

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Return the maps (N, C, h, w) of the chosen stages."""
        maps: list[Tensor] = self.model.forward_intermediates(
            latents, indices=self.out_indices, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's model exempts."""
        own = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {f"model.{name}" for name in own}

    def _kept_stages(self, config: LatentModelConfig) -> list[dict[str, Any]]:
        """Return timm's facts of each stage that is there, with the reductions and channels that it has here."""
        site = self.model.stem_site
        infos = [dict(info) for info in self.model.feature_info]
        self.out_indices = list(range(len(infos)))
        maps, _ = fake_forward(self, config.input_shape)
        kept = []
        for index, (info, features) in enumerate(zip(infos, maps, strict=True)):
            path = str(info["module"])
            if any(path == gone or path.startswith(f"{gone}.") for gone in site.skipped):
                continue
            cells = config.input_shape[1] / features.shape[2]
            pixels = round(cells * config.codec.cell_px)
            cells = int(cells) if cells == int(cells) else cells
            facts = {"num_chs": features.shape[1], "reduction": pixels, "reduction_cells": cells}
            kept.append({**info, **facts, "index": index})
        if len({info["reduction"] for info in kept}) == 1 and len(kept) > 2:
            return kept  # blocks of one grid
        # A stem without a stride is no level of its own: of several maps of one size the last is kept.
        return [a for a, b in pairwise([*kept, {"reduction": None}]) if a["reduction"] != b["reduction"]]
