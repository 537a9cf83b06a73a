from .figures import latent_strip
from .page import report
from .sheet import add_preview, preview, save_picture

__all__ = ["add_preview", "latent_strip", "preview", "report", "save_picture"]
