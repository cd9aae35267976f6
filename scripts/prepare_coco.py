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

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from eval.preprocessing import PREPROCESSING, Preprocessing
from experiments.config import composed, pick_device, reported
from experiments.evaluate import Evaluator
from files.fetch import fetch
from files.places import downloads
from files.whole import file_sha256, write_atomic

URL_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
URL_IMAGES = "http://images.cocodataset.org/zips/val2014.zip"
CAPTIONS = "captions_val2014.json"
NUM_IMAGES = 40504  # of the validation set
SIZE = 256
RULE = "images without replacement in the order drawn, of each one caption, uniformly"


# --- captions -------------------------------------------------------------------------------------


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """[{id, image_id, caption}] of a zip, a folder, or captions_val2014.json itself.

    Raises FileNotFoundError or ValueError if that holds no captions.
    """
    try:
        if path.is_dir():
            found = sorted(path.rglob(CAPTIONS))
            if not found:
                raise FileNotFoundError(f"no {CAPTIONS} under {path}: give the folder that has it")
            text = found[0].read_bytes()
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(CAPTIONS)]
                if not names:
                    raise ValueError(f"no {CAPTIONS} in {path}: give annotations_trainval2014.zip")
                text = archive.read(names[0])
        else:
            text = path.read_bytes()
        entries = json.loads(text)["annotations"]
        return [{key: a[key] for key in ("id", "image_id", "caption")} for a in entries]
    except (
        KeyError,
        TypeError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"{path} does not hold MS-COCO's captions ({error!r}): fetch {URL_ANNOTATIONS}"
        ) from None


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
    drawn = []
    for place, j in zip(order[:count], which, strict=False):
        mine = by_image[images[place]]
        drawn.append(mine[int(j * len(mine))])
    return drawn


def read_list(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Captions of a published list in CSV, and which columns they are from.

    BK-SDM's metadata.csv has file_name and text, text2image-benchmark's list image_id and caption.
    Raises ValueError with the columns that there are, if no caption is among them.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
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


def one_line(text: str) -> str:
    return " ".join(text.split())


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
            fetch(URL_ANNOTATIONS, path, check=read_annotations)
        annotations = read_annotations(path)
        entries = draw(annotations, args.count, args.seed)
        facts = {"source": "MS-COCO 2014, captions of the validation images"}
        facts |= {"captions": len(annotations), "seed": args.seed, "rule": RULE}
    facts["count"] = len(entries)
    prompts = [one_line(str(entry["caption"])) for entry in entries]
    if "" in prompts:
        raise ValueError(f"caption {prompts.index('') + 1} is empty: mend the source")
    facts["lines"] = [{"image_id": e["image_id"], "caption_id": e["id"]} for e in entries]
    target, record = args.out / "prompts.txt", args.out / "captions.json"
    text, content = "".join(f"{p}\n" for p in prompts), json.dumps(facts, indent=None) + "\n"
    if target.exists() and target.read_text(encoding="utf-8") == text and record.exists():
        print(f"already there: {target}, {len(prompts)} captions")
        return
    if target.exists():
        raise ValueError(
            f"{target} holds other captions than these settings give: choose another --out, or "
            "remove it (samples made for them would no longer be continued)"
        )
    write_atomic(record, lambda p: p.write_text(content))
    write_atomic(target, lambda p: p.write_text(text, encoding="utf-8"))
    print(f"{target}: {len(prompts)} captions")


# --- images ---------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """One JPEG in a folder or a zip."""

    id: int
    name: str
    read: Callable[[], bytes]


@contextmanager
def open_images(source: Path) -> Iterator[list[Picture]]:
    """Every JPEG in a folder or a zip, in the order of the image ids.

    Raises FileNotFoundError or ValueError if there is none.
    """
    if source.is_dir():
        yield _by_id(source, {str(p): p.read_bytes for p in source.rglob("*.jpg")})
        return
    if not source.is_file():
        raise FileNotFoundError(f"no images at {source}: give val2014.zip or its folder")
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise ValueError(f"{source} is no zip file or damaged: fetch {URL_IMAGES}") from None
    with archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        yield _by_id(source, {name: partial(archive.read, name) for name in names})


def _by_id(source: Path, readers: Mapping[str, Callable[[], bytes]]) -> list[Picture]:
    pictures = []
    for name, read in readers.items():
        digits = Path(name).stem.rpartition("_")[2]  # COCO_val2014_000000000042
        if not digits.isdecimal():
            raise ValueError(f"{name} in {source} is not named as COCO's images, ..._ID.jpg")
        pictures.append(Picture(int(digits), name, read))
    if not pictures:
        raise ValueError(f"no JPEG files in {source}: give val2014.zip or its folder")
    return sorted(pictures, key=lambda picture: picture.id)


def read_image(picture: Picture, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]; grey images get three channels.  ValueError if it is damaged."""
    try:
        with Image.open(io.BytesIO(picture.read())) as image:
            return np.asarray(preprocessing.image(image.convert("RGB")))
    except (OSError, UnidentifiedImageError, SyntaxError, zipfile.BadZipFile) as error:
        raise ValueError(f"{picture.name} is damaged ({error}): fetch the images again") from None


def prepare_images(args: argparse.Namespace) -> None:
    """Write val2014-<preprocess>256.npz with arr_0 and image_ids, or find it there."""
    preprocessing = Preprocessing(args.preprocess, SIZE)
    target = args.out / f"val2014-{args.preprocess}{SIZE}.npz"
    if target.exists():
        print(f"already there: {target}")
    else:
        source = args.images or args.out / "val2014.zip"
        if not args.images:
            fetch(URL_IMAGES, source, check=_check_zip)
        with open_images(source) as images:
            if len(images) != NUM_IMAGES:
                print(f"note: {source} has {len(images)} images, MS-COCO 2014 val {NUM_IMAGES}")
            _check_space(args.out, len(images) * SIZE * SIZE * 3)
            write_atomic(target, lambda p: _write_images(p, images, preprocessing))
        print(f"{target}: {len(images)} images")
    for name in args.statistics:
        words = [f"reference=coco_{args.preprocess}{SIZE}", f"reference.batch={target}"]
        cfg = composed("reproduce", f"experiment={name}", *words)
        device = str(pick_device(cfg.device))
        print(f"{name}: {Evaluator(cfg.metrics, cfg.reference, device).reference!r}")


def _check_zip(path: Path) -> None:
    with open_images(path):
        pass


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{folder} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def _write_images(path: Path, images: list[Picture], preprocessing: Preprocessing) -> None:
    """Stream the images into a stored .npz, one in memory at a time."""
    size = preprocessing.size
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), size, size, 3)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for picture in tqdm(images, desc="images", unit="image"):
                file.write(read_image(picture, preprocessing).tobytes())
        with archive.open("image_ids.npy", "w") as file:
            np.lib.format.write_array(file, np.array([picture.id for picture in images], np.int64))


# --- command line -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="captions | images")
    captions = commands.add_parser("captions", help="draw the captions to sample")
    captions.add_argument("--annotations", type=Path, help="zip, folder or json; else fetched")
    captions.add_argument("--list", type=Path, help="a published list of captions in CSV")
    captions.add_argument("--count", type=int, default=30000)
    captions.add_argument("--seed", type=int, default=0)
    captions.set_defaults(run=prepare_captions)
    images = commands.add_parser("images", help="prepare the images to compare with")
    images.add_argument("--images", type=Path, help="val2014.zip or its folder; else fetched")
    images.add_argument("--preprocess", choices=sorted(PREPROCESSING), default="center_lanczos")
    images.add_argument("--statistics", nargs="*", default=[], metavar="EXPERIMENT",
                        help="compute what these tables compare with now")  # fmt: skip
    images.set_defaults(run=prepare_images)
    for command in (captions, images):
        command.add_argument("--out", type=Path, help="default: downloads/coco")
    args = parser.parse_args()
    args.out = args.out or downloads() / "coco"
    args.run(args)


if __name__ == "__main__":
    reported(main)
