"""Sets of arrays in .npz files: every byte that is read is checked, and nothing is unpickled.

NumPy's own reader checks a member's checksum only where it happens to read to the member's end: a
flipped bit in an array's header can make it stop before, and give other numbers without a word.
"""

import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from files.whole import Unreadable, check_space, reading

RESTORE = "restore it or make it again"
CHUNK = 1 << 20
SMALL = 1 << 26  # bytes of a compressed array that are read into memory
SUFFIX = ".npy"
DEFLATED = 1032  # what deflate makes of a byte at most, in bytes
NAME_LENGTH = 26  # where a member's own header tells the lengths of its name and of more
DESCRIPTOR = 24  # bytes that may follow a member


def read_npz(
    path: Path, names: Sequence[str] | None = None, remedy: str = RESTORE
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, or those of `names` that it has, whole and with right checksums.

    Raises `Damaged`, with the remedy, or the OSError of a file that cannot be opened.
    """
    with reading(path, remedy), open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        return {
            name: _array(archive, info)
            for name, info in _members(archive).items()
            if names is None or name in names
        }


def map_npz(path: Path, name: str, remedy: str = RESTORE) -> NDArray[Any] | None:
    """An array inside an .npz without reading it into memory; None where there is none of that name.

    50,000 images of 256 x 256 pixels are 10 GB.  Its checksum is checked once, in a stream; a
    compressed array is read, or goes to a temporary file if it is large.  Raises as `read_npz`, and OSError (ENOSPC).
    """
    with reading(path, remedy), open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        info = _members(archive).get(name)
        if info is None:
            return None
        with archive.open(info) as member:
            shape, order, dtype = _header(member, info)
            if 0 in shape or dtype.itemsize == 0:
                return np.empty(shape, dtype)
            if info.compress_type != zipfile.ZIP_STORED and info.file_size <= SMALL:
                return _array(archive, info)
            if info.compress_type != zipfile.ZIP_STORED:
                with _unpacked(member, info) as file:  # the map keeps it
                    return np.memmap(file, dtype, "r+", 0, shape, order)
            length = member.tell()
            while member.read(CHUNK):
                pass  # at the end the checksum is compared
        stream.seek(info.header_offset + NAME_LENGTH)
        lengths = [int.from_bytes(stream.read(2), "little") for _ in range(2)]
        offset = stream.tell() + sum(lengths) + length
        return np.memmap(path, dtype, "r", offset, shape, order)


@contextmanager
def _unpacked(member: IO[bytes], info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """The rest of a member in a file without a name, which is gone with its last user."""
    check_space(Path(tempfile.gettempdir(), "unpacked"), info.file_size)
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(member, file, CHUNK)
        file.flush()
        yield file


def check_npz(path: Path, remedy: str = RESTORE) -> None:
    """Read every member to its end.  Raises as `read_npz`."""
    with reading(path, remedy), open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        for info in _members(archive).values():
            with archive.open(info) as member:
                _header(member, info)
                while member.read(CHUNK):
                    pass


def array_names(path: Path, remedy: str = RESTORE) -> list[str]:
    """The names of the arrays of an .npz file.  Raises as `read_npz`."""
    with reading(path, remedy), open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        return list(_members(archive))


def array_shapes(path: Path, remedy: str = RESTORE) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays, by their headers alone: nothing else is checked."""
    with reading(path, remedy), open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        shapes = {}
        for name, info in _members(archive).items():
            with archive.open(info) as member:
                shapes[name] = _header(member, info)[0]
        return shapes


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays by their names; ValueError if the file's directory is not all that it holds."""
    _check_complete(archive)
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        with archive.open(info):  # compares the two places that tell its name
            pass
        _check_size(info, archive)
        if info.filename.endswith(SUFFIX):
            name = info.filename.removesuffix(SUFFIX)
            if name in members:
                raise ValueError(f"it has two arrays {name}")
            members[name] = info
    return members


def _check_complete(archive: zipfile.ZipFile) -> None:
    """ValueError if there are bytes that the directory does not list: one flipped bit may hide a member.

    Members follow each other, with at most a checksum and two lengths between.
    """
    assert archive.fp is not None
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not end <= info.header_offset <= end + DESCRIPTOR:
            raise ValueError("its directory is not complete")
        archive.fp.seek(info.header_offset + NAME_LENGTH)
        lengths = [int.from_bytes(archive.fp.read(2), "little") for _ in range(2)]
        end = info.header_offset + NAME_LENGTH + 4 + sum(lengths) + info.compress_size
    if not end <= archive.start_dir <= end + DESCRIPTOR:
        raise ValueError("its directory is not complete")


def _check_size(info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> None:
    """ValueError for a member that says more than the file can hold, before memory is asked for it."""
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATED}.get(info.compress_type)
    if ratio is None:
        raise Unreadable(
            f"has {info.filename} compressed in a way of its own: save it with np.savez_compressed"
        )
    assert archive.fp is not None
    length = os.fstat(archive.fp.fileno()).st_size
    if info.compress_size > length or info.file_size > ratio * info.compress_size:
        raise ValueError(f"{info.filename} says that it is longer than it is")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as member:
        shape, order, dtype = _header(member, info)
        array: NDArray[Any] = np.empty(math.prod(shape), dtype)
        raw = array.view(np.uint8) if array.nbytes else np.empty(0, np.uint8)
        done = 0
        while block := member.read(CHUNK):
            raw[done : done + len(block)] = np.frombuffer(block, np.uint8)
            done += len(block)
        if done != len(raw):
            raise ValueError(f"{info.filename} ends early")
        return array.reshape(shape, order=order)


def _header(member: IO[bytes], info: zipfile.ZipInfo) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """(shape, C or F, dtype) of an array, which must be all of its member; `member` is left at its data.

    Raises ValueError for an array that says another length than its member has, or holds objects.
    """
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"{info.filename} is of an unknown version {version}")
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(member)
    except MemoryError:  # the parser's own word for brackets without end
        raise ValueError(f"{info.filename} has an unreadable header") from None
    if dtype.hasobject:
        raise Unreadable(
            f"holds Python objects ({info.filename}), which are never unpickled: save plain arrays"
        )
    if any(n < 0 for n in shape):
        raise ValueError(f"{info.filename} has a negative length")
    if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{info.filename} is not as long as its header says")
    return shape, "F" if fortran else "C", dtype


def write_npz(path: Path, count: int, blocks: Iterable[dict[str, NDArray[Any]]]) -> None:
    """Stream `count` samples into a stored .npz, with one block in memory at a time.

    A block has an array [n, ...] for each member of the file.  `arr_0`, the images, is written as
    it comes, and the others (small ones, such as the labels in `arr_1`) after it.  Raises
    ValueError if the blocks have other than `count` samples.
    """
    written = 0
    gathered: dict[str, list[NDArray[Any]]] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for block in blocks:
                images = np.ascontiguousarray(block["arr_0"])
                if not written:
                    header = np.lib.format.header_data_from_array_1_0(images)
                    header["shape"] = (count, *images.shape[1:])
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(images.tobytes())
                written += len(images)
                for name, array in block.items():
                    if name != "arr_0":
                        gathered.setdefault(name, []).append(array)
        if written != count:
            raise ValueError(f"{count} samples were announced for {path}, but {written} came")
        for name, arrays in gathered.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate(arrays), allow_pickle=False)
