"""A table of scores: rows are samplers, columns step counts, and each cell a record.

All that shows scores is made from it: Markdown, CSV, LaTeX, plots, the page, tuning, the study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.records import Record, check_comparable, load_records, save_records, score
from eval.score import Score, difference_se, paired
from eval.scoring import METRICS

VERDICTS = ("better than", "worse than", "not told apart from")
Row = str | Callable[[int], str]  # a row's name, or what chooses one for a step count


class Gain(NamedTuple):
    """By how much one score is better than another, in the metric's units, and half the 95% interval.

    The interval is that of a difference of paired scores where both tell how they move with samples
    of the same noise (`eval.score.Spread`), else that of independent ones.  Where an error is not known
    (`bootstrap=0`), half is NaN, and nothing is told apart.
    """

    value: float
    half: float

    @property
    def words(self) -> str:
        """One of VERDICTS."""
        if not abs(self.value) > self.half:  # half may be NaN
            return "not told apart from"
        return "better than" if self.value > 0 else "worse than"

    def text(self, places: int) -> str:
        """ "+0.31 ± 0.20", without an interval where there is none."""
        half = f" ± {self.half:.{places}f}" if math.isfinite(self.half) else ""
        return f"{self.value:+.{places}f}{half}"


def gain(metric: str, ours: Score, theirs: Score) -> Gain:
    """Positive where ours is the better one."""
    sign = 1 if METRICS[metric].lower_is_better else -1
    value = sign * (theirs.value - ours.value) + 0.0  # no -0
    return Gain(value, Score(value, difference_se(ours, theirs)).half)


def cutoff(record: Record) -> float:
    """Of Mix, and of what it becomes at both ends: 0 for Skipped-Step, T = 1000 for DDIM; else NaN.

    Also NaN for a Mix whose cutoff is in another unit, and for DDIM with noise.
    """
    sampler = record["cell"]["config"]["sampler"]
    ends = {"skipped": 0, "ddim": math.nan if sampler.get("eta") else 1000}
    given = sampler.get("cutoff")
    return float(ends.get(sampler.get("name"), math.nan) if given is None else given)


class Table:
    """Records by sampler and step count.

    Each record has the keys "row", the sampler as printed, and "steps", its column (Heun makes
    other calls at "10 steps").  `rows` are in the order of the records, `columns` descending.
    Raises ValueError unless the records are comparable (`check_comparable`).
    """

    def __init__(self, records: Sequence[Record]) -> None:
        check_comparable(records)
        self.records = list(records)
        self.rows: list[str] = list(dict.fromkeys(r["row"] for r in records))
        self.columns: list[int] = sorted({r["steps"] for r in records}, reverse=True)
        self._cells = {(r["row"], r["steps"]): r for r in records}

    @staticmethod
    def load(path: Path) -> Table:
        """The table of a records.json.  Raises FileNotFoundError or ValueError, with the remedy."""
        records = load_records(path)
        try:
            placed = bool(records) and all({"row", "steps"} <= r.keys() for r in records)
        except AttributeError:
            placed = False
        if not placed:
            raise ValueError(f"{path} holds no table's records: remove it and run again")
        return Table(records)

    def save(self, path: Path) -> None:
        """Write the records as JSON, each with its row and steps first."""
        save_records(path, [{"row": r["row"], "steps": r["steps"], **r} for r in self.records])

    def by_cutoff(self) -> Table:
        """The same with its rows in the order of their cutoffs, and named by them."""
        return Table([{**r, "row": f"{cutoff(r):g}"} for r in sorted(self.records, key=cutoff)])

    # --- one cell, one column ---------------------------------------------------------------

    def record(self, row: str, steps: int) -> Record | None:
        return self._cells.get((row, steps))

    def column(self, steps: int) -> list[Record]:
        """The records of one step count, in the order of the rows."""
        return [r for row in self.rows if (r := self.record(row, steps)) is not None]

    def dial(self, steps: int) -> list[Record]:
        """The records of a column that have a cutoff, in its order."""
        return sorted((r for r in self.column(steps) if math.isfinite(cutoff(r))), key=cutoff)

    def value(self, row: str, steps: int, metric: str) -> Score | None:
        record = self.record(row, steps)
        return None if record is None else score(record, metric)

    def score(self, row: str, steps: int, metric: str) -> Score:
        """As `value`, but raises ValueError if there is none."""
        value = self.value(row, steps, metric)
        if value is None:
            raise ValueError(
                f"the records lack {metric} of {row} at {steps} steps: run again what scores them, "
                f"with {metric} among its metrics"
            )
        return value

    def floor(self, steps: int, metric: str) -> Score | None:
        """What as many real images score in place of samples."""
        return score(self.column(steps)[0], metric, "floor")

    def n(self, steps: int) -> int:
        """The number of samples of each record of a column."""
        n: int = self.column(steps)[0]["n"]
        return n

    # --- which samplers differ --------------------------------------------------------------

    def best(self, steps: int, metric: str, rows: Iterable[str] | None = None) -> str:
        """The row with the best score, of all or of some that have one.

        Raises ValueError if none has.
        """
        scores = self._scores(steps, metric, rows)
        if not scores:
            raise ValueError(f"no row has a score {metric} at {steps} steps")
        pick = min if METRICS[metric].lower_is_better else max
        return pick(scores, key=lambda row: scores[row].value)

    def tied(self, steps: int, metric: str, rows: Iterable[str] | None = None) -> set[str]:
        """The best row and all that cannot be told from it (see `Gain`)."""
        scores = self._scores(steps, metric, rows)
        if not scores:
            return set()
        best = self.best(steps, metric, scores)
        gains = {row: gain(metric, scores[best], value) for row, value in scores.items()}
        return {best, *(row for row, g in gains.items() if g.words == VERDICTS[2])}

    def paired_columns(self, metric: str) -> list[int]:
        """The step counts, ascending, at which all rows share their noise and say how they move."""
        columns = {
            steps: list(self._scores(steps, metric, None).values()) for steps in self.columns
        }
        return [
            steps
            for steps, scores in sorted(columns.items())
            if scores and all(paired(scores[0], other) for other in scores)
        ]

    def unpaired(self) -> Table:
        """The same scores as if their noise were not shared: what pairing changes is seen beside it."""
        return Table([without_spreads(record) for record in self.records])

    def _scores(self, steps: int, metric: str, rows: Iterable[str] | None) -> dict[str, Score]:
        wanted = self.rows if rows is None else rows
        values = {row: self.value(row, steps, metric) for row in wanted}
        # A score that is no number is neither best nor tied with it.
        return {row: v for row, v in values.items() if v is not None and math.isfinite(v.value)}

    def against(self, ours: Row, theirs: Row, metric: str) -> dict[str, list[int]]:
        """The step counts, ascending, of each of VERDICTS on one row against another."""
        steps_by: dict[str, list[int]] = {verdict: [] for verdict in VERDICTS}
        for steps in sorted(self.columns):
            a, b = (row if isinstance(row, str) else row(steps) for row in (ours, theirs))
            difference = gain(metric, *(self.score(row, steps, metric) for row in (a, b)))
            steps_by[difference.words].append(steps)
        return steps_by


def without_spreads(record: Record) -> Record:
    """The same scores, but for how they move with their samples, which is most of a record's bytes."""
    left = {}
    for part in ("scores", "floor"):
        left[part] = record[part] and {
            name: {key: value for key, value in score.items() if key != "spread"}
            for name, score in record[part].items()
        }
    return {**record, **left}
