"""What tuning found: the text of tuning.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, save_records
from eval.scoring import METRICS
from eval.table import Table, gain
from eval.words import decimals, format_score, reference_words
from files.whole import write_text
from report.formats import document, grid
from report.words import differences_sentence


def write_tuning(out: Path, title: str, results: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """tuning.md and records.json; returns the text.

    Each of `results` has `steps`, the options of the `chosen` sampler, the tables `tried` and
    `confirmed` (whose first row is the chosen one) and the `calls` that both took.  `settings` has
    the metric that chose, the metrics that are shown, the spacing and the model.
    """
    record = results[0].confirmed.records[0]
    about = (
        "Mix++: SDE-DPM-Solver++ for lo <= t < hi, DPM-Solver++ elsewhere (orders of both given); "
        f"spacing {settings['spacing']}.  Protocol {record['protocol']}, extractor "
        f"{record['extractor']}, {reference_words(record)}.  ± is half the 95% interval.  "
        f"{differences_sentence(results[0].confirmed, settings['metric'])}"
    )
    parts = [f"# {title}", about, *(part for r in results for part in _section(r, settings))]
    text = document(parts)
    write_text(out / "tuning.md", text)
    save_records(out / "records.json", [r for result in results for r in _stored(result)])
    return text


def _section(result: Any, settings: Mapping[str, Any]) -> list[str]:
    steps, metrics, metric = result.steps, settings["metrics"], settings["metric"]
    rivals = result.confirmed.rows[1:]
    verdicts = [verdict(result.confirmed, row, steps, metric) for row in rivals]
    return [
        f"## {steps} steps",
        f"Confirmed on fresh seeds, {result.confirmed.n(steps):,} samples:",
        _scores(result.confirmed, steps, metrics),
        "\n".join(f"- Tuned is {words}." for words in verdicts),
        f"All of this took {result.calls:,} image calls.  To use it:",
        f"    {command(result, settings['model'], settings['spacing'])}",
        f"Candidates on the tuning seeds, {result.tried.n(steps):,} samples each:",
        _scores(result.tried, steps, metrics),
    ]


def verdict(confirmed: Table, rival: str, steps: int, metric: str) -> str:
    """Whether the tuned sampler differs from a rival by more than the 95% interval."""
    tuned = confirmed.score(confirmed.rows[0], steps, metric)
    difference = gain(metric, tuned, confirmed.score(rival, steps, metric))
    return (
        f"{difference.words} {rival} "
        f"({METRICS[metric].title} {difference.text(decimals(metric))} in its favour)"
    )


def command(result: Any, model: str, spacing: Any) -> str:
    """The command that samples with what was chosen."""
    options = " ".join(f"sampler.{k}={v}" for k, v in result.chosen.items() if k != "name")
    spaced = "" if spacing == "even" else f"spacing={spacing} "
    return f"python sample.py model={model} steps={result.steps} {spaced}sampler=mixpp {options}"


def _scores(table: Table, steps: int, metrics: Sequence[str]) -> str:
    """A Markdown table of one step count: samplers x metrics."""
    rows = [
        [row, *(format_score(m, table.value(row, steps, m)) for m in metrics)] for row in table.rows
    ]
    floors = [table.floor(steps, m) for m in metrics]
    if any(floors):
        floor = [format_score(m, floor) for m, floor in zip(metrics, floors, strict=True)]
        rows.append(["real images (floor)", *floor])
    return grid(["sampler", *(METRICS[m].title for m in metrics)], rows)


def _stored(result: Any) -> list[Record]:
    """The records of a result, each with what it was for."""
    phases = {"tuning": result.tried, "fresh": result.confirmed}
    return [
        {
            "row": r["row"],
            "phase": phase,
            **{k: v for k, v in r.items() if k not in ("row", "steps")},
        }
        for phase, table in phases.items()
        for r in table.records
    ]
