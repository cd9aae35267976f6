"""Where to put the window of Mix++: candidates on tuning seeds, the winner confirmed on fresh ones.

All candidates of a step count see the same noise, and run as one tree.  A score on the seeds by which
it was chosen flatters the winner: it is confirmed on others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.records import check_results
from eval.scoring import METRICS
from eval.table import Table
from experiments.config import (
    Config,
    evaluator_of,
    load_backbone,
    plain,
    settings_of,
    tracker_of,
)
from experiments.experiment import sample_columns
from experiments.scorers import ImageScorer, placed
from experiments.workers import connected, worker
from sampling import count_calls, timesteps

Sampler = dict[str, Any]
Samplers = Mapping[str, Sampler]
# (samplers by name, number of samples, seed) -> their table, and the image calls that it takes
Judge = Callable[[Samplers, int, int], tuple[Table, int]]


@dataclass(frozen=True)
class Tuned:
    """What was tried and chosen at one step count, the confirmation, and what both took."""

    steps: int
    chosen: Sampler
    tried: Table
    confirmed: Table
    calls: int


def tune(cfg: Config) -> list[Tuned]:
    """Choose Mix++'s window at every step count, and confirm it on fresh seeds.

    Raises ValueError for settings that tuning does not take.
    """
    if cfg.stage != "all" or cfg.parts != 1 or (worker()[1] > 1 and not connected()):
        raise ValueError("tuning is one process or torchrun: leave stage, part and parts")
    if cfg.dry or cfg.render_only:
        raise ValueError("what tuning samples depends on what it finds: leave dry and render_only")
    if cfg.samplers:
        raise ValueError("tuning has rivals instead: leave samplers=null, set experiment.rivals")
    options = plain(cfg.experiment)
    if "tuning_samples" not in options:
        raise ValueError(f"{options['name']} is no experiment of tuning: choose tune or tune_small")
    steps = options["steps"] if cfg.steps is None else plain(cfg.steps)
    options["num_samples"] = cfg.num_samples or options["num_samples"]
    check_results(Path(cfg.out))
    backbone, scorer = load_backbone(cfg), ImageScorer(evaluator_of(cfg))
    scorer.evaluator.check_media(backbone.media)
    scores = scorer.evaluator.scores
    if absent := sorted({options["metric"], *options["metrics"]} - {*scores, "label_agreement"}):
        raise ValueError(
            f"the protocol has no score {', '.join(absent)}: experiment.metric and "
            f"experiment.metrics are among {', '.join(scores)}"
        )
    for n in (options["tuning_samples"], options["num_samples"]):
        scorer.evaluator.check_size(n)
    settings = settings_of(cfg, backbone, options["spacing"], "id")
    tracker = tracker_of(cfg, f"{cfg.model.name}-{options['name']}")

    def judge(steps: int, samplers: Samplers, n: int, seed: int) -> tuple[Table, int]:
        column = replace(settings, seed=seed).column(samplers, steps, n)
        if not sample_columns([column], backbone, tracker, worker()):
            raise ValueError("others are sampling the same: wait for them and run this again")
        records = placed(column.cells, scorer.score(column.cells))
        return Table(records), count_calls(column.plans) * n

    tuned = []
    for count in sorted([steps] if isinstance(steps, int) else steps):
        grid = timesteps(backbone.schedule, count, options["spacing"])
        tuned.append(search(options, count, grid, cfg.seed, partial(judge, count)))
    return tuned


def search(
    options: Mapping[str, Any], steps: int, grid: NDArray[np.int64], seed: int, judge: Judge
) -> Tuned:
    """Search lo for every order and variance, then hi for the best of them; confirm.

    `options` are those of configs/experiment/tune.yaml.  `grid` are the timesteps that a sampler
    visits, in decreasing order; windows end at them.  Raises ValueError for an unknown metric.
    """
    metric = options["metric"]
    if metric not in METRICS:
        raise ValueError(f"unknown experiment.metric {metric!r}: choose {', '.join(METRICS)}")
    nodes, top = _some(grid, options["windows"]), int(grid[0]) + 1
    families = [
        {"name": "mixpp", "stochastic_order": a, "deterministic_order": b, "variance": v}
        for a, b in options["orders"]
        for v in options["variances"]
    ]
    n = options["tuning_samples"]
    candidates = _labelled([{**family, "lo": lo} for family in families for lo in [*nodes, top]])
    tried, calls = judge(candidates, n, seed)
    best = candidates[tried.best(steps, metric)]
    windows = _labelled([{**best, "hi": hi} for hi in nodes if best["lo"] < hi < top])
    if windows:
        more, more_calls = judge(windows, n, seed)
        tried, calls = Table([*tried.records, *more.records]), calls + more_calls
    chosen = {**candidates, **windows}[tried.best(steps, metric)]
    rivals = {"Tuned": chosen, **options["rivals"]}
    confirmed, more_calls = judge(rivals, options["num_samples"], seed + 1)
    return Tuned(steps, chosen, tried, confirmed, calls + more_calls)


def _some(grid: NDArray[np.int64], count: int) -> list[int]:
    """At most `count` nodes of the grid, evenly among its rows, both ends included."""
    places = np.linspace(0, len(grid) - 1, min(count, len(grid))).round().astype(int)
    return sorted({int(grid[i]) for i in places})


def _labelled(samplers: list[Sampler]) -> dict[str, Sampler]:
    return {_label(sampler): sampler for sampler in samplers}


def _label(sampler: Sampler) -> str:
    hi = "" if sampler.get("hi") is None else f"..{sampler['hi']}"
    more = "" if sampler["variance"] == "fixed_small" else f", {sampler['variance']}"
    orders = f"orders {sampler['stochastic_order']}, {sampler['deterministic_order']}"
    return f"{sampler['lo']}{hi or '..'}, {orders}{more}"
