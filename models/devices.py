"""Which device this process computes on."""

from collections.abc import Callable

import torch


def pick_device(name: str, rank: Callable[[], int] = lambda: 0) -> torch.device:
    """`auto` is the GPU of this process (its `rank` on this machine) if there is one, else the CPU.

    Also switches TF32 off, which by default rounds a GPU's float32 convolutions to 10 bits of
    mantissa: networks and Inception would then differ from the numbers they are checked against.
    Raises ValueError for a device that is not there.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name != "auto":
        try:
            number = torch.zeros(1, device=name)
            number.item()  # "meta" is a device, too, and computes nothing
            return number.device
        except (RuntimeError, AssertionError):
            raise ValueError(f"device={name} is not available here: use auto or cpu") from None
    if torch.cuda.is_available():
        # Where SLURM gives each process its own GPU, that is the only one it sees.
        return torch.device("cuda", rank() % torch.cuda.device_count())
    return torch.device("cpu")
