"""Encode image data sets once into WaLLoC latents, stream them into training, and train timm classifiers on them.

Public names load on first use, so that importing the package imports neither torch nor timm. ``__init__.pyi`` lists
them.
"""

import lazy_loader

from walloc_data.version import __version__ as __version__

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = _names
