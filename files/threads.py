"""How threads wait, and what becomes of freed memory: said before torch and NumPy are loaded."""

import ctypes
import os
import sys
from collections.abc import Mapping

OF_OPENMP = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
OF_OPENBLAS = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}

# glibc's mallopt: options of <malloc.h>, and bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_REUSED, KEPT = 2**25, 2**29


def thread_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment; nothing where the user has said it.

    GNU's OpenMP, which torch's builds for Linux use, lets a thread that has nothing to do spin for
    some milliseconds.  Where another program wants the core, the working threads then lose their
    turn to one that spins (`python -m scripts.bench busy` shows what that costs): ours soon go to
    sleep.  NumPy's OpenBLAS spins, too, and its products are small here, since torch has the large
    ones: one thread does.  Elsewhere (macOS, Windows) nothing reads the first variable.
    """
    defaults = {}
    if not OF_OPENMP & environment.keys():
        defaults["GOMP_SPINCOUNT"] = "1000"
    if not OF_OPENBLAS & environment.keys():
        defaults["OPENBLAS_NUM_THREADS"] = "1"
    return defaults


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of tensors up to 32 MiB rather than give it back each time.

    It gives back, and asks again for, every block above 128 KiB at first; the kernel then clears each
    page anew, which takes a tenth of a small network's time.  At most 512 MiB are kept.  False where
    there is no glibc (macOS, Windows, musl), or the user has settled it by MALLOC_ variables.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_THRESHOLD, LARGEST_REUSED), (M_TRIM_THRESHOLD, KEPT))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)


def settle_threads_and_memory() -> None:
    """Set the defaults of this process; to be called before torch and NumPy are imported."""
    os.environ.update(thread_defaults(os.environ))
    keep_freed_memory()
