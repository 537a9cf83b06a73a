"""What people look at: the contact sheet, the report page, the pictures of the README."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from walloc_data.report.figures import latent_strip
    from walloc_data.report.page import report
    from walloc_data.report.sheet import add_preview, preview, save_picture

_FILES = {
    "add_preview": "sheet",
    "latent_strip": "figures",
    "preview": "sheet",
    "report": "page",
    "save_picture": "sheet",
}

__all__ = ["add_preview", "latent_strip", "preview", "report", "save_picture"]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
