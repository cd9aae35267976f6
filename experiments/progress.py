"""How far the tables and figures are, read from their folders."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.cells import Job, Size
from experiments.config import plain
from experiments.folder import read_manifest
from files.whole import write_atomic

PLANS = Path("runs", "plans")


PATIENCE = 600  # seconds without a shard after which a cell no longer counts as running, at least


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a table, where its samples lie, and where its record will; None if not here."""

    row: str
    steps: int
    job: Job
    size: Size
    record: Path | None


def write_plan(cfg: DictConfig, cells: Sequence[PlannedCell]) -> None:
    """Leave a note of what an experiment consists of, for `make status` and scripts/slurm.py."""
    plan = {
        "model": cfg.model.name,
        "experiment": cfg.experiment.name,
        "config": _config_digest(cfg),
        "cells": [
            {
                "row": cell.row,
                "steps": cell.steps,
                "nfe": len(cell.job.plan),
                "folder": str(cell.job.folder),
                "num_samples": cell.size.num_samples,
                "shard_size": cell.size.shard_size,
                "record": cell.record and str(cell.record),
            }
            for cell in cells
        ],
    }
    text = json.dumps(plan, indent=1) + "\n"
    path = _plan_file(cfg)
    if not path.is_file() or path.read_text() != text:
        write_atomic(path, lambda p: p.write_text(text))


def sampled_and_scored(cfg: DictConfig) -> dict[int, tuple[bool, bool]]:
    """By step count, whether the experiment's cells are all sampled, and all scored.

    Empty if it was never begun with just this config.
    """
    if not _plan_file(cfg).is_file():
        return {}
    plan = json.loads(_plan_file(cfg).read_text())
    if plan["config"] != _config_digest(cfg):
        return {}
    cells = [progress(cell, 0.0) for cell in plan["cells"]]
    columns: dict[int, tuple[bool, bool]] = {}
    for cell in cells:
        sampled, scored = columns.get(cell.steps, (True, True))
        columns[cell.steps] = (sampled and cell.sampled, scored and bool(cell.scored))
    return columns


def _plan_file(cfg: DictConfig) -> Path:
    return PLANS / f"{cfg.model.name}-{cfg.experiment.name}.json"


def _config_digest(cfg: DictConfig) -> str:
    """Of all settings but those of who does the work, where, and how it is watched."""
    left_out = ("stage", "only", "part", "parts", "logger", "device", "batch_size", "out", "hydra")
    kept = {key: value for key, value in plain(cfg).items() if key not in left_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Progress:
    """One cell: shards made of all, image calls still to do, seconds they took, who made them lately."""

    row: str
    steps: int
    made: int
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
        if self.made == 0:
            return "missing"
        return f"{'running' if self.workers else 'stopped'} {self.made}/{self.shards}"


def progress(cell: dict[str, Any], now: float) -> Progress:
    """Look into a cell's folder.  `now` is by the clock that dates its files."""
    folder = Path(cell["folder"])
    n, size = cell["num_samples"], cell["shard_size"]
    shards = -(-n // size)
    made, calls, seconds, workers, slowest = 0, 0, 0.0, set(), 0.0
    lately: list[tuple[float, str]] = []
    for k in range(shards):
        path = folder / "shards" / f"shard-{k:05d}.npz"
        try:
            age = now - path.stat().st_mtime
        except FileNotFoundError:
            continue
        made += 1
        try:
            facts = json.loads(path.with_suffix(".json").read_text())
        except (OSError, ValueError):
            continue
        calls += facts["samples"] * cell["nfe"]
        seconds += facts["seconds"]
        slowest = max(slowest, facts["seconds"])
        lately.append((age, facts["worker"]))
    workers = {worker for age, worker in lately if age < max(PATIENCE, 3 * slowest)}
    sampled = _is_joined(folder, n)
    left = 0 if sampled else sum(
        min(size, n - k * size) * cell["nfe"]
        for k in range(shards)
        if not (folder / "shards" / f"shard-{k:05d}.npz").exists()
    )  # fmt: skip
    scored = None if cell["record"] is None else Path(cell["record"]).is_file()
    return Progress(
        cell["row"], cell["steps"], made, shards, calls, left, seconds,
        frozenset() if sampled else frozenset(workers), sampled, scored,
    )  # fmt: skip


def _is_joined(folder: Path, num_samples: int) -> bool:
    """Whether the manifest says complete: having all shards is not yet that, and may not be needed."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return False
    return bool(manifest and manifest["complete"] and manifest["num_samples"] >= num_samples)


def table(plan: dict[str, Any], now: float) -> str:
    """The cells of one plan, rows by step counts, and when it will be sampled."""
    cells = [progress(cell, now) for cell in plan["cells"]]
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
        lines.append(_eta(left, calls, sum(c.seconds for c in cells),
                          len(frozenset().union(*(c.workers for c in cells)))))  # fmt: skip
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
    """Now, by the clock that dates files there: a file server's may differ from ours."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return os.stat(file.name).st_mtime
