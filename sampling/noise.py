"""Per-sample randomness: everything random about sample i is a function of (seed, i) alone.

A counter-based generator (Philox 4x64, keyed by seed and sample id) gives random access:
the noise of sample i at timestep t does not depend on the batch it is in, on the plan that
asks for it, or on what was drawn before.  It is drawn on the CPU, because generators differ
between GPU models.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A stream is the upper three words of Philox's counter; a draw counts in the lowest one alone.
#   (0, 0, 0)              x_T
#   (0, visit, t + 1)      the noise of a row at an integer t, at that visit of t
#   (1, visit, bits of t)  the same between timesteps: the 64 bits of the float t
#   (0, 0, 2^64 - 1)       the class label
Stream = tuple[int, int, int]
START: Stream = (0, 0, 0)
LABEL: Stream = (0, 0, 2**64 - 1)
PER_THREAD = 2**18  # normal numbers that are worth a thread: about a millisecond


class _Stream:
    """One generator, moved to the beginning of stream `stream` of sample (seed, i)."""

    def __init__(self, seed: int):
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in 0..2^64 - 1, got {seed!r}")
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._state = self._philox.state
        self._state["state"]["key"][0] = seed

    def at(self, i: int, stream: Stream) -> np.random.Generator:
        inner = self._state["state"]
        inner["key"][1] = i
        inner["counter"][:] = (0, *stream)
        self._philox.state = self._state  # also clears its buffer
        return self._generator


class SampleNoise:
    """The noise of the samples `ids` under `seed`, one tensor [len(ids), *shape] a request.

    `start()` is x_T ~ N(0, I), `at(t)` the z of the row at timestep t, wherever it jumps to;
    `visit` counts the rows of the plan that went up past this t before.  Drawn in float32 and
    returned as `dtype` on `device`.  Raises ValueError for a seed or id outside 0..2^64 - 1.
    """

    def __init__(
        self,
        seed: int,
        ids: Sequence[int],
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.ids = list(ids)
        if any(not 0 <= i < 2**64 for i in self.ids):
            raise ValueError("sample ids must be integers in 0..2^64 - 1")
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.dtype = dtype
        self.seed = seed
        _Stream(seed)  # refuses a bad seed

    def start(self) -> Tensor:
        return self._draw(START)

    def at(self, t: float, s: float = -1.0, visit: int = 0) -> Tensor:
        if t == int(t):
            return self._draw((0, visit, int(t) + 1))
        return self._draw((1, visit, int(np.float64(t).view(np.uint64))))

    def _draw(self, stream: Stream) -> Tensor:
        # Pinned memory lets the copy to a GPU overlap with the network.
        pin = self.device.type == "cuda"
        z = torch.empty(len(self.ids), *self.shape, pin_memory=pin)
        buffer = z.numpy()
        threads = max(1, min(torch.get_num_threads(), buffer.size // PER_THREAD))
        if threads == 1:
            self._fill(buffer, stream, 0, len(self.ids))
        else:
            edges = [k * len(self.ids) // threads for k in range(threads + 1)]
            with ThreadPoolExecutor(threads) as pool:
                parts = [pool.submit(self._fill, buffer, stream, *ab) for ab in pairwise(edges)]
            for part in parts:
                part.result()
        return z.to(self.device, self.dtype, non_blocking=True)

    def _fill(self, buffer: NDArray[np.float32], stream: Stream, first: int, end: int) -> None:
        """Draw rows first..end - 1.  NumPy draws without Python's lock, so threads are of use."""
        generators = _Stream(self.seed)
        for row in range(first, end):
            generators.at(self.ids[row], stream).standard_normal(out=buffer[row], dtype=np.float32)


def sample_labels(seed: int, ids: Sequence[int], num_classes: int) -> Tensor:
    """Uniform class labels int64 [len(ids)], each a function of (seed, i) alone."""
    stream = _Stream(seed)
    return torch.tensor(
        [int(stream.at(i, LABEL).integers(num_classes)) for i in ids], dtype=torch.int64
    )
