"""Memory that runs out, in whatever words, and batches that are halved until they fit."""

import errno
import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

# What libraries say in errors of a general kind, in lower case.
WORDS = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "out_of_memory",
    "outofmemory",
    "can't allocate memory",  # torch on a CPU: Linux, macOS
    "cannot allocate memory",
    "not enough memory",  # torch on a CPU: Windows
    "size calculation overflowed",  # torch, of more than any machine has
    "multiplication overflow",
    "unable to allocate",  # NumPy
    "failed to allocate",
    "alloc_failed",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "allocation_failed",
    "cudaerrormemoryallocation",
    "bad_alloc",  # C++
    "bad allocation",
    "out_of_host_memory",
    "out_of_device_memory",
    "out_of_resources",
    # What cuDNN says when no algorithm's workspace fits.
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute",
)


class TooLittleMemory(MemoryError, ValueError):
    """Not even one sample fits; whoever works on several at once may yet do with fewer."""


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine; also where an error hides another."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(seen, OSError):
            if seen.errno == errno.ENOMEM:
                return True
        elif isinstance(seen, RuntimeError) and any(word in str(seen).lower() for word in WORDS):
            return True
        seen = seen.__cause__
    return False


class Room:
    """How many samples fit into the memory at once, as far as it is known: what did not is not tried again.

    `remedy` is what a user can do when not even one fits.
    """

    def __init__(self, remedy: str):
        self.remedy = remedy
        self.most: int | None = None

    def batches(
        self, n: int, wanted: int, work: Callable[[slice], T], device: torch.device | str
    ) -> Iterator[T]:
        """work(part) of n things, `wanted` at a time, part after part.

        A part that memory runs out at is done again in halves.  Raises `TooLittleMemory` if one is too much.
        """
        first = 0
        while first < n:
            size = min(wanted, self.most or wanted)
            part = slice(first, min(first + size, n))
            result = self._tried(work, part)
            if result is None:  # outside of the handler, whose error holds the memory
                self._halve(part.stop - part.start, torch.device(device))
                continue
            yield result[0]
            first = part.stop

    def _tried(self, work: Callable[[slice], T], part: slice) -> tuple[T] | None:
        try:
            return (work(part),)
        except Exception as error:
            if not ran_out(error):
                raise
            return None

    def _halve(self, size: int, device: torch.device) -> None:
        from tqdm import tqdm

        if size == 1:
            raise TooLittleMemory(
                f"{device} has too little memory for a batch of one: {self.remedy}"
            )
        self.most = size // 2
        release(device)
        tqdm.write(f"out of memory with batch_size={size}: going on with {self.most}")


def release(device: torch.device) -> None:
    """Give back to the device what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
