"""The images of CIFAR-10 (A. Krizhevsky, 2009), 32x32 RGB, and how they are split."""

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from files.npz import read_npz
from files.places import downloads
from sampling.options import check_choice

HERE = Path(__file__).parent
IMAGE_SIZE = 32
NUM_CLASSES = 10
PER_CLASS = 1000  # of the reference, and of the floor
JPEG_FILE = "cifar10-jpeg.npz"

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_images(split: str = "train", source: str = "original") -> Part:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of CIFAR-10.

    Splits: `train` and `held_out` (CIFAR-10's test images), and of the training images the two
    disjoint sets of 1,000 a class `reference` and `floor`.  Sources: `original` is fetched once by
    torchvision; `jpeg` is the file cifar10-jpeg.npz of re-encoded images in the downloads folder.
    JPEG leaves traces: scores against one source do not compare with scores against the other.
    Raises ValueError for another split or source, FileNotFoundError for images that are not there.
    """
    check_choice("split", split, ("train", "held_out", "reference", "floor"))
    check_choice("source", source, SOURCES)
    images, labels = SOURCES[source]("held_out" if split == "held_out" else "train")
    if split in ("train", "held_out"):
        return images, labels
    rows = _balanced(labels, 0 if split == "reference" else 1)
    return images[rows], labels[rows]


def _balanced(labels: NDArray[np.int64], parity: int) -> NDArray[np.int64]:
    """The first rows of each class among those of one parity; label i mod 10 in place i."""
    among = np.arange(len(labels)) % 2 == parity
    rows = [np.flatnonzero(among & (labels == k))[:PER_CLASS] for k in range(NUM_CLASSES)]
    return np.stack(rows, axis=1).reshape(-1)


def _original(part: str) -> Part:
    from torchvision.datasets import CIFAR10

    try:
        stored = CIFAR10(str(downloads() / "cifar10"), train=part == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"cannot download CIFAR-10 ({error}): put cifar-10-python.tar.gz of "
            f"https://www.cs.toronto.edu/~kriz/cifar.html into {downloads() / 'cifar10'}"
        ) from None
    return np.asarray(stored.data), np.array(stored.targets, np.int64)


def _jpeg(part: str) -> Part:
    path = downloads() / "cifar10" / JPEG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the originals are fetched with reference.images.source=original or, in "
            "scripts.train, training.images.source=original"
        )
    stored = read_npz(path, [f"{part}_{name}" for name in ("bytes", "offsets", "labels")])
    data, offsets = stored[f"{part}_bytes"], stored[f"{part}_offsets"]
    images = np.stack(list(_decoded(data, offsets)))
    return images, stored[f"{part}_labels"].astype(np.int64)


def _decoded(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Image i is the JPEG file in bytes offsets[i] .. offsets[i + 1] - 1."""
    for begin, end in pairwise(offsets):
        yield np.asarray(
            Image.open(io.BytesIO(data[begin:end].tobytes()), formats=("JPEG",)).convert("RGB")
        )


SOURCES = {"original": _original, "jpeg": _jpeg}
