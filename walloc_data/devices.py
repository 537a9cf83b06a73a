"""The check that a torch device can be used."""

import torch

from walloc_data.errors import DeviceError

__all__ = ["usable_device"]


def usable_device(device: str | torch.device) -> torch.device:
    """Return the torch device, or raise an error if tensors cannot be computed on it.

    Raises:
        DeviceError: the device is unknown to torch, not supported by this build, has no driver, or has no float64.

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
        # item() fails on "meta", which holds no values; float64, which the encoder needs, fails on Apple's "mps".
        torch.zeros(1, dtype=torch.float64, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # depending on the backend
        raise DeviceError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0].partition('. ')[0]}): use 'cpu', "
            "or 'cuda' where torch.cuda.is_available()"
        ) from error
    return found
