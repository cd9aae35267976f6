"""Contact sheets: the same samples under many samplers, small enough to be kept with the records.

`make report` shows them.  One image file a step count holds a row of pictures for every sampler;
picture i of every row is sample i of the seed, hence of the same x_T, label and noise.  Above and
left of the pictures, which begin at (left, top) of pictures.json, stand words that say so.
"""

import hashlib
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from files.whole import file_sha256, printable, read_json, reading, write_atomic, write_json

INDEX = "pictures.json"
REMEDY = f"remove {INDEX} and make the pictures anew"
SIDE = 128  # pixels at most; larger pictures are reduced
SMALL = 64  # up to here pictures are kept without loss, and as many as MANY
MANY, FEW = 20, 8
LETTER, LINE = 6, 14  # pixels that a letter takes at most, on average, and a line of words
LONGEST = 28  # letters of a row's name


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


def shared_words(config: dict[str, Any]) -> str:
    """What the pictures of a column have in common, by the config of one of them."""
    what = "prompt" if "prompts" in config else "label"
    seed = f"seed {config['seed']}" if "seed" in config else "the seed"
    return f"picture i of every row is sample i of {seed}, from the same x_T, {what} and noise"


def write_sheets(folder: Path, rows: Sequence[Pictures]) -> None:
    """pictures-<steps>.webp of every step count, and pictures.json that says what is where."""
    height, width = _reduced(rows[0].images)[0].shape[:2]
    titles = rows[0].titles and list(rows[0].titles)
    left, heads = _heads(rows, width)
    top = LINE * max(map(len, heads.values())) + LINE * bool(_over(titles, width))
    sheets = {}
    for steps, head in heads.items():
        mine = [pictures for pictures in rows if pictures.steps == steps]
        file = f"pictures-{steps}.webp"
        write_atomic(folder / file, partial(_save_sheet, mine, (left, top), head))
        rows_of = [pictures.row for pictures in mine]
        sheets[str(steps)] = {"file": file, "rows": rows_of, "sha256": file_sha256(folder / file)}
    index = {"count": len(rows[0].images), "width": width, "height": height, "titles": titles}
    write_json(folder / INDEX, {**index, "left": left, "top": top, "sheets": sheets})


def label_sheets(folder: Path, config: dict[str, Any]) -> None:
    """Write the words on sheets from before there were any, where the pictures stay as they are.

    `config` is that of any of the samples.  Raises as `read_sheets`.
    """
    index = read_sheets(folder)
    if not index or index["left"] or max(index["width"], index["height"]) > SMALL:
        return
    rows = []
    with reading(folder / INDEX, REMEDY):
        for steps, sheet in index["sheets"].items():
            size = (len(sheet["rows"]), index["height"], index["count"], index["width"], 3)
            pixels = np.asarray(Image.open(BytesIO(sheet["content"])).convert("RGB"))
            blocks = pixels.reshape(size).swapaxes(1, 2)
            pairs = zip(sheet["rows"], blocks, strict=True)
            rows += [Pictures(row, int(steps), x, index["titles"], config) for row, x in pairs]
    write_sheets(folder, rows)


def read_sheets(folder: Path) -> dict[str, Any] | None:
    """The index of a folder's sheets, each with its `content` in place of its file; None without one.

    Raises `Damaged`, also for files of other names, which may lie outside of the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    index: dict[str, Any] = read_json(path, REMEDY)
    with reading(path, REMEDY):
        shown = {key: int(index[key]) for key in ("count", "width", "height")}
        start = {key: int(index.get(key, 0)) for key in ("left", "top")}  # once there were no words
        titles = index["titles"] and [str(title) for title in index["titles"]]
        if any(not 0 < number < 10_000 for number in shown.values()):
            raise ValueError("its pictures have no possible size")
        if any(not 0 <= number < 10_000 for number in start.values()):
            raise ValueError("its pictures are at no possible place")
        if titles and len(titles) != shown["count"]:
            raise ValueError("it has not a title a picture")
        sheets = {str(steps): _sheet(folder, sheet) for steps, sheet in index["sheets"].items()}
    return {**shown, **start, "titles": titles, "sheets": sheets}


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


def _heads(rows: Sequence[Pictures], width: int) -> tuple[int, dict[int, list[str]]]:
    """The pixels that the names need left of pictures, and by steps the lines that stand above."""
    left = LETTER * max(len(_name(pictures)) for pictures in rows) + LETTER
    letters = (left + width * len(rows[0].images)) // LETTER
    shared = shared_words(rows[0].config)
    steps = sorted({pictures.steps for pictures in rows})
    return left, {s: textwrap.wrap(f"{s} steps; {shared}", letters) for s in steps}


def _name(pictures: Pictures) -> str:
    name = " ".join(printable(pictures.row).split())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _over(titles: Sequence[str] | None, width: int) -> list[str]:
    """What stands above each picture, if there is room: labels, but hardly prompts."""
    words = [printable(title) for title in titles or ()]
    return words if all(len(word) * LETTER <= width for word in words) else []


def _save_sheet(
    rows: Sequence[Pictures], start: tuple[int, int], head: Sequence[str], path: Path
) -> None:
    pictures = np.concatenate([np.concatenate(_reduced(row.images), axis=1) for row in rows])
    left, top = start
    sheet = Image.new("RGB", (left + pictures.shape[1], top + pictures.shape[0]), "white")
    sheet.paste(Image.fromarray(pictures), start)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, line in enumerate(head):
        draw.text((2, i * LINE), line, "black", font)
    height, width = pictures.shape[0] // len(rows), pictures.shape[1] // len(rows[0].images)
    for i, word in enumerate(_over(rows[0].titles, width)):
        draw.text((left + (i + 0.5) * width, top - 2), word, "black", font, anchor="ms")
    for i, row in enumerate(rows):
        draw.text((left - 4, top + (i + 0.5) * height), _name(row), "black", font, anchor="rm")
    lossless = max(rows[0].images.shape[1:3]) <= SMALL
    sheet.save(path, lossless=lossless, quality=80, method=6)


def _reduced(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """RGB pictures [H, W, 3] of at most SIDE pixels."""
    small = []
    for image in images:
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.append(np.asarray(picture))
    return small
