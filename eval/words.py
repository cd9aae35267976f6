"""Scores and verdicts in words, as commands print them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import yaml

from eval.gate import gate
from eval.protocols import Judged
from eval.records import Record, score
from eval.score import Score
from eval.scoring import METRICS


def as_word(value: Any) -> str:
    """A setting's value as the command line has it, before any shell."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n...\n").strip()


def decimals(metric: str) -> int:
    return METRICS[metric].decimals if metric in METRICS else 3


def format_score(metric: str, value: Score | None) -> str:
    """ "3.21 ± 0.20": the value and the half width of its 95% interval; "-" for what is no number."""
    if value is None or not np.isfinite(value.value):
        return "-"
    places = decimals(metric)
    if metric == "kid" and value.se > 0.01:
        # KID grows as the cube of its features: small with Inception's, not with digits'.
        places = 2
    half = "" if not np.isfinite(value.se) else f" ± {value.half:.{places}f}"
    return f"{value.value:.{places}f}{half}"


def reference_words(record: Record) -> str:
    """What the samples were compared with, and at which size."""
    if record["reference"] is None:
        return "no reference"
    reduced = record.get("preprocess")
    size = f", both at {reduced['size']} pixels by {reduced['name']}" if reduced else ""
    if not reduced and record.get("size"):  # records did not always tell
        size = f", {'both' if record['reference_size'] else 'samples'} of {record['size']} pixels"
    return (
        f"reference `{record['reference']}` ({record['reference_n']} images, "
        f"{record['reference_digest']}){size}"
    )


def print_record(record: Record) -> None:
    print(
        f"{record['n']} samples, protocol {record['protocol']}, extractor {record['extractor']} "
        f"({record['extractor_weights']}), {reference_words(record)}"
    )
    print(f"{'score':<28}{'samples':>18}{'real (floor)':>18}   ± is half the 95% interval")
    for metric in record["scores"]:
        name = f"{METRICS[metric].title} ({record['extractor']})"
        ours = format_score(metric, score(record, metric))
        floor = format_score(metric, score(record, metric, "floor"))
        print(f"{name:<28}{ours:>18}{floor:>18}")


def print_verdict(record: Record, judged: Judged, spelled: Callable[[str], str] = str) -> bool:
    """What the gate says of a published batch, or why it says nothing; False if that is FAIL.

    `spelled` says how the command at hand writes what evaluate.py calls metrics=adm.
    """
    obstacle = judged.obstacle()
    if obstacle:
        print(f"protocol gate: no verdict: {spelled(obstacle)}")
    if obstacle or not judged.published:
        return True
    scores = judged.published["scores"][judged.protocol]
    return print_gate(record, judged.batch, scores) is not False


def print_gate(record: Record, batch: str, published: Mapping[str, float]) -> bool | None:
    """Ours beside the published scores of that batch; whether all agree that compare, if any do."""
    checks = gate(record, published)
    print(f"protocol gate: {batch} against its published scores")
    for check in checks:
        verdict = {True: "pass", False: "FAIL", None: f"no verdict: {check.obstacle}"}[check.passed]
        print(
            f"  {METRICS[check.metric].title:<12}{check.ours:10.4f}   published "
            f"{check.published:10.4f} ± {check.tolerance:.4f}   {verdict}"
        )
    verdicts = [check.passed for check in checks if check.passed is not None]
    if not verdicts:
        print("protocol gate: no verdict: none of these scores compares with this reference")
        return None
    passed = all(verdicts)
    remedy = "" if passed else ": do not trust scores made here before this is explained"
    print(f"protocol gate: {'PASS' if passed else 'FAIL'}{remedy}")
    return passed
