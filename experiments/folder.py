"""A folder of samples on disk: its shards, its manifest, and what is made of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiments.cells import Job, Size, video_names
from files.images import save_grid
from files.videos import middle_frame, write_mp4
from files.whole import UNREADABLE, remove_partial, write_atomic
from models.backbone import Backbone

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]


Shard = dict[str, NDArray[Any]]


LOCK = ".lock-"  # begins the name of the file that a process at work holds


def read_facts(job: Job, k: int) -> dict[str, Any] | None:
    """How shard k was made (seconds, samples, worker, device, memory), or None if that is lost."""
    try:
        facts: dict[str, Any] = json.loads(job.facts(k).read_text())
        return facts
    except (OSError, ValueError):
        return None


def _write_videos(
    job: Job, backbone: Backbone, ids: Sequence[int], videos: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Write videos uint8 [B, T, H, W, 3] into the job's folder; the sizes of the files."""
    sizes = []
    for name, frames in zip(video_names(job, backbone, ids), videos, strict=True):
        path = job.folder / "videos" / name
        write_mp4(path, frames, backbone.fps or 1, backbone.bit_rate)
        sizes.append(path.stat().st_size)
    return np.array(sizes, dtype=np.int64)


def _claim(job: Job, size: Size) -> None:
    """Make the folder ours, or refuse: it may hold only samples of the same config."""
    try:
        old = read_manifest(job.folder)
    except ValueError:  # every shard tells its config, too
        tqdm.write(f"{job.manifest} is damaged: writing it anew")
        old = None
    made = old and (old["complete"] or any((job.folder / "shards").glob("shard-*")))
    if old is None or not made:
        (job.folder / "shards").mkdir(parents=True, exist_ok=True)
        _write_manifest(job, size, {"complete": False})
        return
    ours = json.loads(json.dumps(job.config))
    if old["config"] != ours:
        difference = _first_difference(old["config"], ours)
        raise ValueError(
            f"{job.folder} holds samples of another config ({difference}); "
            "choose another out=DIR or remove that folder"
        )
    if old["shard_size"] != size.shard_size:
        raise ValueError(
            f"{job.folder} was begun with shard_size={old['shard_size']}; continue with that"
        )
    if old["num_samples"] < size.num_samples:
        _write_manifest(job, size, {"complete": False})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's folder, or None if there is none.  ValueError if it is damaged."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        _ = [
            manifest[key]
            for key in ("config", "plan", "nfe", "num_samples", "shard_size", "complete")
        ]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: the command that sampled it mends it") from None
    return manifest


def _write_manifest(job: Job, size: Size, facts: dict[str, Any]) -> None:
    content = {
        "config": job.config,
        "plan": job.plan.name,
        "nfe": len(job.plan),
        "num_samples": size.num_samples,
        "shard_size": size.shard_size,
        **facts,
        "versions": {name: _version(name) for name in ("torch", "numpy", "hydra-core")},
    }
    write_atomic(job.manifest, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return _first_difference(a, b, f"{prefix}{key}.")
        if a != b:
            return f"{prefix}{key} is {a} there, {b} here"
    return "no difference"


def is_complete(job: Job, size: Size) -> bool:
    """Whether the folder holds so many samples, joined; of videos, whether all are there."""
    manifest = read_manifest(job.folder)
    if manifest and manifest["complete"] and manifest.get("videos"):
        return all(_read_shard(job, k, size) is not None for k in range(size.num_shards))
    return (
        manifest is not None
        and manifest["complete"]
        and manifest["num_samples"] >= size.num_samples
        and (job.folder / "samples.npz").is_file()
        and (job.folder / "samples.npz").stat().st_size == manifest["bytes"]
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever another file takes the place of this one; None without one."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read_shard(job: Job, k: int, size: Size) -> Shard | None:
    """The arrays of shard k, or None if it is absent, too short, or damaged.

    Raises ValueError for a whole shard of another config.
    """
    path, ids = job.shard(k), size.ids(k)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            shard = {name: file[name] for name in file.files}  # reading checks the CRC
        # A directory of the file may be damaged so that it lists less than there is.
        members = shard.pop("members", None)
        if members is None and "seconds" in shard:  # of a version that wrote no members
            members = np.array(sorted(shard))
        if members is None or members.tolist() != sorted(shard):
            raise KeyError("members")
        if not np.array_equal(shard["ids"][: len(ids)], ids):
            return None  # the folder grows, and this was its last shard
        config = str(shard.pop("config"))
    except UNREADABLE:
        tqdm.write(f"{path} is damaged: sampling it again")
        return None
    if config != job.digest:
        raise ValueError(f"{path} is of another config: choose another out=DIR or remove it")
    if "names" in shard and not _videos_are_whole(job, shard):
        return None
    return {name: array[: len(ids)] if array.ndim else array for name, array in shard.items()}


def _videos_are_whole(job: Job, shard: Shard) -> bool:
    """Whether every video of a shard is there with the size that it was written with."""
    for name, size in zip(shard["names"].tolist(), shard["bytes"].tolist(), strict=True):
        path = job.folder / "videos" / name
        if not path.is_file() or path.stat().st_size != size:
            tqdm.write(f"{path} is missing or damaged: sampling its shard again")
            return False
    return True


def _finish(job: Job, size: Size) -> bool:
    """When every shard is there: samples.npz, grid.png, and a manifest that says complete."""
    if not all(job.shard(k).exists() for k in range(size.num_shards)):
        return False  # other ranks are still at work; the last one to end finishes the folder
    try:
        whole = _read_all(job, size)
    except _ShardMissing:
        return False
    seconds = [(read_facts(job, k) or {}).get("seconds") for k in range(size.num_shards)]
    known = [s for s in seconds if s is not None]
    total = round(sum(known), 3) if len(known) == len(seconds) else None
    facts = {"complete": True, "seconds": total}
    _write_manifest(job, size, {**facts, **whole})
    _sweep(job)
    return True


def _sweep(job: Job) -> None:
    """Remove from a complete folder what killed processes left."""
    for folder in (job.folder, job.folder / "shards", job.folder / "videos"):
        remove_partial(folder)
    for path in job.folder.glob(f"{LOCK}*"):
        path.unlink(missing_ok=True)


def _read_all(job: Job, size: Size) -> dict[str, Any]:
    """Join the shards into samples.npz unless they are videos, and write grid.png.

    Returns what the manifest says of it.  Raises _ShardMissing for a shard that is not whole.
    """
    videos = "names" in next(_shards(job, size))
    facts: dict[str, Any]
    if videos:
        count = sum(int(shard["bytes"].sum()) for shard in _shards(job, size))
        facts = {"videos": True, "bytes": count}
    else:
        write_atomic(job.folder / "samples.npz", lambda p: _join(job, size, p))
        facts = {"bytes": (job.folder / "samples.npz").stat().st_size}
    images = _first_images(job, size, 16 if videos else 64)
    write_atomic(job.folder / "grid.png", lambda p: save_grid(images, p))
    return facts


class _ShardMissing(Exception):
    pass


def _shards(job: Job, size: Size) -> Iterator[Shard]:
    for k in range(size.num_shards):
        shard = _read_shard(job, k, size)
        if shard is None:
            raise _ShardMissing
        yield shard


def _join(job: Job, size: Size, path: Path) -> None:
    """Stream all shards into one .npz, one shard in memory at a time."""
    first = next(_shards(job, size))["arr_0"]
    labels: list[NDArray[np.int64]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": (size.num_samples, *first.shape[1:]),
        }
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for shard in _shards(job, size):
                file.write(np.ascontiguousarray(shard["arr_0"]).tobytes())
                if "arr_1" in shard:
                    labels.append(shard["arr_1"])
        if labels:
            with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)


def _first_images(job: Job, size: Size, count: int) -> NDArray[np.uint8]:
    images: list[NDArray[np.uint8]] = []
    for shard in _shards(job, size):
        if "names" in shard:
            names = shard["names"][: count - len(images)].tolist()
            images.extend(middle_frame(job.folder / "videos" / name) for name in names)
        else:
            images.extend(shard["arr_0"][: count - len(images)])
        if len(images) == count:
            break
    return np.stack(images)


@contextmanager
def _order(shards: list[int], jobs: Sequence[Job], rank: int, world: int) -> Iterator[list[int]]:
    """The order in which this process makes its shards.

    If another one, started by the same command, is at work on them, the last come first: the two
    meet in the middle.  Whether there is one, a lock tells, which ends with the process that holds
    it.  Where the file system has no locks, both do all of the work, with the same result.
    """
    if not shards or fcntl is None:
        yield shards
        return
    path = jobs[0].folder / f"{LOCK}{rank}-of-{world}"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{jobs[0].folder} is being sampled by another process: sharing the work")
            yield shards[::-1]
            return
        except OSError:  # no locks here
            pass
        try:
            yield shards
        finally:
            path.unlink(missing_ok=True)
