"""Samplers against each other on one model, with the same noise, for as few network calls as it takes.

`Judge` scores samplers and counts what that costs.  `race` scores all of them on few samples, drops those
that are told apart from the best, and scores the others on more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from eval.records import Record
from eval.scoring import METRICS
from eval.table import VERDICTS, Table, gain
from eval.words import format_score
from experiments.cells import Column, Settings, network_calls
from experiments.workers import say
from sampling import Plan

Sampler = dict[str, Any]
Samplers = Mapping[str, Sampler]  # by their names


class Judge(Protocol):
    """Scores samplers of one step count; `calls` is what that took, image by image."""

    calls: int

    def cost(self, samplers: Samplers, n: int, seed: int) -> int:
        """The image calls that n samples of each take beyond those that it has seen."""
        ...

    def table(self, samplers: Samplers, n: int, seed: int) -> Table:
        """What decides between them, on n samples of one seed."""
        ...

    def confirmed(self, samplers: Samplers, n: int, seed: int) -> Table:
        """All their scores."""
        ...


@dataclass
class ModelJudge:
    """Samples and scores on the model.  What lies there from an earlier run is found, and counts all the same.

    `quick` and `full` make the records of a column, with the score that decides and with all.
    """

    settings: Settings
    steps: int
    metric: str
    quick: Callable[[Column], Sequence[Record]]
    full: Callable[[Column], Sequence[Record]]
    calls: int = 0
    _seen: dict[tuple[str, int], int] = field(default_factory=dict)  # samples by cell and seed

    def cost(self, samplers: Samplers, n: int, seed: int) -> int:
        by_size: dict[int, list[Plan]] = {}
        for cell in self._column(samplers, n, seed).cells:
            there = self._seen.get((cell.digest, seed), 0)
            if there < n:  # a shard that was cut short is made again, as a whole
                there -= there % self.settings.shard_size
            by_size.setdefault(there, []).append(cell.plan)
        model = self.settings.backbone
        return sum(
            network_calls(model, plans) * max(n - there, 0) for there, plans in by_size.items()
        )

    def table(self, samplers: Samplers, n: int, seed: int) -> Table:
        return self._scored(self.quick, samplers, n, seed)

    def confirmed(self, samplers: Samplers, n: int, seed: int) -> Table:
        return self._scored(self.full, samplers, n, seed)

    def _scored(
        self, score: Callable[[Column], Sequence[Record]], samplers: Samplers, n: int, seed: int
    ) -> Table:
        column = self._column(samplers, n, seed)
        self.calls += self.cost(samplers, n, seed)
        table = Table(score(column))
        for cell in column.cells:
            self._seen[cell.digest, seed] = max(n, self._seen.get((cell.digest, seed), 0))
        best = table.best(self.steps, self.metric)
        value = format_score(self.metric, table.score(best, self.steps, self.metric))
        say(
            f"{self.steps} steps, {self.calls:,} image calls so far: the best of these is {best} ({value})"
        )
        return table

    def _column(self, samplers: Samplers, n: int, seed: int) -> Column:
        return replace(self.settings, seed=seed).column(samplers, self.steps, n)


class Race(NamedTuple):
    """The table of every round, each of fewer samplers and more samples than the one before."""

    rounds: list[Table]

    @property
    def last(self) -> Table:
        return self.rounds[-1]

    @property
    def records(self) -> list[Record]:
        """Of every sampler the last one."""
        latest = {r["row"]: r for table in self.rounds for r in table.records}
        return list(latest.values())


def race(
    samplers: Samplers,
    judge: Judge,
    sizes: Sequence[int],
    *,
    metric: str,
    steps: int,
    seed: int,
    limit: int | None = None,
    keep: float = 1.0,
    group: Callable[[str], Hashable] = lambda row: None,
) -> Race:
    """Score all samplers on sizes[0] samples, those that are left on sizes[1], and so on.

    Within each `group` of rows those are dropped that are worse than its best one beyond the 95% interval of
    the paired difference; and, of the rest, all but the best share `keep` of a round.  A group ends when one is
    left, the race when all have, or when the next round would take `judge.calls` beyond `limit`.  The first
    round is always run.
    """
    rounds: list[Table] = []
    entrants = dict(samplers)
    for n in sizes:
        if rounds and limit is not None and judge.calls + judge.cost(entrants, n, seed) > limit:
            break
        rounds.append(judge.table(entrants, n, seed))
        left = survivors(rounds[-1], steps, metric, group, keep)
        sizes_of = Counter(map(group, left))
        entrants = {row: samplers[row] for row in left if sizes_of[group(row)] > 1}
        if not entrants:
            break
    return Race(rounds)


def survivors(
    table: Table,
    steps: int,
    metric: str,
    group: Callable[[str], Hashable] = lambda row: None,
    keep: float = 1.0,
) -> list[str]:
    """The rows, best first, that are not told apart from the best of their group; at most the share `keep` of it."""
    groups: dict[Hashable, list[str]] = {}
    for row in ranked(table, steps, metric):
        groups.setdefault(group(row), []).append(row)
    left = []
    for rows in groups.values():
        best = table.score(rows[0], steps, metric)
        near = [
            row
            for row in rows
            if gain(metric, best, table.score(row, steps, metric)).words != VERDICTS[0]
        ]
        left += near[: max(1, round(keep * len(rows)))]
    return left


def best_of_groups(
    result: Race, steps: int, metric: str, group: Callable[[str], Hashable]
) -> dict[Hashable, str]:
    """The best row of every group, of those that got as many samples as any of the group."""
    rows = standing(result, steps, metric)
    return {group(row): row for row in reversed(rows)}


def standing(result: Race, steps: int, metric: str) -> list[str]:
    """All rows: those that stayed longest first, and of these the best."""
    rows = [row for table in reversed(result.rounds) for row in ranked(table, steps, metric)]
    return list(dict.fromkeys(rows))


def ranked(table: Table, steps: int, metric: str) -> list[str]:
    """All rows, the best score first."""
    sign = 1 if METRICS[metric].lower_is_better else -1
    return sorted(table.rows, key=lambda row: sign * table.score(row, steps, metric).value)
