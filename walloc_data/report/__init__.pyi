from .figures import latent_strip
from .notebook import ContactSheet, picture, show
from .page import report
from .sheet import add_preview, preview, save_picture

__all__ = [
    "ContactSheet",
    "add_preview",
    "latent_strip",
    "picture",
    "preview",
    "report",
    "save_picture",
    "show",
]
