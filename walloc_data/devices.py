"""Devices that tensors are computed on."""

import torch

from walloc_data.errors import DeviceError

__all__ = ["usable_device"]


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device, or raise if no tensor can be put there.

    Raises:
        DeviceError: torch does not know it, was built without it, finds no driver, or has no float64 on it.

    Example:
        >>> from walloc_data.devices import usable_device
        >>> usable_device("cpu")
        device(type='cpu')
        >>> usable_device("gpu")
        Traceback (most recent call last):
        walloc_data.errors.DeviceError: device 'gpu' cannot be used here (...): use 'cpu', or 'cuda' where torch.cuda...
    """
    try:
        found = torch.device(device)
        # A tensor without values, as of "meta", has none to give; Apple's "mps" has no float64, in which we encode.
        torch.zeros(1, dtype=torch.float64, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # torch's own, by backend
        raise DeviceError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0].partition('. ')[0]}): use 'cpu', "
            "or 'cuda' where torch.cuda.is_available()"
        ) from error
    return found
