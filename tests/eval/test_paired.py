"""Errors of differences against their recorded truth: samplers that share their noise, or do not.

`far`: the distance is well above its noise; `near`: close to it.  Two samplers of one law (null) or
of two (effect) map the same noise (shared) or each its own (indep).  True deviations are those of
2,000 Monte Carlo replications; of recall, coverage and kid of 500, and not recorded near.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import GOLDEN, golden_json

from eval import manifold
from eval.frechet import Statistics, fid, fid_infinity, frechet_distance, statistics
from eval.inception import inception_score, is_infinity
from eval.kernel import kid
from eval.manifold import prdc
from eval.score import Score, difference_se, paired

ARRAYS = np.load(GOLDEN / "scores.npz")
RECORDED = golden_json("scores")["paired"]
DRAWS = 12
Array = np.ndarray


class Law:
    """What the two samplers make of noise, and what their samples are scored against."""

    def __init__(self, regime: str):
        self.config = RECORDED[regime]["config"]
        prefix = f"paired/{regime}/"
        stored = {n.removeprefix(prefix): ARRAYS[n] for n in ARRAYS if n.startswith(prefix)}
        self.weights = stored
        self.reference = Statistics(stored["mu_ref"], stored["sigma_ref"], self.config["Nref"])
        self.real = stored["ref"].astype(np.float64)

    def base(self, z: Array) -> Array:
        w, c = self.weights, self.config
        f = c["T"] * np.tanh(z @ w["W1"] + w["b1"]) @ w["W2"] + z @ w["W3"]
        return c["gen_scale"] * f + c["gen_shift"] * np.sqrt(c["D"]) * w["direction2"]

    def draws(self, seed: int) -> Iterator[dict[str, Array]]:
        """Samples of a, and of b in the four cases."""
        c, rng = self.config, np.random.default_rng(seed)
        noise, features = (c["N"], c["Z"]), (c["N"], c["D"])
        move = c["shift"] * np.sqrt(c["D"]) * self.weights["direction"]
        while True:
            z, other = rng.standard_normal(noise), rng.standard_normal(noise)
            eps_a, eps_b = rng.standard_normal(features), rng.standard_normal(features)
            null, effect = c["e_a"] * eps_b, move + c["e_b"] * eps_b
            yield {
                "a": self.base(z) + c["e_a"] * eps_a,
                "null_shared": self.base(z) + null,
                "null_indep": self.base(other) + null,
                "effect_shared": c["scale"] * self.base(z) + effect,
                "effect_indep": c["scale"] * self.base(other) + effect,
            }

    def scores(self, x: Array, draws: str | None, bootstrap: int = 60) -> dict[str, Score]:
        kernel = {"subsets": 1, "subset_size": len(x), "bootstrap": bootstrap}
        scores = {
            "fid": fid(x, self.reference, bootstrap=bootstrap),
            "is": inception_score(x.astype(np.float64) @ self.weights["head"]),
            **prdc(x, self.real, k=self.config["k"], ties="out")._asdict(),
        }
        if self.config["regime"] == "far":
            scores["kid"] = kid(x, self.real.astype(x.dtype), **kernel)
        return {name: named(score, draws) for name, score in scores.items()}


def named(score: Score, draws: str | None) -> Score:
    """The score as if read from a record that says which noise its samples are from."""
    return (
        score if score.spread is None else score._replace(spread=replace(score.spread, draws=draws))
    )


@cache
def drawn(regime: str) -> list[dict[str, dict[str, Score]]]:
    """Scores of a and of b in every case, some draws of them."""
    law = Law(regime)
    sets = law.draws(seed=20)
    return [
        {
            case: law.scores(x, "other" if "indep" in case else "same")
            for case, x in next(sets).items()
        }
        for _ in range(DRAWS)
    ]


@pytest.fixture
def few_partitions(request, monkeypatch):
    """Recall and coverage near have no truth, and their errors take longest."""
    if request.node.callspec.params["regime"] == "near":
        monkeypatch.setattr(manifold, "PARTITIONS", 2)


def ratios(
    regime: str, width: Callable[[Score, Score], float]
) -> dict[tuple[str, str], list[float]]:
    """(case, score) -> widths over the true deviation of the difference."""
    found = defaultdict(list)
    for scores in drawn(regime):
        for case, truth in RECORDED[regime]["difference"].items():
            for name, recorded in truth.items():
                a, b = scores["a"][name], scores[case][name]
                found[case, name].append(width(a, b) / recorded["sd"])
    return found


@pytest.mark.usefixtures("few_partitions")
@pytest.mark.parametrize("regime", ["far", "near"])
def test_errors_of_differences_are_the_true_ones(regime):
    means = {key: np.mean(values) for key, values in ratios(regime, difference_se).items()}
    assert len(means) == {"far": 28, "near": 16}[regime]
    wrong = {
        key: ratio
        for key, ratio in means.items()
        if abs(ratio - 1) > (0.2 if key[1] == "recall" else 0.1)
    }
    assert not wrong
    assert all(
        paired(scores["a"][name], scores[case][name]) == ("shared" in case)
        for scores in drawn(regime)
        for case, name in means
    )


@pytest.mark.usefixtures("few_partitions")
@pytest.mark.parametrize("regime", ["far", "near"])
def test_pairs_that_share_nothing_do_not_narrow(regime):
    """Paired by mistake, an error is as wide as before; unpaired by mistake, several times too wide."""

    def as_if_paired(a: Score, b: Score) -> float:
        return difference_se(named(a, "same"), named(b, "same"))

    def as_if_not(a: Score, b: Score) -> float:
        return difference_se(named(a, "one"), named(b, "two"))

    for (case, name), found in ratios(regime, as_if_paired).items():
        if "indep" in case:
            assert np.mean(found) > (0.7 if name == "recall" else 0.85), (case, name)
    wide = ratios(regime, as_if_not)
    assert np.mean(wide["null_shared", "fid"]) > 5
    assert np.mean(wide["null_shared", "density"]) > 2
    assert np.mean(wide["null_shared", "is"]) > 2.5


@pytest.mark.parametrize("regime", ["far", "near"])
def test_differences_are_covered(regime):
    """Of all cases together, intervals of 95% hold the true mean about as often."""
    hits = []
    for scores in drawn(regime):
        for case, truth in RECORDED[regime]["difference"].items():
            for name, recorded in truth.items():
                a, b = scores["a"][name], scores[case][name]
                off = abs(a.value - b.value - recorded["mean"])
                hits.append(off < 1.96 * difference_se(a, b))
    assert 0.9 < np.mean(hits) < 0.99


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("regime", ["far", "near"])
def test_scores_of_one_draw(regime, dtype, monkeypatch):
    """Counts exactly; of the first replication, in the cases' own names."""
    monkeypatch.setattr(manifold, "PARTITIONS", 2)
    law = Law(regime)
    recorded = RECORDED[regime]["one_draw" + ("_float32" if dtype == "float32" else "")]
    for case, x in next(law.draws(law.config["seed"] + 1)).items():
        got = law.scores(x.astype(dtype), None, bootstrap=0)
        for name, value in recorded[case if case == "a" else f"b_{case}"].items():
            rel = 1e-12 if name in manifold.Prdc._fields else 1e-9
            if (
                name == "kid" and dtype == "float32"
            ):  # torch-fidelity computes in the features' type
                rel = 1e-5
            assert got[name].value == pytest.approx(value, rel=rel), (case, name)


@pytest.mark.parametrize("regime", ["far", "near"])
def test_limits_have_no_bias_and_their_errors_are_true(regime):
    """FID-infinity and IS-infinity of samples that share their noise: what a shuffle adds, they share."""
    law, found, everything = Law(regime), defaultdict(list), []
    sets = law.draws(seed=3)
    for _ in range(24):
        draw = next(sets)
        everything.append(draw["a"])
        for case in ("a", "null_shared"):
            x = draw[case]
            whole = fid(x, law.reference, bootstrap=40)
            found["fid", case].append(named(whole, "same"))
            limit = fid_infinity(x, law.reference, whole)
            found["fid_infinity", case].append(named(limit, "same"))
            found["is_infinity", case].append(named(is_infinity(x @ law.weights["head"]), "same"))
    many = np.concatenate(everything)
    exact = {
        "fid_infinity": frechet_distance(statistics(many), law.reference),
        "is_infinity": inception_score(many @ law.weights["head"]).value,
    }
    for name, value in exact.items():
        a, b = found[name, "a"], found[name, "null_shared"]
        values = np.array([score.value for score in a])
        assert abs(values.mean() - value) < 3 * values.std(ddof=1) / 24**0.5
        typical = np.sqrt(np.mean([score.se**2 for score in a]))
        assert 0.7 < typical / values.std(ddof=1) < 1.4
        differences = np.array([one.value - other.value for one, other in zip(a, b, strict=True)])
        typical = np.mean([difference_se(*both) for both in zip(a, b, strict=True)])
        assert 0.7 < typical / differences.std(ddof=1) < 1.4
    plain = np.mean([score.value for score in found["fid", "a"]])
    limit = np.mean([score.value for score in found["fid_infinity", "a"]])
    assert plain - limit > 8 * abs(limit - exact["fid_infinity"])  # the bias is gone
