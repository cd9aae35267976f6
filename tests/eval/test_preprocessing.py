"""Bringing images to the size of a protocol."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_metrics import refused

from eval.preprocessing import PREPROCESSING, Preprocessed, Preprocessing

every = pytest.mark.parametrize("name", PREPROCESSING)


def images(n=3, height=30, width=40, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(n, height, width, channels), dtype=np.uint8)


@every
def test_as_pil_does_it(name):
    wide, tall = images(), images(height=40, width=30)
    for x, square in ((wide, wide[:, :, 5:35]), (tall, tall[:, 5:35])):
        got = Preprocessing(name, 16)(x)
        assert got.shape == (3, 16, 16, 3) and got.dtype == np.uint8
        lanczos = (square, Image.Resampling.LANCZOS)
        seen, way = lanczos if name == "center_lanczos" else (x, Image.Resampling.BICUBIC)
        for image, reduced in zip(seen, got, strict=True):
            want = Image.fromarray(image).resize((16, 16), way)
            assert np.array_equal(reduced, np.asarray(want))


@every
def test_grey_images_stay_grey(name):
    x = images(channels=1)
    got = Preprocessing(name, 16)(x)
    colour = Preprocessing(name, 16)(x.repeat(3, axis=-1))
    assert got.shape == (3, 16, 16, 1)
    assert np.array_equal(got.repeat(3, axis=-1), colour)


@every
def test_images_of_that_size_stay_as_they_are(name):
    x = images(height=16, width=16)
    assert Preprocessing(name, 16)(x) is x
    same = PREPROCESSING[name](Image.fromarray(x[0]), 16)
    assert np.array_equal(np.asarray(same), x[0])


def test_the_two_differ_also_on_squares():
    x = images(height=32, width=32)
    a, b = (Preprocessing(name, 16)(x).astype(int) for name in PREPROCESSING)
    assert np.abs(a - b).max() > 2


@every
def test_a_memory_map_is_read_slice_by_slice(name, tmp_path):
    x = images(7, 24, 24)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    lazy = Preprocessed(mapped, Preprocessing(name, 8))
    assert (len(lazy), lazy.shape, lazy.dtype, lazy.ndim) == (7, (7, 8, 8, 3), np.uint8, 4)
    whole = Preprocessing(name, 8)(x)
    assert np.array_equal(np.concatenate([lazy[i : i + 3] for i in range(0, 7, 3)]), whole)


def test_mistakes_are_named():
    message = "unknown preprocessing 'crop': choose center_lanczos, bicubic"
    refused(message, Preprocessing, "crop", 256)
    for size in (0, 2.5, "256"):
        refused("positive number of pixels", Preprocessing, "bicubic", size)
