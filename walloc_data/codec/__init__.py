"""The codec: wavelet packets, the linear encoder, decoders, checkpoints, training, and the bundled weights.

Names load on first use: a program that only reads latents imports none of this, and one that encodes loads no decoder.
The public names and their modules are listed in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
