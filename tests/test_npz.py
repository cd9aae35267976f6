"""Arrays in .npz files: any flipped bit is noticed or harmless, nothing is unpickled, little is asked for."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from files.images import load_samples
from files.npz import check_npz, map_npz, read_npz
from files.whole import Damaged

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 1), dtype=np.uint8)
SHAPE = (9, 5, 4, 1)


def content(save=np.savez, **more) -> bytes:
    file = io.BytesIO()
    save(file, arr_0=IMAGES, arr_1=np.arange(9), **more)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_bit_is_noticed_or_harmless(tmp_path, save):
    path, whole = tmp_path / "a.npz", content(save)
    noticed = 0
    for place in range(len(whole)):
        for bit in range(place % 2, 8, 2):  # half of them, for time; the drill takes all
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                samples = load_samples(path)
            except ValueError:
                noticed += 1
                continue
            assert np.array_equal(samples.images, IMAGES), (place, bit)
            assert samples.labels.tolist() == list(range(9)), (place, bit)
    assert noticed > 2 * len(whole)


def test_any_cut_is_noticed(tmp_path):
    path, whole = tmp_path / "a.npz", content()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for reader in (read_npz, check_npz, lambda p: map_npz(p, "arr_0")):
            with pytest.raises(Damaged, match=r"a\.npz is damaged \(.+\): restore it"):
                reader(path)


def npy(shape, data, descr="|u1", header=None, version=(1, 0)) -> bytes:
    header = header or repr({"descr": descr, "fortran_order": False, "shape": shape})
    raw = header.encode("latin1")
    raw += b" " * (-(len(raw) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(raw)) + raw + data


GOOD = npy(SHAPE, IMAGES.tobytes())


class Mark:
    """Unpickled, it leaves a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


HOSTILE = {
    "longer than its member": npy((10**13, 5, 4, 1), b"\0" * 100),
    "more than memory has": npy((2**62, 2**62), b"\0" * 100),
    "a negative length": npy((-9, 5, 4, 1), IMAGES.tobytes()),
    "two negative lengths": npy((-9, -5, 4, 1), IMAGES.tobytes()),
    "shorter than its member": npy((3, 5, 4, 1), IMAGES.tobytes()),
    "no dictionary": npy((), b"", header="[1, 2"),
    "brackets without end": npy((), b"", header="(" * 9000),
    "a call": npy((), b"", header="__import__('os').system('true')"),
    "an unknown version": npy(SHAPE, IMAGES.tobytes(), version=(9, 0)),
    "no header": b"hello" * 100,
    "nothing": b"",
    "floats": npy((9, 5, 4, 1), b"\0" * 720, descr="<f4"),
    "five axes": npy((1, 9, 5, 4, 1), IMAGES.tobytes()),
}


@pytest.mark.parametrize("stored", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_lie_end_in_one_line_and_ask_for_no_memory(tmp_path, name, stored):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", stored) as archive:
        archive.writestr("arr_0.npy", HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.npz") as caught:
        load_samples(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert peak < 2e7


@pytest.mark.parametrize(
    "labels",
    [
        np.full(9, np.nan),
        np.array(["a"] * 9),
        np.zeros((9, 2), int),
        np.zeros(3, int),
        -np.ones(9, int),
    ],
)
def test_labels_are_one_number_an_image_or_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", arr_0=IMAGES, arr_1=labels)
    with pytest.raises(ValueError, match="arr_1 must be labels of the 9 images, integers"):
        load_samples(tmp_path / "a.npz")


def test_a_file_without_images_is_not_called_damaged(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    with pytest.raises(ValueError, match=r"has no arr_0 but images: save the images with"):
        load_samples(tmp_path / "a.npz")


def test_pickles_are_never_loaded(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.array([Mark(mark)], dtype=object))
    for reader in (load_samples, read_npz, check_npz, lambda p: map_npz(p, "arr_0")):
        with pytest.raises(ValueError, match="never unpickled"):
            reader(path)
    np.array([Mark(mark)], dtype=object).dump(path)  # a pickle of that name
    with pytest.raises(Damaged):
        load_samples(path)
    assert not mark.exists()
    np.load(path, allow_pickle=True)  # it does what it says
    assert mark.exists()


def test_other_orders_versions_and_alignments_are_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.asfortranarray(IMAGES), arr_1=np.arange(9).astype(">i4"))
    for images in (load_samples(path).images, read_npz(path)["arr_0"]):
        assert np.array_equal(images, IMAGES)
    header = repr({"descr": "|u1", "fortran_order": False, "shape": SHAPE}).ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "arr_0.npy",
            b"\x93NUMPY\x03\0" + struct.pack("<I", 118) + header.encode() + IMAGES.tobytes(),
        )
    assert np.array_equal(load_samples(path).images, IMAGES)
    texts = {
        "a": np.array("text"),
        "b": np.array(["ä", "bc"]),
        "c": np.zeros((0, 3)),
        "d": np.array(3),
    }
    np.savez(path, **texts)
    for name, array in read_npz(path).items():
        assert array.dtype == texts[name].dtype and array.shape == texts[name].shape
        assert np.array_equal(array, texts[name])


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", GOOD)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("arr_0.npy", GOOD)
    with pytest.raises(Damaged, match="two arrays arr_0"):
        load_samples(tmp_path / "a.npz")


def test_a_large_compressed_array_takes_disk_not_memory(tmp_path):
    """A bomb of 30 KB that unpacks to 80 MB."""
    path, n = tmp_path / "a.npz", 100_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("arr_0.npy", npy((n, 28, 28, 1), bytes(n * 784)))
    tracemalloc.start()
    images = load_samples(path).images
    assert images[-1].sum() == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.shape == (n, 28, 28, 1)
    assert peak < 2e7
