"""From pictures to shards: a pure plan, pure workers, and a data set that is the same however it was made."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
