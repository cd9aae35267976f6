"""Which device this process, one of several, computes on."""

import torch

from experiments.workers import local_rank
from models import devices


def pick_device(name: str) -> torch.device:
    """As `models.devices.pick_device`: `auto` is the GPU of this process's local rank."""
    return devices.pick_device(name, local_rank)
