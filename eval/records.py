"""Evaluation records: every score with its protocol, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.extractors import Extractor
from eval.metrics import Score
from eval.reference import Reference
from files.whole import write_atomic

Record = dict[str, Any]


def make_record(
    scores: dict[str, Score],
    floor: dict[str, Score] | None,
    *,
    protocol: str,
    n: int,
    extractor: Extractor,
    reference: Reference | None,
    options: dict[str, Any],
    cell: dict[str, Any] | None,
    run: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> Record:
    """A score is no result without its protocol: this holds both.

    `scores` of n samples and the real-vs-real `floor` at the same n (None if there are too
    few real images); `protocol` is the name of configs/metrics that they follow, `options` are
    those of the metrics; `cell` says how the samples were made and `run`
    what that took, as far as their manifest tells; `more` is what else belongs to the protocol.
    """
    return {
        "protocol": protocol,
        "n": n,
        "extractor": extractor.name,
        "extractor_weights": extractor.digest[:12],
        "reference": reference and reference.name,
        "reference_n": reference and reference.n,
        "reference_digest": reference and reference.digest[:12],
        **(more or {}),
        "metrics": sorted(scores),
        "options": options,
        "cell": cell,
        "run": run,
        "scores": {name: score._asdict() for name, score in scores.items()},
        "floor": floor and {name: score._asdict() for name, score in floor.items()},
    }


def protocol(record: Record) -> Record:
    """What must agree for a stored record to stand for a new evaluation."""
    return {key: record[key] for key in record if key not in ("scores", "floor", "run")}


def score(record: Record, metric: str, of: str = "scores") -> Score | None:
    """The score of that name, or None; `of="floor"` for the real-vs-real floor."""
    values = (record[of] or {}).get(metric)
    return Score(**values) if values else None


def save_records(path: Path, records: Record | list[Record]) -> None:
    write_atomic(path, lambda p: p.write_text(json.dumps(records, indent=1) + "\n"))


def load_records(path: Path) -> Any:
    """A record or a list of them.  Raises FileNotFoundError or ValueError, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}: run without render_only first")
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it and run again") from None
