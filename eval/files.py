"""Reading samples in the formats others use, and writing files whole or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` produce the file, then rename it into place.

    Whatever happens in between (Ctrl-C, a full disk), `path` is the old file or the whole new
    one.  The temporary name keeps the suffix, on which some writers insist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    if path.is_dir():
        return Samples(_read_pngs(path), None)
    if path.suffix != ".npz" or not path.is_file():
        raise FileNotFoundError(
            f"no samples at {path}: give an .npz file, a folder of PNG files or a finished run"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
            labels = file["arr_1"].astype(np.int64) if "arr_1" in file else None
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
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
