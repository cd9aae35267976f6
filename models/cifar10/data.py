"""The images of CIFAR-10 (A. Krizhevsky, 2009), 32x32 RGB, and how they are split."""

import io
import pickle
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from files.fetch import fetch
from files.npz import read_npz
from files.places import downloads
from files.whole import reading
from sampling.options import check_choice

HERE = Path(__file__).parent
IMAGE_SIZE = 32
NUM_CLASSES = 10
PER_CLASS = 1000  # of the reference, and of the floor
JPEG_FILE = "cifar10-jpeg.npz"
ARCHIVE = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_images(split: str = "train", source: str = "original") -> Part:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of CIFAR-10.

    Splits: `train` and `held_out` (CIFAR-10's test images), and of the training images the two
    disjoint sets of 1,000 a class `reference` and `floor`.  Sources: `original` is the published archive,
    fetched once and of no other hash; `jpeg` is the file cifar10-jpeg.npz of re-encoded images in the downloads folder.
    JPEG leaves traces: scores against one source do not compare with scores against the other.
    Raises ValueError for another split or source and for a damaged file, FileNotFoundError for images
    that are not there.
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
    path = downloads() / "cifar10" / ARCHIVE
    try:
        fetch(URL, path, sha256=SHA256)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot download CIFAR-10 ({error}): put {ARCHIVE} of "
            f"https://www.cs.toronto.edu/~kriz/cifar.html into {path.parent}"
        ) from None
    with reading(path, "remove it, and the same command fetches it again"):
        batches = list(_batches(path, part))
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels


def _batches(path: Path, part: str) -> Iterator[dict[str, Any]]:
    names = ["test_batch"] if part == "held_out" else [f"data_batch_{i}" for i in range(1, 6)]
    with tarfile.open(path, "r:gz") as archive:
        for name in names:
            member = archive.extractfile(f"cifar-10-batches-py/{name}")
            assert member is not None  # a link or a folder
            yield _Arrays(member, encoding="latin1").load()  # of Python 2


class _Arrays(pickle.Unpickler):
    """Makes arrays of a pickle and nothing else: left to itself it calls whatever function is named."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        for home in ("numpy.core", "numpy._core"):
            known[f"{home}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return known[module, name]


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
