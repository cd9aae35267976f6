"""VBench's scores from its result files: quality, semantic and total (Huang et al. 2024).

VBench itself runs in an environment of its own (`python -m scripts.vbench`); files are all that is exchanged.
Its public aggregation sets a dimension without result to 0; here that is an error.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.score import Score


class Dimension(NamedTuple):
    """Raw scores low..high become 0..1; `weight` is that within quality or semantic."""

    low: float
    high: float
    weight: float = 1.0


QUALITY = {
    "subject_consistency": Dimension(0.1462, 1.0),
    "background_consistency": Dimension(0.2615, 1.0),
    "temporal_flickering": Dimension(0.6293, 1.0),
    "motion_smoothness": Dimension(0.706, 0.9975),
    "aesthetic_quality": Dimension(0.0, 1.0),
    "imaging_quality": Dimension(0.0, 1.0),
    "dynamic_degree": Dimension(0.0, 1.0, 0.5),
}
SEMANTIC = {
    "object_class": Dimension(0.0, 1.0),
    "multiple_objects": Dimension(0.0, 1.0),
    "human_action": Dimension(0.0, 1.0),
    "color": Dimension(0.0, 1.0),
    "spatial_relationship": Dimension(0.0, 1.0),
    "scene": Dimension(0.0, 0.8222),
    "appearance_style": Dimension(0.0009, 0.2855),
    "temporal_style": Dimension(0.0, 0.364),
    "overall_consistency": Dimension(0.0, 0.364),
}
DIMENSIONS = {**QUALITY, **SEMANTIC}
COSINES = ("appearance_style", "temporal_style", "overall_consistency")  # of video and text
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


def read_results(files: Sequence[Path]) -> dict[str, Score]:
    """Raw scores, fractions, by dimension, of `*_eval_results.json` files.

    Those of `COSINES` are below 0 where video and text disagree, and stay so.
    se is the spread of the values of single videos over the square root of their number, where the
    file holds them.  Raises ValueError for a damaged file, an unknown dimension, a score that is
    neither, and for two files that give one dimension different scores.
    """
    scores: dict[str, Score] = {}
    origin: dict[str, Path] = {}
    for path in files:
        for name, (value, videos) in _entries(path).items():
            if name not in DIMENSIONS:
                raise ValueError(f"{path} has an unknown dimension {name!r}: remove it")
            if not (-1 if name in COSINES else 0) <= value <= 1:
                raise ValueError(f"{path}: {name} is {value}, but VBench's scores are fractions")
            if name in scores and scores[name].value != value:
                raise ValueError(
                    f"{path} and {origin[name]} give {name} different scores: remove one"
                )
            scores[name], origin[name] = Score(value, _se(name, videos)), path
    return {name: scores[name] for name in DIMENSIONS if name in scores}


def _entries(path: Path) -> dict[str, tuple[float, Any]]:
    """By dimension: the score, and what the file holds of single videos."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if any(type(v[0]) not in (int, float) for v in content.values()):
            raise TypeError
        return {name: (float(v[0]), v[1] if len(v) > 1 else []) for name, v in content.items()}
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError):
        raise ValueError(
            f"{path} is no result file of VBench or damaged: remove it and run VBench again"
        ) from None


def _se(name: str, videos: Any) -> float:
    try:
        values = np.array([float(video["video_results"]) for video in videos])
    except (TypeError, KeyError, ValueError, OverflowError):
        return float("nan")
    if len(values) < 2:
        return float("nan")
    if name == "imaging_quality":  # of single videos in percent
        values = values / 100
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def aggregate(results: Mapping[str, Score], partial: bool = False) -> dict[str, Score]:
    """Quality, semantic and total score in percent, as the leaderboard has them.

    Each is a weighted mean of the normalised raw scores, which are not clipped.  Raises ValueError
    naming the dimensions that are missing; with `partial` there is no total, and each of the other
    two only if it is complete.  se treats dimensions as independent.
    """
    missing = [name for name in DIMENSIONS if name not in results]
    if missing and not partial:
        raise ValueError(
            f"VBench has no result for {', '.join(missing)}: run `python -m scripts.vbench run` "
            "again, or see what there is with `python -m scripts.vbench score --partial`"
        )
    scores = {}
    for name, group in (("quality", QUALITY), ("semantic", SEMANTIC)):
        if not set(group) & set(missing):
            scores[name] = _mean(results, group)
    if not missing:
        quality, semantic = scores["quality"], scores["semantic"]
        whole = QUALITY_WEIGHT + SEMANTIC_WEIGHT
        value = (QUALITY_WEIGHT * quality.value + SEMANTIC_WEIGHT * semantic.value) / whole
        se = np.hypot(QUALITY_WEIGHT * quality.se, SEMANTIC_WEIGHT * semantic.se) / whole
        scores = {"total": Score(value, float(se)), **scores}
    return scores


def _mean(results: Mapping[str, Score], group: Mapping[str, Dimension]) -> Score:
    whole = sum(dimension.weight for dimension in group.values())
    value = variance = 0.0
    for name, (low, high, weight) in group.items():
        share = 100 * weight / whole / (high - low)
        value += share * (results[name].value - low)
        variance += (share * results[name].se) ** 2
    return Score(value, float(np.sqrt(variance)))
