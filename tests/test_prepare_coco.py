"""Captions and reference images of MS-COCO, from small files of the real formats."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import shutil
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from eval.preprocessing import Preprocessing
from experiments.endings import reported
from files.images import load_samples
from files.prompts import read_prompts
from files.whole import file_sha256
from scripts import prepare_coco

IDS = [42, 73, 74, 133, 136, 139, 143, 164, 192, 196]


def annotations() -> dict:
    """captions_val2014.json in little: several captions an image, some odd ones."""
    rows = [
        {"image_id": image, "id": 1000 * i + k, "caption": f"caption {k} of image {image}"}
        for i, image in enumerate(IDS)
        for k in range(5 + i % 2)
    ]
    for row in rows[:5]:
        row["caption"] = "A café,\nwith two\n\n chairs. "
    np.random.default_rng(0).shuffle(rows)
    return {
        "info": {"description": "COCO 2014 Dataset", "year": 2014},
        "images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in IDS],
        "licenses": [{"id": 1, "name": "CC"}],
        "annotations": rows,
    }


def jpeg(width: int, height: int, mode: str = "RGB", seed: int = 0) -> bytes:
    shape = (height, width) if mode == "L" else (height, width, 3)
    noise = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


PICTURES = {
    image: jpeg(300 + 10 * k, 270 + 30 * (k % 3), "L" if k == 3 else "RGB", k)
    for k, image in enumerate(IDS)
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder laid out as the two unpacked zips, and the zips beside it."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    text = json.dumps(annotations())
    (folder / "annotations/captions_val2014.json").write_text(text)
    (folder / "annotations/instances_val2014.json").write_text("{}")
    with zipfile.ZipFile(folder / "annotations_trainval2014.zip", "w") as archive:
        archive.writestr("annotations/captions_train2014.json", '{"annotations": []}')
        archive.writestr("annotations/captions_val2014.json", text)
    (folder / "val2014").mkdir()
    with zipfile.ZipFile(folder / "val2014.zip", "w") as archive:
        archive.writestr("val2014/", "")
        for image, content in reversed(PICTURES.items()):
            name = f"val2014/COCO_val2014_{image:012d}.jpg"
            archive.writestr(name, content)
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def coco(monkeypatch, tmp_path, capsys):
    """Run the script, which must end with that status: its stderr if that is not 0, else stdout."""
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))

    def call(*words, status=0):
        monkeypatch.setattr(sys, "argv", ["prepare_coco.py", *map(str, words)])
        code = 0
        try:
            reported(prepare_coco.main)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert code == status, err
        return err if status else out

    return call


def drawn(folder):
    lines = json.loads((folder / "captions.json").read_text())
    return read_prompts(folder / "prompts.txt"), lines


# --- captions -------------------------------------------------------------------------------------


def test_captions_from_every_form_of_the_annotations(coco, source, tmp_path):
    results = []
    for form in ("annotations_trainval2014.zip", ".", "annotations/captions_val2014.json"):
        out, words = tmp_path / str(len(results)), ["--annotations", source / form, "--count", 8]
        assert f"{out / 'prompts.txt'}: 8 captions" in coco("captions", *words, "--out", out)
        results.append(drawn(out))
    assert results[0] == results[1] == results[2]
    prompts, facts = results[0]
    assert len(prompts) == 8 == facts["count"]
    assert facts["seed"] == 0 and facts["captions"] == 55 and "without replacement" in facts["rule"]
    # One caption an image, each that of its line, and on one line.
    by_id = {row["id"]: row for row in annotations()["annotations"]}
    images = [line["image_id"] for line in facts["lines"]]
    assert len(set(images)) == 8
    for prompt, line in zip(prompts, facts["lines"], strict=True):
        row = by_id[line["caption_id"]]
        assert row["image_id"] == line["image_id"]
        assert prompt == " ".join(row["caption"].split())
    assert not list(tmp_path.rglob("*part*"))


def test_drawing(source):
    rows = prepare_coco.read_annotations(source)
    eight = prepare_coco.draw(rows, 8, seed=0)
    assert prepare_coco.draw(rows, 10, seed=0)[:8] == eight
    assert prepare_coco.draw(rows[::-1], 8, seed=0) == eight
    assert prepare_coco.draw(rows, 8, seed=1) != eight
    # Recorded: the same on every machine and for ever.
    assert [row["id"] for row in eight] == [3004, 2000, 1005, 8000, 6003, 0, 7005, 4002]
    # Every image and every caption of one can be drawn.
    seen = {row["id"] for seed in range(300) for row in prepare_coco.draw(rows, 10, seed)}
    assert seen == {row["id"] for row in rows}
    first = [prepare_coco.draw(rows, 1, seed)[0]["image_id"] for seed in range(2000)]
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == 10 and (abs(counts - 200) < 60).all()  # 4.5 standard deviations
    for count in (0, 11):
        with pytest.raises(ValueError, match=r"must be in 1\.\.10"):
            prepare_coco.draw(rows, count, 0)


def test_captions_are_fetched_from_coco(coco, source, tmp_path, monkeypatch):
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=source)
    assert prepare_coco.URL_ANNOTATIONS.startswith("http://images.cocodataset.org/annotations/")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(prepare_coco, "URL_ANNOTATIONS", f"{url}/annotations_trainval2014.zip")
        monkeypatch.setattr(prepare_coco, "URL_IMAGES", f"{url}/val2014.zip")
        for name, file in (
            ("ANNOTATIONS", "annotations_trainval2014.zip"),
            ("IMAGES", "val2014.zip"),
        ):
            monkeypatch.setattr(prepare_coco, f"SHA256_{name}", file_sha256(source / file))
        coco("captions", "--count", 5)
        coco("images")
        server.shutdown()
    zips = {f"{name}.zip" for name in ("annotations_trainval2014", "val2014")}
    names = {"captions.json", "prompts.txt", "val2014-center_lanczos256.npz"} | zips
    names |= {f"{name}.sha256" for name in zips}
    assert {path.name for path in (tmp_path / "downloads/coco").iterdir()} == names


def test_running_again_keeps_and_other_settings_are_refused(coco, source, tmp_path):
    words = ["captions", "--annotations", source, "--out", tmp_path, "--count", 6]
    coco(*words)
    before = drawn(tmp_path)
    assert "already there" in coco(*words)
    said = coco(*words, "--seed", 1, status=2)
    assert "holds other captions than these settings give" in said
    assert drawn(tmp_path) == before


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.mark.parametrize("header", [["file_name", "text"], ["image_id", "width", "caption"]])
def test_published_lists(coco, tmp_path, header):
    other = ["0"] * (len(header) - 2)
    rows = [["COCO_1.jpg", *other, 'A dog,\non a "sofa".'], ["2", *other, "Zwei Bären"]]
    write_csv(tmp_path / "list.csv", header, rows)
    coco("captions", "--list", tmp_path / "list.csv", "--out", tmp_path)
    prompts, facts = drawn(tmp_path)
    assert prompts == ['A dog, on a "sofa".', "Zwei Bären"]
    assert f"{header[-1]} and {header[0]}" in facts["rule"]
    assert facts["source"] == "list.csv" and "seed" not in facts
    assert [line["image_id"] for line in facts["lines"]] == ["COCO_1.jpg", "2"]


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("\ufeffimage_id,caption\r\n1,a cat\r\n", ["a cat"]),
        ("image_id;caption\n1;a cat, sitting\n2;a dog\n", ["a cat, sitting", "a dog"]),
        ("image_id\tcaption\n1\ta cat; a dog\n\n", ["a cat; a dog"]),
        ("caption\na cat\n", ["a cat"]),
        (
            "image_id,caption\n1,a cat\n2\n",
            "line 3 has 1 entries for the columns image_id, caption",
        ),
        (
            "image_id,caption\n1,a cat, sitting\n",
            "line 2 has 3 entries .* quote texts that have ','",
        ),
        ("image_id,caption\n1,\n", "caption 1 is empty"),
        ("", "has columns none"),
    ],
)
def test_lists_as_spreadsheets_write_them(coco, tmp_path, text, captions):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    words = ["captions", "--list", tmp_path / "list.csv", "--out", tmp_path]
    if isinstance(captions, str):
        assert re.search(captions, coco(*words, status=2))
    else:
        coco(*words)
        assert read_prompts(tmp_path / "prompts.txt") == captions


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_hidden_files_and_other_splits_are_no_images_of_ours(coco, source, tmp_path, form):
    """As a Mac packs the images again, with those of the training set beside them."""
    files = dict(zip(IDS, PICTURES.values(), strict=True))
    names = {f"val2014/COCO_val2014_{i:012d}.JPG": content for i, content in files.items()}
    names |= {f"__MACOSX/val2014/._COCO_val2014_{i:012d}.jpg": b"\0\5\x16\7Mac" for i in IDS}
    names |= {"train2014/COCO_train2014_000000000009.jpg": PICTURES[42]}
    names |= {
        "._captions_val2014.json": b"Mac",
        "b/captions_val2014.json": json.dumps(annotations()),
    }
    place = tmp_path / f"mac.{form}"
    if form == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in names.items():
                archive.writestr(name, content)
    else:
        for name, content in names.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = coco("images", "--images", place, "--out", tmp_path)
    assert "note: 1 images of other splits in" in said
    with np.load(tmp_path / "val2014-center_lanczos256.npz") as file:
        assert file["image_ids"].tolist() == IDS
    coco("captions", "--annotations", place, "--out", tmp_path, "--count", 3)


def test_images_of_another_split_alone_or_twice(coco, tmp_path):
    for name in ("a/COCO_train2014_000000000009", "b/COCO_val2014_000000000009", "b/copy/val_9"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jpg").write_bytes(PICTURES[42])
    words = ["images", "--out", tmp_path, "--images"]
    said = coco(*words, tmp_path / "a", status=2)
    assert "no JPEG files of the validation set in" in said
    assert "are the same image: remove one" in coco(*words, tmp_path / "b", status=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["captions", "--annotations", "absent.zip"], "absent.zip"),
        (["captions", "--annotations", "empty"], "no captions_val2014.json under"),
        (["captions", "--annotations", "other.json"], "does not hold MS-COCO's captions"),
        (["captions", "--annotations", "broken.zip"], "does not hold MS-COCO's captions"),
        (["captions", "--annotations", "images.zip"], "captions_val2014.json"),
        (["captions", "--list", "bad.csv"], "has columns id, words: a list needs text or caption"),
        (["captions", "--list", "blank.csv"], "caption 2 is empty"),
        (["images", "--images", "absent"], "no images at"),
        (["images", "--images", "empty"], "no JPEG files in"),
        (["images", "--images", "broken.zip"], "is no zip file or damaged"),
        (["images", "--images", "odd"], "is not named as COCO's images"),
        (["images", "--images", "damaged"], "COCO_val2014_000000000001.jpg is damaged"),
    ],
)
def test_mistakes_are_one_line(coco, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "odd", "damaged"):
        (tmp_path / folder).mkdir()
    (tmp_path / "other.json").write_text('{"annotations": [{"id": 1}]}')
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and no more")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("val2014/x.jpg", b"")
    write_csv(tmp_path / "bad.csv", ["id", "words"], [["1", "x"]])
    write_csv(tmp_path / "blank.csv", ["id", "text"], [["1", "x"], ["2", " "]])
    (tmp_path / "odd/holiday.jpg").write_bytes(jpeg(300, 300))
    (tmp_path / "damaged/COCO_val2014_000000000001.jpg").write_bytes(jpeg(300, 300)[:2000])
    said = coco(*words, "--out", "out", status=2)
    assert said.splitlines()[-1].startswith("error: ") and message in said, said
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["val2014.zip", "val2014"])
def test_reference_images(coco, source, tmp_path, form):
    for name in ("center_lanczos", "bicubic"):
        words = ["images", "--preprocess", name, "--out", tmp_path, "--images"]
        assert "has 10 images, MS-COCO 2014 val 40504" in coco(*words, source / form)
        path = tmp_path / f"val2014-{name}256.npz"
        images = load_samples(path).images
        assert isinstance(images, np.memmap)
        with np.load(path) as file:
            assert file["image_ids"].tolist() == IDS
        for image, content in zip(images, PICTURES.values(), strict=True):
            with Image.open(io.BytesIO(content)) as file:
                real = np.asarray(file.convert("RGB"))  # how it is reduced has its own tests
            want = Preprocessing(name, 256)(real[None])[0]
            assert np.array_equal(image, want)
    assert (images[3] == images[3][..., :1]).all()  # the grey one
    assert "already there" in coco(*words, "absent")


def test_a_full_disk_is_noticed_before(coco, source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    said = coco("images", "--images", source / "val2014", "--out", tmp_path, status=2)
    assert "0.98kB are free" in said and "free some space" in said


def test_an_interruption_leaves_nothing_half(coco, source, tmp_path, monkeypatch):
    black = np.zeros((256, 256, 3), np.uint8)
    read = Mock(side_effect=[black, black, black, KeyboardInterrupt])
    monkeypatch.setattr(prepare_coco, "read_image", read)
    coco("images", "--images", source / "val2014", "--out", tmp_path, status=130)
    assert list(tmp_path.iterdir()) == []
