"""Scores against recorded numbers, other packages and brute force; errors against the truth."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_json
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from eval import frechet, kernel, score, scoring
from eval.agreement import label_agreement
from eval.extractors import Extracted
from eval.frechet import Statistics, diagonal_fid, fid, fid_infinity, frechet_distance, statistics
from eval.inception import inception_score, is_infinity
from eval.infinity import Subsets, extrapolated, subset_sizes
from eval.kernel import kid
from eval.manifold import Prdc, prdc
from eval.score import Score, proportion, random_groups, resamples
from eval.scoring import METRICS, Options, check_size, evaluate

TF = np.load(GOLDEN / "eval_metrics.npz")  # torch-fidelity's functions
ADM = np.load(GOLDEN / "evaluator.npz")  # guided-diffusion's evaluator
TF_CASES = {case["id"]: case for case in golden_json("eval_metrics")["cases"]}
ADM_JSON = golden_json("evaluator")


def tf_cases(metric: str):
    return [pytest.param(c, id=i) for i, c in TF_CASES.items() if c["metric"] == metric]


def gaussian(n: int, size: int = 8, seed: int = 0, shift: float = 0.0, scale: float = 1.0):
    """Correlated Gaussian features [n, size], the same covariance for every seed."""
    mixing = np.random.default_rng(99).normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
    return scale * np.random.default_rng(seed).normal(size=(n, size)) @ mixing + shift


def refused(message: str, compute, *args, **options) -> None:
    """A ValueError of that message."""
    with pytest.raises(ValueError, match=message):
        compute(*args, **options)


def enough(s: Statistics) -> Statistics:
    """The same Gaussian as if from many images: only the check of n stands in the way."""
    return replace(s, n=10**6)


# --- Frechet distance -----------------------------------------------------------------


@pytest.mark.parametrize("case", tf_cases("fid"))
def test_fid_golden(case):
    x, y = TF[case["x"]], TF[case["y"]]
    got = frechet_distance(enough(statistics(x)), enough(statistics(y)))
    if case["id"] == "fid_d":  # the same set in another order
        assert got == pytest.approx(0, abs=1e-9)
        return
    singular = case["id"] == "fid_c"  # the recorded float64 values differ by 1e-6 themselves
    assert got == pytest.approx(case["independent_float64_check"], rel=1e-7 if singular else 1e-9)
    assert got == pytest.approx(case["torch_fidelity_float64_input"], rel=1e-6)
    assert got == pytest.approx(case["torch_fidelity_float32_input"], rel=1e-4)
    assert got == pytest.approx(case["clean_fid_fid_from_feats"], rel=1e-4)


def test_fid_golden_closed_form():
    case = TF_CASES["fid_e"]
    a, b = (Statistics(TF[case[f"mu{i}"]], TF[case[f"sigma{i}"]], 1000) for i in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(case["closed_form"], rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(case["closed_form"], rel=1e-12)


@pytest.mark.parametrize("name", ["main", "overflow", "rankdef"])
def test_golden_guided_diffusion(name):
    case = ADM_JSON["cases"][name]
    x, y = (ADM[f"{name}/{side}"] for side in ("samples", "ref"))
    got = frechet_distance(enough(statistics(x)), enough(statistics(y)))
    assert got == pytest.approx(case["fid"], rel=1e-5)
    assert got == pytest.approx(case["fid_float64_means_and_eigenvalues"], rel=1e-6)
    assert got != pytest.approx(case["fid_if_covariance_divided_by_N_instead_of_N-1"], rel=1e-4)
    both = [score.value for score in prdc(x, y)[:2]]
    assert both == pytest.approx(case["precision_recall_exact_float64"], abs=1e-12)
    # the evaluator's own distances are in half precision: up to 5 points fall otherwise
    assert both[0] == pytest.approx(case["precision"], abs=5 / len(x))
    assert both[1] == pytest.approx(case["recall"], abs=5 / len(y))


def test_fid_singular_covariances_use_the_fallback():
    """Dead and duplicated features: exactly singular covariances of either or both sides."""
    x, y = gaussian(300, 12, 1, shift=1.0), gaussian(200, 12, 2)
    x[:, 3] = 0.5
    y[:, 7] = y[:, 8]
    y[:, 3] = 0.0
    a, b = statistics(x), statistics(y)
    assert np.linalg.matrix_rank(b.cov) == 10
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(b.cov)
    root = frechet._root(torch.from_numpy(b.cov))
    np.testing.assert_allclose(root @ root.T, b.cov, atol=1e-12)
    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)), verbose=False
    )["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(theirs, rel=1e-6)


def test_statistics_of_counts_are_those_of_the_resampled_rows(monkeypatch):
    monkeypatch.setattr(score, "BLOCK", 37)  # several blocks, a short last one
    x = (gaussian(200) + 1000).astype(np.float32)  # a large mean: cancellation would show
    rows = np.random.default_rng(3).integers(200, size=200)
    got = statistics(x, np.bincount(rows, minlength=200))
    resampled = x[rows].astype(np.float64)
    assert got.n == 200 and got.cov.dtype == np.float64
    np.testing.assert_allclose(got.mean, resampled.mean(0), rtol=1e-13)
    np.testing.assert_allclose(got.cov, np.cov(resampled, rowvar=False), rtol=1e-9, atol=1e-12)


def test_fid_se_is_influences_less_what_resamples_add():
    """Weights against resampled rows, derivatives against differences; another bootstrap's record."""
    case = TF_CASES["fidinf"]
    x = TF[case["x"]].astype(np.float64)
    reference = Statistics(TF[case["ref_mu"]], TF[case["ref_sigma"]], 10**6)
    got = fid(x, reference, bootstrap=200)
    assert got.value == pytest.approx(case["fid_full_sample"], rel=1e-9)
    assert got.se == pytest.approx(case["bootstrap_std_ddof1"], rel=0.3)
    n, step, some = len(x), 1e-4, np.arange(0, len(x), 97)
    b = frechet._on("cpu", reference)
    weighted = (np.ones(n) + step * (np.arange(n) == i) for i in some)
    moments = (frechet._moments(torch.from_numpy(x), w) for w in weighted)
    raised = np.array([frechet._distance(m, b, frechet._root(b.cov)) for m in moments])
    derivatives = (raised - got.value) / step
    wanted = got.spread.first[some] if n <= 1000 else fid_influences(x, reference)[some]
    np.testing.assert_allclose(derivatives, wanted, rtol=2e-2, atol=2e-3 * np.abs(wanted).max())
    rng = np.random.default_rng(0)  # the same draws as fid(seed=0)
    rows = [rng.integers(n, size=n) for _ in range(200)]
    brute = [frechet_distance(statistics(x[r]), reference) for r in rows]
    first = fid_influences(x, reference)
    second = np.array(brute) - [first[r].sum() for r in rows]
    variance = first @ first - second.var(ddof=1)
    assert got.se == pytest.approx(np.sqrt(variance), rel=1e-6)


def fid_influences(x, reference):
    """Of every sample, however many: a score keeps sums of them."""
    b = frechet._on("cpu", reference)
    x = torch.from_numpy(x)
    derivatives = frechet._influence(x, frechet._moments(x), b, frechet._root(b.cov))
    return score.influences(derivatives)


@pytest.mark.parametrize(("shift", "scale"), [(0.4, 1.0), (0.0, 1.3)])
def test_fid_se_is_the_true_spread(shift, scale):
    reference = statistics(gaussian(20000, seed=1))
    draws = (gaussian(400, 8, s, shift, scale) for s in range(2, 82))
    assert_se_is_the_spread([fid(x, reference, bootstrap=40) for x in draws])


def assert_se_is_the_spread(draws: list[Score], factor: float = 1.3) -> None:
    """The mean variance matches how the value varies between independent sample sets."""
    spread = np.std([d.value for d in draws], ddof=1)
    typical = np.sqrt(np.mean([d.se**2 for d in draws]))
    assert spread / factor < typical < spread * factor, (spread, typical)


@pytest.mark.parametrize("shift", [0.3, 1.0])
def test_delta_se_is_the_true_spread_and_the_bootstraps(shift):
    reference = statistics(gaussian(20_000, seed=1))
    draws = (gaussian(800, seed=s, shift=shift) for s in range(100, 400))
    assert_se_is_the_spread([fid(x, reference, se="delta") for x in draws], factor=1.12)
    x = gaussian(800, seed=5, shift=shift)
    a, b = fid(x, reference, se="delta"), fid(x, reference, bootstrap=300)
    assert a.value == b.value
    assert a.se == pytest.approx(b.se, rel=0.15)


def test_delta_se_with_strata_and_singular_covariances():
    labels = np.arange(900) % 3
    x = gaussian(900, seed=2) + 2.0 * labels[:, None]
    y = statistics(gaussian(5000, seed=1, shift=1.0))
    free, fixed = fid(x, y, se="delta"), fid(x, y, se="delta", strata=labels)
    assert fixed.se < 0.7 * free.se  # class counts explain most of the spread here
    boot = fid(x, y, bootstrap=300, strata=labels)
    assert fixed.se == pytest.approx(boot.se, rel=0.15)
    dead = x.copy()
    dead[:, 3] = 1.0
    got = fid(dead, y, se="delta")
    assert got.se == pytest.approx(fid(dead, y, bootstrap=300).se, rel=0.2)
    few = fid(x[:6], y, se="delta", allow_few=True)
    assert np.isfinite(few.value) and np.isfinite(few.se)
    refused("unknown fid_se 'jackknife'", fid, x, y, se="jackknife")


@pytest.mark.parametrize("n", [2, 6, 40, 48])
@pytest.mark.parametrize("real", [10, 500])
def test_few_samples_take_a_short_way_to_the_same_score(monkeypatch, n, real):
    """48 features of 2 to 48 samples, and references with and without full rank."""
    rng = np.random.default_rng(0)
    y = statistics(rng.normal(size=(real, 48)))
    x = rng.normal(0.3, 1.2, size=(n, 48)).astype(np.float32)
    short = fid(x, y, se="delta", allow_few=True)
    monkeypatch.setattr("eval.frechet._spectrum_of_few", lambda *_: None)
    long = fid(x, y, se="delta", allow_few=True)
    np.testing.assert_allclose(short[:2], long[:2], rtol=1e-6)
    np.testing.assert_allclose(short.spread.first, long.spread.first, rtol=1e-6, atol=1e-6)


def test_diagonal_fid_is_fid_where_the_principal_components_are_the_same():
    real = statistics(gaussian(500, seed=1))
    _, basis = np.linalg.eigh(real.cov)
    x = np.random.default_rng(2).normal(size=(400, 8))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)  # exactly white
    x = (x * np.geomspace(0.2, 3, 8)) @ basis.T + real.mean + 0.3
    expected = frechet_distance(statistics(x), real)
    assert diagonal_fid(x, real).value == pytest.approx(expected, rel=1e-10)
    assert diagonal_fid(x @ np.diag([1, 1, 1, 1, 1, 1, 1, 0]), real).value > 0  # no variance at all


@pytest.mark.parametrize("strata", [None, np.repeat(np.arange(4), 100)])
def test_diagonal_fid_se_is_the_true_spread(strata):
    real = statistics(gaussian(5000, seed=1))
    means = 0 if strata is None else 2.0 * strata[:, None]
    draws = (gaussian(400, seed=s, scale=1.3) + means for s in range(200))
    assert_se_is_the_spread([diagonal_fid(x, real, strata) for x in draws], factor=1.15)


# --- Inception score ------------------------------------------------------------------


@pytest.mark.parametrize("case", tf_cases("isc"))
def test_inception_score_golden(case, monkeypatch):
    monkeypatch.setattr(score, "BLOCK", 64)  # several blocks a split, a short last one
    seed = case["rng_seed"] if case["shuffle"] else None
    options = {"splits": case["splits"], "shuffle_seed": seed}
    got = inception_score(TF[case["logits"]], **options)
    assert got.value == pytest.approx(case["mean"], abs=1e-9)


@pytest.mark.parametrize("chunk_size", [5000, 500, 300])  # 300: a short last chunk of 100
def test_inception_score_golden_guided_diffusion(chunk_size):
    recorded = ADM_JSON["inception_score"]
    logits = np.log(ADM["is/softmax"])
    got = inception_score(logits, chunk_size=chunk_size).value
    assert got == pytest.approx(recorded["float64"][str(chunk_size)], rel=1e-6)
    assert got == pytest.approx(recorded[f"split_size_{chunk_size}"], rel=1e-5)


def test_inception_score_survives_impossible_classes():
    """A class of probability exactly 0 contributes 0, not NaN."""
    logits = np.full((4, 3), -2000.0)
    logits[:2, 0] = logits[2:, 1] = 2000.0
    assert inception_score(logits).value == pytest.approx(2.0)


@pytest.mark.parametrize("options", [{}, {"splits": 3, "shuffle_seed": 5}])
def test_inception_score_se_is_that_of_a_bootstrap(options):
    logits = 2 * np.random.default_rng(0).normal(size=(300, 10))
    rng = np.random.default_rng(0)
    draws = (logits[rng.integers(300, size=300)] for _ in range(400))
    brute = np.std([inception_score(drawn, **options).value for drawn in draws], ddof=1)
    assert inception_score(logits, **options).se == pytest.approx(brute, rel=0.1)


@pytest.mark.parametrize("options", [{}, {"splits": 4}, {"chunk_size": 150}])
def test_inception_score_se_is_the_true_spread(options):
    centres = 3 * np.random.default_rng(7).normal(size=(10, 10))

    def draw(seed):
        rng = np.random.default_rng(seed)
        logits = centres[rng.integers(10, size=600)] + rng.normal(size=(600, 10))
        return inception_score(logits, **options)

    assert_se_is_the_spread([draw(s) for s in range(120)])


# --- Kernel distance ------------------------------------------------------------------


@pytest.mark.parametrize("case", tf_cases("kid"))
def test_kid_golden(case):
    defaults = inspect.signature(kid).parameters
    for name in ("subsets", "subset_size"):
        assert defaults[name].default == DEFAULTS[f"kid_{name}"]
    keys = {"subsets": "kid_subsets", "subset_size": "kid_subset_size", "seed": "rng_seed"}
    options = {"bootstrap": 0, **{name: case["params"][key] for name, key in keys.items()}}
    x, y = TF[case["x"]], TF[case["y"]]
    got32 = kid(x, y, **options).value
    got64 = kid(x.astype(np.float64), y.astype(np.float64), **options).value
    assert got32 == pytest.approx(case["torch_fidelity_float32_input"]["mean"], abs=1e-5)
    assert got64 == pytest.approx(case["independent_float64_check"]["mean"], abs=1e-9)


@pytest.mark.parametrize("groups", [10, 43])
def test_kid_spread_is_that_of_brute_force(groups, monkeypatch):
    """The unbiased estimator with weights, those of groups of unequal sizes or of one sample."""
    x, y = gaussian(43, 5, 1, shift=0.3), gaussian(33, 5, 2)
    monkeypatch.setattr(kernel, "KID_GROUPS", groups)
    monkeypatch.setattr(score, "BLOCK", 15)  # several blocks, a short last one
    got = kernel._kid_spread(torch.from_numpy(x), torch.from_numpy(y), 6, 4, None)
    rng = np.random.default_rng(4)
    parts = np.array_split(rng.permutation(43), groups)
    draws = rng.multinomial(groups, np.full(groups, 1 / groups), size=6)

    def estimate(w):
        pairs = np.outer(w, w) * (1 - np.eye(43))  # a sample drawn twice is no pair
        within = ((x @ x.T / 5 + 1) ** 3 * pairs).sum() / pairs.sum()
        return within - 2 * (w @ ((x @ y.T / 5 + 1) ** 3).mean(1) / w.sum())

    step = 1e-6 * np.eye(43)
    slopes = np.array([estimate(1 + d) - estimate(1 - d) for d in step]) / 2e-6
    np.testing.assert_allclose(got.first, slopes * np.sqrt(43 / 42), rtol=0.03, atol=1e-3)
    for value, draw in zip(got.second, draws, strict=True):
        w = np.empty(43)
        w[np.concatenate(parts)] = np.repeat(draw, [len(part) for part in parts])
        assert value == pytest.approx(estimate(w) - (w - 1) @ got.first, rel=1e-9)


@pytest.mark.parametrize("shift", [0.5, 0.15])
def test_kid_se_is_the_true_spread(shift, monkeypatch):
    """With a large reference, which stays fixed, and subsets of the sample's own size."""
    monkeypatch.setattr(kernel, "KID_GROUPS", 25)  # for speed
    y = gaussian(1000, seed=1)
    subsets = {"subsets": 20, "subset_size": 100}
    draws = ((gaussian(100, seed=s, shift=shift), s) for s in range(2, 62))
    assert_se_is_the_spread([kid(x, y, seed=s, **subsets) for x, s in draws])


def test_kid_spread_does_not_depend_on_the_order_of_the_samples():
    """Samples sorted by class: groups of neighbours would exaggerate the error."""
    classes = 3 * np.random.default_rng(5).normal(size=(4, 6))
    x = np.repeat(classes, 100, axis=0) + gaussian(400, 6, 1)
    y = np.repeat(classes, 100, axis=0) + gaussian(400, 6, 2, shift=0.3)
    shuffled = np.random.default_rng(6).permutation(400)
    orders, y = (torch.from_numpy(a) for a in (x, x[shuffled])), torch.from_numpy(y)
    by_class, mixed = (kernel._kid_spread(a, y, 200, 0, None) for a in orders)
    assert by_class.first @ by_class.first == pytest.approx(mixed.first @ mixed.first)
    assert by_class.second.std() == pytest.approx(mixed.second.std(), rel=0.3)


# --- Precision and recall -------------------------------------------------------------


def brute_precision_recall(x, y, k):
    def distances(a, b):
        return ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)

    def inside(points, centres):
        return (distances(points, centres) <= np.sort(distances(centres, centres))[:, k]).any(1)

    return inside(x, y).mean(), inside(y, x).mean()


@pytest.mark.parametrize("case", tf_cases("prc"))
def test_precision_recall_golden(case):
    x, y = TF[case["generated"]], TF[case["real"]]
    precision, recall, *_ = prdc(x, y, k=case["neighborhood"])
    assert precision.value == pytest.approx(case["exact"]["precision"], abs=1e-12)
    assert recall.value == pytest.approx(case["exact"]["recall"], abs=1e-12)


def test_se_of_all_four_are_the_true_spread():
    y = gaussian(500, 6, seed=1)
    draws = [prdc(gaussian(400, 6, seed=s, shift=0.3), y) for s in range(2, 62)]
    for scores in zip(*draws, strict=True):
        assert_se_is_the_spread(list(scores))


def test_density_of_strata_leaves_their_sizes_fixed(monkeypatch):
    """Balanced classes of unlike density: what varies with their counts is no part of the error."""
    monkeypatch.setattr("eval.manifold.PARTITIONS", 2)  # for speed: of other errors
    y = gaussian(300, 4, seed=1)
    labels = np.arange(400) % 2
    draws = [gaussian(400, 4, seed=s) + 2 * labels[:, None] for s in range(2, 62)]
    assert_se_is_the_spread([prdc(x, y, strata=labels).density for x in draws], factor=1.2)
    x = draws[0]
    assert prdc(x, y).density.se > 1.2 * prdc(x, y, strata=labels).density.se


@pytest.mark.parametrize("n", [4, 5, 11])
def test_prdc_of_very_few_samples_is_finite(n):
    for found in prdc(gaussian(n, seed=1), gaussian(50, seed=2)):
        assert 0 <= found.value <= 2 and np.isfinite(found.se)


# --- Infinitely many samples ------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 20])
def test_limits_of_a_trial_run_are_finite(n):
    x, reference = gaussian(n, seed=1), statistics(gaussian(500, seed=2))
    whole = fid(x, reference, allow_few=True, se="delta")
    found = fid_infinity(x, reference, whole, allow_few=True)
    assert np.isfinite(found[:2]).all()
    assert np.isfinite(is_infinity(x, allow_few=True)[:2]).all()
    unknown = fid_infinity(x, reference, whole._replace(spread=None), allow_few=True)
    assert unknown.value == found.value and np.isnan(unknown.se)


def test_subsets_of_strata_have_as_many_of_each():
    """Of balanced classes any subset is balanced: FID of unbalanced ones is another score."""
    labels = np.arange(600) % 3
    x = gaussian(600, 4, seed=1) + 3.0 * labels[:, None]
    drawn = []

    def noted(rows):
        drawn.append(np.bincount(labels[rows], minlength=3))
        return 1.0

    extrapolated(
        Score(1.0, 0.1), noted, np.zeros(600), subset_sizes(600, 4), Subsets(strata=labels)
    )
    assert len(drawn) == 8 * 14 and max(np.ptp(counts) for counts in drawn) <= 1
    reference = statistics(x[:300])
    options = Options(infinity_shuffles=3, seed=5, bootstrap=0)
    material = Extracted(x, None), SimpleNamespace(statistics=reference, features=x[:300])
    got = evaluate(*material, metrics=("fid_infinity",), strata=labels, options=options)
    whole = fid(x, reference, strata=labels, se="delta")
    wanted = fid_infinity(x, reference, whole, subsets=Subsets(3, 5, labels))
    assert got["fid_infinity"].value == pytest.approx(wanted.value, rel=1e-12)


# --- Label agreement ------------------------------------------------------------------


def test_label_agreement():
    logits = np.eye(4)[[0, 1, 2, 3, 0, 0]]
    got = label_agreement(logits, np.array([0, 1, 2, 3, 1, 0]))
    assert got.value == pytest.approx(5 / 6)
    assert got.se == pytest.approx(np.sqrt(0.7 * 0.3 / 10))  # (5 + 2) of (6 + 4)
    # A share of all is not certain, and large n is binomial.
    assert label_agreement(np.eye(2)[[0] * 10], np.zeros(10, dtype=np.int64)).se > 0.05
    hits = np.arange(10000) % 10 == 0
    assert proportion(hits).se == pytest.approx(np.sqrt(0.1 * 0.9 / 10000), rel=1e-3)


# --- All of them ----------------------------------------------------------------------


@pytest.fixture
def pair():
    """(samples, reference) as extracted features and logits."""
    x, y = (gaussian(150, seed=s).astype(np.float32) for s in (1, 2))
    logits = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    return Extracted(x, logits), SimpleNamespace(statistics=statistics(y), features=y)


def test_evaluate_computes_what_is_asked_for(pair, monkeypatch):
    watched = Mock(wraps=prdc)
    monkeypatch.setattr(scoring, "prdc", watched)
    extracted, reference = pair
    labels = extracted.logits.argmax(1)
    labels[:30] = (labels[:30] + 1) % 5
    options = {"bootstrap": 20, "seed": 3}
    stated = Options(kid_subset_size=100, **options)
    got = evaluate(extracted, reference, labels, options=stated)
    assert watched.call_count == 1  # for both
    x, y = extracted.features, reference.features
    precision, recall, *_ = prdc(x, y)
    assert [(name, value[:2]) for name, value in got.items()] == [
        ("is", inception_score(extracted.logits)[:2]),
        ("fid", fid(x, reference.statistics, **options)[:2]),
        ("kid", kid(x, y, subset_size=100, **options)[:2]),
        ("precision", precision[:2]),
        ("recall", recall[:2]),
        ("label_agreement", label_agreement(extracted.logits, labels)[:2]),
    ]
    assert precision != recall and got["label_agreement"].value == pytest.approx(0.8)
    stated = Options(k=5, is_chunk_size=40, is_shuffle_seed=4, fid_se="delta", bootstrap=20)
    asked, strata = ("recall", "is", "fid", "diagonal_fid"), np.arange(150) % 3
    got = evaluate(extracted, reference, metrics=asked, strata=strata, options=stated)
    parts = {"chunk_size": 40, "shuffle_seed": 4}
    assert [(name, value[:2]) for name, value in got.items()] == [
        ("recall", prdc(x, y, k=5).recall[:2]),
        ("is", inception_score(extracted.logits, strata=strata, **parts)[:2]),
        ("fid", fid(x, reference.statistics, se="delta", strata=strata)[:2]),
        ("diagonal_fid", diagonal_fid(x, reference.statistics, strata)[:2]),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_a_gpu_are_those_of_the_cpu():
    x, y = (gaussian(n, 32, n, 0.02 * n / 900).astype(np.float32) for n in (900, 1100))
    features = Extracted(x, None)
    reference = SimpleNamespace(statistics=statistics(y), features=y)
    options = Options(kid_subset_size=100, fid_se="delta")
    asked = ("fid", "fid_infinity", "kid", "precision", "recall", "density", "coverage")
    cpu, gpu = (
        evaluate(features, reference, metrics=asked, options=options, device=device)
        for device in ("cpu", "cuda")
    )
    for name in asked:
        assert gpu[name].value == pytest.approx(cpu[name].value, rel=1e-9, abs=1e-12)
        # The kernel sums of the KID's error are of float32 products.
        assert gpu[name].se == pytest.approx(cpu[name].se, rel=1e-4 if name == "kid" else 1e-9)


def test_every_long_computation_is_told_the_device(pair, monkeypatch):
    told = []

    def notes(*args, device, **options):
        told.append(device)
        return Prdc(*[Score(0, 0)] * 4) if "k" in options else Score(0, 0)

    for name in ("fid", "fid_infinity", "kid", "prdc"):
        monkeypatch.setattr(scoring, name, notes)
    asked = ("fid", "fid_infinity", "kid", "precision", "coverage")
    evaluate(*pair, metrics=asked, device="a GPU")
    assert told == ["a GPU"] * 5


def test_distances_are_better_when_lower():
    lower = {name for name, metric in METRICS.items() if metric.lower_is_better}
    assert lower == {"fid", "fid_infinity", "sfid", "diagonal_fid", "kid"}


# --- Errors ---------------------------------------------------------------------------


def test_errors_of_evaluate(pair):
    for unknown in ("cmmd", "total"):  # VBench computes its own from videos
        message = f"unknown metric {unknown}: choose among is, is_infinity, fid, "
        refused(message, evaluate, *pair, metrics=("fid", unknown))
    refused("label_agreement needs the labels", evaluate, *pair, metrics=("label_agreement",))
    beyond = np.full(len(pair[0].features), pair[0].logits.shape[1])
    refused("evaluate with labels=off", evaluate, *pair, labels=beyond, metrics=())
    labels, message = np.zeros(149, dtype=np.int64), r"150 samples but labels of shape \(149,\)"
    refused(message, evaluate, *pair, labels=labels, metrics=())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("neighbours", 3, ": choose among k, ties, prdc_size"),
        ("k", 0, "must be an integer of at least 1, got 0"),
        ("kid_subset_size", 1, "at least 2"),
        ("is_splits", 0, "at least 1"),
        ("is_chunk_size", 0, "at least 1, got 0"),
        ("is_shuffle_seed", -1, "at least 0"),
        ("bootstrap", True, "at least 0, got True"),
        ("seed", 0.5, "at least 0"),
        ("fid_se", "jackknife", "must be bootstrap or delta, got 'jackknife'"),
        ("ties", "both", "must be in or out, got 'both'"),
        ("prdc_size", 1, "at least 2"),
        ("infinity_shuffles", 1, "at least 2"),
        ("allow_few", "yes", "must be true or false"),
    ],
)
def test_bad_options(name, value, message):
    refused(rf"metrics\.options\.{name}.*{message}", Options.of, {name: value})


def test_too_few_samples_are_refused_and_known_beforehand():
    options = Options(kid_subset_size=200)
    check_size(["fid", "kid"], 200, (64, 10), options)
    check_size(["fid"], 64, (64, 10), Options(allow_few=True))
    refused("sample more, or, for a trial run, set", check_size, ["fid"], 64, (64, 10), options)
    refused("set metrics.options.kid_subset_size=199", check_size, ["kid"], 199, (64, 10), options)
    for name in ("precision", "recall", "density", "coverage"):
        check_size([name], 6, (64, 10), Options(k=5))
        refused(
            "k=5 need more than 5 samples, got 5: sample more",
            check_size,
            [name],
            5,
            (64, 10),
            Options(k=5),
        )
    check_size(["fid_infinity"], 512, (64, 10), options)
    check_size(["fid_infinity"], 10_000, (2048, 10), options)
    check_size(["fid_infinity"], 65, (64, 10), Options(allow_few=True))
    few = (
        "with 64 features draws subsets of 256 samples and more, and needs twice as many, got 511: "
    )
    refused(
        f"{few}sample 512 or more, or leave", check_size, ["fid_infinity"], 511, (64, 10), options
    )
    for_logits = (check_size, ["is_infinity"])
    refused("is_infinity with 10 classes .* got 79: sample 80", *for_logits, 79, (64, 10), options)
    check_size(["is_infinity"], 79, (64, None), options)  # not known before it has seen something
    few = "is_infinity with 1000 classes draws subsets of 4000 .* got 7999: sample 8000 or more"
    refused(few, is_infinity, np.zeros((7999, 1000)))
    y = gaussian(2000, 64)
    refused("sample 512 or more", fid_infinity, y[:511], statistics(y), Score(1, 0))
    few = "FID with 64 features needs more than 64 samples, got {}: sample more"
    refused(few.format(20), fid, y[:20], statistics(y))
    refused(few.format(64), frechet_distance, statistics(y), statistics(y[:64]))
    frechet_distance(statistics(y), statistics(y[:65]))
    message = (
        r"subsets of 1000, got 999 samples: sample more, or set metrics.options.kid_subset_size=999"
    )
    refused(message, kid, y[:999], y)
    refused("got 999 reference images", kid, y, y[:999])
    message = "k=3 need more than 3 samples, got 3: sample more, or lower metrics.options.k"
    refused(message, prdc, y[:3], y)
    refused("k=5 need more than 5 reference images, got 5", prdc, y, y[:5], k=5)
    refused(r"at least 2 images, got \[1, 64\]: give more", statistics, y[:1])
    few_real = "FID with 64 features needs more than 64 real images, got 20: give more"
    refused(few_real, fid, y, statistics(y[:20]))
    refused(
        "at least 2 samples, got 1: sample more", check_size, ["clip_score"], 1, (64, 10), options
    )
    refused("k=3 need more than 3 samples", check_size, ["recall"], 3, (64, 10), options)
    refused(
        "lower metrics.options.is_splits", check_size, ["is"], 9, (64, 10), Options(is_splits=10)
    )
    both = Options(is_splits=10, is_chunk_size=5)
    refused("set metrics.options.is_splits=1 or", check_size, ["is"], 99, (64, 10), both)


def test_errors_of_other_features():
    x, y = gaussian(100, 6), gaussian(100, 9)
    message = "has 9 features, the samples 6: use the reference made with the same extractor"
    refused(message, fid, x, statistics(y))
    refused(message, kid, x, y, subset_size=50)
    refused(message, prdc, x, y)
    x[3, 2] = np.nan
    refused("features contain NaN or infinity", statistics, x)


@pytest.mark.parametrize("metric", ["is", "kid", "precision", "recall", "density", "diagonal_fid"])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_no_score_of_what_is_no_number(metric, broken):
    """Neighbours of NaN are none: precision would be 0 without a word."""
    rng = np.random.default_rng(0)
    x, y, logits = (rng.normal(size=(60, s)).astype(np.float32) for s in (4, 4, 5))
    (logits if metric == "is" else x)[3, 2] = broken
    real = SimpleNamespace(features=y, statistics=statistics(y), manifold=None)
    options = Options(kid_subset_size=50)
    refused(
        "NaN or infinity",
        evaluate,
        Extracted(x, logits),
        real,
        metrics=[metric],
        options=options,
    )


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_a_score_that_overflows_is_refused():
    x, y = (1e14 * np.random.default_rng(i).normal(size=(60, 4)).astype(np.float32) for i in (0, 1))
    real = SimpleNamespace(features=y, statistics=None, manifold=None)
    options = Options(kid_subset_size=50)
    refused("leave kid out", evaluate, Extracted(x), real, metrics=["kid"], options=options)


def test_errors_of_the_inception_score():
    logits = np.zeros((20, 3))
    refused("either splits or chunk_size", inception_score, logits, splits=2, chunk_size=5)
    for options in ({"splits": 21}, {"splits": 0}, {"chunk_size": 0}):
        refused("cannot divide 20 samples", inception_score, logits, **options)


def clustered(n: int, seed: int, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ten well separated classes: their counts are fixed, or drawn at random."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10 if balanced else rng.integers(10, size=n)
    centres = 3 * np.random.default_rng(99).normal(size=(10, 8))
    return centres[labels] + rng.normal(size=(n, 8)), labels


def test_strata_keep_their_sizes_in_every_resample():
    labels = np.repeat([2, 5, 7], [10, 1, 30])
    for counts in resamples(41, 20, 0, labels):
        assert [counts[labels == c].sum() for c in (2, 5, 7)] == [10, 1, 30]
    groups = random_groups(40, 100, np.random.default_rng(0), np.arange(40) % 4)
    assert len(groups) == 10
    assert all(sorted(g % 4) == [0, 1, 2, 3] for g in groups)
    assert sorted(np.concatenate(groups)) == list(range(40))


def test_stratified_standard_error_of_fid_is_that_of_balanced_samples():
    """Fixed class counts remove most of the spread, and the standard error knows it."""
    reference = statistics(clustered(20000, 1, True)[0] + 0.5)
    spread = {}
    for balanced in (True, False):
        draws = [clustered(400, seed, balanced) for seed in range(100, 160)]
        scores = [
            fid(x, reference, bootstrap=20, strata=labels if balanced else None)
            for x, labels in draws
        ]
        assert_se_is_the_spread(scores, factor=1.15)
        spread[balanced] = np.std([found.value for found in scores], ddof=1)
    assert spread[True] < 0.8 * spread[False]
