"""Which sampler to use at how many network calls, on a model: the named ones raced on several grids.

All see the same noise.  Those that are told apart from the best are dropped, the others sampled further, until one is
left or the budget is spent; what is left is confirmed on fresh seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from eval.records import Record
from eval.table import Table
from experiments.cells import Model
from experiments.config import Config, load_backbone, plain, settings_of, with_settings
from experiments.contest import Contest, budget_of
from experiments.experiment import sample_columns
from experiments.race import ModelJudge, Sampler, race, survivors
from experiments.tracking import Tracker
from experiments.workers import say, worker
from sampling import Plan
from sampling.options import check_options, fits

CONFIRMED = 4  # of what is left, the best
FIRST = 256  # samples of the first round, where the budget allows
RESERVED = 0.3  # of a step count's budget, for fresh seeds
BASELINE = "DDIM, even"  # confirmed beside, where it is a rival


@dataclass(frozen=True)
class Advice:
    """What to use at one step count.

    `best` won the race; `left` were not told apart from it there, the best first.  `tried` are the records of all
    on as many samples as each got; `confirmed` those of the best on fresh seeds, None where the budget has no room.
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
    if cfg.experiment.get("family") != "named":
        raise ValueError(f"{cfg.experiment.name} is no experiment of advice: choose advise")
    backbone = load_backbone(cfg)
    if backbone.num_classes is None:
        cfg.label = None
    if cfg.reference.name == "none":
        cfg = _against_itself(cfg, backbone)
    contest = _affordable(Contest.of(cfg, backbone))
    return [_advice(contest, steps) for steps in contest.steps]


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
    confirmed = _confirmed(contest, judge, {row: entrants[row] for row in left[:CONFIRMED]}, limit)
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
    try:
        contest.evaluator.check_size(n)
    except ValueError:  # enough for the score that decides, not for all
        return judge.table(samplers, n, seed)
    return judge.confirmed(samplers, n, seed)


def _least(contest: Contest, judge: ModelJudge) -> int:
    """The first round, and as many samples of those that are confirmed."""
    n = contest.rounds[0]
    first = judge.cost(contest.entrants(judge.steps), n, contest.seed)
    confirmed = judge.steps * (CONFIRMED + 1) * n
    return int(max(first / (1 - RESERVED), confirmed / RESERVED))


def _against_itself(cfg: Config, backbone: Model) -> Config:
    """The same with samples of the model in the place of real images; their cost is off the budget."""
    against, seed = plain(cfg.experiment.against), cfg.seed + 2
    check_options("experiment.against", against, ["sampler", "steps", "num_samples"])
    steps, n = against["steps"], against["num_samples"]
    if not (fits([steps, n], list[int]) and steps >= 1 and n >= 2):
        raise ValueError(
            "experiment.against needs whole numbers, steps of 1 or more and 2 samples or more: "
            "experiment.against.num_samples=2000"
        )
    budget = budget_of(cfg)
    if steps * n > budget // 2:
        fewer = budget // 2 // steps
        enough = fewer >= min([*plain(cfg.experiment.rounds), n])
        raise ValueError(
            f"{n} samples of {steps} steps to compare with take {steps * n} of the budget of {budget} image calls: "
            f"give budget={2 * steps * n}"
            + (f", or experiment.against.num_samples={fewer}" if enough else "")
        )
    settings = settings_of(cfg, backbone, "even", "id")
    column = replace(settings, seed=seed).column({"the model itself": against["sampler"]}, steps, n)
    say(f"no reference: comparing with {n:,} samples of the model itself, of {steps} steps")
    if not sample_columns([column], backbone, Tracker(), worker()):
        raise ValueError("others are sampling the same: wait for them and run this again")
    real = {
        "_target_": "files.images.first_samples",
        "path": str(column.cells[0].folder),
        "count": n,
    }
    reference = {"name": "itself", "images": real, "floor": None, "folder": None}
    return with_settings(cfg, budget=budget - steps * n, reference=reference)
