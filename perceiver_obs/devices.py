"""Which device to compute on."""

import torch


def choose_device(device: str | torch.device) -> torch.device:
    """The device to use; "auto" is CUDA where it is there.

    Raises:
        ValueError: not a device, or one that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used (try 'auto' or 'cpu'): {reason}") from error
    return chosen
