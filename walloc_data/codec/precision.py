"""Process-wide settings that encoding needs: full float32 matrix products, and reuse of freed memory."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["keep_freed_memory", "plain_float32"]


def keep_freed_memory() -> None:
    """Raise glibc's threshold for mmap, so that freed buffers are reused: page faults cost more than the arithmetic.

    glibc gives each block above 128 KiB back to the system when it is freed, until one larger has been: then it
    keeps blocks up to that size, at most 32 MiB. One allocation, never touched, sets that threshold.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class _PlainFloat32:
    """Context manager: full float32 matrix products inside, whatever autocast, TF32 or bfloat16 the program has set.

    The setting is the process's, so threads are counted: the first changes it, the last restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._before: dict[str, str] = {}

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        kind = device.type
        with self._lock:
            if not self._inside[kind]:
                self._before[kind] = _set_precision(kind, None)
            self._inside[kind] += 1
        try:
            with torch.autocast(kind, enabled=False):
                yield
        finally:
            with self._lock:
                self._inside[kind] -= 1
                if not self._inside[kind]:
                    _set_precision(kind, self._before[kind])


plain_float32 = _PlainFloat32()


def _set_precision(kind: str, value: str | None) -> str:
    """Set how a device's matrix products take float32, None in full; returns what it was."""
    product: Any = getattr(torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn, "matmul", None)
    if hasattr(product, "fp32_precision"):  # torch 2.9 and later
        before: str = product.fp32_precision
        product.fp32_precision = "ieee" if value is None else value
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if value is None else value)
    return before
