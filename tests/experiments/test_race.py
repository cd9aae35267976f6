"""Races, the family of Mix* and its search, on judges in closed form."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from eval.table import Table
from experiments.advise import _advice
from experiments.family import SCALES, Family
from experiments.race import best_of_groups, race, survivors
from experiments.search import FINALISTS, Search
from sampling import Schedule, dpmpp, timesteps
from sampling.gaussian import gaussian_frechet
from sampling.plan import eps_scale_of, scale_eps
from sampling.samplers import named

LINEAR = Schedule.linear()
SCHEDULES = {"linear": LINEAR, "cosine": Schedule.cosine(), "scaled": Schedule.scaled_linear()}
EIGENVALUES = np.geomspace(1, 1e-3, 12)


def record(row, n, value, se, steps=5):
    return {
        "row": row,
        "steps": steps,
        "n": n,
        "protocol": "p",
        "scores": {"fid": {"value": value, "se": se}},
        "floor": None,
        "cell": None,
    }


class Fake:
    """A judge whose scores are a function of (sampler, n), and which keeps what it was asked."""

    def __init__(self, quality, steps=5, se=lambda n: 0.0):
        self.quality, self.steps, self.se = quality, steps, se
        self.calls, self.asked, self.seen = 0, [], {}

    def cost(self, samplers, n, seed):
        before = [self.seen.get((repr(s), seed), 0) for s in samplers.values()]
        return self.steps * sum(max(n - there, 0) for there in before)

    def table(self, samplers, n, seed):
        self.calls += self.cost(samplers, n, seed)
        self.asked.append((list(samplers), n, seed))
        self.seen |= {(repr(s), seed): n for s in samplers.values()}
        return Table(
            [record(row, n, self.quality(s), self.se(n), self.steps) for row, s in samplers.items()]
        )

    confirmed = table


def plan_of(sampler, schedule=LINEAR, steps=5):
    options = {k: v for k, v in sampler.items() if k not in ("name", "spacing", "eps_scale")}
    grid = timesteps(schedule, steps, sampler["spacing"])
    plan = named(sampler["name"], schedule, grid, **options)
    scale = eps_scale_of(sampler["eps_scale"])
    return scale_eps(plan, *scale) if scale else plan


def gaussian(score_error, steps=5):
    """How far Mix*'s samples are from Gaussian data with a score that errs so much."""
    return lambda sampler: gaussian_frechet(
        plan_of(sampler, steps=steps), EIGENVALUES, None, score_error
    )


# --- races ----------------------------------------------------------------------------------


NAMED = {f"{row}, {grid}": {"at": at + add} for row, at in (("a", 1), ("b", 5)) for grid, add in
         (("x", 0), ("y", 0.2), ("z", 3))}  # fmt: skip


def run(judge, sizes, **more):
    return race(NAMED, judge, sizes, metric="fid", steps=5, seed=3, **more)


def test_a_race_drops_what_is_told_apart_and_samples_the_others_on():
    judge = Fake(lambda s: s["at"], se=lambda n: 10 / n)
    result = run(judge, [10, 50, 5000])
    rows = [asked[0] for asked in judge.asked]
    assert rows[0] == list(NAMED) and [asked[1] for asked in judge.asked] == [10, 50, 5000]
    assert rows[1] == ["a, x", "a, y"]  # at n = 10 the interval of a difference is 2.8
    assert survivors(result.last, 5, "fid") == ["a, x"]
    assert {r["row"]: r["n"] for r in result.records} == {
        **dict.fromkeys(NAMED, 10), "a, x": 5000, "a, y": 5000,
    }  # fmt: skip
    assert judge.calls == 5 * (6 * 10 + 2 * 4990)


def test_groups_race_by_themselves_and_end_alone():
    judge = Fake(lambda s: s["at"] + (s["at"] == 1.2) * 9, se=lambda n: 10 / n)
    result = run(judge, [10, 50, 5000], group=lambda row: row[0])
    assert judge.asked[1][0] == ["b, x", "b, y"]  # of a, one was left at once
    assert best_of_groups(result, 5, "fid", lambda row: row[0]) == {"a": "a, x", "b": "b, x"}


def test_a_race_keeps_a_share_and_stays_within_its_limit():
    for limit in range(300, 3000, 150):
        judge = Fake(lambda s: s["at"], se=lambda n: 9.0)  # nothing is told apart
        result = run(judge, [10, 20, 40, 80, 160], limit=limit)
        assert judge.calls <= limit and len(result.rounds) >= 1
        assert all(len(table.rows) == 6 for table in result.rounds)
        if len(result.rounds) < 5:
            n = [10, 20, 40, 80, 160][len(result.rounds)]
            assert judge.calls + judge.cost(NAMED, n, 3) > limit
    judge = Fake(lambda s: s["at"], se=lambda n: 9.0)
    result = run(judge, [10, 20, 40], keep=0.5)
    assert [len(table.rows) for table in result.rounds] == [6, 3, 2]


def test_what_fresh_seeds_tell_to_be_worse_is_not_advised():
    """The race cannot tell a, b and c apart, and d is worse; on fresh seeds a is worse than the others."""

    class Fresh(Fake):
        def confirmed(self, samplers, n, seed):
            return Table([record(row, n, s["fresh"], 0.01) for row, s in samplers.items()])

    scores = {"a": (1, 5), "b": (1.1, 3.01), "c": (1.2, 3), "d": (9, 1)}
    entrants = {row: {"at": at, "fresh": fresh} for row, (at, fresh) in scores.items()}
    judge = Fresh(lambda s: s["at"], se=lambda n: 1.0)
    contest = SimpleNamespace(
        judge=lambda steps: judge, limit=lambda steps: 5000, entrants=lambda steps: entrants,
        cell=lambda row, sampler, steps: SimpleNamespace(plan=sampler), rounds=[10], metric="fid",
        seed=3, evaluator=SimpleNamespace(check_size=lambda n: None),
    )  # fmt: skip
    advice = _advice(contest, 5)
    assert (advice.best, advice.left, advice.plan) == ("b", ["b", "c"], entrants["b"])
    assert advice.confirmed.rows == ["a", "b", "c"]


# --- the family -----------------------------------------------------------------------------


@pytest.mark.parametrize("orders", [(1,), (2,), (3,), (1, 2), (3, 1)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_point_is_a_plan_of_as_many_calls(schedule, orders):
    rng = np.random.default_rng(0)
    for steps in (1, 2, 5, 8, 50, 999):
        family = Family(schedule, steps, orders)
        corners = rng.integers(0, 2, (6, family.size))
        for point in [*corners, *rng.random((6, family.size))]:
            sampler = family.sampler(point)
            plan = plan_of(sampler, schedule, steps)
            assert len(plan) == steps and plan.t[0] == 999
            assert plan.t[-1] <= 80 or steps == 1
            assert sampler == family.sampler(point.tolist())


def test_what_a_number_stands_for():
    family = Family(LINEAR, 10, (1, 2))
    assert family.names[:5] == [*(f"share at {level:g}" for level in family.levels), "switch"]
    low = family.sampler(np.zeros(family.size))
    high = family.sampler(np.ones(family.size))
    assert [share for _, share in low["knots"]] == [0] * 4
    assert [share for _, share in high["knots"]] == [1] * 4
    assert low["spacing"] == "karras+1+0.333+0" and high["spacing"] == "karras+100+3+80"
    assert low["eps_scale"] == [0, 1] and high["eps_scale"] == [0, 1.04]
    noisy = family.sampler([0] * (family.size - 2) + [1, 0])["eps_scale"]
    assert noisy[1] == 1 and noisy[0] * 999 == pytest.approx(0.04, rel=0.01)
    assert (low["switches"], high["switches"]) == ([family.levels[0]], [family.levels[-1]])


def test_where_no_signal_is_eps_has_no_scale():
    """As flow matching and schedules of zero terminal SNR begin."""
    family, usual = (Family(path, 5, (2,)) for path in (LINEAR.zero_terminal_snr(), LINEAR))
    assert not set(SCALES) & set(family.names) and set(SCALES) <= set(usual.names)
    assert "eps_scale" not in family.sampler([0.5] * family.size)


@pytest.mark.parametrize("spacing", ["karras", "log_snr", "even"])
def test_a_search_begins_on_the_grid_that_it_is_told(spacing):
    for steps in (5, 10, 25):
        grid = timesteps(LINEAR, steps, spacing)
        none, full, _ = Family(LINEAR, steps, (2,)).usual(grid)
        assert none[:4].tolist() == [0] * 4 and full[:4].tolist() == [1] * 4
        ours = plan_of(Family(LINEAR, steps, (2,)).sampler(none), steps=steps)
        far = np.abs(LINEAR.log_snr[ours.t.astype(int)] - LINEAR.log_snr[grid]).mean()
        assert far < {"karras": 0.15, "log_snr": 0.3, "even": 1.0}[spacing]
    exact = Family(LINEAR, 10, (2,)).usual(timesteps(LINEAR, 10, "karras+100+1"))[0]
    plan = plan_of(Family(LINEAR, 10, (2,)).sampler(exact), steps=10)
    assert np.array_equal(plan.x0, dpmpp(LINEAR, plan.t.astype(int)).x0)


# --- the search -----------------------------------------------------------------------------


def searched(
    score_error=0.01, limit=40_000, seed=1, orders=((2,), (1, 2)), known=(), steps=5, rivals=None
):
    judge = Fake(gaussian(score_error, steps), steps)
    families = [Family(LINEAR, steps, o) for o in orders]
    search = Search(families, judge, "fid", seed, [10, 50], 20, limit)
    search.start(4, timesteps(LINEAR, steps, "karras"), known)
    search.evolve()
    found = search.finish(50, rivals or {})
    for name, sampler in found.items():
        assert sampler == (search.sampler(name) if name in search.points else rivals[name])
    return search, next(iter(found)), judge


def test_a_search_finds_better_and_is_a_function_of_seed_and_scores():
    search, winner, judge = searched()
    start = min(
        r["scores"]["fid"]["value"] for name, r in search.records.items() if "start" in name
    )
    best = search.records[winner]["scores"]["fid"]["value"]
    assert "mean" in winner and best < 0.7 * start
    again, same, other = searched()
    assert (winner, judge.asked) == (same, other.asked)
    assert search.sampler(winner) == again.sampler(same)
    assert searched(seed=2)[0].sampler(winner) != search.sampler(winner)


def test_every_generation_has_noise_of_its_own_and_its_means_are_finalists():
    search, _, judge = searched(limit=6000, orders=((2,),))
    generations = [(n, seed) for names, n, seed in judge.asked if "generation" in names[0]]
    assert len(generations) == 5
    assert generations == [(20, 1 + 1000 * (i + 1)) for i in range(len(generations))]
    others = [(names, seed) for names, _, seed in judge.asked if "generation" not in names[0]]
    assert {seed for _, seed in others} == {1}
    assert others[-1][0] == search.finalists and len(search.finalists) == FINALISTS
    found = [name.partition(", ")[2] for name in search.finalists[-2:]]
    assert found == ["the last mean", "the mean of the later half"]


class Lucky(Fake):
    """Scores have luck in them, which differs by candidate and seed."""

    def table(self, samplers, n, seed):
        exact = gaussian(0.05, self.steps)

        def quality(sampler):
            rng = np.random.default_rng([seed, zlib.crc32(repr(sampler).encode())])
            return exact(sampler) + 0.01 * rng.standard_normal()

        self.quality = quality
        return super().table(samplers, n, seed)


def test_a_search_is_not_led_by_luck():
    """With luck as large as what is to be gained, what it finds is better than its start: by the exact score."""
    exact, better = gaussian(0.05), []
    for seed in range(6):
        search = Search([Family(LINEAR, 5, (2,))], Lucky(None), "fid", seed, [10, 50], 20, 60_000)
        search.start(4, timesteps(LINEAR, 5, "karras"))
        search.evolve()
        first, *_, last, mean = [exact(search.sampler(name)) for name in search.finalists]
        better.append(max(last, mean) < 0.7 * first)
    assert sum(better) >= 5, better


@pytest.mark.parametrize("limit", [1000, 1200, 5000, 12_345, 30_001])
def test_a_search_stays_within_its_limit(limit):
    """But for the first round, which is `least` of the budget, and the finalists, which are kept for."""
    search, winner, judge = searched(limit=limit)
    first, final = len(judge.asked[0][0]) * 50, FINALISTS * 40 * 5
    assert judge.calls <= max(limit, first) + final
    assert search.judge.asked[-1][1] == 50 and winner in judge.asked[-1][0]


def test_a_rival_wins_where_it_is_better():
    """One that is exactly right, among others; and what it leads, no candidate has."""
    search, winner, _ = searched(limit=2000)
    best = search.sampler(winner)
    assert winner in search.points
    more, _, _ = searched(0.3, limit=1500)
    again, name, _ = searched(0.3, limit=1500, rivals={"named, karras": best})
    scores = {row: r["scores"]["fid"]["value"] for row, r in again.records.items()}
    assert name == min(scores, key=scores.get)
    assert more.records.keys() | {"named, karras"} == again.records.keys()


@pytest.mark.parametrize("score_error", [0.0, 0.01, 0.02])
def test_a_search_finds_the_scale_that_takes_a_steep_score_back(score_error):
    """The closed form's score is too steep everywhere by one fraction: eps divided by 1 + it is exact."""
    search, winner, _ = searched(score_error, limit=200_000, orders=((2,),), steps=25)
    k, b = search.sampler(winner)["eps_scale"]
    middle = k * 300 + b
    assert middle == pytest.approx(1 + score_error, abs=0.006)


def test_the_winner_of_fewer_steps_is_a_candidate():
    search, winner, _ = searched()
    family, point = search.points[winner]
    more, _, judge = searched(known=[(family.orders, point)])
    kept = [
        name
        for name, (f, at) in more.points.items()
        if f.orders == family.orders and np.array_equal(at, point)
    ]
    assert kept and "start 4" in kept[0] and kept[0] in judge.asked[0][0]
