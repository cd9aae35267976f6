"""A cell's folder on disk: its shards, its manifest, and when it is complete.

Shard k holds the samples k * shard_size .. (k + 1) * shard_size - 1 and is written whole.  What
differs from run to run (seconds, host, memory) lies beside it, in a .json file.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.cells import Cell
from files.images import read_npz, save_grid
from files.media import Shard
from files.prompts import write_prompts
from files.whole import UNREADABLE, remove_partial, write_atomic, write_text

STATED = ("config", "plan", "nfe", "num_samples", "shard_size", "complete")  # by every manifest


# --- the manifest -------------------------------------------------------------------------------


def claim(cell: Cell, prompts: Sequence[str] | None) -> None:
    """Make the folder ours, or refuse: it may hold only samples of the same config.

    `prompts` are put beside the samples, line i + 1 for label i, where evaluation looks for them.
    Raises ValueError for a folder of another config or shard size.
    """
    try:
        old = read_manifest(cell.folder)
    except ValueError:  # every shard tells its config, too
        tqdm.write(f"{cell.manifest} is damaged: writing it anew")
        old = None
    is_begun = old and (old["complete"] or any((cell.folder / "shards").glob("shard-*")))
    if old is None or not is_begun:
        (cell.folder / "shards").mkdir(parents=True, exist_ok=True)
        _write_manifest(cell, {"complete": False})
    else:
        _check_same(cell, old)
        if old["num_samples"] < cell.size.num_samples:
            _write_manifest(cell, {"complete": False})
    if prompts is not None:
        write_prompts(cell.folder / "prompts.txt", prompts)


def _check_same(cell: Cell, old: dict[str, Any]) -> None:
    config = json.loads(json.dumps(cell.config))
    if old["config"] != config:
        difference = _first_difference(old["config"], config)
        raise ValueError(
            f"{cell.folder} holds samples of another config ({difference}); "
            "choose another out=DIR or remove that folder"
        )
    if old["shard_size"] != cell.size.shard_size:
        raise ValueError(
            f"{cell.folder} was begun with shard_size={old['shard_size']}; continue with that"
        )


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return _first_difference(a, b, f"{prefix}{key}.")
        if a != b:
            return f"{prefix}{key} is {a} there, {b} here"
    return "no difference"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a cell's folder, or None if there is none.  ValueError if it is damaged."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        _ = [manifest[key] for key in STATED]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: the command that sampled it mends it") from None
    return manifest


def origin(manifest: dict[str, Any]) -> dict[str, Any]:
    """How the samples came about: the part of a manifest that records keep."""
    return {key: manifest[key] for key in ("config", "plan", "nfe")}


def _write_manifest(cell: Cell, facts: dict[str, Any]) -> None:
    content = {
        "config": cell.config,
        "plan": cell.plan.name,
        "nfe": len(cell.plan),
        "num_samples": cell.size.num_samples,
        "shard_size": cell.size.shard_size,
        **facts,
        "versions": {name: _version(name) for name in ("torch", "numpy", "hydra-core")},
    }
    write_text(cell.manifest, json.dumps(content, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- shards -------------------------------------------------------------------------------------


def write_shard(cell: Cell, k: int, arrays: Shard, facts: dict[str, Any]) -> None:
    """Write shard k and how it was made.  `members` lets a damaged list of members be noticed."""
    shard = {**arrays, "config": np.array(cell.digest)}
    shard["members"] = np.array(sorted(shard))
    write_text(cell.facts(k), json.dumps(facts) + "\n")
    write_atomic(cell.shard(k), partial(_save, shard))


def _save(shard: Shard, path: Path) -> None:
    np.savez(path, allow_pickle=False, **shard)


def read_shard(cell: Cell, k: int) -> Shard | None:
    """The arrays of shard k, or None if it is absent, too short, or damaged.

    Raises ValueError for a whole shard of another config.
    """
    path, ids = cell.shard(k), cell.size.ids(k)
    if not path.exists():
        return None
    try:
        shard = read_npz(path)
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
    if config != cell.digest:
        raise ValueError(f"{path} is of another config: choose another out=DIR or remove it")
    if not cell.media.is_intact(cell.folder, shard):
        return None
    return {name: array[: len(ids)] if array.ndim else array for name, array in shard.items()}


def read_facts(cell: Cell, k: int) -> dict[str, Any] | None:
    """How shard k was made (seconds, samples, worker, device, memory), or None if that is lost."""
    try:
        facts: dict[str, Any] = json.loads(cell.facts(k).read_text())
        return facts
    except (OSError, ValueError):
        return None


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever another file takes the place of this one; None without one."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


# --- completion ---------------------------------------------------------------------------------


def is_complete(cell: Cell) -> bool:
    """Whether the folder holds so many samples, joined; of videos, whether all are there."""
    manifest = read_manifest(cell.folder)
    if not manifest or not manifest["complete"]:
        return False
    if manifest.get("videos"):  # nothing is joined: every shard tells of its files
        return all(read_shard(cell, k) is not None for k in range(cell.size.num_shards))
    enough = manifest["num_samples"] >= cell.size.num_samples
    return enough and cell.media.is_joined(cell.folder, manifest)


class _ShardMissing(Exception):
    pass


def finish(cell: Cell) -> bool:
    """When every shard is there: samples.npz, grid.png, and a manifest that says complete.

    False while other processes are still at work: the last one to end finishes the folder.
    """
    shards = range(cell.size.num_shards)
    if not all(cell.shard(k).exists() for k in shards):
        return False
    try:
        joined = cell.media.join(cell.folder, partial(_shards, cell), cell.size.num_samples)
        pictures = np.stack(cell.media.grid(cell.folder, _shards(cell)))
    except _ShardMissing:
        return False
    write_atomic(cell.folder / "grid.png", lambda path: save_grid(pictures, path))
    seconds = [(read_facts(cell, k) or {}).get("seconds") for k in shards]
    total = None if None in seconds else round(sum(s for s in seconds if s is not None), 3)
    _write_manifest(cell, {"complete": True, "seconds": total, **joined})
    sweep(cell)
    return True


def _shards(cell: Cell) -> Iterator[Shard]:
    for k in range(cell.size.num_shards):
        shard = read_shard(cell, k)
        if shard is None:
            raise _ShardMissing
        yield shard


def sweep(cell: Cell) -> None:
    """Remove from a complete folder what killed processes left."""
    for folder in (cell.folder, cell.folder / "shards", cell.folder / "videos"):
        remove_partial(folder)
