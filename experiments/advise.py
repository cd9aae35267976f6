"""Which sampler to use at how many network calls, on a model: the named ones raced on several grids.

All see the same noise.  Those that are told apart from the best are dropped, the others sampled further, until one is
left or the budget is spent; what is left is confirmed on fresh seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from eval.records import Record
from eval.table import Table
from experiments.cells import Column, Model
from experiments.config import (
    Config,
    evaluator_of,
    load_backbone,
    plain,
    settings_of,
    with_settings,
)
from experiments.contest import Contest, Expense, budget_of, check_enough, is_enough
from experiments.race import ModelJudge, Sampler, race, survivors
from experiments.workers import say
from sampling import Plan
from sampling.options import check_options, fits

CONFIRMED = 4  # of what is left, the best
FIRST = 256  # samples of the first round, where the budget allows
RESERVED = 0.3  # of a step count's budget, for fresh seeds
BASELINE = "DDIM, even"  # confirmed beside, where it is a rival


@dataclass(frozen=True)
class Advice:
    """What to use at one step count.

    `tried` are the records of all on as many samples as each got; `confirmed` those of the best on fresh seeds, None
    where the budget has no room.  `left` are told apart from the best of neither, in the order of the race, and
    `best` is the first of them.
    """

    steps: int
    best: str
    left: list[str]
    samplers: dict[str, Sampler]
    plan: Plan
    tried: list[Record]
    confirmed: Table | None
    calls: int
    baseline: str = BASELINE


def advise(cfg: Config) -> list[Advice]:
    """The best of the experiment's rivals at every step count.

    With reference=none, against many steps of the model itself.  Raises ValueError for settings that advice
    does not take, and for a budget that is too small.
    """
    contest, column = _prepared(cfg, load_backbone)
    if column is not None:
        contest = _against_itself(contest, column)
    return [_advice(contest, steps) for steps in contest.steps]


def advice_expenses(cfg: Config, load: Callable[[Config], Model]) -> tuple[Contest, list[Expense]]:
    """What advice would take; what the model itself is to sample for comparison comes first."""
    contest, column = _prepared(cfg, load)
    expenses = [
        Expense(
            f"{steps} calls",
            len(contest.entrants(steps)),
            contest.first_round(steps),
            contest.limit(steps),
        )
        for steps in contest.steps
    ]
    if column is not None:
        calls = _calls(column)
        expenses.insert(0, Expense("the model itself", 1, calls, calls))
    return contest, expenses


def _prepared(cfg: Config, load: Callable[[Config], Model]) -> tuple[Contest, Column | None]:
    """What is raced, and without real images what is to be sampled before, its cost off the budget."""
    if cfg.experiment.get("family") != "named":
        raise ValueError(f"{cfg.experiment.name} is no experiment of advice: choose advise")
    backbone = load(cfg)
    if backbone.num_classes is None:
        cfg.label = None
    column = _many_steps(cfg, backbone) if cfg.reference.name == "none" else None
    contest = Contest.of(cfg, lambda cfg: backbone)
    return _affordable(replace(contest, spent=_calls(column) if column else 0)), column


def _affordable(contest: Contest) -> Contest:
    """The same, beginning with the largest round up to `FIRST` that the budget covers.

    Raises ValueError if it covers none.
    """
    rounds = contest.rounds
    firsts = [n for n in rounds if n <= FIRST] or rounds[:1]
    for first in reversed(firsts):
        options = {**contest.options, "rounds": [n for n in rounds if n >= first]}
        smaller = replace(contest, options=options)
        try:
            smaller.check_budget(_least)
        except ValueError:
            if first == firsts[0]:
                raise
        else:
            break
    return smaller


def _advice(contest: Contest, steps: int) -> Advice:
    judge, limit = contest.judge(steps), contest.limit(steps)
    entrants = contest.entrants(steps)
    result = race(
        entrants,
        judge,
        contest.rounds,
        metric=contest.metric,
        steps=steps,
        seed=contest.seed,
        limit=limit - int(RESERVED * limit),
    )
    left = survivors(result.last, steps, contest.metric)
    first = left[:CONFIRMED]
    confirmed = _confirmed(contest, judge, {row: entrants[row] for row in first}, limit)
    if confirmed is not None:
        worse = {*first} - confirmed.tied(steps, contest.metric, first)
        left = [row for row in left if row not in worse]
    return Advice(
        steps,
        left[0],
        left,
        {row: dict(sampler) for row, sampler in entrants.items()},
        contest.cell(left[0], entrants[left[0]], steps).plan,
        result.records,
        confirmed,
        judge.calls,
    )


def _confirmed(
    contest: Contest, judge: ModelJudge, samplers: dict[str, Sampler], limit: int
) -> Table | None:
    """All scores on fresh seeds, of as many samples as what is left of the budget allows."""
    entrants = contest.entrants(judge.steps)
    if BASELINE in entrants:
        samplers = {**samplers, BASELINE: entrants[BASELINE]}
    seed = contest.seed + 1
    n = (limit - judge.calls) // max(judge.cost(samplers, 1, seed), 1)
    n = n - n % 10 if n > 100 else n
    if n < contest.rounds[0]:
        return None
    if is_enough(contest.evaluator, n):
        return judge.confirmed(samplers, n, seed)
    return judge.table(samplers, n, seed)  # enough for the score that decides, not for all


def _least(contest: Contest, judge: ModelJudge) -> int:
    """The first round, and as many samples of those that are confirmed."""
    rows = min(CONFIRMED + 1, len(contest.entrants(judge.steps)))
    confirmed = judge.steps * rows * contest.rounds[0]
    return int(max(contest.first_round(judge.steps) / (1 - RESERVED), confirmed / RESERVED))


def _many_steps(cfg: Config, backbone: Model) -> Column:
    """Samples of the model that stand for real images.

    Raises ValueError for too few of them, and for more than half of the budget.
    """
    against = plain(cfg.experiment.against)
    check_options("experiment.against", against, ["sampler", "steps", "num_samples"])
    steps, n = against["steps"], against["num_samples"]
    if not (fits([steps, n], list[int]) and steps >= 1 and n >= 2):
        raise ValueError(
            "experiment.against needs whole numbers, steps of 1 or more and 2 samples or more: "
            "experiment.against.num_samples=2500"
        )
    evaluator = evaluator_of(cfg)
    check_enough(evaluator, n, "experiment.against.num_samples={}")
    settings = replace(settings_of(cfg, backbone, "even", "id"), seed=cfg.seed + 2)
    column = settings.column({"the model itself": against["sampler"]}, steps, n)
    budget, calls = budget_of(cfg), _calls(column)
    if calls > budget // 2:
        fewer = budget // 2 // len(column.plans[0])
        raise ValueError(
            f"{n} samples of {steps} steps to compare with take {calls} of the budget of {budget} image calls: "
            f"give budget={2 * calls}"
            + (
                f", or experiment.against.num_samples={fewer}"
                if is_enough(evaluator, fewer)
                else ""
            )
        )
    return column


def _calls(column: Column) -> int:
    return sum(map(len, column.plans)) * column.size.num_samples


def _against_itself(contest: Contest, column: Column) -> Contest:
    """The same with samples of the model in the place of real images."""
    size = column.size
    say(
        f"no reference: comparing with {size.num_samples:,} samples of the model itself, of {column.steps} steps"
    )
    contest.sample(column)
    real = {
        "_target_": "files.images.first_samples",
        "path": str(column.cells[0].folder),
        "count": size.num_samples,
    }
    reference = {"name": "itself", "images": real, "floor": None, "folder": None}
    cfg = with_settings(contest.cfg, reference=reference)
    return replace(contest, cfg=cfg, evaluator=evaluator_of(cfg))
