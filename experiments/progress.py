"""How far the tables and figures are, read from their folders.

reproduce.py leaves a plan of its cells in runs/plans; their shards tell the rest, wherever and by
whomever they are made.
"""

import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.records import load_records
from experiments.cells import Cell, shard_path
from experiments.folder import facts_beside, read_manifest
from files.npz import array_shapes, check_npz, read_npz
from files.whole import Damaged, read_json, reading, remove_partial, write_json

Plan = dict[str, Any]

PLANS = Path("runs", "plans")
SMALL = 1 << 26  # bytes of a file that is always read to its end
LATELY = 600  # seconds without a shard after which a cell no longer counts as running, at least


def write_plan(
    model: str, experiment: str, digest: str, cells: Sequence[Cell], protocol: str | None
) -> None:
    """Leave a note of what an experiment consists of, for `make status` and scripts.slurm.

    `digest` is that of its config; `protocol` names the records of cells, if they get any here.
    """
    plan = {
        "model": model,
        "experiment": experiment,
        "config": digest,
        "cells": [
            {
                "row": cell.row,
                "steps": cell.steps,
                "nfe": len(cell.plan),
                "folder": str(cell.folder),
                "num_samples": cell.size.num_samples,
                "shard_size": cell.size.shard_size,
                "record": str(cell.record(protocol)) if protocol else None,
            }
            for cell in cells
        ],
    }
    path = PLANS / f"{model}-{experiment}.json"
    write_json(path, plan)
    remove_partial(PLANS, re.escape(path.name))


def read_plan(path: Path) -> Plan:
    """A note of `write_plan`.  Raises `Damaged`, with the remedy."""
    remedy = "the command that began it writes it anew"
    plan = read_json(path, remedy)
    with reading(path, remedy):
        _ = str(plan["model"]), str(plan["experiment"]), plan["config"]
        for cell in plan["cells"]:
            _ = cell["row"] + cell["folder"], Path(cell["record"] or ".")
            if not all(int(cell[key]) > 0 for key in ("steps", "nfe", "num_samples", "shard_size")):
                raise ValueError("a cell has no size")
        if not plan["cells"]:
            raise ValueError("it has no cells")
    return dict(plan)


def sampled_and_scored(model: str, experiment: str, digest: str) -> dict[int, tuple[bool, bool]]:
    """By step count, whether the experiment's cells are all sampled, and all scored.

    Empty if it was never begun with just the config of that digest.
    """
    try:
        plan = read_plan(PLANS / f"{model}-{experiment}.json")
    except (FileNotFoundError, Damaged):
        return {}
    if plan["config"] != digest:
        return {}
    columns: dict[int, tuple[bool, bool]] = {}
    for cell in (progress(cell, 0.0, verify=True) for cell in plan["cells"]):
        sampled, scored = columns.get(cell.steps, (True, True))
        columns[cell.steps] = (sampled and cell.sampled, scored and bool(cell.scored))
    return columns


@dataclass(frozen=True)
class Progress:
    """One cell: shards made of all, image calls still to do, seconds they took, who made them lately."""

    row: str
    steps: int
    done: int
    shards: int
    calls_done: int
    calls_left: int
    seconds: float
    workers: frozenset[str]
    sampled: bool
    scored: bool | None

    @property
    def state(self) -> str:
        if self.sampled:
            return "sampled" if self.scored is False else "done"
        if self.done == 0:
            return "missing"
        return f"{'running' if self.workers else 'stopped'} {self.done}/{self.shards}"


def progress(cell: dict[str, Any], now: float, verify: bool = False) -> Progress:
    """Look into a planned cell's folder.  `now` is by the clock that dates its files.

    With `verify` every byte of large files is read, too (see `is_joined`).
    """
    folder, nfe = Path(cell["folder"]), cell["nfe"]
    n, size = cell["num_samples"], cell["shard_size"]
    ages: list[float] = []
    facts: list[dict[str, Any]] = []
    left = calls = 0
    for first in range(0, n, size):
        path = shard_path(folder, first // size)
        try:
            ages.append(now - path.stat().st_mtime)
        except OSError:
            left += min(size, n - first) * nfe
            continue
        found = facts_beside(path)
        if found is None:
            continue
        facts.append({**found, "age": ages[-1]})
        calls += found["samples"] * nfe
    sampled = is_joined(folder, n, size, verify)
    limit = max(LATELY, 3 * max((f["seconds"] for f in facts), default=0.0))
    return Progress(
        row=cell["row"],
        steps=cell["steps"],
        done=len(ages),
        shards=-(-n // size),
        calls_done=calls,
        calls_left=0 if sampled else left,
        seconds=sum(f["seconds"] for f in facts),
        workers=frozenset(f["worker"] for f in facts if f["age"] < limit and not sampled),
        sampled=sampled,
        scored=None if cell["record"] is None else _is_record(Path(cell["record"])),
    )


def is_joined(folder: Path, num_samples: int, shard_size: int, verify: bool = False) -> bool:
    """Whether so many samples are there and can be loaded: having all shards is not yet that.

    Of files of more than SMALL bytes only sizes and headers are looked at, unless with `verify`.
    """
    try:
        manifest = read_manifest(folder)
        if not manifest or not manifest["complete"] or manifest["num_samples"] < num_samples:
            return False
        if manifest.get("videos"):
            return _has_videos(folder, -(-num_samples // shard_size))
        path = folder / "samples.npz"
        if path.stat().st_size != manifest["bytes"]:
            return False
        if verify or manifest["bytes"] <= SMALL:
            check_npz(path)
        images = array_shapes(path)["arr_0"]
        return images[0] == manifest["num_samples"]
    except (OSError, Damaged, KeyError, IndexError):
        return False


def _has_videos(folder: Path, shards: int) -> bool:
    """Whether every shard is there, and the files that it tells of with their sizes."""
    for k in range(shards):
        shard = read_npz(shard_path(folder, k), ("names", "bytes"))
        for name, size in zip(shard["names"].tolist(), shard["bytes"].tolist(), strict=True):
            if (folder / "videos" / name).stat().st_size != size:
                return False
    return True


def _is_record(path: Path) -> bool:
    try:
        return isinstance(load_records(path), dict)
    except (OSError, Damaged):
        return False


def table(plan: Plan, now: float, verify: bool = False) -> str:
    """The cells of one plan, rows by step counts, and when it will be sampled."""
    cells = [progress(cell, now, verify) for cell in plan["cells"]]
    columns = sorted({cell.steps for cell in cells}, reverse=True)
    rows = list(dict.fromkeys(cell.row for cell in cells))
    states = {(cell.row, cell.steps): cell.state for cell in cells}
    done = sum(cell.state == "done" for cell in cells)
    width = max(14, *(len(row) + 2 for row in rows))
    lines = [f"{plan['experiment']} on {plan['model']}: {done} of {len(cells)} cells done"]
    lines.append(" " * width + "".join(f"{f'{steps} steps':>20}" for steps in columns))
    for row in rows:
        lines.append(
            f"{row:<{width}}" + "".join(f"{states.get((row, s), '-'):>20}" for s in columns)
        )
    left, calls = sum(c.calls_left for c in cells), sum(c.calls_done for c in cells)
    if left:
        workers = frozenset().union(*(c.workers for c in cells))
        lines.append(_eta(left, calls, sum(c.seconds for c in cells), len(workers)))
    return "\n".join(lines)


def _eta(left: int, calls: int, seconds: float, workers: int) -> str:
    if not calls:
        return f"{left:,} image calls to do; no shard has told yet how long they take"
    device_seconds = left * seconds / calls
    text = f"{left:,} image calls to do, about {_duration(device_seconds)} of one process"
    if not workers:
        return f"{text}; none is at work"
    return f"{text}: {_duration(device_seconds / workers)} with the {workers} that are at work"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def file_clock(folder: Path) -> float:
    """Now, by the clock that dates files there: a file server's may differ from ours.

    By ours where nothing may be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            return os.stat(file.name).st_mtime
    except OSError:
        return time.time()
