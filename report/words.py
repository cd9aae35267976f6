"""What scores and records say, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.metrics import Score
from eval.records import Record
from eval.scoring import DIGITS, LOWER_IS_BETTER, METRIC_NAMES


def metric_title(metric: str, extractor: str) -> str:
    """ "FID (digits)": scores of different extractors never share a name."""
    arrow = "lower" if metric in LOWER_IS_BETTER else "higher"
    return f"{METRIC_NAMES[metric]} ({extractor}), {arrow} is better"


def format_score(metric: str, value: Score | None) -> str:
    """ "3.21 ± 0.20": the value and the half width of its 95% interval."""
    if value is None:
        return "-"
    places = DIGITS.get(metric, 3)
    if metric == "kid" and value.se > 0.01:
        places = (
            2  # KID has the scale of the features cubed: small with Inception's, large with digits'
        )
    half = "" if np.isnan(value.se) else f" ± {1.96 * value.se:.{places}f}"
    return f"{value.value:.{places}f}{half}"


def protocol_sentence(record: Record) -> str:
    """What the numbers are and how a table shows them, in words."""
    floor = (
        " *Real* is the real-vs-real floor: as many real images in place of samples, which is what "
        "a perfect sampler would score. FID and recall depend on N: across columns of different "
        "N, compare with that floor."
    )
    return (
        f"{scored_sentence(record)} "
        "± is the half width of the 95% interval. **Bold**: the best of its column and all that "
        f"cannot be told from it.{floor if record['floor'] else ''}"
    )


def scored_sentence(record: Record) -> str:
    """How samples were made and scored."""
    return (
        f"{made_sentence(record['cell']['config'])} "
        f"Extractor `{record['extractor']}` ({record['extractor_weights']}), "
        f"{reference_words(record)}."
    )


def reference_words(record: Record) -> str:
    """What the samples were compared with, and at which size."""
    if record["reference"] is None:
        return "no reference"
    reduced = record.get("preprocess")
    size = f", both at {reduced['size']} pixels by {reduced['name']}" if reduced else ""
    return (
        f"reference `{record['reference']}` ({record['reference_n']} images, "
        f"{record['reference_digest']}){size}"
    )


def made_sentence(made: dict[str, Any]) -> str:
    """How samples were made, from the config in their manifest."""
    labels = {None: "at random", "balanced": "balanced"}.get(made["label"], str(made["label"]))
    model = made["model"]
    checkpoint = model.get("checkpoint") or model.get("id") or model["sha256"][:12]
    precision = f", precision {model['precision']}" if "precision" in model else ""
    guidance = made.get("guidance")
    scale = model.get("guidance_scale", 1)
    evaluations = made.get("evaluations_per_call", 1)
    text = f", classifier-free guidance {scale:g}" if scale != 1 else ""
    text += " (two network evaluations a call)" if evaluations == 2 else ""
    prompts = made.get("prompts")
    if prompts:
        each = "a sample each" if made["label"] is None else "in turn"
        labels = f"{prompts['count']} prompts ({prompts['sha256'][:12]}) {each}"
    else:
        labels = f"labels {labels}"
    guided = f", {guidance['name']} guidance with scale {guidance['scale']:g}" if guidance else ""
    return (
        f"Model `{model['name']}`, checkpoint `{checkpoint}` "
        f"({model['sha256'][:12]}){precision}{guided}{text}; spacing `{made['spacing']}`, seed "
        f"{made['seed']}, {labels}, x0 {'clipped' if model['clip'] else 'not clipped'}."
    )
