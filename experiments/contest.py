"""What tuning and advice share: the model, what scores it, and the budget of every step count.

Both sample as they go: which sampler is looked at next depends on the scores so far.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.records import Record, check_results
from eval.scoring import METRICS, check_metrics
from experiments.cells import MOST, Cell, Column, Model, Settings
from experiments.config import (
    Config,
    evaluator_of,
    plain,
    settings_of,
    tracker_of,
)
from experiments.evaluate import Evaluator
from experiments.experiment import able, sample_columns, sampler_rows
from experiments.race import ModelJudge, Race, Sampler, Samplers, race
from experiments.scorers import ImageScorer, placed
from experiments.workers import connected, say, worker
from files.whole import check_writable
from sampling import timesteps
from sampling.options import check_choice

Options = Mapping[str, Any]


class Expense(NamedTuple):
    """The image calls of a part of the work: of its first round, at most, and what comes on top, the confirmation."""

    what: str
    entrants: int
    least: int
    most: int
    confirmation: int = 0


@dataclass(frozen=True)
class Contest:
    """A model with what scores its samples.  `options` are those of the experiment, in their final state."""

    options: Options
    seed: int
    settings: Settings
    evaluator: Evaluator
    cfg: Config
    spent: int = 0  # image calls of the budget, before the race
    _entrants: dict[int, Samplers] = field(default_factory=dict)  # by the step count

    @staticmethod
    def of(cfg: Config, load: Callable[[Config], Model]) -> Contest:
        """Raises ValueError for settings that a contest does not take."""
        if cfg.stage != "all" or cfg.parts != 1 or (worker()[1] > 1 and not connected()):
            raise ValueError("this is one process or torchrun: leave stage, part and parts")
        options = options_of(cfg)
        check_choice("experiment.metric", options["metric"], METRICS)
        check_results(Path(cfg.out))
        check_writable(Path(cfg.out, "records.json"))
        backbone, evaluator = load(cfg), evaluator_of(cfg)
        evaluator.check_media(backbone.media, real="against" not in options)
        wanted = {options["metric"], *check_metrics(options["metrics"])}
        if absent := sorted(wanted - {*evaluator.scores, "label_agreement"}):
            raise ValueError(
                f"the protocol has no score {', '.join(absent)}: experiment.metric and "
                f"experiment.metrics are among {', '.join(evaluator.scores)}"
            )
        knows = evaluator.extractor.knows_labels and backbone.num_classes
        if options["metric"] == "label_agreement" and not knows:
            raise ValueError(
                "label_agreement needs a model of classes that the extractor knows: "
                f"experiment.metric={evaluator.scores[0]}"
            )
        settings = settings_of(cfg, backbone, options["spacing"], "id")
        contest = Contest(options, cfg.seed, settings, evaluator, cfg)
        contest._check_sizes()
        return contest

    @property
    def backbone(self) -> Model:
        return self.settings.backbone

    @property
    def metric(self) -> str:
        return str(self.options["metric"])

    @property
    def steps(self) -> list[int]:
        """The step counts, ascending."""
        return sorted(self.options["steps"])

    def _check_sizes(self) -> None:
        """Raise ValueError for a number of samples, but for the rounds of a race, that is too few for its scores."""
        for name in ("tuning_samples", "generation_samples", "finalist_samples"):
            if name in self.options:
                n = self.options[name]
                check_enough(self._decider.evaluator, n, f"experiment.{name}={{}}")
        if "num_samples" in self.options:
            check_enough(self.evaluator, self.options["num_samples"], "num_samples={}")

    def judge(self, steps: int) -> ModelJudge:
        return ModelJudge(self.settings, steps, self.metric, self._quick, self._full)

    @property
    def rounds(self) -> list[int]:
        """The samples of each round, of the numbers of experiment.rounds those that are enough for the score.

        Raises ValueError if none is.
        """
        rounds: list[int] = self.options["rounds"]
        enough = [n for n in rounds if is_enough(self._decider.evaluator, n)]
        if not enough:
            check_enough(self._decider.evaluator, rounds[-1], "experiment.rounds=[{}]")
        return enough

    def first_round(self, steps: int) -> int:
        """The image calls of it."""
        return self.judge(steps).cost(self.entrants(steps), self.rounds[0], self.seed)

    def limit(self, steps: int) -> int:
        """The image calls that a step count may take: as many images as every other."""
        return self.budget * steps // sum(self.steps)

    @property
    def budget(self) -> int:
        """The image calls of all step counts."""
        return budget_of(self.cfg) - self.spent

    def check_budget(self, least: Callable[[Contest, ModelJudge], int]) -> None:
        """Raise ValueError unless every step count's share of the budget covers the least that it takes."""
        needed = 0.0
        for steps in self.steps:
            needed = max(needed, least(self, self.judge(steps)) * sum(self.steps) / steps)
        if needed > self.budget:
            enough = float(f"{1.05 * (needed + self.spent):.2g}")
            raise ValueError(
                f"budget={budget_of(self.cfg)} image calls are too few for these step counts, rivals and rounds: give "
                f"budget={enough:.0f} or more, or fewer of them"
            )

    def cell(self, row: str, sampler: Sampler, steps: int) -> Cell:
        """The winner's, with its plan."""
        return self.settings.cell(row, sampler, steps, 1)

    def grid(self, steps: int, spacing: Any) -> NDArray[np.int64]:
        """Its timesteps; none where the levels are the model's own."""
        if self.backbone.schedule.straight is not None:
            return np.empty(0, np.int64)
        return timesteps(self.backbone.schedule, steps, spacing)

    # --- rivals -----------------------------------------------------------------------------

    def entrants(self, steps: int) -> Samplers:
        """Every rival that the model can do, on every grid: "DDIM, karras".

        One that says its own spacing has that alone; so has every one on a path whose levels are its model's.
        Of those that are one plan there is the first: in tuning of each rival, which all are confirmed.
        """
        if steps not in self._entrants:
            rivals = able(self.settings, self.options["rivals"], steps)
            grids = self.options["grids"] if self.backbone.schedule.straight is None else ["even"]
            rows = {
                f"{row}{GRID}{_word(spacing)}": {**sampler, "spacing": spacing}
                for row, sampler in rivals.items()
                for spacing in ([sampler["spacing"]] if sampler.get("spacing") else grids)
            }
            apart = rival if self.options["family"] == "mixstar" else lambda row: None
            self._entrants[steps] = self._distinct(rows, steps, apart)
        return self._entrants[steps]

    def _distinct(
        self, rows: Samplers, steps: int, apart: Callable[[str], Hashable]
    ) -> dict[str, Sampler]:
        """The first of those with one plan, among rows that are not kept `apart`; says which are left out."""
        first: dict[Hashable, str] = {}
        for row, sampler in rows.items():
            plan = replace(self.cell(row, sampler, steps).plan, name="")
            same = first.setdefault((apart(row), plan.to_json()), row)
            if same != row:
                say(f"left out: {row}: at {steps} steps it is {same}")
        return {row: rows[row] for row in first.values()}

    def grids_race(self, judge: ModelJudge, limit: int) -> Race:
        """Every rival on its grids, those of one rival against each other."""
        return race(
            self.entrants(judge.steps),
            judge,
            self.rounds,
            metric=self.metric,
            steps=judge.steps,
            seed=self.seed,
            limit=limit,
            group=rival,
        )

    # --- sampling and scoring ---------------------------------------------------------------

    def _quick(self, column: Column) -> list[Record]:
        """The deciding score alone."""
        return self._records(column, self._decider)

    def _full(self, column: Column) -> list[Record]:
        return self._records(column, ImageScorer(self.evaluator))

    @cached_property
    def _decider(self) -> ImageScorer:
        if self.metric not in self.evaluator.scores:
            return ImageScorer(self.evaluator)
        return ImageScorer(evaluator_of(self.cfg, [self.metric]))

    def sample(self, column: Column) -> None:
        """Raises ValueError if other processes still sample some of it."""
        if not sample_columns([column], self.backbone, self.tracker, worker()):
            raise ValueError("others are sampling the same: wait for them and run this again")

    def _records(self, column: Column, scorer: ImageScorer) -> list[Record]:
        self.sample(column)
        return placed(column.cells, scorer.score(column.cells))

    @cached_property
    def tracker(self) -> Any:
        return tracker_of(self.cfg, f"{self.cfg.model.name}-{self.options['name']}")


def options_of(cfg: Config) -> dict[str, Any]:
    """The experiment's options with what the command says of them, `steps` as a list.

    Raises ValueError for what nothing can be raced with, and for what would be followed nowhere.
    """
    options: dict[str, Any] = {**plain(cfg.experiment)}
    if cfg.render_only:
        raise ValueError(
            "what is confirmed depends on what is found: leave render_only, and what was sampled before is found again"
        )
    if cfg.only is not None:
        raise ValueError("only= is of tables: give the step counts as steps, and leave only=null")
    for key in ("num_samples", "budget"):
        if cfg[key] is not None and key not in options:
            raise ValueError(f"{options['name']} has no {key} to set: leave {key}=null")
    for key in ("steps", "num_samples"):
        if cfg[key] is not None:
            options[key] = plain(cfg[key])
    if cfg.samplers:
        options["rivals"] = {
            row: {key: value for key, value in sampler.items() if value is not None}
            for row, sampler in sampler_rows(plain(cfg.samplers)).items()
        }
    if isinstance(options["steps"], int):
        options["steps"] = [options["steps"]]
    _check(options)
    return options


def _check(options: Options) -> None:
    """Raise ValueError for numbers and lists of which nothing can be made."""
    if not isinstance(options.get("num_samples", 0), int):
        raise ValueError("num_samples is one number for all step counts: num_samples=4000")
    for key in ("steps", "grids", "rounds", "orders", "variances"):
        if key in options and not options[key]:
            raise ValueError(f"experiment.{key} is empty: name some, or leave it out")
    if len(set(options["steps"])) < len(options["steps"]):
        raise ValueError("steps names a step count twice: give each once")
    rounds = options.get("rounds", [2])
    if rounds[0] < 2 or any(b <= a for a, b in pairwise(rounds)):
        raise ValueError(
            f"experiment.rounds are numbers of samples, each larger than the one before, got {rounds}: "
            "experiment.rounds=[256,512]"
        )
    if options["family"] == "mixstar" and (long := [o for o in options["orders"] if len(o) > 2]):
        raise ValueError(
            f"a choice of experiment.orders is one order or two, got {long[0]}: as [[2],[1,2]]"
        )
    for key, least in (("starts", 0), ("windows", 1)):
        if options.get(key, least) < least:
            raise ValueError(
                f"experiment.{key} must be at least {least}, got {options[key]}: experiment.{key}=8"
            )


def check_enough(evaluator: Evaluator, n: int, setting: str) -> None:
    """Raise ValueError if n samples are too few for the scores, with the setting for as many as are enough."""
    try:
        evaluator.check_size(n)
    except ValueError as error:
        counts = range(n + 1, MOST)
        enough = bisect_left(counts, True, key=lambda count: is_enough(evaluator, count))
        if enough == len(counts):
            raise
        raise ValueError(
            f"{str(error).partition(': ')[0]}: give {setting.format(counts[enough])}"
        ) from None


def is_enough(evaluator: Evaluator, n: int) -> bool:
    try:
        evaluator.check_size(n)
    except ValueError:
        return False
    return True


def budget_of(cfg: Config) -> int:
    """All image calls."""
    return int(cfg.experiment.budget if cfg.budget is None else cfg.budget)


GRID = ", "  # between a rival's name and its grid


def _word(spacing: Any) -> str:
    """As a part of a row's name, where no comma has a space behind it."""
    return spacing.replace(" ", "") if isinstance(spacing, str) else "-".join(map(str, spacing))


def rival(row: str) -> str:
    """The rival's name, of a row that also names its grid."""
    return row.rpartition(GRID)[0]
