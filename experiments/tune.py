"""Where to put the window of Mix++: candidates on tuning seeds, the winner confirmed on fresh ones.

Called by `reproduce.py experiment=tune`.  All candidates of a step count see the same noise, and run
as one tree; what is chosen by its score on some seeds is flattered there, hence the fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics import Score
from eval.records import save_records, score
from eval.scoring import LOWER_IS_BETTER, METRIC_NAMES
from eval.table import Cell, gain
from files.whole import write_atomic
from report.words import format_score, reference_words

Sampler = dict[str, Any]
# (samplers by name, number of samples, seed) -> their cells, and the image calls that it takes
Judge = Callable[[dict[str, Sampler], int, int], tuple[list[Cell], int]]


@dataclass(frozen=True)
class Tuned:
    """What was tried and chosen at one step count, the confirmation, and what both took."""

    steps: int
    chosen: Sampler
    tried: list[Cell]
    confirmed: list[Cell]
    calls: int


def tune(
    experiment: dict[str, Any], steps: int, grid: NDArray[np.int64], seed: int, judge: Judge
) -> Tuned:
    """Search lo for every order and variance, then hi for the best of them; confirm.

    `grid` are the timesteps that a sampler visits, in decreasing order; windows end at them.
    Raises ValueError for an unknown metric.
    """
    metric = experiment["metric"]
    if metric not in METRIC_NAMES:
        raise ValueError(f"unknown experiment.metric {metric!r}: choose {', '.join(METRIC_NAMES)}")
    nodes = _some(grid, experiment["windows"])
    top = int(grid[0]) + 1
    kinds = [
        {"name": "mixpp", "stochastic_order": a, "deterministic_order": b, "variance": v}
        for a, b in experiment["orders"]
        for v in experiment["variances"]
    ]
    n = experiment["tuning_samples"]
    first = {_label(s): s for kind in kinds for lo in [*nodes, top] for s in [{**kind, "lo": lo}]}
    tried, calls = judge(first, n, seed)
    best = first[_best(tried, metric).row]
    uppers = [hi for hi in nodes if best["lo"] < hi < top]
    second = {_label(s): s for hi in uppers for s in [{**best, "hi": hi}]}
    if second:
        more, more_calls = judge(second, n, seed)
        tried, calls = [*tried, *more], calls + more_calls
    chosen = {**first, **second}[_best(tried, metric).row]
    rivals = {"Tuned": chosen, **experiment["rivals"]}
    confirmed, more_calls = judge(rivals, experiment["num_samples"], seed + 1)
    return Tuned(steps, chosen, tried, confirmed, calls + more_calls)


def _some(grid: NDArray[np.int64], count: int) -> list[int]:
    """At most `count` nodes of the grid, evenly among its rows, both ends included."""
    places = np.linspace(0, len(grid) - 1, min(count, len(grid))).round().astype(int)
    return sorted({int(grid[i]) for i in places})


def _label(sampler: Sampler) -> str:
    hi = "" if sampler.get("hi") is None else f"..{sampler['hi']}"
    more = "" if sampler["variance"] == "fixed_small" else f", {sampler['variance']}"
    orders = f"orders {sampler['stochastic_order']}, {sampler['deterministic_order']}"
    return f"{sampler['lo']}{hi or '..'}, {orders}{more}"


def _best(cells: Sequence[Cell], metric: str) -> Cell:
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(cells, key=lambda cell: sign * _score(cell, metric).value)


def _score(cell: Cell, metric: str) -> Score:
    found = score(cell.record, metric)
    if found is None:
        raise ValueError(f"the records have no {metric}: choose another experiment.metric")
    return found


def config_line(tuned: Tuned, model: str, spacing: Any) -> str:
    """The command that samples with what was chosen."""
    options = " ".join(f"sampler.{k}={v}" for k, v in tuned.chosen.items() if k != "name")
    spaced = "" if spacing == "even" else f"spacing={spacing} "
    return f"python sample.py model={model} steps={tuned.steps} {spaced}sampler=mixpp {options}"


def verdict(tuned: Tuned, rival: Cell, metric: str) -> str:
    """Whether the tuned sampler differs from a rival by more than the 95% interval."""
    found = gain(metric, _score(tuned.confirmed[0], metric), _score(rival, metric))
    return (
        f"{found.words} {rival.row} "
        f"({METRIC_NAMES[metric]} {found.value:+.2f} ± {found.half:.2f} in its favour)"
    )


def write_tuning(
    out: Path, title: str, tuned: Sequence[Tuned], experiment: dict[str, Any], model: str
) -> str:
    """tuning.md and records.json; returns the text."""
    metrics = experiment["metrics"]
    record = tuned[0].confirmed[0].record
    lines = [f"# {title}", ""]
    lines.append(
        f"Mix++: SDE-DPM-Solver++ for lo <= t < hi, DPM-Solver++ elsewhere (orders of both given); "
        f"spacing {experiment['spacing']}.  Protocol {record['protocol']}, extractor "
        f"{record['extractor']}, {reference_words(record)}.  ± is half the 95% interval; all candidates "
        "see the same noise, so their differences are known better than that."
    )
    for result in tuned:
        n, fresh = result.tried[0].record["n"], result.confirmed[0].record["n"]
        lines += [
            "",
            f"## {result.steps} steps",
            "",
            f"Confirmed on fresh seeds, {fresh:,} samples:",
            "",
        ]
        lines += _table([*result.confirmed], metrics)
        lines += [""] + [
            f"- Tuned is {verdict(result, cell, experiment['metric'])}."
            for cell in result.confirmed[1:]
        ]
        lines += ["", f"All of this took {result.calls:,} image calls.  To use it:", ""]
        lines += [f"    {config_line(result, model, experiment['spacing'])}", ""]
        lines += [f"Candidates on the tuning seeds, {n:,} samples each:", ""]
        lines += _table(result.tried, metrics)
    text = "\n".join(lines) + "\n"
    write_atomic(out / "tuning.md", lambda p: p.write_text(text))
    save_records(
        out / "records.json",
        [
            {"row": cell.row, "phase": phase, **cell.record}
            for result in tuned
            for phase, cells in (("tuning", result.tried), ("fresh", result.confirmed))
            for cell in cells
        ],
    )
    return text


def _table(cells: Sequence[Cell], metrics: Sequence[str]) -> list[str]:
    head = "| sampler | " + " | ".join(METRIC_NAMES[m] for m in metrics) + " |"
    rows = [
        f"| {cell.row} | "
        + " | ".join(format_score(m, score(cell.record, m)) for m in metrics)
        + " |"
        for cell in cells
    ]
    floor = cells[0].record
    if floor["floor"]:
        found = " | ".join(format_score(m, score(floor, m, "floor")) for m in metrics)
        rows.append(f"| real images (floor) | {found} |")
    return [head, "|---" * (len(metrics) + 1) + "|", *rows]
