"""A cell's folder on disk: its shards, its manifest, and when it is complete.

Shard k holds the samples k * shard_size .. (k + 1) * shard_size - 1 and is written whole.  What
differs from run to run (seconds, host, memory) lies beside it, in a .json file.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.cells import Cell
from files.images import save_grid
from files.media import Shard
from files.npz import array_shapes, read_npz
from files.prompts import write_prompts
from files.whole import (
    Damaged,
    file_sha256,
    read_json,
    reading,
    remove_partial,
    write_atomic,
    write_json,
)

STATED = ("config", "plan", "nfe", "num_samples", "shard_size", "complete")  # by every manifest
# What we write beside the shards, and the names that it and they have.
BESIDE = ("manifest.json", "samples.npz", "grid.png", "prompts.txt", "png", "videos")
NAMES = (
    r"manifest\.json|samples\.npz|grid\.png|prompts\.txt|evaluation-.+\.json"
    r"|shard-\d{5,}\.(npz|json)|\d{6,}\.png|.+\.mp4"
)
ELSEWHERE = "choose another out=DIR"
AGAIN = "sampling it again"


# --- the manifest -------------------------------------------------------------------------------


def claim(cell: Cell, prompts: Sequence[str] | None) -> None:
    """Make the folder ours, or refuse: it may hold only samples of the same config.

    `prompts` are put beside the samples, line i + 1 for label i, where evaluation looks for them.
    Raises ValueError for a folder of another config or shard size, or with files that are not ours.
    """
    try:
        old = read_manifest(cell.folder)
        if old is None and (names := _in_the_way(cell)):
            old = read_manifest(cell.folder)  # of another job, which began in between
            if old is None:
                raise ValueError(
                    f"{cell.folder} holds {', '.join(names)} but no manifest of samples that were made "
                    f"here: {ELSEWHERE}, or move these files away"
                )
    except Damaged:
        tqdm.write(f"{cell.manifest} is damaged: writing it anew")
        _has_shards(cell)
        old = None
    if old is None or not _is_begun(cell, old):
        (cell.folder / "shards").mkdir(parents=True, exist_ok=True)
        _write_manifest(cell, {"complete": False})
    else:
        _check_same(cell, old)
        if old["num_samples"] < cell.size.num_samples:
            _write_manifest(cell, {"complete": False})
    if prompts is not None:
        write_prompts(cell.folder / "prompts.txt", prompts)


def _is_begun(cell: Cell, manifest: dict[str, Any]) -> bool:
    there = any((cell.folder / "shards").glob("shard-*")), (cell.folder / "samples.npz").exists()
    return manifest["complete"] or any(there)


def _in_the_way(cell: Cell) -> list[str]:
    """What a folder without our manifest holds of names that we would write.

    Only shards of this cell's config tell that it lost its manifest.
    """
    if _has_shards(cell):
        return []
    names = [name for name in BESIDE if os.path.lexists(cell.folder / name)]
    return names + sorted(path.name for path in (cell.folder / "shards").glob("shard-*"))[:1]


def _has_shards(cell: Cell) -> bool:
    """Whether there are shards that tell that they are this cell's; ValueError if they are others'."""
    for path in sorted((cell.folder / "shards").glob("shard-*.npz")):
        try:
            members = _members(path)
        except Damaged:
            continue
        if "config" in members:
            _check_config(path, str(members["config"]), cell)
            return True
    return False


def _check_config(path: Path, config: str, cell: Cell) -> None:
    if config != cell.digest:
        raise ValueError(f"{path} is of another config: {ELSEWHERE} or remove it")


def _check_same(cell: Cell, old: dict[str, Any]) -> None:
    config = json.loads(json.dumps(cell.config))
    if old["config"] != config:
        difference = _first_difference(old["config"], config)
        raise ValueError(
            f"{cell.folder} holds samples of another config ({difference}); "
            f"{ELSEWHERE} or remove that folder"
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
    """The manifest of a cell's folder; None if there is none, or another program's.

    Raises `Damaged` for what is left of one of ours.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    remedy = "the command that sampled it mends it"
    try:
        manifest = read_json(path, remedy)
    except Damaged:
        if _was_ours(folder, path.read_bytes().decode(errors="replace")):
            raise
        return None
    keys = manifest.keys() & set(STATED) if isinstance(manifest, dict) else set()
    if len(keys) == len(STATED) and type(manifest["num_samples"]) is int:
        return dict(manifest)
    if len(keys) < len(STATED) / 2:
        return None
    raise Damaged(f"{path} is damaged (it lacks an entry): {remedy}")


def _was_ours(folder: Path, text: str) -> bool:
    """Whether an unreadable manifest was one of ours: by its words, or by the folder for shards."""
    words = sum(f'"{key}"' in text for key in STATED)
    return words >= len(STATED) / 2 or (folder / "shards").is_dir()


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
    write_json(cell.manifest, content)


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
    write_json(cell.facts(k), facts)
    write_atomic(cell.shard(k), partial(_save, shard))


def _save(shard: Shard, path: Path) -> None:
    np.savez(path, allow_pickle=False, **shard)


def read_shard(cell: Cell, k: int) -> Shard | None:
    """The arrays of shard k, or None if it is absent, too short, or damaged.

    Raises ValueError for a whole shard of another config.
    """
    try:
        return _whole_shard(cell, k)
    except Damaged as error:
        tqdm.write(f"{error}")
        return None


def is_damaged(cell: Cell, k: int) -> bool:
    """Whether shard k is there, and not whole."""
    try:
        _whole_shard(cell, k)
    except Damaged:
        return True
    return False


def _whole_shard(cell: Cell, k: int) -> Shard | None:
    """As `read_shard`, but raises `Damaged`."""
    path, ids = cell.shard(k), cell.size.ids(k)
    if not path.exists():
        return None
    shard = _members(path)
    with reading(path, AGAIN):
        if not np.array_equal(shard["ids"][: len(ids)], ids):
            return None  # the folder grows, and this was its last shard
        config = str(shard.pop("config"))
    _check_config(path, config, cell)
    cell.media.check_intact(cell.folder, shard)
    return {name: array[: len(ids)] if array.ndim else array for name, array in shard.items()}


def _members(path: Path) -> Shard:
    """The arrays of a shard, all of them.  Raises `Damaged`."""
    shard = read_npz(path, remedy=AGAIN)
    with reading(path, AGAIN):
        # A directory of the file may be damaged so that it lists less than there is.
        members = shard.pop("members", None)
        if members is None and "seconds" in shard:  # of a version that wrote no members
            members = np.array(sorted(shard))
        if members is None or members.tolist() != sorted(shard):
            raise KeyError("its list of arrays is another")
    return shard


def read_facts(cell: Cell, k: int) -> dict[str, Any] | None:
    """How shard k was made (seconds, samples, worker, device, memory), or None if that is lost."""
    return facts_beside(cell.shard(k))


def facts_beside(shard: Path) -> dict[str, Any] | None:
    """As `read_facts`, of the shard at that path."""
    path = shard.with_suffix(".json")
    try:
        with reading(path, "it is done without"):
            facts = read_json(path, "it is done without")
            checked = float(facts["seconds"]), int(facts["samples"]), str(facts["worker"])
        return {**facts, **dict(zip(("seconds", "samples", "worker"), checked, strict=True))}
    except (OSError, Damaged):
        return None


# --- completion ---------------------------------------------------------------------------------


def is_complete(cell: Cell) -> bool:
    """Whether the folder holds so many samples, joined and whole; of videos, whether all are there.

    Every byte is read, once as long as the file stays the same.
    """
    manifest = read_manifest(cell.folder)
    if not manifest or not manifest["complete"]:
        return False
    if manifest.get("videos"):  # nothing is joined: every shard tells of its files
        return all(read_shard(cell, k) is not None for k in range(cell.size.num_shards))
    enough = manifest["num_samples"] >= cell.size.num_samples
    return enough and cell.media.is_joined(cell.folder, manifest)


class _ShardMissing(Exception):
    pass


class _Overtaken(Exception):
    """Another process has finished this folder with more samples."""


def finish(cell: Cell) -> bool:
    """When every shard is there: samples.npz, grid.png, and a manifest that says complete.

    False while other processes are still at work: the last one to end finishes the folder.  What
    was finished with more samples meanwhile stays so.
    """
    for _ in range(3):
        if is_complete(cell):
            _mend_grid(cell)
            sweep(cell)
            return True
        largest = _largest(cell)
        if not all(largest.shard(k).exists() for k in range(largest.size.num_shards)):
            return False
        try:
            joined = cell.media.join(
                cell.folder, partial(_shards, largest), largest.size.num_samples
            )
            _check_largest(largest)
        except _ShardMissing:
            return False
        except _Overtaken:
            continue
        _write_grid(largest)
        shards = range(largest.size.num_shards)
        seconds = [(read_facts(cell, k) or {}).get("seconds") for k in shards]
        total = None if None in seconds else round(sum(s for s in seconds if s is not None), 3)
        facts = {"seconds": total, **joined, "grid": file_sha256(cell.folder / "grid.png")}
        _write_manifest(largest, {"complete": True, **facts})
    return False


def _largest(cell: Cell) -> Cell:
    """The cell with as many samples as its folder was once finished with, if these are more."""
    try:
        n = array_shapes(cell.folder / "samples.npz").get("arr_0", (0,))[0]
    except (OSError, Damaged):
        return cell
    larger = replace(cell, size=replace(cell.size, num_samples=max(n, cell.size.num_samples)))
    there = all(larger.shard(k).exists() for k in range(larger.size.num_shards))
    return larger if there else cell


def _check_largest(cell: Cell) -> None:
    manifest = read_manifest(cell.folder)
    if manifest and manifest["complete"] and manifest["num_samples"] > cell.size.num_samples:
        raise _Overtaken


def _shards(cell: Cell) -> Iterator[Shard]:
    for k in range(cell.size.num_shards):
        shard = read_shard(cell, k)
        if shard is None:
            raise _ShardMissing
        yield shard
    _check_largest(cell)  # before what is made of them takes the place of more


def _write_grid(cell: Cell) -> None:
    try:
        pictures = cell.media.grid(cell.folder, _shards(cell))
    except (_ShardMissing, _Overtaken):  # shards may be removed once they are joined
        pictures = cell.media.grid(cell.folder, iter(()))
    write_atomic(cell.folder / "grid.png", lambda path: save_grid(np.stack(pictures), path))


def _mend_grid(cell: Cell) -> None:
    """Write grid.png of a complete folder anew if it is not as the manifest says."""
    manifest, path = read_manifest(cell.folder), cell.folder / "grid.png"
    assert manifest is not None
    if path.is_file() and manifest.get("grid") in (None, file_sha256(path)):
        return
    _write_grid(_largest(cell))
    stated = {key: value for key, value in manifest.items() if key != "grid"}
    write_json(cell.manifest, {**stated, "grid": file_sha256(path)})


def sweep(cell: Cell) -> None:
    """Remove from a complete folder what killed processes left."""
    for name in ("", "shards", "videos", "png"):
        remove_partial(cell.folder / name, NAMES)
