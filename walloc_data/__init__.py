"""Encode image data sets once into WaLLoC latents, stream them into training, and train timm classifiers on them.

Public names are listed in ``__init__.pyi`` and imported on first use, so ``import walloc_data`` imports neither torch
nor timm.
"""

import lazy_loader

from walloc_data.version import __version__ as __version__

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = _names
