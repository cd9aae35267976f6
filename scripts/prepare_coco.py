"""MS-COCO 2014 validation for Table 3: captions to sample, and images to compare with.

    python -m scripts.prepare_coco captions                       # fetches the annotations, 250 MB
    python -m scripts.prepare_coco captions --annotations FILE-OR-FOLDER --seed 0 --count 30000
    python -m scripts.prepare_coco captions --list metadata.csv   # a published list instead
    python -m scripts.prepare_coco images                         # fetches the images, 6.6 GB
    python -m scripts.prepare_coco images --images val2014.zip --preprocess bicubic

Writes prompts.txt (one caption a line: that of sample i is line i + 1) and captions.json into
downloads/coco or --out, and one .npz of all images at 256 pixels for each way of preprocessing.
What is there already is kept.  The features that scores need are computed when a table is first
evaluated, or now by --statistics table3 table3_clean.
"""

import argparse
import csv
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.endings import parser
from eval.preprocessing import PREPROCESSING, Preprocessing
from experiments.config import composed, evaluator_of
from experiments.endings import reported
from files.fetch import fetch
from files.npz import write_npz
from files.pictures import is_leftover, read_picture
from files.places import downloads
from files.whole import check_space, file_sha256, write_atomic, write_text

URL_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
URL_IMAGES = "http://images.cocodataset.org/zips/val2014.zip"
# As torchvision and others state them.
SHA256_ANNOTATIONS = "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"
SHA256_IMAGES = "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"
CAPTIONS = "captions_val2014.json"
NUM_IMAGES = 40504  # of the validation set
SIZE = 256
OTHER_SPLIT = re.compile(r"(train|test|unlabeled)20\d\d")  # in the name of a file or folder
RULE = "images without replacement in the order drawn, of each one caption, uniformly"


# --- captions -------------------------------------------------------------------------------------


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """[{id, image_id, caption}] of a zip, a folder, or captions_val2014.json itself.

    Raises FileNotFoundError or ValueError if that holds no captions.
    """
    try:
        entries = json.loads(_annotations_text(path))["annotations"]
        return [{key: a[key] for key in ("id", "image_id", "caption")} for a in entries]
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} does not hold MS-COCO's captions ({error!r}): fetch {URL_ANNOTATIONS}"
        ) from None


def _annotations_text(path: Path) -> bytes:
    if path.is_dir():
        for file in sorted(path.rglob(CAPTIONS)):
            if not is_leftover(file.relative_to(path)):
                return file.read_bytes()
        raise FileNotFoundError(f"no {CAPTIONS} under {path}: give the folder that has it")
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if PurePath(name).name == CAPTIONS and not is_leftover(name):
                return archive.read(name)
    raise KeyError(CAPTIONS)


def draw(annotations: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` captions, each of another image: the same for a seed on every machine.

    Images are taken in a random order, and of each one of its captions at random; neither depends
    on the order of the file.  A smaller count gives the beginning of a larger one.  Raises
    ValueError for more captions than images.
    """
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in sorted(annotations, key=lambda a: int(a["id"])):
        by_image.setdefault(int(annotation["image_id"]), []).append(annotation)
    images = sorted(by_image)
    if not 1 <= count <= len(images):
        raise ValueError(
            f"--count must be in 1..{len(images)}, one caption of an image, got {count}"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    order = np.argsort(rng.random(len(images)), kind="stable")
    which = rng.random(len(images))  # of the j-th image in that order
    captions = [by_image[images[place]] for place in order[:count]]
    return [some[int(j * len(some))] for some, j in zip(captions, which, strict=False)]


def read_list(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Captions of a published list in CSV, and which columns they are from.

    BK-SDM's metadata.csv has file_name and text, text2image-benchmark's list image_id and caption.
    Entries are parted by comma, semicolon or tabulator.  Raises ValueError with the columns that
    there are, if no caption is among them, and for a line with more or fewer entries than columns.
    """
    columns, rows = _table(path)
    caption = next((name for name in ("text", "caption") if name in columns), None)
    if caption is None:
        raise ValueError(
            f"{path} has columns {', '.join(columns) or 'none'}: a list needs text or caption"
        )
    image = next((name for name in ("image_id", "file_name") if name in columns), None)
    entries = [
        {"id": None, "image_id": row[image] if image else None, "caption": row[caption]}
        for row in rows
    ]
    return entries, f"{caption} and {image}" if image else caption


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of a CSV file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([head], delimiter=mark))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [name.strip() for name in next(reader, [])]
    rows = []
    for entries in reader:
        if entries and len(entries) != len(columns):
            raise ValueError(
                f"{path}: line {reader.line_num} has {len(entries)} entries for the columns "
                f"{', '.join(columns)}: mend it, and quote texts that have {delimiter!r} in them"
            )
        rows += [dict(zip(columns, entries, strict=True))] if entries else []
    return columns, rows


def prepare_captions(args: argparse.Namespace) -> None:
    """Write prompts.txt and captions.json, or find them there."""
    facts: dict[str, Any]
    if args.list:
        entries, columns = read_list(args.list)
        facts = {"source": args.list.name, "sha256": file_sha256(args.list)}
        facts |= {"rule": f"all, in the list's order, from its columns {columns}"}
    else:
        path = args.annotations or args.out / "annotations_trainval2014.zip"
        if not args.annotations:
            fetch(URL_ANNOTATIONS, path, sha256=SHA256_ANNOTATIONS, check=read_annotations)
        annotations = read_annotations(path)
        entries = draw(annotations, args.count, args.seed)
        facts = {"source": "MS-COCO 2014, captions of the validation images"}
        facts |= {"captions": len(annotations), "seed": args.seed, "rule": RULE}
    prompts = [" ".join(str(entry["caption"]).split()) for entry in entries]
    if "" in prompts:
        raise ValueError(f"caption {prompts.index('') + 1} is empty: mend the source")
    facts |= {"count": len(entries)}
    facts["lines"] = [{"image_id": e["image_id"], "caption_id": e["id"]} for e in entries]
    target, record = args.out / "prompts.txt", args.out / "captions.json"
    text = "".join(f"{prompt}\n" for prompt in prompts)
    if target.exists() and target.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{target} holds other captions than these settings give: choose another --out, or "
            "remove it (samples made for them would no longer be continued)"
        )
    if target.exists() and record.exists():
        print(f"already there: {target}, {len(prompts)} captions")
        return
    write_text(record, json.dumps(facts) + "\n")
    write_text(target, text)
    print(f"{target}: {len(prompts)} captions")


# --- images ---------------------------------------------------------------------------------------


def list_images(source: Path) -> list[Path | zipfile.Path]:
    """Every JPEG of the validation set in a folder or a zip, in the order of the image ids.

    Hidden files are none, and those of other splits are left out, with a note of how many.  Raises
    FileNotFoundError or ValueError if there is none, or an image twice.
    """
    files: list[Path | zipfile.Path]
    if source.is_dir():
        files = [file for file in source.rglob("*") if is_picture(file.relative_to(source))]
    elif not source.is_file():
        raise FileNotFoundError(f"no images at {source}: give val2014.zip or its folder")
    else:
        try:
            archive = zipfile.ZipFile(source)
        except zipfile.BadZipFile:
            raise ValueError(f"{source} is no zip file or damaged: fetch {URL_IMAGES}") from None
        files = [zipfile.Path(archive, name) for name in archive.namelist() if is_picture(name)]
    chosen = [file for file in files if not OTHER_SPLIT.search(str(file)[len(str(source)) :])]
    if files and len(chosen) < len(files):
        print(f"note: {len(files) - len(chosen)} images of other splits in {source} are left out")
    if not chosen:
        which = "of the validation set " if files else ""
        raise ValueError(f"no JPEG files {which}in {source}: give val2014.zip or its folder")
    chosen.sort(key=image_id)
    for one, next_one in pairwise(chosen):
        if image_id(one) == image_id(next_one):
            raise ValueError(f"{one} and {next_one} are the same image: remove one")
    return chosen


def is_picture(name: str | PurePath) -> bool:
    return PurePath(name).suffix.lower() in (".jpg", ".jpeg") and not is_leftover(name)


def image_id(file: Path | zipfile.Path) -> int:
    """That of COCO_val2014_000000000042.jpg is 42.  ValueError for another kind of name."""
    digits = file.stem.rpartition("_")[2]
    if not digits.isdecimal():
        raise ValueError(f"{file} is not named as COCO's images, ..._ID.jpg")
    return int(digits)


def read_image(file: Path | zipfile.Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]; grey images get three channels.  ValueError if it is damaged."""
    try:
        picture = read_picture(file, file.read_bytes())
    except (ValueError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error}): fetch the images again") from None
    return np.asarray(preprocessing.image(picture.convert("RGB")))


def prepare_images(args: argparse.Namespace) -> None:
    """Write val2014-<preprocess>256.npz with arr_0 and image_ids, or find it there."""
    preprocessing = Preprocessing(args.preprocess, SIZE)
    target = args.out / f"val2014-{args.preprocess}{SIZE}.npz"
    if target.exists():
        print(f"already there: {target}")
    else:
        source = args.images or args.out / "val2014.zip"
        if not args.images:
            fetch(URL_IMAGES, source, sha256=SHA256_IMAGES, check=list_images)
        files = list_images(source)
        if len(files) != NUM_IMAGES:
            print(f"note: {source} has {len(files)} images, MS-COCO 2014 val {NUM_IMAGES}")
        check_space(target, len(files) * SIZE * SIZE * 3)

        def blocks() -> Iterator[dict[str, NDArray[Any]]]:
            for file in tqdm(files, desc="images", unit="image"):
                image = read_image(file, preprocessing)
                yield {"arr_0": image[None], "image_ids": np.array([image_id(file)], np.int64)}

        write_atomic(target, lambda partial: write_npz(partial, len(files), blocks()))
        print(f"{target}: {len(files)} images")
    for name in args.statistics:
        words = [f"reference=coco_{args.preprocess}{SIZE}", f"reference.batch={target}"]
        evaluator = evaluator_of(composed("reproduce", f"experiment={name}", *words))
        print(f"{name}: {evaluator.reference!r}")


# --- command line ---------------------------------------------------------------------------------


def main() -> None:
    command_line = parser(__doc__)
    commands = command_line.add_subparsers(required=True, metavar="captions | images")
    captions = commands.add_parser("captions", help="draw the captions to sample")
    captions.add_argument(
        "--annotations", type=Path, help="their zip, folder or json; else fetched"
    )
    captions.add_argument(
        "--list", type=Path, help="a published list of captions in CSV, in place of a draw"
    )
    captions.add_argument("--count", type=int, default=30000, help="how many (30000)")
    captions.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    captions.set_defaults(run=prepare_captions)
    images = commands.add_parser("images", help="prepare the images to compare with")
    images.add_argument("--images", type=Path, help="val2014.zip or its folder; else fetched")
    text = "how images are brought to 256 pixels (center_lanczos)"
    ways, usual = sorted(PREPROCESSING), "center_lanczos"
    images.add_argument("--preprocess", choices=ways, default=usual, help=text)
    text = "compute what these tables compare with now"
    images.add_argument("--statistics", nargs="*", default=[], metavar="EXPERIMENT", help=text)
    images.set_defaults(run=prepare_images)
    for command in (captions, images):
        text = "the folder of what is made (downloads/coco)"
        command.add_argument("--out", type=Path, default=downloads() / "coco", help=text)
    args = command_line.parse_args()
    args.run(args)


if __name__ == "__main__":
    reported(main)
