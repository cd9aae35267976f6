"""What samples are on disk: images in arrays, or videos in files of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from files.videos import film_strip, middle_frame, write_mp4

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Images:
    """Images of `size` (H, W, C): in the arrays of a shard, joined into samples.npz."""

    size: tuple[int, ...]
    in_grid = 64  # how many of them grid.png shows
    joined = True

    @property
    def stored_bytes(self) -> int:
        """About what a sample takes on disk: it is in its shard and in samples.npz."""
        return 2 * math.prod(self.size)


@dataclass(frozen=True)
class Videos:
    """Videos of `size` (T, H, W, 3): files of `fps` frames and about `bit_rate` bits a second."""

    size: tuple[int, ...]
    fps: int
    bit_rate: int
    in_grid = 16  # by their middle frames
    joined = False

    @property
    def stored_bytes(self) -> int:
        """About what a sample takes on disk."""
        return self.bit_rate * self.size[0] // self.fps // 8


Media = Images | Videos
