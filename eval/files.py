"""Reading samples in the formats others use, and writing files whole or not at all."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

# What NumPy and zipfile raise for a damaged .npz; a RuntimeError for one that seems encrypted.
UNREADABLE = (KeyError, ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)

PARTIAL = ".part-"  # begins the name of a file that is being written


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` produce the file, then rename it into place.

    Whatever happens in between (Ctrl-C, a full disk), `path` is the old file or the whole new
    one.  The temporary name keeps the suffix, on which some writers insist, and is like no other's,
    on this machine or on others that share the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    try:
        for attempt in range(5):
            write(partial)
            try:
                os.replace(partial, path)
                return
            except FileNotFoundError:  # another's `remove_partial` took it for a dead process's
                if attempt == 4:
                    raise
    except ValueError as error:
        # zipfile, interrupted between two members, complains of that instead of passing it on.
        if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left in a folder half-written."""
    for path in folder.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], labels int64 [N] or None."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


def load_samples(path: Path | str) -> Samples:
    """Samples from an `.npz` (arr_0, arr_1 = labels), a folder of PNGs, or a run's folder.

    Raises FileNotFoundError or ValueError saying what was expected.
    """
    path = Path(path)
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if (path / "videos").is_dir():
        raise FileNotFoundError(f"{path} holds videos: score them with scripts/vbench.py")
    if path.is_dir():
        return Samples(_read_pngs(path), None)
    if path.suffix != ".npz" or not path.is_file():
        raise FileNotFoundError(
            f"no samples at {path}: give an .npz file, a folder of PNG files or a finished run"
        )
    try:
        images = _memory_map(path, "arr_0.npy")
        with np.load(path, allow_pickle=False) as file:
            if images is None:
                images = file["arr_0"]
            labels = file["arr_1"].astype(np.int64) if "arr_1" in file else None
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is damaged or has no arr_0 ({error}): remove it and sample again"
        ) from None
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{path}: arr_0 must be uint8 [N, H, W, C], got {images.dtype} {images.shape}"
        )
    return Samples(images, labels)


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
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            return None
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject or 0 in shape:
            return None
        order: Literal["F", "C"] = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _read_pngs(folder: Path) -> NDArray[np.uint8]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"no PNG files and no samples.npz in {folder}")
    images = []
    for file in tqdm(files, desc="reading", leave=False, delay=2):
        try:
            with Image.open(file) as image:
                if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                    raise ValueError(f"{file} has mode {image.mode}: only 8-bit PNG files are read")
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{file} is damaged ({error}): remove it or make it again") from None
        images.append(pixels[..., None] if pixels.ndim == 2 else pixels)
        if images[-1].shape != images[0].shape:
            raise ValueError(f"{file} is {images[-1].shape}, but {files[0].name} {images[0].shape}")
    return np.stack(images)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line in UTF-8, without space around them.

    Raises FileNotFoundError, or ValueError for a file that is not such text, is empty or has a
    blank line, which would shift the prompts of all later samples.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: give prompts=FILE with one prompt a line")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None
    prompts = [line.strip() for line in lines]
    if prompts[-1] == "":  # the end of the last line
        prompts.pop()
    if "" in prompts or not prompts:
        where = f"line {prompts.index('') + 1} is blank" if prompts else "it is empty"
        raise ValueError(f"{path} must have one prompt a line, but {where}: remove or fill it")
    return prompts
