"""Photographs as tensors, the bundled codec, and the reference package as an oracle."""

import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from walloc_data.codec import CodecInfo, WallocCodec, load_codec


def read_picture(path: Path) -> Tensor:
    """(1, 3, H, W) uint8, a view of (H, W, 3) memory, as Pillow decodes it; sides cropped to multiples of 8."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(pixels[:height, :width]))[None].permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def kodak_pictures(kodak: list[Path]) -> list[Tensor]:
    """Whole Kodak photographs, (1, 3, 512, 768) or (1, 3, 768, 512) uint8."""
    return [read_picture(path) for path in kodak]


@pytest.fixture(scope="session")
def imagenette_pictures(imagenette_folder: Path) -> list[Tensor]:
    """40 Imagenette photographs, about 160 px on the shorter side."""
    return [read_picture(path) for path in sorted(imagenette_folder.rglob("*.JPEG"))]


@pytest.fixture(scope="session")
def bundled() -> tuple[WallocCodec, CodecInfo]:
    return load_codec("klt-16x")


@pytest.fixture(scope="session")
def codec(bundled: tuple[WallocCodec, CodecInfo]) -> WallocCodec:
    return bundled[0]


@pytest.fixture(scope="session")
def walloc() -> ModuleType:
    """The reference implementation from PyPI, 1.2.1. It warns when imported (pkg_resources) and in use (Pillow)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from walloc import walloc

    return walloc
