"""Contact sheets: the same samples under many samplers, small enough to be kept with the records.

`make report` shows them.  One image file a step count holds a row of pictures for every sampler;
picture i of every row is sample i of the seed, hence of the same x_T, label and noise.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from files.whole import file_sha256, read_json, reading, write_atomic, write_json

INDEX = "pictures.json"
SIDE = 128  # pixels at most; larger pictures are reduced
SMALL = 64  # up to here pictures are kept without loss, and as many as MANY
MANY, FEW = 20, 8


@dataclass(frozen=True, eq=False)
class Pictures:
    """Samples of one sampler: images uint8 [N, H, W, C] and how they were made.

    `titles` are what the pictures are of: their labels, or the prompts.
    """

    row: str
    steps: int
    images: NDArray[np.uint8]
    titles: Sequence[str] | None
    config: dict[str, Any]


def sheet_size(shape: Sequence[int]) -> int:
    """How many pictures of shape [C, H, W] a row of a sheet has room for."""
    return MANY if max(shape[1:]) <= SMALL else FEW


def write_sheets(folder: Path, rows: Sequence[Pictures]) -> None:
    """pictures-<steps>.webp of every step count, and pictures.json that says what is where."""
    sheets = {}
    for steps in sorted({pictures.steps for pictures in rows}):
        mine = [pictures for pictures in rows if pictures.steps == steps]
        file = f"pictures-{steps}.webp"
        write_atomic(folder / file, partial(_save_sheet, mine))
        rows_of = [pictures.row for pictures in mine]
        sheets[str(steps)] = {"file": file, "rows": rows_of, "sha256": file_sha256(folder / file)}
    height, width = _reduced(rows[0].images)[0].shape[:2]
    titles = rows[0].titles and list(rows[0].titles)
    index = {"count": len(rows[0].images), "width": width, "height": height, "titles": titles}
    write_json(folder / INDEX, {**index, "sheets": sheets})


def read_sheets(folder: Path) -> dict[str, Any] | None:
    """The index of a folder's sheets, each with its `content` in place of its file; None without one.

    Raises `Damaged`, also for files of other names, which may lie outside of the folder.
    """
    path, remedy = folder / INDEX, f"remove {INDEX} and make the pictures anew"
    if not path.is_file():
        return None
    index: dict[str, Any] = read_json(path, remedy)
    with reading(path, remedy):
        shown = {key: int(index[key]) for key in ("count", "width", "height")}
        titles = index["titles"] and [str(title) for title in index["titles"]]
        if any(not 0 < number < 10_000 for number in shown.values()):
            raise ValueError("its pictures have no possible size")
        if titles and len(titles) != shown["count"]:
            raise ValueError("it has not a title a picture")
        sheets = {str(steps): _sheet(folder, sheet) for steps, sheet in index["sheets"].items()}
    return {**shown, "titles": titles, "sheets": sheets}


def _sheet(folder: Path, sheet: dict[str, Any]) -> dict[str, Any]:
    """Rows and content of a contact sheet, which is a WebP file of that very folder."""
    name = sheet["file"]
    if not re.fullmatch(r"pictures-\d+\.webp", name) or (folder / name).is_symlink():
        raise ValueError(f"it names {name!r}, which is no sheet")
    if not (folder / name).is_file():
        raise ValueError(f"{name} is missing")
    content = (folder / name).read_bytes()
    if (content[:4], content[8:12]) != (b"RIFF", b"WEBP"):
        raise ValueError(f"{name} is no picture")
    if sheet.get("sha256") not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(f"{name} is not as it was written")
    return {"rows": [str(row) for row in sheet["rows"]], "content": content}


def _save_sheet(rows: Sequence[Pictures], path: Path) -> None:
    sheet = np.concatenate([np.concatenate(_reduced(pictures.images), axis=1) for pictures in rows])
    lossless = max(rows[0].images.shape[1:3]) <= SMALL
    Image.fromarray(sheet).save(path, lossless=lossless, quality=80, method=6)


def _reduced(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """RGB pictures [H, W, 3] of at most SIDE pixels."""
    small = []
    for image in images:
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.append(np.asarray(picture))
    return small
