"""Scored samplers by rows and step counts, and which of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.metrics import Score
from eval.records import Record, load_records, save_records, score
from eval.scoring import LOWER_IS_BETTER


@dataclass(frozen=True)
class Cell:
    """One record at its place in a table: `row` is the sampler as printed, `steps` the column."""

    row: str
    steps: int
    record: Record


def save_cells(path: Path, cells: Sequence[Cell]) -> None:
    """A table's records.json.  `steps` is a cell's column: Heun makes other calls at "10 steps"."""
    save_records(path, [{"row": c.row, "steps": c.steps, **c.record} for c in cells])


def load_cells(path: Path) -> list[Cell]:
    """The cells of a table's records.json.  Raises as `load_records`."""
    try:
        return [Cell(r.pop("row"), r.pop("steps"), r) for r in load_records(path)]
    except (AttributeError, KeyError):
        raise ValueError(f"{path} holds no table's records: remove it and run again") from None


PROTOCOL = (
    "protocol",
    "extractor",
    "extractor_weights",
    "reference",
    "reference_digest",
    "options",
    "preprocess",
    "prompts",
)


def check_one_protocol(cells: Sequence[Cell]) -> None:
    """Raise ValueError unless all cells were scored alike, and all of a column with one N."""
    first = cells[0]
    for cell in cells:
        for key in PROTOCOL:
            here, there = cell.record.get(key), first.record.get(key)
            if here != there:
                raise ValueError(
                    f"a table never mixes protocols: {key} is {there} in row "
                    f"{first.row} at {first.steps} steps, {here} in row {cell.row} at "
                    f"{cell.steps}; evaluate them anew with one metrics= and reference="
                )
        n = next(other.record["n"] for other in cells if other.steps == cell.steps)
        if cell.record["n"] != n:
            raise ValueError(
                f"a column never mixes numbers of samples: {n} and {cell.record['n']} at "
                f"{cell.steps} steps"
            )


class Gain(NamedTuple):
    """By how much one score is better than another, in the metric's units, and half the 95% interval.

    The interval treats both as independent.  Samplers share their noise, so true differences are
    known somewhat better than this says.
    """

    value: float
    half: float

    @property
    def words(self) -> str:
        if abs(self.value) <= self.half:
            return "not told apart from"
        return "better than" if self.value > 0 else "worse than"


def gain(metric: str, ours: Score, theirs: Score) -> Gain:
    """Positive where ours is the better one."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return Gain(sign * (theirs.value - ours.value), 1.96 * float(np.hypot(ours.se, theirs.se)))


def undecided_best(metric: str, scores: dict[str, Score]) -> set[str]:
    """The best row and every row that cannot be told from it (see `Gain`)."""
    if not scores:
        return set()
    pick = min if metric in LOWER_IS_BETTER else max
    best = scores[pick(scores, key=lambda row: scores[row].value)]
    return {row for row, value in scores.items() if value is best
            or gain(metric, best, value).value <= gain(metric, best, value).half}  # fmt: skip


def _columns(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell.steps for cell in cells}, reverse=True)


def _rows(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.row for cell in cells))


def _column(cells: Sequence[Cell], steps: int, metric: str) -> dict[str, Score]:
    found = {c.row: score(c.record, metric) for c in cells if c.steps == steps}
    return {row: value for row, value in found.items() if value is not None}


def _floor(cells: Sequence[Cell], steps: int, metric: str) -> Score | None:
    return next((score(c.record, metric, "floor") for c in cells if c.steps == steps), None)


def _sizes(cells: Sequence[Cell]) -> dict[int, int]:
    return {cell.steps: cell.record["n"] for cell in cells}


def cutoff(cell: Cell) -> float:
    """Of Mix, and of what it becomes at both ends: 0 for Skipped-Step, T = 1000 for DDIM; else NaN."""
    sampler = cell.record["cell"]["config"]["sampler"]
    ends = {"skipped": 0, "ddim": 1000}
    return float(sampler.get("cutoff", ends.get(sampler["name"], math.nan)))
