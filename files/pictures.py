"""Folders of pictures: which files they are, in which order, and how a file becomes pixels.

Every picture of a folder is read rightly, or the folder is refused with the number of those that
cannot be: none is left out in silence.
"""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from files.whole import Damaged, check_regular

Pixels = NDArray[np.uint8]
Prepare = Callable[[Image.Image], Image.Image]

# Suffix -> what Pillow may take the file for.  It goes by content, and would start Ghostscript for
# PostScript; some of ImageNet's .JPEG files are PNG.
PHOTOGRAPH = ("JPEG", "PNG", "WEBP")
READ = {".png": ("PNG",), **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".webp"), PHOTOGRAPH)}
# Pictures of other kinds, which are not read.
OTHER = re.compile(
    r"\.(apng|arw|avif|bmp|cr[23]|dds|dng|eps|exr|gif|hei[cf]|hdr|ico|j2k|jp2|jxl|nef|orf|p[bgpn]m|pcx"
    r"|psd|raf|svg|tga|tiff?)"
)
HELD = 2**30  # bytes: more than this is decoded batch by batch
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
GREY = ("1", "L", "LA")
LARGEST = 2**27  # pixels of one picture
ORIENTATION = 0x112  # EXIF's tag, and what undoes its values
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_THEIR_SIDE = [TURNS[value] for value in (5, 6, 7, 8)]


class Look(NamedTuple):
    """What a file's beginning says: its size, whether it is grey, and why it cannot be read if so."""

    width: int = 0
    height: int = 0
    grey: bool = False
    trouble: str = ""


def is_leftover(name: str | PurePath) -> bool:
    """Whether a file is hidden, or what a system left: ._x.jpg of macOS, thumbnails, checkpoints."""
    return any(
        part.startswith((".", "__MACOSX", "@eaDir")) or part.lower() in ("thumbs.db", "desktop.ini")
        for part in PurePath(name).parts
    )


def natural(name: str | PurePath) -> tuple[Any, ...]:
    """A key to sort by: numbers in a name by their value, so that 2.png comes before 10.png.

    Prompts and labels pair with pictures by order.
    """
    parts = re.split(r"([0-9]+)", str(name))
    return (*((int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)), (0, str(name)))


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and those below it, in natural order.

    Says how many files are no pictures.  Raises FileNotFoundError without any picture and for a run's
    folder, ValueError if there are pictures of a kind that is not read.
    """
    from tqdm import tqdm

    paths = sorted(_files(folder), key=lambda path: natural(path.relative_to(folder)))
    other = [path for path in paths if OTHER.fullmatch(path.suffix.lower())]
    pictures = [path for path in paths if path.suffix.lower() in READ]
    if other:
        raise ValueError(
            f"{len(other)} of {len(other) + len(pictures)} pictures in {folder} are of a kind that "
            f"is not read, such as {other[0].name}: make them PNG, or move them elsewhere"
        )
    if not pictures:
        raise FileNotFoundError(
            f"no PNG, JPEG or WebP files and no samples.npz in {folder}: give the folder that has them"
        )
    if rest := [path.name for path in paths if path not in set(pictures)]:
        tqdm.write(f"{folder}: left out {len(rest)} files that are no pictures, as {rest[0]!r}")
    return pictures


def _files(folder: Path) -> Iterator[Path]:
    """All files of a folder and of those below, also where links lead, but for leftovers."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(where)
        if here in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(here)
        if "manifest.json" in names and {"shards", "grid.png"} & {*folders, *names}:
            # Its sheet of pictures is no sample.
            if where != str(folder):
                raise ValueError(
                    f"{where} is a run, among pictures: give one run, or move it elsewhere"
                )
            raise FileNotFoundError(
                f"{where} is a run without samples.npz: run the command that sampled it again"
            )
        folders[:] = [name for name in folders if not is_leftover(name)]
        yield from (Path(where, name) for name in names if not is_leftover(name))


class PictureFolder:
    """The pictures of a folder as uint8 [N, H, W, C], of which a slice is decoded when it is taken.

    C is 1 if all are grey, else 3.  `prepare` brings pictures to one size; without it they must have
    one.  Behaves as an array where features are extracted: `len`, `shape`, slices, `np.asarray`.
    Raises as `list_pictures`, ValueError for pictures that cannot be read rightly, with their number.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, folder: Path, prepare: Prepare | None = None):
        from tqdm import tqdm

        self.folder, self.prepare = folder, prepare
        self.files: Sequence[Path] = list_pictures(folder)
        looks = [look(f) for f in tqdm(self.files, desc="looking", leave=False, delay=2)]
        self._refuse([seen.trouble for seen in looks])
        self.grey = all(seen.grey for seen in looks)
        blank = Image.new("L", (looks[0].width, looks[0].height))
        self.shape: tuple[int, ...] = (len(looks), *self._pixels(blank).shape)
        if prepare is None:
            self._check_sizes([(seen.height, seen.width) for seen in looks])

    def _refuse(self, troubles: Sequence[str]) -> None:
        """ValueError, with the number of files that are in trouble, if any is; one for each of `files`."""
        if not (count := sum(map(bool, troubles))):
            return
        first, trouble = next(pair for pair in zip(self.files, troubles, strict=True) if pair[1])
        raise ValueError(
            f"{count} of {len(troubles)} pictures in {self.folder} cannot be read; "
            f"{first.relative_to(self.folder)} {trouble}"
        )

    def _check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        usual = max(set(sizes), key=sizes.count)
        others = [path for path, size in zip(self.files, sizes, strict=True) if size != usual]
        if others:
            height, width = sizes[self.files.index(others[0])]
            raise ValueError(
                f"{len(others)} of {len(sizes)} pictures in {self.folder} are not {usual[1]} x "
                f"{usual[0]} as the others: {others[0].relative_to(self.folder)} is {width} x "
                f"{height}; make them one size, or let a preprocessing do it (reference=custom "
                "reference.preprocess=center_lanczos reference.size=256)"
            )

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice) -> "PictureFolder":
        part = object.__new__(PictureFolder)
        part.folder, part.prepare, part.grey = self.folder, self.prepare, self.grey
        part.files = self.files[rows]
        part.shape = (len(part.files), *self.shape[1:])
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        from tqdm import tqdm

        pixels = np.empty(self.shape, np.uint8)
        troubles = []
        for i, path in enumerate(tqdm(self.files, desc="reading", leave=False, delay=2)):
            image, trouble = _read(path)
            if image is not None and not trouble:
                pixels[i] = self._pixels(image)
            troubles.append(trouble)
        self._refuse(troubles)
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def _pixels(self, picture: Image.Image) -> Pixels:
        """uint8 [H, W, C]."""
        if not self.grey:
            picture = picture.convert("RGB")
        pixels = np.asarray(self.prepare(picture) if self.prepare else picture)
        return pixels[..., None] if pixels.ndim == 2 else pixels


def look(path: Path) -> Look:
    """What the beginning of a picture says; the whole where it has an alpha channel."""
    image, trouble = _read(path, whole=False)
    if image is None:
        return Look(trouble=trouble)
    width, height = image.size if _turn(image) not in ON_THEIR_SIDE else image.size[::-1]
    return Look(width, height, image.mode in GREY, trouble)


def read_picture(path: Any, content: bytes | None = None) -> Image.Image:
    """The whole picture in mode L or RGB; `content` are its bytes where it lies in an archive.

    It is turned as its EXIF data says, as viewers show it.  Raises ValueError for one that is damaged
    or cannot be read rightly.
    """
    image, trouble = _read(path, content)
    if trouble or image is None:
        raise ValueError(f"{path} {trouble}")
    return image


def _read(
    path: Any, content: bytes | None = None, whole: bool = True
) -> tuple[Image.Image | None, str]:
    """(a picture, why it cannot be read rightly if so), as `_opened`; None if it is damaged."""
    try:
        if content is None:
            check_regular(path)
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            return _opened(file, path.suffix, whole)
    except _Unreadable as error:
        return None, str(error)
    except Damaged:
        return None, "is a pipe or a device: remove it"
    except OSError as error:
        return None, f"cannot be opened ({error.strerror}): remove it"


def _turn(image: Image.Image) -> Any:
    """How the camera was held, as Pillow's way to turn the picture back; None if that is unknown."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1)) if "exif" in image.info else None
    except Exception:  # what damaged EXIF data raises; pictures are whole without
        return None


class _Unreadable(Exception):
    """A picture's file is damaged."""


def _opened(file: IO[bytes], suffix: str, whole: bool) -> tuple[Image.Image, str]:
    """(a picture, why it cannot be read rightly if so); its pixels are in mode L or RGB if `whole`."""
    kinds = READ[suffix.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are looked at here
            depth = file.read(25)[-1:]
            file.seek(0)
            with Image.open(file, formats=kinds) as image:
                trouble = _trouble(image, depth)
                if trouble or not whole:
                    return image, trouble
                turn = _turn(image)
                pixels = image.convert("L" if image.mode in GREY else "RGB")
                return (pixels if turn is None else pixels.transpose(turn)), ""
    except UnidentifiedImageError:
        raise _Unreadable(f"is damaged or no {' or '.join(kinds)} file: remove it") from None
    except Exception as error:  # what a damaged file raises is up to its decoder
        words = " ".join(str(error).split())[:120] or type(error).__name__
        raise _Unreadable(f"is damaged ({words}): remove it or make it again") from None


def _trouble(image: Image.Image, depth: bytes) -> str:
    """Why the picture would be read as something else than it is, or "".

    `depth` is the byte where a PNG file says how many bits a channel has.
    """
    if image.width * image.height > LARGEST:
        return f"is {image.width} x {image.height}, too large for a sample: remove it"
    # Of 16 bits in colour Pillow drops half, and says 8.
    if image.mode.startswith("I;16") or (image.format == "PNG" and depth == b"\x10"):
        return "has 16 bits a channel: save it with 8"
    if image.mode not in MODES:
        return f"has mode {image.mode}: only pictures of 8 bits a channel are read"
    if image.mode == "P" and image.palette is None:  # Pillow would take shades of its own
        return "has lost its palette: remove it or make it again"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        return "is an animation: save its frames as pictures of their own"
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if has_alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return "is transparent in parts: paste it on a background"
    return ""
