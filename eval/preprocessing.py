"""Bringing images to the size at which a protocol scores them: real ones and samples alike.

Scores depend on how this is done, so each way has a name, and a reference says which is its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
