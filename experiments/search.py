"""The search for Mix*'s numbers: an even start, a race, and CMA-ES from its winner.

A pure function of the seed and of the scores that it is told: run again, it asks for the same candidates in the
same order, and those that were sampled before are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray
from scipy.stats import qmc

from eval.records import Record
from eval.scoring import METRICS
from eval.table import Table
from experiments.family import Family
from experiments.race import Judge, Race, Sampler, Samplers, race, ranked

Array = NDArray[np.float64]

Known = Sequence[tuple[Sequence[int], Array]]  # winners at fewer steps: their orders and points

SIGMA = 0.2  # of CMA-ES at the start, in units of the cube
FINALISTS = 4  # candidates that are compared on more samples in the end
RIVALS = 6  # and so many of the named samplers beside them, half of all in the end


@dataclass
class Search:
    """One search at one step count.

    `families` are those of every choice of orders.  `rounds` are samples of each round of the first race, the
    last of them of every later candidate; `limit` is what `judge.calls` may come to.
    """

    families: Sequence[Family]
    judge: Judge
    metric: str
    seed: int
    rounds: Sequence[int]
    limit: int
    points: dict[str, tuple[Family, Array]] = field(default_factory=dict)  # by the candidate's name
    records: dict[str, Record] = field(default_factory=dict)  # of every candidate the last

    @property
    def steps(self) -> int:
        return self.families[0].steps

    def sampler(self, name: str) -> Sampler:
        family, point = self.points[name]
        return family.sampler(point)

    def start(self, count: int, grid: NDArray[np.int64], known: Known = ()) -> None:
        """Race, of every family, the usual points on a grid, the last `known` of its orders, and `count` evenly spread."""
        names = []
        for family in self.families:
            spread = qmc.Sobol(family.size, scramble=False).fast_forward(1).random(count)
            alike = [point for orders, point in known if tuple(orders) == family.orders]
            points = [*family.usual(grid), *alike[-1:], *spread]
            names += [self._add(f"start {i}", family, point) for i, point in enumerate(points, 1)]
        entrants = {name: self.sampler(name) for name in names}
        result = race(
            entrants, self.judge, self.rounds, metric=self.metric, steps=self.steps, seed=self.seed,
            limit=self.limit, keep=1 / 3,
        )  # fmt: skip
        self._note(result)

    def evolve(self) -> None:
        """CMA-ES from the best candidate, for as many generations as the limit allows."""
        name = self.leaders()[0]
        family, point = self.points[name]
        walls = np.array([[0.0, 1.0]] * family.size)
        inside = point.clip(0.02, 0.98)  # CMA-ES draws again until it is inside
        evolution = CMA(mean=inside, sigma=SIGMA, bounds=walls, seed=self.seed)
        sign = 1 if METRICS[self.metric].lower_is_better else -1
        while True:
            asked = [evolution.ask() for _ in range(evolution.population_size)]
            label = f"generation {evolution.generation + 1}"
            names = [self._add(f"{label}.{i}", family, at) for i, at in enumerate(asked, 1)]
            generation = {name: self.sampler(name) for name in names}
            n = self.rounds[-1]
            if self.judge.calls + self.judge.cost(generation, n, self.seed) > self.limit:
                for name in names:
                    del self.points[name]
                return
            table = self.judge.table(generation, n, self.seed)
            self._note(Race([table]))
            scores = [table.score(name, self.steps, self.metric).value for name in names]
            evolution.tell([(at, sign * v) for at, v in zip(asked, scores, strict=True)])

    def finish(self, n: int, rivals: Samplers) -> tuple[str, Sampler]:
        """The winner of a last race, on n samples in the end, of the best candidates and some rivals; its name, its options.

        A rival may win: most of them are Mix* with numbers that somebody found before.
        """
        finalists = {**{name: self.sampler(name) for name in self.leaders()}, **rivals}
        sizes = [self.rounds[-1], n]
        result = race(
            finalists, self.judge, sizes, metric=self.metric, steps=self.steps, seed=self.seed, keep=0.5
        )  # fmt: skip
        self._note(result)
        winner = ranked(result.last, self.steps, self.metric)[0]
        return winner, finalists[winner]

    def leaders(self) -> list[str]:
        """The best candidates of those with most samples."""
        return ranked(Table(self._of_last_size()), self.steps, self.metric)[:FINALISTS]

    def _add(self, label: str, family: Family, point: Array) -> str:
        orders = " then ".join(map(str, family.orders))
        name = f"order {orders}, {label}"
        self.points[name] = family, np.asarray(point, np.float64)
        return name

    def _note(self, result: Race) -> None:
        self.records |= {record["row"]: record for record in result.records}

    def _of_last_size(self) -> list[Record]:
        largest = max(r["n"] for name, r in self.records.items() if name in self.points)
        return [r for name, r in self.records.items() if r["n"] == largest and name in self.points]
