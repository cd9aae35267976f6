"""Files that are whole or not there, PNG files and contact sheets."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from files.images import export_png, save_grid
from files.whole import remove_partial, write_atomic


def test_a_writer_whose_half_written_file_was_removed_writes_it_again(tmp_path):
    written = []

    def write(path):
        path.write_text("whole")
        if not written:
            written.append(path)
            remove_partial(tmp_path)

    write_atomic(tmp_path / "file.txt", write)
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "whole"


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


def test_png_export_is_lossless_and_named_by_id(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    export_png(tmp_path, images)
    names = sorted(p.name for p in (tmp_path / "png").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / names[2])), images[2])


def test_grid_shows_every_image_in_order(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    save_grid(images, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert [sheet[4 + 6 * (i // 3), 4 + 6 * (i % 3)] for i in range(5)] == [0, 1, 2, 3, 4]
