"""VBench's aggregation against published rows of its leaderboard."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import golden_json
from test_metrics import refused

from eval.score import Score
from eval.vbench import DIMENSIONS, QUALITY, SEMANTIC, aggregate, read_results

GOLDEN = golden_json("vbench_aggregation")


def results(raw):
    return {name: Score(value, 0.0) for name, value in raw.items()}


def test_the_constants():
    assert set(DIMENSIONS) == set(GOLDEN["dimensions_in_leaderboard_column_order"])
    assert list(QUALITY) == GOLDEN["quality_list"] and list(SEMANTIC) == GOLDEN["semantic_list"]
    for name, (low, high, weight) in DIMENSIONS.items():
        assert {"min": low, "max": high} == GOLDEN["normalisation"][name]
        assert weight == GOLDEN["dimension_weight"][name]


@pytest.mark.parametrize("row", GOLDEN["worked_examples"], ids=lambda row: row["model"])
def test_verified_rows(row):
    scores = aggregate(results(row["raw_fraction"]))
    for name, published in row["published_percent"].items():
        assert scores[name].value == pytest.approx(published, abs=0.015)
        computed = row["computed_from_rounded_rows_percent"][name]
        assert scores[name].value == pytest.approx(computed, abs=1e-5)


def test_synthetic_row_and_extremes():
    example = GOLDEN["synthetic_example"]
    edge = GOLDEN["edge_cases"]
    for raw, expected in (
        (example["raw_fraction"], example),
        (dict.fromkeys(DIMENSIONS, 0.0), edge["all_raw_zero"]),
        (dict.fromkeys(DIMENSIONS, 1.0), edge["all_raw_one"]),  # nothing is clipped
    ):
        scores = aggregate(results(raw))
        for name in ("quality", "semantic", "total"):
            assert scores[name].value == pytest.approx(100 * expected[name], abs=1e-9)


def test_a_missing_dimension_is_named_and_never_a_zero():
    raw = results(GOLDEN["synthetic_example"]["raw_fraction"])
    del raw["color"], raw["scene"]
    refused(r"no result for color, scene: run `python -m scripts.vbench run`", aggregate, raw)
    assert list(aggregate(raw, partial=True)) == ["quality"] and aggregate({}, partial=True) == {}


def test_the_error_is_that_of_independent_videos():
    rng = np.random.default_rng(0)
    raw = {name: Score(0.5, 0.01 * (1 + i)) for i, name in enumerate(DIMENSIONS)}
    draws = [
        aggregate({n: Score(s.value + s.se * rng.standard_normal(), 0.0) for n, s in raw.items()})
        for _ in range(3000)
    ]
    for name, score in aggregate(raw).items():
        spread = np.std([draw[name].value for draw in draws])
        assert score.se == pytest.approx(spread, rel=0.06)


def test_result_files(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    def dimension(*values):
        return [0.5, [{"video_path": "0.mp4", "video_results": value} for value in values]]

    a = write("results_1.json", {"scene": dimension(0.2, 0.4, 0.9), "color": [0.25, []]})
    quality, degree = dimension(40.0, 60.0), dimension(True, False)
    b = write("results_2.json", {"imaging_quality": quality, "dynamic_degree": degree})
    found = read_results([a, b])
    assert list(found) == ["imaging_quality", "dynamic_degree", "color", "scene"]
    assert found["scene"] == Score(0.5, pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1) / 3**0.5))
    assert found["imaging_quality"].se == pytest.approx(np.std([0.4, 0.6], ddof=1) / 2**0.5)
    assert found["dynamic_degree"].se == pytest.approx(0.5)
    assert np.isnan(found["color"].se)
    same = write("c.json", {"color": [0.25, []]})
    assert read_results([a, same])["color"].value == 0.25
    for content, message in (
        ({"color": [0.3, []]}, "give color different scores"),
        ({"beauty": [0.3, []]}, "unknown dimension 'beauty'"),
        ({"color": [-0.01, []]}, "VBench's scores are fractions"),
        ({"temporal_style": [-1.01, []]}, "VBench's scores are fractions"),
        ({"color": [30.0, []]}, "VBench's scores are fractions"),
        ([1, 2], "no result file of VBench or damaged"),
        ({"color": "high"}, "no result file of VBench or damaged"),
        ({"color": [True, []]}, "no result file of VBench or damaged"),
        ({"color": ["0.5", []]}, "no result file of VBench or damaged"),
    ):
        refused(message, read_results, [a, write("bad.json", content)])


@pytest.mark.parametrize("name", ["overall_consistency", "temporal_style", "appearance_style"])
def test_cosines_below_zero_are_scores(tmp_path, name):
    """As where a bad sampler's videos disagree with their prompts; the aggregation clips nothing."""
    videos = [{"video_results": -0.05}, {"video_results": 0.026}]
    path = tmp_path / f"{name}_eval_results.json"
    path.write_text(json.dumps({name: [-0.012, videos]}))
    results = read_results([path])
    assert results[name].value == -0.012 and results[name].se == pytest.approx(0.038)
    others = dict.fromkeys(DIMENSIONS, results[name])
    assert aggregate(others)["semantic"].value < 0
