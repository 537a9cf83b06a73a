"""Conversion of pictures to shards of latents, with workers, resume, verification and later changes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
