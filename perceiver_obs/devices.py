"""Which device to compute on."""

import torch

_GPU_AFTER_FORK = (
    "this process was forked from one that had used the GPU, and cannot use it: start workers with 'forkserver' "
    "(gym.make_vec(..., vector_kwargs={'context': 'forkserver'}), SubprocVecEnv(..., start_method='forkserver')), "
    "or pass device='cpu'"
)


def choose_device(device: str | torch.device) -> torch.device:
    """The device to use; "auto" is CUDA where it is there.

    Raises:
        ValueError: not a device, or one that is not there.
        RuntimeError: a GPU, in a process that was forked from one that had used it.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    asked = automatic if str(device) == "auto" else str(device)
    if asked.startswith("cuda") and torch.cuda._is_in_bad_fork():
        raise RuntimeError(_GPU_AFTER_FORK)
    if str(device) == "auto":
        return torch.device(automatic)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used (try 'auto' or 'cpu'): {reason}") from error
    return chosen
