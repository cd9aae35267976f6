"""Bringing images to the size at which a protocol scores them, and to the numbers that a network takes.

Scores depend on how this is done, so each way has a name: a reference says which is its own, and an
extractor what its network is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Images = NDArray[np.uint8]


def center_lanczos(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, reduced by Lanczos: COCO as GigaGAN and DMD2 prepare it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def bicubic(image: Image.Image, size: int) -> Image.Image:
    """The whole image, its aspect ratio lost: COCO as BK-SDM prepares it.

    BK-SDM also saves both sides as JPEG, which is not done here.
    """
    return image.resize((size, size), Image.Resampling.BICUBIC)


PREPROCESSING: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "center_lanczos": center_lanczos,
    "bicubic": bicubic,
}


@dataclass(frozen=True)
class Preprocessing:
    """A way of `PREPROCESSING` and the size in pixels.

    Raises ValueError for an unknown name, or a size that is no positive integer.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        if self.name not in PREPROCESSING:
            raise ValueError(
                f"unknown preprocessing {self.name!r}: choose {', '.join(PREPROCESSING)}"
            )
        if type(self.size) is not int or self.size < 1:
            raise ValueError(
                f"the size must be a positive number of pixels, got {self.size!r}: set reference.size"
            )

    def image(self, image: Image.Image) -> Image.Image:
        return PREPROCESSING[self.name](image, self.size)

    def __call__(self, images: Images) -> Images:
        """uint8 [N, H, W, C] of 1 or 3 channels -> uint8 [N, size, size, C]."""
        if images.shape[1:3] == (self.size, self.size):
            return images  # what either way would give, too
        grey = images.shape[3] == 1  # PIL wants these without a channel
        pictures = [Image.fromarray(image[..., 0] if grey else image) for image in images]
        resized = np.stack([np.asarray(self.image(picture)) for picture in pictures])
        return resized.reshape(len(images), self.size, self.size, images.shape[3])


class Preprocessed:
    """Images that are preprocessed when a slice of them is taken.

    30,000 images of 512 x 512 pixels are 24 GB: as a memory map, only a batch is ever read.
    """

    def __init__(self, images: Images, preprocessing: Preprocessing):
        self.images = images
        self.preprocessing = preprocessing
        size = preprocessing.size
        self.shape = (len(images), size, size, images.shape[3])
        self.dtype, self.ndim = images.dtype, images.ndim

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Any:
        return self.preprocessing(np.asarray(self.images[rows]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class NetworkInput:
    """What a network is shown: pictures stretched to a size by Pillow, which rounds to 8 bits and filters
    where it reduces; then (x / 255 - mean) / std for each channel.

    With size 224 and bicubic this is dgm-eval's for DINOv2.  A size of None leaves the pictures' own.
    Raises ValueError for what is no size, interpolation, mean or standard deviation.
    """

    size: int | None
    interpolation: str = "bicubic"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_input_size(self.size)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"unknown metrics.interpolation {self.interpolation!r}: choose "
                f"{', '.join(INTERPOLATIONS)}"
            )
        check_normalisation(self.mean, self.std)

    @property
    def facts(self) -> dict[str, Any]:
        """As a record tells them."""
        return {key: list(v) if key in ("mean", "std") else v for key, v in asdict(self).items()}

    def resized(self, images: Images) -> Images:
        """uint8 [B, H, W, 3] -> uint8 [B, size, size, 3]."""
        if self.size is None or images.shape[1:3] == (self.size, self.size):
            return images
        shape, way = (self.size, self.size), INTERPOLATIONS[self.interpolation]
        return np.stack([np.asarray(Image.fromarray(x).resize(shape, way)) for x in images])

    def __call__(self, images: Images) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 3, size, size]."""
        x = torch.from_numpy(np.array(self.resized(images))).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(list(v)).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def check_input_size(size: int | None) -> None:
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"metrics.size must be a positive number of pixels, got {size!r}")


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if (
            len(values) != 3
            or not np.isfinite(values).all()
            or (name == "std" and min(values) <= 0)
        ):
            of = "positive numbers" if name == "std" else "numbers"
            raise ValueError(
                f"metrics.{name} must be three {of}, for red, green and blue, got {list(values)}: "
                f"metrics.{name}=[0.5,0.5,0.5], say"
            )
