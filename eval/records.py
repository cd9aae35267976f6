"""Evaluation records: every score with its protocol, as JSON; and which records compare."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.extractors import Extractor
from eval.reference import Reference
from eval.score import Score
from files.whole import Damaged, read_json, reading, write_json

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
        "scores": {name: score.stored() for name, score in scores.items()},
        "floor": floor and {name: score.stored() for name, score in floor.items()},
    }


def precision(config: Mapping[str, Any]) -> str:
    """What the network computed in, by the config of its samples: fp32 where that does not say."""
    return str(config["model"].get("precision", "fp32"))


def score(record: Record, metric: str, of: str = "scores") -> Score | None:
    """The score of that name, or None; `of="floor"` for the real-vs-real floor."""
    stored = (record[of] or {}).get(metric)
    return Score.of(stored, draws(record) if of == "scores" else None) if stored else None


def draws(record: Record) -> str | None:
    """The noise and labels that samples were made from, or None where nothing tells.

    Sample i is a function of the seed and i: of two records that say the same here, samples i are
    of the same noise, and of the same label where the model takes one.
    """
    if record.get("cell") is None:
        return None
    config = record["cell"]["config"]
    shared = {key: config.get(key) for key in ("seed", "label", "noise", "prompts")}
    return json.dumps({**shared, "n": record["n"]}, sort_keys=True)


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
    left_out = ("scores", "floor", "floor_of", "run", "precision", "size", "reference_size")
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


def check_replaceable(path: Path) -> None:
    """Raise ValueError if a record is to take the place of what is none, not even a damaged one."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose out=FILE for the record")
    try:
        load_records(path)
    except FileNotFoundError:
        pass
    except Damaged:
        text = path.read_bytes().decode(errors="replace")
        if text.strip() and '"protocol"' not in text and '"scores"' not in text:
            raise ValueError(
                f"{path} is no record of scores: choose another out=FILE, or remove it"
            ) from None


# What is written of records and pictures beside records.json, and words that all of it has.
RESULTS = [
    "table.md",
    "table.csv",
    "table.tex",
    "table.png",
    "figure.md",
    "figure.csv",
    "figure.png",
    "tuning.md",
    "advice.md",
]
OURS = re.compile(r"^# .*\n\n(Model `|Mix(\+\+|\*): |By )")


def check_results(out: Path) -> list[Record]:
    """The table's records that a folder of results holds, to be replaced; none where these are damaged.

    Raises ValueError if there are files of these names that were not made here.
    """
    path, records = out / "records.json", []
    check_replaceable(path)
    if path.exists():
        with suppress(Damaged):
            records = load_records(path)
        if isinstance(records, list) and all(r["cell"] is not None for r in records):
            return records
        raise ValueError(f"{path} is no table's records: choose another out=DIR")
    there = [name for name in RESULTS if (out / name).exists()]
    texts = [(out / name).read_text("utf-8", "replace") for name in there if name.endswith(".md")]
    if there and not any(map(OURS.match, texts)):
        raise ValueError(
            f"{out} holds {', '.join(there)}, which were not made here: choose another out=DIR, or "
            "move these files away"
        )
    return []


def save_records(path: Path, records: Record | Sequence[Record]) -> None:
    """Write a record, or those of a table; a file that says the same already is left as it is."""
    write_json(path, records)


def load_records(path: Path, remedy: str = "remove it and run again") -> Any:
    """A record or a list of them.  Raises FileNotFoundError or `Damaged`, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}: run without render_only first")
    content = read_json(path, remedy)
    with reading(path, remedy):
        for record in content if isinstance(content, list) else [content]:
            _check_record(record)
    return content


def _check_record(record: Any) -> None:
    """Raise what a reader of this entry would, if it is no record."""
    _ = [record[key] for key in ("protocol", "extractor", "options")]
    for key in ("n", "steps"):
        if key in record and (type(record[key]) is not int or record[key] < 1):
            raise ValueError(f"{key} is no number of at least 1")
    if "row" in record and type(record["row"]) is not str:
        raise ValueError("row is no text")
    for scores in (record["scores"], record["floor"] or {}):
        for name, value in scores.items():
            numbers = Score.of(value)
            if not all(type(x) in (int, float) for x in numbers[:2]) or numbers.se < 0:
                raise ValueError(f"{name} is no score")
    if record["cell"] is not None:
        _ = record["cell"]["config"]["model"], record["cell"]["nfe"]
