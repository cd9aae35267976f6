"""Records: what they say, and which stand in one table or for one another."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from test_metrics import refused

from eval.records import Protocol, check_same_kind, make_record, protocol, score
from eval.score import Score

CONFIG = {
    "model": {"sha256": "abc"},
    "guidance": {"scale": 0},
    "spacing": "even",
    "seed": 0,
    "label": "balanced",
    "sampler": {"name": "mix"},
}


def record(scores, run=None, **more):
    extractor = SimpleNamespace(name="digits", digest="d" * 64)
    reference = SimpleNamespace(name="real", n=60, digest="e" * 64)
    how = Protocol("digits", extractor, reference, {"k": 3}, more)
    facts = how.facts(scores, 50, {"config": CONFIG, "plan": [], "nfe": 10})
    return make_record(facts, scores, None, run)


def test_a_record_is_scores_and_their_protocol():
    got = record({"fid": Score(2.0, 0.1)}, preprocess={"name": "bicubic"})
    head = "protocol n extractor extractor_weights reference reference_n reference_digest"
    tail = "precision preprocess metrics options cell run scores floor"
    assert list(got) == f"{head} {tail}".split()
    assert got["extractor_weights"] == "d" * 12 and got["reference_digest"] == "e" * 12
    assert score(got, "fid") == Score(2.0, 0.1) and score(got, "is") is None
    assert score(got, "fid", "floor") is None
    assert Score(2.0, 0.1).half == pytest.approx(0.196)


def test_a_record_stands_for_another_evaluation_whatever_it_took():
    first, again = (record({"fid": Score(v, 0.1)}, {"seconds": v}) for v in (2.0, 3.0))
    assert protocol(first) == protocol(again)
    assert protocol(json.loads(json.dumps(first))) == protocol(first)
    assert protocol(record({"is": Score(2.0, 0.1)})) != protocol(first)


def test_a_table_is_never_overwritten_by_one_that_does_not_compare():
    stored = json.loads(json.dumps(record({"fid": Score(2.0, 0.1)})))
    check_same_kind(stored, "digits", {**CONFIG, "sampler": {"name": "ddim"}})
    others = {"model": {"sha256": "abd"}, "guidance": {"scale": 1}, "spacing": "linspace"}
    for key, value in (others | {"seed": 1, "label": "random"}).items():
        other, message = {**CONFIG, key: value}, "another kind .*: choose another out=DIR"
        refused(message, check_same_kind, stored, "digits", other)
    refused("protocol is digits there, pixels here", check_same_kind, stored, "pixels", CONFIG)
    half = {**CONFIG, "model": {"sha256": "abc", "precision": "bf16"}}
    refused("precision is fp32 there, bf16 here", check_same_kind, stored, "digits", half)


def test_a_record_states_its_precision_and_older_ones_are_fp32():
    stored = record({"fid": Score(2.0, 0.1)})
    assert stored["precision"] == "fp32"
    assert protocol({k: v for k, v in stored.items() if k != "precision"}) == protocol(stored)
