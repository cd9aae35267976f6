"""Evaluation records: every score with its protocol, as JSON; and which records compare."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.extractors import Extractor
from eval.metrics import Score
from eval.reference import Reference
from files.whole import write_text

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Protocol:
    """How samples are scored: `name` is that of configs/metrics, `options` are metrics.options.

    `more` is what else belongs to some protocols: preprocessing, a CLIP model, prompts.
    """

    name: str
    extractor: Extractor
    reference: Reference | None
    options: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)

    def facts(self, metrics: Iterable[str], n: int, cell: Mapping[str, Any] | None) -> Record:
        """All that a record of n samples says but for their scores.

        `cell` says how the samples were made, as far as their manifest tells.
        """
        reference = self.reference
        return {
            "protocol": self.name,
            "n": n,
            "extractor": self.extractor.name,
            "extractor_weights": self.extractor.digest[:12],
            "reference": reference and reference.name,
            "reference_n": reference and reference.n,
            "reference_digest": reference and reference.digest[:12],
            "precision": cell and precision(cell["config"]),
            **self.more,
            "metrics": sorted(metrics),
            "options": self.options,
            "cell": cell,
        }


def make_record(
    facts: Record,
    scores: Mapping[str, Score],
    floor: Mapping[str, Score] | None,
    run: Mapping[str, Any] | None = None,
) -> Record:
    """A score is no result without its protocol: this holds both.

    `floor` is the real-vs-real one at the same n (None if there are too few real images); `run` is
    what making the samples took.
    """
    return {
        **facts,
        "run": run,
        "scores": {name: score._asdict() for name, score in scores.items()},
        "floor": floor and {name: score._asdict() for name, score in floor.items()},
    }


def precision(config: Mapping[str, Any]) -> str:
    """What the network computed in, by the config of its samples: fp32 where that does not say."""
    return str(config["model"].get("precision", "fp32"))


def score(record: Record, metric: str, of: str = "scores") -> Score | None:
    """The score of that name, or None; `of="floor"` for the real-vs-real floor."""
    values = (record[of] or {}).get(metric)
    return Score(**values) if values else None


# --- Which records compare ------------------------------------------------------------

# Two scores compare if they were computed alike: what follows is the same in both records.
COMPARABLE = (
    "protocol",
    "extractor",
    "extractor_weights",
    "reference",
    "reference_digest",
    "options",
    "preprocess",
    "prompts",
)


def protocol(record: Record) -> Record:
    """What must agree for a stored record to stand for a new evaluation of the same samples.

    Their precision is in `cell`; records did not always repeat it, nor tell the sizes of images.
    """
    left_out = ("scores", "floor", "run", "precision", "size", "reference_size")
    return {key: record[key] for key in record if key not in left_out}


def check_comparable(records: Sequence[Record]) -> None:
    """Raise ValueError unless a table's records compare.

    They were scored alike, of samples in one precision, and all of a column with one N.
    """
    first = records[0]
    sizes: dict[int, int] = {}
    for record in records:
        for key in COMPARABLE:
            here, there = record.get(key), first.get(key)
            if here != there:
                raise ValueError(
                    f"a table never mixes protocols: {key} is {there} in row {first['row']} at "
                    f"{first['steps']} steps, {here} in row {record['row']} at {record['steps']}; "
                    "evaluate them anew with one metrics= and reference="
                )
        here, there = _precision_of(record), _precision_of(first)
        if here != there:
            raise ValueError(
                f"a table never mixes precisions: samples are in {there} in row {first['row']} at "
                f"{first['steps']} steps, in {here} in row {record['row']} at {record['steps']}; "
                f"sample them anew with model.precision={there}"
            )
        n = sizes.setdefault(record["steps"], record["n"])
        if record["n"] != n:
            raise ValueError(
                f"a column never mixes numbers of samples: {n} and {record['n']} at "
                f"{record['steps']} steps"
            )


def _precision_of(record: Record) -> str | None:
    """None of samples that came from elsewhere."""
    cell = record.get("cell")
    return precision(cell["config"]) if cell else None


def check_same_kind(stored: Record, protocol: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a stored record is of another model, protocol, guidance, seed...

    `config` is that of a manifest: the table that the record is in would be overwritten by one
    that does not compare.
    """
    there = _kind(stored["protocol"], stored["cell"]["config"])
    for key, value in _kind(protocol, json.loads(json.dumps(config))).items():
        if there[key] != value:
            raise ValueError(
                f"results of another kind are there already ({key} is {there[key]} there, {value} "
                "here): choose another out=DIR"
            )


def _kind(protocol: str, config: Mapping[str, Any]) -> dict[str, Any]:
    shared = {key: config.get(key) for key in ("guidance", "spacing", "seed", "label", "noise")}
    return {
        "protocol": protocol,
        "checkpoint": config["model"]["sha256"],
        "precision": precision(config),
        **shared,
    }


# --- Files ----------------------------------------------------------------------------


def save_records(path: Path, records: Record | Sequence[Record]) -> None:
    write_text(path, json.dumps(records, indent=1) + "\n")


def load_records(path: Path) -> Any:
    """A record or a list of them.  Raises FileNotFoundError or ValueError, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}: run without render_only first")
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it and run again") from None
