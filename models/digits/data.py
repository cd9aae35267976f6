"""The embedded digits: 10,000 MNIST images, and how they are split."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from files.npz import read_npz
from files.places import downloads
from sampling.options import check_choice

HERE = Path(__file__).parent
IMAGE_SIZE = 28
NUM_CLASSES = 10
HELD_OUT_STRIDE = 10  # every 10th image is held out from all training


def load_images(
    split: str = "all", source: str = "mnist10k"
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Real digits: images uint8 [N, 28, 28] and labels int64 [N] of the embedded MNIST subset.

    Splits: `all` (10,000), `train` (9,000), `held_out` (the other 1,000), and the two
    disjoint, class-balanced sets `reference` (4,300: what scores compare with) and `floor`
    (4,300: the real images that play the perfect sampler).  With source=mnist60k, `train` and
    `held_out` are 60,000 and 1,000 of the full MNIST, which torchvision fetches once.  Raises
    ValueError for another split or source, FileNotFoundError for what cannot be fetched.
    """
    check_choice("source", source, ("mnist10k", "mnist60k"))
    if source == "mnist60k":
        check_choice("split", split, ("train", "held_out"))
        return _full_mnist(split)
    file = read_npz(HERE / "mnist10k.npz", remedy="restore it from the repository")
    images, labels = file["images"], file["labels"].astype(np.int64)
    index = np.arange(len(images))
    held_out = index % HELD_OUT_STRIDE == HELD_OUT_STRIDE - 1
    splits = {
        "all": index >= 0,
        "train": ~held_out,
        "held_out": held_out,
        "reference": _balanced(labels, index % 2 == 0),
        "floor": _balanced(labels, index % 2 == 1),
    }
    check_choice("split", split, splits)
    return images[splits[split]], labels[splits[split]]


def _full_mnist(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from torchvision.datasets import MNIST

    try:
        stored = MNIST(str(downloads() / "mnist"), train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"cannot download MNIST ({error}): use training.images.source=mnist10k"
        ) from None
    n = len(stored.data) if split == "train" else 1000
    return stored.data.numpy()[:n], stored.targets.numpy()[:n].astype(np.int64)


def _balanced(labels: NDArray[np.int64], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The first 430 of each class among the given images (the rarest class has 431 in a half)."""
    chosen = np.zeros(len(labels), np.bool_)
    for label in range(NUM_CLASSES):
        chosen[np.flatnonzero(among & (labels == label))[:430]] = True
    return chosen


def load_reference_images(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`load_images` with images uint8 [N, 28, 28, 1], which is what extractors take."""
    images, labels = load_images(split)
    return images[..., None], labels


def to_model_range(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28] in [-1, 1]."""
    return torch.from_numpy(images).float()[:, None] / 127.5 - 1
