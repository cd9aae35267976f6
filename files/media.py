"""What samples are on disk: images in the arrays of shards, or videos in files of their own.

A shard is a dictionary of arrays; `Images` and `Videos` say what of it the samples are, how shards
become the folder's result, and which pictures show it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from files.images import export_png, load_samples
from files.npz import array_shapes, check_npz, write_npz
from files.videos import film_strip, middle_frame, write_mp4
from files.whole import Damaged, Stamp, file_sha256, sha256_once, stamp, write_atomic

Shard = dict[str, NDArray[Any]]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """Images of `size` (H, W, C): in the arrays of a shard, joined into samples.npz."""

    size: tuple[int, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """About what a sample takes on disk: it is in its shard and in samples.npz."""
        return 2 * math.prod(self.size)

    def store(self, folder: Path, names: Sequence[str], images: Pixels) -> Shard:
        """What a shard holds of images uint8 [N, H, W, C]."""
        return {"arr_0": images}

    def check_intact(self, folder: Path, shard: Shard) -> None:
        """Raise `Damaged` unless what a shard refers to outside of itself is whole."""

    def join(self, folder: Path, shards: Callable[[], Iterator[Shard]], n: int) -> dict[str, Any]:
        """Write samples.npz of all n samples; what the manifest says of it."""
        path = folder / "samples.npz"
        write_atomic(path, lambda partial: write_npz(partial, n, map(_joined, shards())))
        return {"bytes": path.stat().st_size}

    def is_joined(self, folder: Path, manifest: dict[str, Any]) -> bool:
        """Whether the joined file is as the manifest says, and every byte of it as it was written."""
        path = folder / "samples.npz"
        seen = stamp(path)
        if seen is None or not path.is_file() or path.stat().st_size != manifest.get("bytes"):
            return False
        return _count_of_whole(path, seen) == manifest["num_samples"]

    def grid(self, folder: Path, shards: Iterator[Shard]) -> list[Pixels]:
        """The pictures of grid.png: the first 64 images, of the joined file if there are no shards."""
        images = list(islice((image for shard in shards for image in shard["arr_0"]), 64))
        return images or list(load_samples(folder).images[:64])

    def pictures(self, folder: Path, names: Sequence[str], frames: int) -> Pixels:
        """The first samples uint8 [len(names), H, W, C] of a complete folder."""
        return load_samples(folder).images[: len(names)]

    def export_png(self, folder: Path) -> None:
        """One PNG a sample besides, in folder/png."""
        export_png(folder, load_samples(folder).images)


@dataclass(frozen=True)
class Videos:
    """Videos of `size` (T, H, W, 3): files of `fps` frames and about `bit_rate` bits a second."""

    size: tuple[int, ...]
    fps: int
    bit_rate: int

    @property
    def stored_bytes(self) -> int:
        """About what a sample takes on disk."""
        return self.bit_rate * self.size[0] // self.fps // 8

    def store(self, folder: Path, names: Sequence[str], videos: Pixels) -> Shard:
        """Write videos uint8 [N, T, H, W, 3] under their names; the shard tells the files' sizes
        and hashes."""
        sizes, hashes = [], []
        for name, frames in zip(names, videos, strict=True):
            path = folder / "videos" / name
            write_mp4(path, frames, self.fps, self.bit_rate)
            sizes.append(path.stat().st_size)
            hashes.append(file_sha256(path))
        stored = {"names": np.array(names), "sha256": np.array(hashes)}
        return {"bytes": np.array(sizes, dtype=np.int64), **stored}

    def check_intact(self, folder: Path, shard: Shard) -> None:
        """Raise `Damaged` unless every video of a shard is there as it was written.

        Shards of before tell sizes alone.
        """
        hashes = shard["sha256"].tolist() if "sha256" in shard else [None] * len(shard["names"])
        stated = zip(shard["names"].tolist(), shard["bytes"].tolist(), hashes, strict=True)
        for name, size, sha256 in stated:
            path = folder / "videos" / name
            seen = stamp(path)
            whole = seen is not None and path.is_file() and path.stat().st_size == size
            if not whole or (sha256 and sha256_once(path, seen) != sha256):
                raise Damaged(f"{path} is missing or damaged: sampling its shard again")

    def join(self, folder: Path, shards: Callable[[], Iterator[Shard]], n: int) -> dict[str, Any]:
        """Nothing to write; what the manifest says of the videos."""
        return {"videos": True, "bytes": sum(int(shard["bytes"].sum()) for shard in shards())}

    def is_joined(self, folder: Path, manifest: dict[str, Any]) -> bool:
        """Shards and videos are all there is."""
        return True

    def grid(self, folder: Path, shards: Iterator[Shard]) -> list[Pixels]:
        """The pictures of grid.png: the middle frames of the first 16 videos."""
        names = islice((name for shard in shards for name in shard["names"].tolist()), 16)
        return [middle_frame(folder / "videos" / name) for name in names]

    def pictures(self, folder: Path, names: Sequence[str], frames: int) -> Pixels:
        """Of each video `frames` evenly spaced frames side by side."""
        return np.stack([film_strip(folder / "videos" / name, frames) for name in names])

    def export_png(self, folder: Path) -> None:
        """Videos are files of their own already."""


Media = Images | Videos


@lru_cache(maxsize=4096)
def _count_of_whole(path: Path, seen: Stamp) -> int:
    """How many images a file has, every byte of which was checked; 0 of one that is damaged."""
    try:
        check_npz(path)
        return array_shapes(path)["arr_0"][0]
    except (Damaged, KeyError):
        return 0


def _joined(shard: Shard) -> Shard:
    """What of a shard the joined file has: images and labels."""
    return {name: shard[name] for name in ("arr_0", "arr_1") if name in shard}
