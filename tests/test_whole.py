"""Files that are whole or not there, sets of images, PNG files and contact sheets."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments.cells import stored_plan
from files.images import export_png, load_samples, save_grid
from files.npz import read_npz, write_npz
from files.whole import Damaged, read_json, reading, remove_partial, write_atomic, write_text
from models.weights import read_weights


def test_a_writer_whose_half_written_file_was_removed_writes_it_again(tmp_path):
    written = []

    def write(path):
        path.write_text("whole")
        if not written:
            written.append(path)
            remove_partial(tmp_path, r"file\.txt")

    write_atomic(tmp_path / "file.txt", write)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file.txt": "whole"}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Without power a name may be there, and nothing behind it."""
    done, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda d: done.append(("sync", os.fstat(d).st_ino)) or fsync(d)
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: done.append(("name", os.stat(a).st_ino)) or replace(a, b)
    )
    path = tmp_path / "file.txt"
    write_text(path, "whole")
    inode = path.stat().st_ino
    assert done == [("sync", inode), ("name", inode), ("sync", tmp_path.stat().st_ino)]
    done.clear()
    write_atomic(path, lambda p: p.write_text("again"), durable=False)
    assert [what for what, _ in done] == ["name"]


def test_whatever_a_reader_raises_is_damage_in_one_line(tmp_path):
    for error in (ValueError("a\n\x1b[31mb"), RecursionError(), KeyError("x"), OSError("no errno")):
        damaged = pytest.raises(Damaged, match=r"/a is damaged \(.+\): go$")
        with damaged as caught, reading(tmp_path / "a", "go"):
            raise error
        assert str(caught.value).isprintable()
    with pytest.raises(Damaged), reading(tmp_path / "a", "go"):
        raise OSError(errno.EIO, "Input/output error")  # a bad sector
    for error in (FileNotFoundError(errno.ENOENT, "a"), PermissionError(errno.EACCES, "a")):
        with pytest.raises(type(error)), reading(tmp_path / "a", "go"):
            raise error
    for error in (MemoryError(), OSError(errno.ENOMEM, "a"), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading(tmp_path / "a", "go"):
            raise error


@pytest.mark.parametrize("where", ["pipe", "link"])
def test_a_pipe_or_device_is_neither_read_nor_replaced(tmp_path, where):
    """Read, they wait or go on for ever; a rename onto /dev/null takes it from the whole machine."""
    pipe, path = tmp_path / "pipe", tmp_path / where
    os.mkfifo(pipe)
    if path != pipe:
        path.symlink_to(pipe)
    words = pytest.raises(Damaged, match=r"is a pipe or a device: give a file, or another name$")
    with words:
        write_text(path, "whole")
    with words:
        read_json(path, "go")
    with words:
        read_npz(path)
    with words:
        read_weights(path)
    with words:
        stored_plan(str(path))
    assert pipe.is_fifo() and path.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_in_the_middle_of_a_zip_file_stays_one(tmp_path, stop):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            handle = archive.open("a", "w")
            handle.write(b"half")
            raise stop

    with pytest.raises(type(stop)):
        write_atomic(tmp_path / "a.npz", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labelled", "digest"),
    [
        (True, "e04f7df6c0225758efc501b20493256bc1c0d7f4fea4574d331f7ba0ebeb894f"),
        (False, "e3e596b5bf1bc3616a31e08e652a6cf94a3f9d822746b24f044f79aac5b589e4"),
    ],
)
def test_a_stream_of_blocks_has_the_recorded_bytes(tmp_path, labelled, digest):
    """samples.npz is the same file for ever, by which scores are found again."""
    rng, blocks = np.random.default_rng(0), []
    for n in (7, 7, 3):
        images = rng.integers(256, size=(n, 5, 4, 3), dtype=np.uint8)
        blocks.append({"arr_0": images} | ({"arr_1": np.arange(n)} if labelled else {}))
    path = tmp_path / "samples.npz"
    write_npz(path, 17, blocks)
    samples = load_samples(path)
    assert isinstance(samples.images, np.memmap)  # 10 GB need no memory
    assert np.array_equal(samples.images, np.concatenate([b["arr_0"] for b in blocks]))
    labels = [*range(7), *range(7), *range(3)]
    assert samples.labels.tolist() == labels if labelled else samples.labels is None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    with pytest.raises(ValueError, match="but 14 came"):
        write_npz(tmp_path / "short.npz", 17, blocks[:2])


def test_png_export_is_lossless_and_named_by_id(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    export_png(tmp_path, images)
    files = sorted((tmp_path / "png").iterdir())
    assert [p.name for p in files] == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(np.asarray(Image.open(files[2])), images[2])


def test_a_folder_of_pngs_is_held_once(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    export_png(tmp_path, images)
    load_samples(tmp_path / "png")  # what PIL imports at its first picture is not counted
    tracemalloc.start()
    read = load_samples(tmp_path / "png").images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(read, images)
    assert peak < 1.5 * images.nbytes


def test_pngs_of_other_sizes_are_refused_by_name(tmp_path):
    for i, shape in enumerate([(6, 5), (6, 5), (5, 6)]):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"1 of 3 pictures .* not 5 x 6 .* 2\.png is 6 x 5"):
        load_samples(tmp_path)


def test_grid_shows_every_image_in_order(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    save_grid(images, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert [sheet[4 + 6 * (i // 3), 4 + 6 * (i % 3)] for i in range(5)] == [0, 1, 2, 3, 4]
