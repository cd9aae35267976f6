"""What samples best on a model: candidates on tuning seeds, the winner confirmed on fresh ones.

All candidates of a step count see the same noise.  A score on the seeds by which it was chosen flatters the
winner: it is confirmed on others, beside the named samplers.  Candidates are Mix++ with its window
(`search_window`), or Mix*, whose every row has a share of noise of its own (`search_mixstar`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.records import Record
from eval.table import Table
from experiments.cells import Model
from experiments.config import Config, load_backbone
from experiments.contest import Contest, Expense, rival
from experiments.family import Family
from experiments.race import Judge, ModelJudge, Sampler, best_of_groups, ranked
from experiments.search import FINALISTS, RIVALS, Known, Search
from sampling import Plan, timesteps

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """What was tried and chosen at one step count, the confirmation, and what both took.

    `tried` are the records of every candidate, on as many samples as it got.  The first row of `confirmed` is the
    winner, whose numbers are `plan`.
    """

    steps: int
    chosen: Sampler
    tried: list[Record]
    confirmed: Table
    calls: int
    plan: Plan | None = None


def tune(cfg: Config) -> list[Tuned]:
    """Choose the best candidate at every step count, and confirm it on fresh seeds.

    Raises ValueError for settings that tuning does not take, and for a budget that is too small.
    """
    contest = _prepared(cfg, load_backbone)
    if contest.options["family"] == "mixstar":
        return tune_mixstar(contest)
    tuned = []
    for steps in contest.steps:
        grid = _grid(contest, steps)
        found = search_window(contest.options, steps, grid, contest.seed, contest.judge(steps))
        tuned.append(replace(found, plan=contest.cell("Tuned", found.chosen, steps).plan))
    return tuned


def tuning_expenses(cfg: Config, load: Callable[[Config], Model]) -> tuple[Contest, list[Expense]]:
    """What tuning would take; the confirmation comes on top, of the winner and every rival."""
    contest = _prepared(cfg, load)
    options, window = contest.options, contest.options["family"] == "window"
    expenses = []
    for steps in contest.steps:
        if window:
            grid, n = _grid(contest, steps), options["tuning_samples"]
            candidates, judge = _one_sided(options, grid), contest.judge(steps)
            entrants, rivals = len(candidates), len(options["rivals"])
            least = judge.cost(candidates, n, contest.seed)
            most = least + steps * n * (len(_some(grid, options["windows"])) - 1)
        else:
            named = contest.entrants(steps)
            entrants = len(named) + len(options["orders"]) * (options["starts"] + 3)
            rivals = len(set(map(rival, named)))
            least, most = contest.first_round(steps), contest.limit(steps)
        confirmation = steps * (1 + rivals) * options["num_samples"]
        expenses.append(Expense(f"{steps} steps", entrants, least, most, confirmation))
    return contest, expenses


def _prepared(cfg: Config, load: Callable[[Config], Model]) -> Contest:
    if cfg.experiment.get("family") not in ("window", "mixstar"):
        raise ValueError(
            f"{cfg.experiment.name} is no experiment of tuning: choose tune, tune_small, tune_star or "
            "tune_star_small"
        )
    contest = Contest.of(cfg, load)
    if contest.options["family"] == "mixstar":
        contest.check_budget(_least)
    elif contest.backbone.schedule.straight is not None:
        raise ValueError(
            "Mix++'s window has its ends at timesteps, which this model does not have: experiment=tune_star"
        )
    return contest


# --- Mix* ---------------------------------------------------------------------------------------


def tune_mixstar(contest: Contest) -> list[Tuned]:
    """Of every step count, the fewest first: its winner is a candidate of those that follow."""
    tuned: list[Tuned] = []
    known: list[tuple[Sequence[int], Array]] = []
    for steps in contest.steps:
        judge, limit = contest.judge(steps), contest.limit(steps)
        grids = contest.grids_race(judge, limit - _least_search(contest, steps))
        entrants = contest.entrants(steps)
        rows = best_of_groups(grids, steps, contest.metric, rival).values()
        rivals = {row: entrants[row] for row in sorted(rows, key=list(entrants).index)}
        first = ranked(grids.rounds[0], steps, contest.metric)
        grid = contest.grid(steps, entrants[first[0]]["spacing"])
        search = search_mixstar(contest, judge, grid, limit, known)
        leading = [row for row in first if row in rivals][:RIVALS]
        final = contest.options["finalist_samples"]
        standing = search.finish(final, {row: rivals[row] for row in leading})
        family, point = next(search.points[name] for name in standing if name in search.points)
        known.append((family.orders, point))
        chosen = next(iter(standing.values()))
        n, seed = contest.options["num_samples"], contest.seed + 1
        confirmed = judge.confirmed({"Mix*": chosen, **rivals}, n, seed)
        tried = [*search.records.values(), *grids.records]
        plan = contest.cell("Mix*", chosen, steps).plan
        tuned.append(Tuned(steps, chosen, tried, confirmed, judge.calls, plan))
    return tuned


def search_mixstar(
    contest: Contest, judge: ModelJudge, grid: NDArray[np.int64], limit: int, known: Known
) -> Search:
    """The search, which begins on a grid and leaves of `limit` calls what its end takes."""
    options, schedule = contest.options, contest.backbone.schedule_at(judge.steps)
    families = [Family(schedule, judge.steps, tuple(orders)) for orders in options["orders"]]
    limit -= _last_race(contest, judge.steps)
    samples = options["generation_samples"]
    search = Search(families, judge, contest.metric, contest.seed, contest.rounds, samples, limit)
    search.start(options["starts"], grid, known)
    search.evolve()
    return search


def _last_race(contest: Contest, steps: int) -> int:
    """The image calls of `Search.finish`, at most; what a short shard has of a round before is made again."""
    rounds, final = contest.rounds, contest.options["finalist_samples"]
    first_again, last_again = (n % contest.settings.shard_size for n in (rounds[0], rounds[-1]))
    first = FINALISTS * rounds[-1] + RIVALS * (rounds[-1] - rounds[0] + first_again)
    more = final - rounds[-1] + last_again if final > rounds[-1] else 0
    return int(steps * (first + (FINALISTS + RIVALS) // 2 * more))


def _least_search(contest: Contest, steps: int) -> int:
    """The first round of the start and the last race, at most."""
    entrants = len(contest.options["orders"]) * (contest.options["starts"] + 4)
    return int(steps * entrants * contest.rounds[0]) + _last_race(contest, steps)


def _least(contest: Contest, judge: ModelJudge) -> int:
    return contest.first_round(judge.steps) + _least_search(contest, judge.steps)


# --- Mix++'s window -----------------------------------------------------------------------------


def search_window(
    options: Mapping[str, Any], steps: int, grid: NDArray[np.int64], seed: int, judge: Judge
) -> Tuned:
    """Search lo for every order and variance, then hi for the best of them; confirm.

    `options` are those of configs/experiment/tune.yaml.  `grid` are the timesteps that a sampler
    visits, in decreasing order; windows end at them.
    """
    metric, n = options["metric"], options["tuning_samples"]
    candidates = _one_sided(options, grid)
    tried = judge.table(candidates, n, seed)
    best = candidates[tried.best(steps, metric)]
    nodes = _some(grid, options["windows"])
    windows = _labelled([{**best, "hi": hi} for hi in nodes if best["lo"] < hi])
    if windows:
        tried = Table([*tried.records, *judge.table(windows, n, seed).records])
    chosen = {**candidates, **windows}[tried.best(steps, metric)]
    rivals = {"Tuned": chosen, **options["rivals"]}
    confirmed = judge.confirmed(rivals, options["num_samples"], seed + 1)
    return Tuned(steps, chosen, tried.records, confirmed, judge.calls)


def _one_sided(options: Mapping[str, Any], grid: NDArray[np.int64]) -> dict[str, Sampler]:
    """Stochastic from the first row down to a node, of every order and variance."""
    families = [
        {"name": "mixpp", "stochastic_order": a, "deterministic_order": b, "variance": v}
        for a, b in options["orders"]
        for v in options["variances"]
    ]
    ends = [*_some(grid, options["windows"]), int(grid[0]) + 1]
    return _labelled([{**family, "lo": lo} for family in families for lo in ends])


def _grid(contest: Contest, steps: int) -> NDArray[np.int64]:
    return timesteps(contest.backbone.schedule, steps, contest.options["spacing"])


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
