"""Differences of scores: paired where the records tell that samples share their noise, else not."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from test_metrics import gaussian

from eval import score as scores
from eval.agreement import label_agreement
from eval.frechet import fid, statistics
from eval.inception import inception_score
from eval.kernel import kid
from eval.manifold import prdc
from eval.records import score
from eval.score import Score, Spread, difference_se, influences, paired, proportion, spread_score
from eval.table import Table, gain


def of(draws: str | None, *values: Score) -> list[Score]:
    """The scores as if read from records of this noise."""
    return [v._replace(spread=replace(v.spread, draws=draws)) for v in values]


def test_a_difference_has_the_spread_of_what_is_not_shared():
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(1, 500)), rng.normal(size=(2, 500))
    a, b = (spread_score(x.mean(), Spread(influences(x))) for x in common + 0.1 * own)
    assert difference_se(a, b) == pytest.approx(np.hypot(a.se, b.se))  # no word of their noise
    a, b = of("seed 0", a, b)
    expected = np.std(0.1 * (own[0] - own[1]), ddof=1) / 500**0.5
    assert paired(a, b) and difference_se(a, b) == pytest.approx(expected, rel=1e-9)
    assert difference_se(a, a) == 0
    (other,) = of("seed 1", b)
    assert not paired(a, other)
    assert difference_se(a, other) == pytest.approx(np.hypot(a.se, b.se), rel=1e-9)


def test_pairing_what_is_independent_does_not_narrow_it():
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(60):
        drawn = rng.normal(size=(2, 400))
        a, b = of("x", *(spread_score(x.mean(), Spread(influences(x))) for x in drawn))
        ratios.append(difference_se(a, b) / np.hypot(a.se, b.se))
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)


def test_what_is_its_own_never_cancels():
    all_right = proportion(np.ones(50, bool))
    a, b = of("x", all_right, all_right)
    assert difference_se(a, b) == pytest.approx(np.hypot(a.se, b.se)) and a.se > 0


def every_score(seed: int, n: int) -> dict[str, Score]:
    """One score of each kind: influences, with resamples, subsamples, proportions."""
    x, y = gaussian(n, seed=seed, shift=0.2), gaussian(300, seed=99)
    logits = np.random.default_rng(seed).normal(size=(n, 5))
    precision, recall = prdc(x, y)[:2]
    return {
        "fid": fid(x, statistics(y), bootstrap=30),
        "is": inception_score(logits),
        "precision": precision,
        "recall": recall,
        "label_agreement": label_agreement(logits, np.arange(n) % 5),
    }


@pytest.mark.parametrize("n", [200, 2300])  # each sample by itself, or sums of some
def test_a_stored_spread_tells_the_same_to_three_digits(n):
    pairs = zip(every_score(1, n).items(), every_score(2, n).values(), strict=True)
    for (name, a), b in pairs:
        texts = [json.dumps(s.stored()) for s in (a, b)]
        assert max(map(len, texts)) < 4500
        read = [Score.of(json.loads(text), "x") for text in texts]
        assert read[0][:2] == a[:2]
        expected = difference_se(*of("x", a, b))
        assert difference_se(*read) == pytest.approx(expected, rel=2e-3), name
        assert a.spread.variance == pytest.approx(a.se**2, rel=0.1 if n > scores.PIECES else 0.01)


def test_a_damaged_spread_is_no_score():
    stored = spread_score(1.0, Spread(np.arange(5.0))).stored()
    nan = base64.b64encode(np.float32(1).tobytes() + np.float16("nan").tobytes()).decode()
    own = [{"own": value} for value in ("x", None, "1", True, -1.0, float("nan"), float("inf"))]
    for broken in ({"first": "?"}, {"first": "AAA="}, {"first": 3}, {"second": nan}, *own):
        with pytest.raises((ValueError, TypeError)):
            Score.of({**stored, "spread": {**stored["spread"], **broken}})
    with pytest.raises(KeyError):
        Score.of({**stored, "spread": {"first": stored["spread"]["first"]}})


def record(row: str, values: np.ndarray, spread: bool = True, n: int = 400, **config) -> dict:
    whole = {"seed": 0, "label": "balanced", "model": {"sha256": "a"}, **config}
    stored = spread_score(values.mean(), Spread(influences(values))).stored()
    if not spread:  # as records were before
        del stored["spread"]
    return {
        **{"row": row, "steps": 10, "protocol": "digits", "n": n, "extractor": "digits"},
        **{"options": {}, "cell": {"config": whole, "nfe": 10}},
        **{"scores": {"fid": stored}, "floor": {"fid": stored}},
    }


def test_records_tell_whether_noise_and_labels_are_shared():
    rng = np.random.default_rng(3)
    common = rng.normal(size=400)
    values = [common + 0.05 * rng.normal(size=400) + shift for shift in (0, 0.02)]
    a, b = (record(row, v) for row, v in zip("ab", values, strict=True))
    table = Table([a, b])
    near = gain("fid", *(table.score(row, 10, "fid") for row in "ab"))
    assert near.words == "better than" and table.tied(10, "fid") == {"a"}
    assert table.against("a", "b", "fid")["better than"] == [10]
    assert table.paired_columns("fid") == [10]
    alone = table.unpaired()
    assert alone.tied(10, "fid") == {"a", "b"} and alone.paired_columns("fid") == []
    assert table.score("a", 10, "fid")[:2] == alone.score("a", 10, "fid")[:2]
    others = [{"seed": 1}, {"label": None}, {"noise": "brownian"}, {"prompts": {"sha256": "b"}}]
    for other in others:
        changed = record("b", values[1], **other)
        assert not paired(score(a, "fid"), score(changed, "fid")), other
    for unlike in (record("b", values[1], n=401), record("b", values[1], spread=False)):
        assert not paired(score(a, "fid"), score(unlike, "fid"))
    from_elsewhere = {**b, "cell": None}
    assert not paired(score(a, "fid"), score(from_elsewhere, "fid"))
    assert not paired(score(a, "fid"), score(a, "fid", "floor"))  # real images have no noise
    assert not Table([a, record("b", values[1], spread=False)]).paired_columns("fid")


def test_without_an_error_nothing_is_told_apart():
    unknown, other = Score(1.0, float("nan")), Score(2.0, 0.1)
    for pair in ((unknown, other), (other, unknown), (unknown, Score(5.0, float("nan")))):
        found = gain("fid", *pair)
        assert found.words == "not told apart from" and "nan" not in found.text(2)
    entries = [record(row, np.full(400, float(i))) for i, row in enumerate("ab")]
    for entry in entries:
        entry["scores"]["fid"] = {"value": entry["scores"]["fid"]["value"], "se": float("nan")}
    table = Table(entries)
    assert table.best(10, "fid") == "a" and table.tied(10, "fid") == {"a", "b"}
    assert table.against("a", "b", "fid")["not told apart from"] == [10]


@pytest.mark.parametrize("per", [1, 2, 4])
def test_few_of_each_class_are_not_certain(per):
    """With one sample of each class no stratum varies, and in parts of the set few have two."""
    rng, classes = np.random.default_rng(0), 50
    strata = np.tile(np.arange(classes), per)
    means, mixing = rng.normal(size=(classes, 8)), rng.normal(size=(8, 20))
    real = means[rng.integers(classes, size=2000)] + 0.7 * rng.normal(size=(2000, 8))
    reference, some, found = statistics(real), real[:500].astype(np.float32), {}
    for _ in range(40):
        x = (means[strata] + 0.7 * rng.normal(size=(len(strata), 8)) + 0.3).astype(np.float32)
        logits = x @ mixing
        for name, value in {
            "fid": fid(x, reference, bootstrap=20, strata=strata, allow_few=True),
            "is": inception_score(logits, strata=strata),
            "is in parts": inception_score(logits, splits=5, shuffle_seed=1, strata=strata),
            "density": prdc(x, some, strata=strata).density,
        }.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        true = np.std([v.value for v in values])
        assert 0.7 < np.sqrt(np.mean([v.se**2 for v in values])) / true < 2.2, name


def test_kids_error_of_few_of_each_class():
    """Resampling two groups of samples says nothing of what is beyond first order."""
    x, y = (np.random.default_rng(i).normal(size=(200, 4)) + 0.3 * i for i in (0, 1))
    few = kid(x, y, subset_size=100, strata=np.arange(200) % 100).spread
    assert few.variance == pytest.approx(few.first @ few.first + few.own)
