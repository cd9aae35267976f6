"""Scores against those of prdc, dgm-eval, FID_IS_infinity, torch-fidelity and EDM2 on the same features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_json

from eval import kernel, neighbours
from eval.frechet import Statistics, fid, fid_infinity, frechet_distance, statistics
from eval.inception import inception_score, is_infinity
from eval.infinity import Subsets, limit, subset_sizes
from eval.kernel import kid
from eval.manifold import prdc

ARRAYS = np.load(GOLDEN / "scores.npz")
RECORDED = golden_json("scores")
DGM = RECORDED["dgm_eval"]
INFINITY = RECORDED["infinity"]
NAMES = ("precision", "recall", "density", "coverage")


def pair(name: str, dtype: str = "float64", of: str = "features"):
    """Samples and reference of that name."""
    return (ARRAYS[f"{of}/{name}/{side}"].astype(dtype) for side in ("fake", "real"))


def enough(s: Statistics) -> Statistics:
    """The same Gaussian as if from many images: only the check of n stands in the way."""
    return replace(s, n=10**6)


def values(x, y, **options) -> dict[str, float]:
    return {name: score.value for name, score in prdc(x, y, **options)._asdict().items()}


# --- Precision, recall, density and coverage ----------------------------------------------


@pytest.fixture(params=["pairs", "products"])
def either_way(request, monkeypatch):
    """What is open in float32 decided pair by pair, or by products first; and in several tiles."""
    monkeypatch.setattr(neighbours, "DENSE", {"pairs": 0, "products": 10**9}[request.param])
    monkeypatch.setattr(neighbours, "TILE", 30_000)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", RECORDED["prdc"])
def test_prdc_golden(name, monkeypatch):
    """Exactly, with ties, duplicated rows, equal sets, outliers and a large mean."""
    monkeypatch.setattr("eval.manifold.PARTITIONS", 2)  # for speed: of errors only
    for case, recorded in RECORDED["prdc"][name].items():
        dtype, k = case.split("_k")
        x, y = pair(name, dtype)
        out, ties = (values(x, y, k=int(k), ties=ties) for ties in ("out", "in"))
        assert out == pytest.approx(recorded["prdc"], abs=1e-12)
        assert out == pytest.approx(recorded["lt"], abs=1e-12)
        assert ties == pytest.approx(recorded["le"], abs=1e-12)
        theirs = {key: recorded["torch_fidelity"][key] for key in ("precision", "recall")}
        ours = {key: ties[key] for key in theirs}
        if name.startswith("offset") and dtype == "float32":  # its float32 distances are off
            assert ours != pytest.approx(theirs, abs=0.01)
        else:
            assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", [name for name in RECORDED["edge"] if name != "n_equals_k_plus_1"])
def test_prdc_edge_cases(name):
    for case, recorded in RECORDED["edge"][name].items():
        dtype, k = case.split("_k")
        x, y = pair(name, dtype, "edge")
        out, ties = (values(x, y, k=int(k), ties=ties) for ties in ("out", "in"))
        if name == "nearly_equal_1e-9":  # rounding decides
            del out["density"]
        assert out == pytest.approx({key: recorded["prdc"][key] for key in out}, abs=1e-12)
        for key in ("precision", "recall"):
            assert ties[key] == pytest.approx(recorded["torch_fidelity_prc"][key], abs=1e-6)


@pytest.mark.parametrize("n", range(7, 140, 19))
def test_equal_sets_of_any_size_are_dense_and_covered(n):
    """Every radius is tied with a distance of the other set, which only equal sums can tell."""
    x = np.random.default_rng(n).normal(size=(n, 37)) + 5
    order = np.random.default_rng(0).permutation(n)
    for k in (1, 3, 5):
        assert values(x[order], x, k=k, ties="out") == dict.fromkeys(NAMES, 1.0)
        assert values(x[order], x, k=k)["density"] == pytest.approx((k + 1) / k, abs=1e-12)


@pytest.mark.parametrize("case", RECORDED["dgm_eval_prdc"])
def test_prdc_of_as_many_of_both_as_dgm_eval_draws(case):
    name, size = case.split("_seed5_reduced")
    recorded = RECORDED["dgm_eval_prdc"][case]
    got = values(*pair(name), k=5, ties="out", at_most=int(size), seed=5)
    assert got == pytest.approx({key: recorded[key] for key in NAMES}, abs=1e-12)


# --- Frechet distance ---------------------------------------------------------------------


@pytest.mark.parametrize("name", DGM)
def test_frechet_distance_golden(name):
    """Rank-deficient sets (wide) differ by the roots of what rounds to 0; means in float32 by more."""
    wide, offset = name.startswith("wide"), name.startswith("offset")
    stored = "float32" if ARRAYS[f"features/{name}/fake"].dtype == np.float32 else "float64"
    for dtype in {stored, "float32"}:
        x, y = pair(name, dtype)
        got = frechet_distance(enough(statistics(x)), enough(statistics(y)))
        exact = 3e-8 if wide else 1e-11
        rel = exact if dtype == "float64" else (2e-3 if offset else 2e-6)
        for form in ("fd", "fd_eff", "torch_fidelity_fid"):
            assert got == pytest.approx(DGM[name][dtype][form], rel=rel, abs=1e-10)
        rel = exact if dtype == "float64" else 1e-7
        if offset:  # EDM2's one pass cancels
            rel = 1e-9 if dtype == "float64" else 1e-5
        edm2 = RECORDED["edm2"][name][dtype]
        assert got == pytest.approx(edm2["fd"], rel=rel, abs=1e-10)
        assert np.trace(statistics(x).cov) == pytest.approx(edm2["sigma_trace_fake"], rel=1e-9)


# --- Kernel distance ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in DGM if ARRAYS[f"features/{n}/fake"].dtype == "f8"])
def test_kernel_distance_is_kid_on_other_features(name):
    """dgm-eval's KD has KID's estimator: its subsets through ours, and ours against torch-fidelity's."""
    x, y = pair(name)
    tiny = 1e-13 * kernel_size(x, y)
    for case, recorded in DGM[name]["kd"].items():
        rng, size = np.random.RandomState(int(case.split("_")[0][4:])), recorded["effective_subset"]
        drawn = []
        for _ in range(100 if case == "seed0_subset100" else 3):
            real = y[rng.choice(len(y), size, replace=False)]
            fake = x[rng.choice(len(x), size, replace=False)]
            drawn.append(kid(fake, real, subsets=1, subset_size=size, bootstrap=0).value)
        assert drawn[:3] == pytest.approx(recorded["first3"], rel=1e-10, abs=tiny)
        if len(drawn) == 100:
            assert np.mean(drawn) == pytest.approx(recorded["mean"], rel=1e-10, abs=tiny)
            assert np.std(drawn) == pytest.approx(recorded["std"], rel=1e-6, abs=tiny)
    recorded = DGM[name]["torch_fidelity_kid"]
    got = kid(y, x, subset_size=recorded["subset_size"], seed=recorded["rng_seed"], bootstrap=0)
    assert got.value == pytest.approx(recorded["mean"], rel=1e-10, abs=tiny)


def kernel_size(x, y) -> float:
    """The kernel's magnitude, beside which its sums round."""
    return float(((np.square(np.concatenate([x, y])).sum(1).max() / x.shape[1]) + 1) ** 3)


@pytest.mark.parametrize("name", DGM)
def test_kernel_sums_of_the_error_are_those_of_the_estimator(name):
    """What KID's error is computed from, over all samples, is the recorded unbiased estimator."""
    x, y = (torch.from_numpy(z) for z in pair(name))
    sums, of_y = (kernel._kernel_sums(a, y, np.array([len(a)])) for a in (x, y))
    n, m = len(x), len(y)
    within = sums.within.sum() / (n * (n - 1)) + of_y.within.sum() / (m * (m - 1))
    got = within - 2 * sums.cross.sum() / (n * m)
    recorded, tiny = DGM[name]["full_set_unbiased_mmd2"], 1e-13 * kernel_size(x, y)
    single = ARRAYS[f"features/{name}/fake"].dtype == np.float32
    assert got == pytest.approx(
        recorded, rel=1e-6 if single else 1e-9, abs=1e6 * tiny if single else tiny
    )


# --- Infinitely many samples --------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in INFINITY if case.startswith("points")])
def test_limits_of_the_recorded_lines(case):
    run = INFINITY[case]
    assert limit(run["fids"], run["sizes"]) == pytest.approx(run["fid_infinity"], abs=1e-12)
    assert limit(run["scores"], run["sizes"]) == pytest.approx(run["is_infinity"], rel=1e-12)


@pytest.mark.parametrize("case", [case for case in INFINITY if case.startswith("points")])
def test_recorded_scores_of_subsets(case):
    """Each size is the first so many of an order that is shuffled again, in place."""
    run = INFINITY[case]
    seed = int(case.partition("_seed")[2])
    reference = Statistics(ARRAYS["infinity/real_mu"], ARRAYS["infinity/real_sigma"], 10**6)
    fake, logits = (ARRAYS[f"infinity/{name}"].astype(np.float64) for name in ("fake", "logits"))
    for array, key, score_of in (
        (fake, "fids", lambda x: frechet_distance(statistics(x), reference)),
        (logits, "scores", lambda x: inception_score(x).value),
    ):
        rng, got = np.random.RandomState(seed), []
        for size in run["sizes"]:
            rng.shuffle(array)
            got.append(score_of(array[:size]))
        assert got == pytest.approx(run[key], rel=1e-6)  # the features are stored in float32


@pytest.mark.parametrize("name", [name for name in DGM if "fd_infinity" in DGM[name]])
def test_fd_infinity_of_dgm_eval(name):
    """An independent draw without replacement at each size, by one generator."""
    recorded = DGM[name]["fd_infinity"]
    x, y = pair(name)
    reference = enough(statistics(y))
    for seed, run in recorded["seeded"].items():
        rng = np.random.default_rng(int(seed))
        drawn = (rng.choice(x, size, replace=False) for size in recorded["sizes"])
        got = [frechet_distance(enough(statistics(z)), reference) for z in drawn]
        single = ARRAYS[f"features/{name}/fake"].dtype == np.float32
        assert got == pytest.approx(run["fd_at_sizes"], rel=1e-6 if single else 1e-10)
        assert limit(run["fd_at_sizes"], recorded["sizes"]) == pytest.approx(
            run["fd_infinity"], rel=1e-10
        )


def test_our_limits_are_the_exact_ones_and_hardly_move_with_the_seed():
    reference = Statistics(ARRAYS["infinity/real_mu"], ARRAYS["infinity/real_sigma"], 10**6)
    fake, logits = ARRAYS["infinity/fake"], ARRAYS["infinity/logits"]
    whole = fid(fake, reference, bootstrap=20)
    recorded = INFINITY["over_200_shuffle_seeds_points15"]
    fids = [fid_infinity(fake, reference, whole, subsets=Subsets(seed=s)) for s in range(8)]
    scores = [is_infinity(logits, subsets=Subsets(seed=s)) for s in range(8)]
    for found, mean, sd, wild in (
        (fids, recorded["fid_mean"], recorded["fid_sd"], 0.33),
        (scores, recorded["is_mean"], recorded["is_sd"], 0.15),
    ):
        got = np.array([score.value for score in found])
        assert got == pytest.approx(mean, abs=sd)
        assert got.std(ddof=1) < wild * sd  # one draw of each size moves by sd
        noise = np.sqrt(np.mean([(score.spread.first[-8:] ** 2).sum() for score in found]))
        assert 0.6 < noise / got.std(ddof=1) < 1.7
    exact = INFINITY["exact_limit_fid_for_the_law_of_fake"]
    assert np.mean([score.value for score in fids]) == pytest.approx(exact, rel=0.02)
    assert whole.value > 1.05 * exact
    assert subset_sizes(3000, 24)[0] == 300 and subset_sizes(50_000, 2048)[0] == 5000


# --- Inception score ----------------------------------------------------------------------


def test_inception_score_golden():
    logits = ARRAYS["infinity/logits"].astype(np.float64)
    whole = inception_score(logits).value
    assert whole == pytest.approx(INFINITY["plain_is_all_one_split"], rel=1e-7)
    tenths = inception_score(logits, splits=10, shuffle_seed=2020).value
    assert tenths == pytest.approx(INFINITY["is_dgm_eval_10_splits"][0], rel=1e-7)
    # dgm-eval drops the remainder
    sevenths = inception_score(logits, splits=7, shuffle_seed=2020).value
    recorded = INFINITY["is_torch_fidelity_7_splits"]["inception_score_mean"]
    assert sevenths == pytest.approx(recorded, rel=1e-7)
