"""Reading of latents for training, in exact and resumable orders, from local or remote shards or a decoded array."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
