"""Sets of images in the formats others use: .npz files and folders of pictures."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from files.npz import array_names, array_shapes, map_npz, read_npz
from files.pictures import HELD, PictureFolder, Prepare
from files.whole import write_atomic

REMEDY = "remove it and sample again, or restore it"


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], labels int64 [N] or None."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


def load_samples(path: Path | str, prepare: Prepare | None = None) -> Samples:
    """Samples from an `.npz` (arr_0, arr_1 = labels), a folder of pictures, or a run's folder.

    `prepare` brings the pictures of a folder to one size, if they have several.  Pictures that are
    more than a gigabyte are a `PictureFolder`, which is read batch by batch.  Raises
    FileNotFoundError or ValueError saying what was expected.
    """
    path = _found(Path(path))
    return Samples(_pictures(path, prepare), None) if path.is_dir() else _read_samples_npz(path)


def first_samples(path: Path | str, count: int) -> Samples:
    """The first samples of a run's folder, which may hold more of them; raises as `load_samples`."""
    images, labels = load_samples(path)
    return Samples(images[:count], None if labels is None else labels[:count])


def image_shape(path: Path | str, prepare: Prepare | None = None) -> tuple[int, ...]:
    """(N, H, W, C) of the images that `load_samples` would load, by the files' beginnings; it raises alike."""
    path = _found(Path(path))
    if path.is_dir():
        return PictureFolder(path, prepare).shape
    shape = array_shapes(path, REMEDY).get("arr_0", ())
    return (*shape, 1) if len(shape) == 3 else shape or _read_samples_npz(path).images.shape


def _found(path: Path) -> Path:
    """The .npz file or the folder of pictures that is meant by a path."""
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if (path / "videos").is_dir():
        raise FileNotFoundError(f"{path} holds videos: score them with `python -m scripts.vbench`")
    if path.is_dir():
        return path
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise FileNotFoundError(
            f"no samples at {path}: give an .npz file, a folder of pictures or a finished run"
        )
    return path


def _pictures(folder: Path, prepare: Prepare | None) -> Any:
    """The pictures of a folder: an array, or what is read as one if that would be large."""
    pictures = PictureFolder(folder, prepare)
    return np.asarray(pictures) if pictures.nbytes <= HELD else pictures


def _read_samples_npz(path: Path) -> Samples:
    images = map_npz(path, "arr_0", REMEDY)
    if images is None:
        there = ", ".join(array_names(path, REMEDY)) or "nothing"
        raise ValueError(
            f"{path} has no arr_0 but {there}: save the images with np.savez(FILE, arr_0=images)"
        )
    labels = read_npz(path, ("arr_1",), REMEDY).get("arr_1")
    if images.ndim == 3:
        images = images[..., None]
    is_image = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
    if not is_image:
        raise ValueError(
            f"{path}: arr_0 must be uint8 [N, H, W, C] with 1 or 3 channels, got {images.dtype} "
            f"{list(images.shape)}: save the images so"
        )
    if 0 in images.shape:
        raise ValueError(f"{path} holds no images (arr_0 is {images.shape}): sample some first")
    if labels is not None:
        labels = _checked_labels(path, labels, len(images))
    return Samples(images, labels)


def _checked_labels(path: Path, labels: NDArray[Any], n: int) -> NDArray[np.int64]:
    beyond = np.iinfo(np.int64).max  # of uint64 there are larger ones
    is_label = labels.shape == (n,) and labels.dtype.kind in "iu"
    if not is_label or (labels < 0).any() or (labels > beyond).any():
        raise ValueError(
            f"{path}: arr_1 must be labels of the {n} images, integers of at least 0, got "
            f"{labels.dtype} {list(labels.shape)}: correct it, or leave arr_1 out"
        )
    return labels.astype(np.int64)


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """Images uint8 [N, H, W, C] as one PNG, row by row in a square, 2 pixels apart."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), 128, np.uint8)
    for i, image in enumerate(images):
        y, x = 2 + (i // columns) * (height + 2), 2 + (i % columns) * (width + 2)
        sheet[y : y + height, x : x + width] = image
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path)


def export_png(folder: Path, images: NDArray[np.uint8]) -> None:
    """One PNG a sample, named by its id, in folder/png; one that shows another sample is replaced."""
    from tqdm import tqdm

    target = folder / "png"
    target.mkdir(exist_ok=True)
    for i, image in enumerate(tqdm(images, desc="png", leave=False, delay=2)):
        path = target / f"{i:06d}.png"
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        if not _shows(path, pixels):
            write_atomic(path, Image.fromarray(pixels).save, durable=False)


def _shows(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Whether a PNG file is there, whole, and of these pixels."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return np.array_equal(np.asarray(picture), pixels)
    except Exception:  # a damaged picture can raise anything
        return False
