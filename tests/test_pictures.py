"""Folders of pictures as they come: read rightly, or refused with a count."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from functools import partial

import numpy as np
import pytest
from conftest import done, refused
from PIL import Image, ImageOps

import evaluate
import sample
from eval.classifiers import DigitsExtractor
from eval.extractors import PixelExtractor
from eval.preprocessing import Preprocessing
from files import images as images_module
from files.images import load_samples
from files.pictures import PictureFolder

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def save(path, mode="RGB", pixels=RGB, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth=8, colour=0, data=b"", extra=b""):
    """A PNG file by hand, which may lie."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = extra + chunk(b"IDAT", data or zlib.compress(bytes(10 * width * height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.PNG"],
        ["a.png", "b.jpg", "c.jpeg", "d.JPEG", "e.JFIF"],
        ["a.webp", "b.WebP"],
        ["a.png", "class1/b.png", "class1/deep/c.jpg", "class2/b.png"],
    ],
)
def test_every_picture_is_read(tmp_path, names):
    for i, name in enumerate(names):
        save(tmp_path / name, pixels=np.full_like(RGB, 20 * i), quality=100)
    seen = load_samples(tmp_path).images
    assert np.abs(seen.mean(axis=(1, 2, 3)) - 20 * np.arange(len(names))).max() < 3


def test_folders_behind_links_are_read_and_links_in_a_circle_end(tmp_path):
    save(tmp_path / "elsewhere/b.png")
    save(tmp_path / "here/a.png")
    (tmp_path / "here/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here/linked/back").symlink_to(tmp_path / "here")
    assert len(load_samples(tmp_path / "here").images) == 2


def test_order_is_that_of_the_numbers(tmp_path):
    """Prompts and labels pair with pictures by order."""
    for i in (*range(12), 100):
        save(tmp_path / f"{i}.png", pixels=np.full_like(RGB, i))
        save(tmp_path / f"b{i % 3}/img_{i:d}.png", pixels=np.full_like(RGB, 100 + i))
    seen = load_samples(tmp_path).images[:, 0, 0, 0].tolist()
    below = [100 + i for rest in range(3) for i in (*range(12), 100) if i % 3 == rest]
    assert seen == [*range(12), 100, *below]


def test_hidden_and_leftover_files_are_no_pictures(tmp_path):
    save(tmp_path / "a.png")
    for name in ("._a.png", ".part-1f-b.png", "__MACOSX/._a.png", ".git/c.png", "@eaDir/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7Mac OS X")
    for name in ("Thumbs.db", "labels.txt", "a.png.sha256"):
        (tmp_path / name).write_text("no picture")
    assert load_samples(tmp_path).images.shape == (1, *RGB.shape)


def test_grey_among_colour_becomes_three_channels(tmp_path):
    grey = Image.fromarray(RGB).convert("L")
    for name, mode in (
        ("a", "RGB"),
        ("b", "L"),
        ("c", "P"),
        ("d", "1"),
        ("e", "LA"),
        ("f", "RGBA"),
    ):
        save(tmp_path / f"{name}.png", mode)
    seen = load_samples(tmp_path).images
    assert np.array_equal(seen[0], RGB) and np.array_equal(seen[5], RGB)
    assert np.array_equal(seen[1], np.asarray(grey.convert("RGB")))
    assert np.array_equal(seen[4], seen[1])
    palette = Image.fromarray(RGB).convert("P").convert("RGB")
    assert np.array_equal(seen[2], np.asarray(palette))
    save(tmp_path / "only/a.png", "L")
    assert np.array_equal(load_samples(tmp_path / "only").images[0, ..., 0], np.asarray(grey))


def transparent(path):
    pixels = np.dstack([RGB, np.full(RGB.shape[:2], 200, np.uint8)])
    Image.fromarray(pixels).save(path)


REFUSED = {
    "gif": (lambda p: save(p.with_suffix(".gif")), "of a kind that is not read, such as a.gif"),
    "tiff": (lambda p: save(p.with_suffix(".TIF")), "of a kind that is not read"),
    "jpeg as png": (lambda p: save(p, format="JPEG"), "a.png is damaged or no PNG file"),
    "postscript": (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "no PNG file"),
    "svg as webp": (lambda p: p.with_suffix(".webp").write_text("<svg/>"), "no JPEG or PNG or"),
    "16 bits grey": (lambda p: p.write_bytes(png(8, 6, 16, 0)), "16 bits a channel"),
    "16 bits colour": (lambda p: p.write_bytes(png(8, 6, 16, 2)), "16 bits a channel"),
    "16 bits alpha": (lambda p: p.write_bytes(png(8, 6, 16, 6)), "16 bits a channel"),
    "alpha": (transparent, "a.png is transparent in parts"),
    "palette": (lambda p: save(p, "P", transparency=bytes(256)), "is transparent in parts"),
    "palette lost": (lambda p: p.write_bytes(png(8, 6, 8, 3)), "a.png has lost its palette"),
    "animated": (
        lambda p: save(p, save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "is an animation",
    ),
    "bomb": (lambda p: p.write_bytes(png(50000, 50000, data=b"x")), "exceeds limit"),
    "large": (lambda p: p.write_bytes(png(13000, 13000, data=b"x")), "13000 x 13000, too large"),
    "text bomb": (
        lambda p: p.write_bytes(
            png(8, 6, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8))))
        ),
        "is damaged (Decompressed data too large",
    ),
    "empty": (lambda p: p.write_bytes(b""), "a.png is damaged"),
    "dangling": (lambda p: p.symlink_to("nowhere"), "No such file"),
    "pipe": (os.mkfifo, "a.png is a pipe or a device"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "a.png is a pipe or a device"),
    "raw": (lambda p: p.with_suffix(".CR2").write_bytes(b"II*"), "of a kind that is not read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_read_wrongly_is_refused_with_a_count(tmp_path, case):
    make, message = REFUSED[case]
    make(tmp_path / "a.png")
    save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"^1 of 2 pictures in ") as caught:
        load_samples(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_pictures_cut_short_are_counted(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in "abc":
        path = tmp_path / f"{name}.{kind}"
        save(path, pixels=noise)
        path.write_bytes(path.read_bytes()[: -900 if name < "c" else None])
    match = rf"^2 of 3 pictures in .* cannot be read; a\.{kind} is damaged .* make it again$"
    with pytest.raises(ValueError, match=match):
        load_samples(tmp_path)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_pictures_are_turned_as_their_camera_was(tmp_path, kind, value):
    """Pillow's own `exif_transpose` is the other opinion."""
    exif = Image.Exif()
    exif[0x112] = value
    save(tmp_path / f"a.{kind}", exif=exif)
    with Image.open(tmp_path / f"a.{kind}") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(load_samples(tmp_path).images[0], wanted)
    save(tmp_path / "b.png", pixels=wanted)
    assert load_samples(tmp_path).images.shape == (2, *wanted.shape)


def test_damaged_exif_data_is_no_damage_of_the_picture(tmp_path):
    save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_samples(tmp_path).images.shape == (1, *RGB.shape)


def test_what_is_no_picture_is_told_with_a_count(tmp_path, capsys):
    save(tmp_path / "a.png")
    for name in ("Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_text("x")
    assert len(load_samples(tmp_path).images) == 1
    assert capsys.readouterr().out == ""
    for name in ("b.zip", "a.png~"):
        (tmp_path / name).write_text("x")
    assert len(load_samples(tmp_path).images) == 1
    assert "left out 2 files that are no pictures, as 'a.png~'" in capsys.readouterr().out


def test_several_sizes_need_a_preprocessing(tmp_path):
    for i, (height, width) in enumerate([(40, 40), (40, 40), (40, 60), (64, 48)]):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        save(tmp_path / f"{i}.png", pixels=pixels)
    with pytest.raises(
        ValueError, match=r"2 of 4 pictures .* are not 40 x 40 .* 2\.png is 60 x 40"
    ):
        load_samples(tmp_path)
    way = Preprocessing("center_lanczos", 32)
    seen = load_samples(tmp_path, way.image).images
    want = [way.image(Image.open(tmp_path / f"{i}.png")) for i in range(4)]
    assert np.array_equal(seen, np.stack([np.asarray(picture) for picture in want]))


def test_a_large_folder_is_read_in_slices_and_scores_the_same(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    for i, image in enumerate(pixels):
        save(tmp_path / f"{i}.png", "L", image[..., 0])
    held = load_samples(tmp_path).images
    assert isinstance(held, np.ndarray) and np.array_equal(held, pixels)
    monkeypatch.setattr(images_module, "HELD", 1000)
    lazy = load_samples(tmp_path).images
    assert isinstance(lazy, PictureFolder)
    assert (len(lazy[:7]), lazy[:7].shape) == (7, (7, 28, 28, 1))
    assert np.array_equal(lazy[20:][2:5], pixels[22:25])
    for extractor in (PixelExtractor(), DigitsExtractor()):
        for some in (lazy, lazy[:13]):
            want = extractor(held[: len(some)], batch_size=4).features
            np.testing.assert_array_equal(extractor(some, batch_size=4).features, want)


def test_a_large_folder_needs_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "HELD", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for i in range(40):
        save(tmp_path / f"{i}.png", pixels=pixels)
    lazy = load_samples(tmp_path).images
    tracemalloc.start()
    for i in range(0, 40, 4):
        np.asarray(lazy[i : i + 4])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * pixels.nbytes


def test_a_run_that_lost_its_samples_is_not_its_sheet(tmp_path):
    save(tmp_path / "grid.png")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"is a run without samples\.npz: run the command"):
        load_samples(tmp_path)
    with pytest.raises(ValueError, match="is a run, among pictures: give one run"):
        load_samples(tmp_path.parent)
    (tmp_path / "grid.png").rename(tmp_path / "mine.png")  # manifests are not ours alone
    assert len(load_samples(tmp_path).images) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": RGB}, "has no arr_0 but x: save the images with"),
        ({"arr_0": RGB.astype(float)[None]}, "must be uint8"),
        ({"arr_0": RGB[None, ..., :2]}, "1 or 3 channels"),
        ({"arr_0": RGB[None][:0]}, "holds no images (arr_0 is (0, "),
        ({"arr_0": RGB[None][:, :0]}, "holds no images (arr_0 is (1, 0, "),
        ({"arr_0": RGB[None], "arr_1": np.array(["a"])}, "arr_1 must be labels of the 1 images"),
        ({"arr_0": RGB[None], "arr_1": np.array([np.nan])}, "arr_1 must be labels of the 1 images"),
        ({"arr_0": RGB[None], "arr_1": np.arange(3)}, "arr_1 must be labels of the 1 images"),
        ({"arr_0": RGB[None], "arr_1": np.array([2**63], np.uint64)}, "arr_1 must be labels of"),
        (
            {"arr_0": np.array([{}], dtype=object)},
            "holds Python objects (arr_0.npy), which are never",
        ),
    ],
)
def test_other_arrays_are_told_from_damage(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"x\.npz") as caught:
        load_samples(tmp_path / "x.npz")
    assert message in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_an_archive_of_another_compression_is_told_from_damage(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("arr_0.npy", b"")
    with pytest.raises(ValueError, match=r"x\.npz has arr_0\.npy compressed in a way of its own"):
        load_samples(tmp_path / "x.npz")


# --- through evaluate.py ----------------------------------------------------------------------------


@pytest.fixture
def score(command, tmp_path):
    """evaluate.py by pixels, against real images of 16 x 12."""
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        save(tmp_path / f"real/{i}.jpg", pixels=pixels)
    words = ["metrics=pixels", "reference=custom", "reference.images.path=real", "out=r.json"]
    return partial(command, evaluate, "samples=mine", *words)


def test_sizes_are_compared_told_and_recorded(score, tmp_path):
    shutil.copytree(tmp_path / "real", tmp_path / "mine")
    assert "both of 16 x 12 pixels" in done(score())
    text = (tmp_path / "r.json").read_text()
    assert '"size": "16 x 12"' in text and '"reference_size": "16 x 12"' in text
    save(tmp_path / "mine/0.jpg", pixels=np.zeros((9, 9, 3), np.uint8))
    refused(score(), "1 of 20 pictures in mine are not 16 x 12 as the others: 0.jpg is 9 x 9")
    shutil.rmtree(tmp_path / "mine")
    for i in range(20):
        save(tmp_path / f"mine/{i}.png", pixels=np.zeros((9, 9, 3), np.uint8))
    refused(score(), "the samples in mine are 9 x 9 pixels, the reference's images 16 x 12")
    # What the errors say does it.
    save(tmp_path / "mine/0.png")
    way = ["reference.preprocess=center_lanczos", "reference.size=8"]
    assert "both at 8 pixels by center_lanczos" in done(score(*way))
    refused(score(way[0]), "positive number of pixels, got None: set reference.size")
    refused(score(way[1]), "reference.size needs reference.preprocess")


def test_a_floor_of_ones_own(command, tmp_path):
    """It is given by its path, and a record that was made without it does not stand any more."""
    done(command(sample, "model=digits", "steps=2", "num_samples=8", "out=run"))
    np.savez(tmp_path / "real.npz", arr_0=load_samples(tmp_path / "run").images)
    words = ["samples=run", "reference=custom", "reference.images.path=real.npz"]
    call = partial(command, evaluate, *words, "metrics.scores=[is]", "labels=off")
    record = tmp_path / "run/evaluation-digits.json"
    done(call())
    assert json.loads(record.read_text())["floor"] is None
    done(call("reference.floor.path=real.npz"))
    assert json.loads(record.read_text())["floor"]["is"]["value"] > 0
    before = record.stat().st_mtime_ns
    done(call("reference.floor.path=real.npz"))
    assert record.stat().st_mtime_ns == before
