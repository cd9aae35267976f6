"""Sets of images in the formats others use: .npz files and folders of pictures."""

import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from files.pictures import HELD, PictureFolder, Prepare
from files.whole import write_atomic


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
    path = Path(path)
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if (path / "videos").is_dir():
        raise FileNotFoundError(f"{path} holds videos: score them with `python -m scripts.vbench`")
    if path.is_dir():
        return Samples(_pictures(path, prepare), None)
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise FileNotFoundError(
            f"no samples at {path}: give an .npz file, a folder of pictures or a finished run"
        )
    images, labels = _arrays(path)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path}: arr_0 must be uint8 [N, H, W, C] with 1 or 3 channels, got {images.dtype} "
            f"{images.shape}"
        )
    return Samples(images, labels)


def _pictures(folder: Path, prepare: Prepare | None) -> Any:
    """The pictures of a folder: an array, or what is read as one if that would be large."""
    if (folder / "manifest.json").is_file():  # its sheet of pictures is no sample
        raise FileNotFoundError(
            f"{folder} is a run without samples.npz: run the command that sampled it again"
        )
    pictures = PictureFolder(folder, prepare)
    return np.asarray(pictures) if pictures.nbytes <= HELD else pictures


class Lacking(ValueError):
    """A whole file without what is looked for in it."""


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """arr_0 and arr_1 of an .npz file.  Raises ValueError if it is damaged or has no arr_0."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if "arr_0.npy" not in members:
            names = ", ".join(name.removesuffix(".npy") for name in members[:8]) or "nothing"
            raise Lacking(
                f"{path} has no arr_0 but {names}: save the images with np.savez(FILE, arr_0=images)"
            )
        images = _memory_map(path, "arr_0.npy")
        arrays = read_npz(path, ("arr_1",) if images is not None else ("arr_0", "arr_1"))
        images = arrays["arr_0"] if images is None else images
    except Lacking:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise ValueError(f"{path} is damaged ({error}): make or fetch it again") from None
    labels = arrays.get("arr_1")
    if labels is None:
        return images, None
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: arr_1 must be the labels of {len(images)} images, integers, got {labels.dtype} "
            f"{labels.shape}: mend or remove it"
        )
    return images, labels.astype(np.int64)


def _memory_map(path: Path, member: str) -> NDArray[Any] | None:
    """An array inside an .npz without reading it into memory; None where it is compressed.

    50,000 images of 256 x 256 pixels are 10 GB.  The checksum of the whole file is checked once,
    in a stream, as reading it would.  Raises KeyError without that member, BadZipFile if damaged.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        broken = archive.testzip()
        if broken:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of name and extra field in the header
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(name + extra, os.SEEK_CUR)
        if np.lib.format.read_magic(file) != (1, 0):  # others are of headers over 64 KB
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or 0 in shape:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, or those of `names` that it has.  Raises UNREADABLE if damaged."""
    # NumPy would leave a damaged file open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if names is None or name in names}


def write_npz(path: Path, count: int, blocks: Iterable[dict[str, NDArray[Any]]]) -> None:
    """Stream `count` samples into a stored .npz, with one block in memory at a time.

    A block has an array [n, ...] for each member of the file.  `arr_0`, the images, is written as
    it comes, and the others (small ones, such as the labels in `arr_1`) after it.  Raises
    ValueError if the blocks have other than `count` samples.
    """
    written = 0
    gathered: dict[str, list[NDArray[Any]]] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for block in blocks:
                images = np.ascontiguousarray(block["arr_0"])
                if not written:
                    header = np.lib.format.header_data_from_array_1_0(images)
                    header["shape"] = (count, *images.shape[1:])
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(images.tobytes())
                written += len(images)
                for name, array in block.items():
                    if name != "arr_0":
                        gathered.setdefault(name, []).append(array)
        if written != count:
            raise ValueError(f"{count} samples were announced for {path}, but {written} came")
        for name, arrays in gathered.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate(arrays), allow_pickle=False)


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
    """One PNG a sample, named by its id, in folder/png; those already there are kept."""
    from tqdm import tqdm

    target = folder / "png"
    target.mkdir(exist_ok=True)
    for i, image in enumerate(tqdm(images, desc="png", leave=False, delay=2)):
        path = target / f"{i:06d}.png"
        if not path.exists():
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            write_atomic(path, picture.save)
