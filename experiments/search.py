"""The search for Mix*'s numbers: an even start, a race, and CMA-ES from its winner.

Scores are noisy, and the best of many is the luckiest.  So every generation of CMA-ES is compared on noise of its own,
which makes no difference to what its candidates share, and what it found are means of its distribution.

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
from experiments.family import Family
from experiments.race import Judge, Race, Sampler, Samplers, race, ranked, standing

Array = NDArray[np.float64]

Known = Sequence[tuple[Sequence[int], Array]]  # winners at fewer steps: their orders and points

SIGMA = 0.2  # of CMA-ES at the start, in units of the cube
APART = 1000  # between the seeds of two generations
FINALISTS = 4  # candidates that are compared on more samples in the end
RIVALS = 6  # and so many of the named samplers beside them, half of all in the end


@dataclass
class Search:
    """One search at one step count.

    `families` are those of every choice of orders.  `rounds` are samples of each round of the first race,
    `generation_samples` those of a candidate of CMA-ES; `limit` is what `judge.calls` may come to.
    """

    families: Sequence[Family]
    judge: Judge
    metric: str
    seed: int
    rounds: Sequence[int]
    generation_samples: int
    limit: int
    points: dict[str, tuple[Family, Array]] = field(default_factory=dict)  # by the candidate's name
    records: dict[str, Record] = field(default_factory=dict)  # of every candidate the last
    finalists: list[str] = field(default_factory=list)

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
        self.finalists = ranked(result.last, self.steps, self.metric)[:FINALISTS]

    def evolve(self) -> None:
        """CMA-ES from the best of the start, for as many generations as the limit allows.

        Its last mean and the average of its later half of means (Polyak) take the place of two finalists.
        """
        family, point = self.points[self.finalists[0]]
        walls = np.array([[0.0, 1.0]] * family.size)
        inside = point.clip(0.02, 0.98)  # CMA-ES draws again until it is inside
        evolution = CMA(mean=inside, sigma=SIGMA, bounds=walls, seed=self.seed)
        means: list[Array] = []
        while self._generation(family, evolution):
            means.append(evolution.mean.clip(0, 1))
        if means:
            later = np.mean(means[len(means) // 2 :], axis=0)
            found = {"the last mean": means[-1], "the mean of the later half": later}
            names = [self._add(label, family, at) for label, at in found.items()]
            self.finalists = [*self.finalists[: FINALISTS - len(names)], *names]

    def _generation(self, family: Family, evolution: CMA) -> bool:
        """Whether there was one: the limit may have no room for it."""
        number, n = evolution.generation + 1, self.generation_samples
        asked = [evolution.ask() for _ in range(evolution.population_size)]
        names = [self._add(f"generation {number}.{i}", family, at) for i, at in enumerate(asked, 1)]
        entrants, seed = {name: self.sampler(name) for name in names}, self.seed + APART * number
        if self.judge.calls + self.judge.cost(entrants, n, seed) > self.limit:
            for name in names:
                del self.points[name]
            return False
        table = self.judge.table(entrants, n, seed)
        self._note(Race([table]))
        sign = 1 if METRICS[self.metric].lower_is_better else -1
        scores = [sign * table.score(name, self.steps, self.metric).value for name in names]
        evolution.tell(list(zip(asked, scores, strict=True)))
        return True

    def finish(self, n: int, rivals: Samplers) -> dict[str, Sampler]:
        """The finalists and some rivals after a last race, on n samples in the end: the best first.

        A rival may win: most of them are Mix* with numbers that somebody found before.
        """
        entrants = {**{name: self.sampler(name) for name in self.finalists}, **rivals}
        sizes = sorted({self.rounds[-1], n})
        result = race(
            entrants, self.judge, sizes, metric=self.metric, steps=self.steps, seed=self.seed, keep=0.5
        )  # fmt: skip
        self._note(result)
        return {name: entrants[name] for name in standing(result, self.steps, self.metric)}

    def _add(self, label: str, family: Family, point: Array) -> str:
        orders = " then ".join(map(str, family.orders))
        name = f"order {orders}, {label}"
        self.points[name] = family, np.asarray(point, np.float64)
        return name

    def _note(self, result: Race) -> None:
        self.records |= {record["row"]: record for record in result.records}
