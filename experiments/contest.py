"""What tuning and advice share: the model, what scores it, and the budget of every step count.

Both sample as they go: which sampler is looked at next depends on the scores so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.records import Record, check_results
from eval.scoring import METRICS, check_metrics
from experiments.cells import Cell, Column, Model, Settings
from experiments.config import (
    Config,
    evaluator_of,
    load_backbone,
    plain,
    settings_of,
    tracker_of,
)
from experiments.evaluate import Evaluator
from experiments.experiment import able, sample_columns, sampler_rows
from experiments.race import ModelJudge, Race, Sampler, Samplers, race
from experiments.scorers import ImageScorer, placed
from experiments.workers import connected, worker
from files.whole import check_writable
from sampling import timesteps
from sampling.options import check_choice

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Contest:
    """A model with what scores its samples.  `options` are those of the experiment, in their final state."""

    options: Options
    seed: int
    settings: Settings
    evaluator: Evaluator
    cfg: Config

    @staticmethod
    def of(cfg: Config, model: Model | None = None) -> Contest:
        """Of the config's model, unless it is loaded.  Raises ValueError for settings that a contest does not take."""
        if cfg.stage != "all" or cfg.parts != 1 or (worker()[1] > 1 and not connected()):
            raise ValueError("this is one process or torchrun: leave stage, part and parts")
        options = options_of(cfg)
        check_choice("experiment.metric", options["metric"], METRICS)
        check_results(Path(cfg.out))
        check_writable(Path(cfg.out, "records.json"))
        backbone, evaluator = model or load_backbone(cfg), evaluator_of(cfg)
        evaluator.check_media(backbone.media)
        wanted = {options["metric"], *check_metrics(options["metrics"])}
        if absent := sorted(wanted - {*evaluator.scores, "label_agreement"}):
            raise ValueError(
                f"the protocol has no score {', '.join(absent)}: experiment.metric and "
                f"experiment.metrics are among {', '.join(evaluator.scores)}"
            )
        settings = settings_of(cfg, backbone, options["spacing"], "id")
        contest = Contest(options, cfg.seed, settings, evaluator, cfg)
        for n in contest.sizes:
            evaluator.check_size(n)
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

    @property
    def sizes(self) -> list[int]:
        """Every number of samples that is scored, but for the rounds of a race."""
        names = ("tuning_samples", "generation_samples", "finalist_samples", "num_samples")
        return [self.options[name] for name in names if name in self.options]

    def judge(self, steps: int) -> ModelJudge:
        return ModelJudge(self.settings, steps, self.metric, self._quick, self._full)

    @property
    def rounds(self) -> list[int]:
        """The samples of each round, of the numbers of experiment.rounds those that are enough for the score.

        Raises ValueError if none is.
        """
        rounds: list[int] = self.options["rounds"]
        enough = [n for n in rounds if self._is_enough(n)]
        if not enough:
            self._decider.evaluator.check_size(rounds[-1])
        return enough

    def limit(self, steps: int) -> int:
        """The image calls that a step count may take: as many images as every other."""
        return self.budget * steps // sum(self.steps)

    @property
    def budget(self) -> int:
        return budget_of(self.cfg)

    def check_budget(self, least: Callable[[Contest, ModelJudge], int]) -> None:
        """Raise ValueError unless every step count's share of the budget covers the least that it takes."""
        needed = 0.0
        for steps in self.steps:
            needed = max(needed, least(self, self.judge(steps)) * sum(self.steps) / steps)
        if needed > self.budget:
            raise ValueError(
                f"budget={self.budget} image calls are too few for these step counts, rivals and rounds: give "
                f"budget={float(f'{1.05 * needed:.2g}'):.0f} or more, or fewer of them"
            )

    def _is_enough(self, n: int) -> bool:
        try:
            self._decider.evaluator.check_size(n)
        except ValueError:
            return False
        return True

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
        """
        rivals = able(self.settings, self.options["rivals"], steps)
        grids = self.options["grids"] if self.backbone.schedule.straight is None else ["even"]
        return {
            f"{row}{GRID}{_word(spacing)}": {**sampler, "spacing": spacing}
            for row, sampler in rivals.items()
            for spacing in ([sampler["spacing"]] if sampler.get("spacing") else grids)
        }

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

    def _records(self, column: Column, scorer: ImageScorer) -> list[Record]:
        if not sample_columns([column], self.backbone, self.tracker, worker()):
            raise ValueError("others are sampling the same: wait for them and run this again")
        return placed(column.cells, scorer.score(column.cells))

    @cached_property
    def tracker(self) -> Any:
        return tracker_of(self.cfg, f"{self.cfg.model.name}-{self.options['name']}")


def options_of(cfg: Config) -> dict[str, Any]:
    """The experiment's options with what the command says of them, `steps` as a list.

    Raises ValueError for what nothing can be raced with, and for what would be followed nowhere.
    """
    options: dict[str, Any] = {**plain(cfg.experiment)}
    if cfg.dry or cfg.render_only:
        most = f"at most budget={budget_of(cfg)} image calls" if "budget" in options else "all"
        raise ValueError(
            f"what this samples depends on what it finds, {most}, and what is there is found again: leave dry "
            "and render_only"
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


def budget_of(cfg: Config) -> int:
    """The image calls of all step counts."""
    return int(cfg.experiment.budget if cfg.budget is None else cfg.budget)


GRID = ", "  # between a rival's name and its grid


def _word(spacing: Any) -> str:
    """As a part of a row's name, where no comma has a space behind it."""
    return spacing.replace(" ", "") if isinstance(spacing, str) else "-".join(map(str, spacing))


def rival(row: str) -> str:
    """The rival's name, of a row that also names its grid."""
    return row.rpartition(GRID)[0]
