"""Verdicts on published batches: what fails, what passes, and what nothing can be said of."""

from __future__ import annotations

import pytest

from eval.gate import GATES, changed_option, gate
from eval.protocols import reference_with
from eval.scoring import METRICS, Options
from eval.words import print_gate
from experiments.config import composed, plain
from scripts import download

ADM = {"fid": 10.94, "sfid": 6.02, "is": 100.98, "precision": 0.69, "recall": 0.63}
DGM = {"fid": 203.45, "kid": 0.19, "precision": 0.80, "recall": 0.85, "density": 0.67}
AT_HOME = Options(k=5, ties="out", prdc_size=10_000)


def record(scores, protocol="dinov2", reference_n=50_000):
    stored = {name: {"value": value, "se": 0.001} for name, value in scores.items()}
    return {"protocol": protocol, "reference_n": reference_n, "scores": stored, "cell": None}


def verdicts(published, shifted, **of):
    checks = gate(record({**published, **shifted}, **of), published)
    return {check.metric: check.passed for check in checks if check.passed is not True}


@pytest.mark.parametrize(
    ("metric", "near", "far"),
    [
        ("fid", 205.4, 205.6),
        ("fid", 201.5, 201.3),
        ("kid", 0.205, 0.206),
        ("precision", 0.819, 0.821),
        ("recall", 0.831, 0.829),
        ("density", 0.699, 0.701),
    ],
)
def test_a_score_may_lie_so_far_from_dgm_evals(metric, near, far):
    assert verdicts(DGM, {metric: near}) == {}
    assert verdicts(DGM, {metric: far}) == {metric: False}


def test_adms_tolerances_are_as_they_were():
    for metric, off in (("fid", 0.05), ("sfid", 0.05), ("precision", 0.01), ("is", 0.5049)):
        for part, wanted in ((0.99, {}), (1.01, {metric: False})):
            shifted = {metric: ADM[metric] + part * off}
            assert verdicts(ADM, shifted, protocol="adm", reference_n=10_000) == wanted


def test_scores_that_depend_on_the_reference_are_judged_with_as_large_a_one(capsys):
    """ADM's reference batch has 10,000 images: no FD of dgm-eval's 50,000 compares with it."""
    assert verdicts(DGM, {"fid": 237.0}, reference_n=10_000) == {"fid": None}
    assert verdicts(DGM, {}, reference_n=1_281_167) == {"fid": None}
    assert set(verdicts(DGM, {}, reference_n=9_999)) == set(DGM) - {"kid"}
    few = record({**DGM, "fid": 237.0}, reference_n=10_000)
    assert print_gate(few, "batch", DGM) is True
    out = capsys.readouterr().out
    assert "no verdict: needs a reference of 50,000 images, this has 10,000" in out
    assert out.endswith("protocol gate: PASS\n")
    assert print_gate(few, "batch", {"fid": 203.45}) is None
    out = capsys.readouterr().out
    assert "no verdict: none of these scores compares with this reference" in out
    assert print_gate(record({**DGM, "kid": 0.3}, reference_n=9_999), "batch", DGM) is False
    assert "needs a reference of 10,000 or more images" in capsys.readouterr().out


def test_a_score_that_is_missing_is_asked_for():
    with pytest.raises(ValueError, match=r"needs fid: leave metrics\.scores as it is"):
        gate(record({"kid": 0.19}), DGM)


@pytest.mark.parametrize(
    ("protocol", "options", "said"),
    [
        ("dinov2", AT_HOME, None),
        ("dinov2", Options(k=5, ties="out"), "metrics.options.prdc_size=10000"),
        ("dinov2", Options(k=5, prdc_size=10_000), "metrics.options.ties=out"),
        ("dinov2", Options(ties="out"), "metrics.options.k=5"),
        ("adm", Options(is_chunk_size=5000), None),
        ("adm", Options(), "metrics.options.is_chunk_size=5000"),
        ("adm", Options(is_chunk_size=5000, prdc_size=9), "metrics.options.prdc_size=null"),
    ],
)
def test_options_are_those_of_the_published_scores(protocol, options, said):
    assert changed_option(protocol, options) == said


def test_published_scores_name_their_protocols():
    """Each protocol is one with a gate, whose tolerances know its scores; adm's options are at home."""
    found = set()
    for name in {reference_with(batch) for batch in download.published_batches()}:
        published = plain(composed("evaluate", f"reference={name}").reference.published)
        for entry in published.values():
            for protocol, scores in entry["scores"].items():
                found.add(protocol)
                assert set(scores) <= set(METRICS)
                assert all(GATES[protocol].tolerance(*item) > 0 for item in scores.items())
    assert found == set(GATES)
    stated = plain(composed("evaluate", "metrics=adm").metrics.options)
    assert changed_option("adm", Options.of(stated)) is None
