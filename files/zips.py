"""Pictures in a zip archive."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from files.pictures import is_leftover
from files.whole import check_space

DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


@contextmanager
def pictures_of(path: Path) -> Iterator[Path]:
    """`path` itself, or for a zip a folder with its pictures, which is gone afterwards.

    Nothing is written elsewhere than there, whatever the members are called.  Raises ValueError for
    an archive that is damaged or holds two files of one name, OSError (ENOSPC) where it does not fit.
    """
    if path.suffix.lower() != ".zip" or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            _unpack(path, Path(folder))
        except (*DAMAGES, FileExistsError) as error:
            raise ValueError(f"{path} is damaged ({error}): restore it or make it again") from None
        yield Path(folder)


def _unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if _is_file(m.filename)]
        check_space(folder / "pictures", sum(member.file_size for member in members))
        for member in members:
            place = folder.joinpath(*_parts(member.filename))
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as content, place.open("xb") as file:
                shutil.copyfileobj(content, file)  # to its end, where its checksum is checked


def _is_file(name: str) -> bool:
    """Whether it is a file that somebody put there: a picture, or what is refused as none."""
    return bool(_parts(name)) and not name.endswith("/") and not is_leftover("/".join(_parts(name)))


def _parts(name: str) -> list[str]:
    """Of a member's name, without what leads out of a folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "..", ".") and ":" not in part]
