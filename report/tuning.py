"""What tuning found: the text of tuning.md, and the plans of the winners."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, save_records, score
from eval.scoring import METRICS
from eval.table import Table, gain, without_spreads
from eval.words import as_word, decimals, format_score, reference_words
from files.whole import printable, write_text
from report.escape import in_markdown
from report.formats import document, grid
from report.words import differences_sentence

FAMILIES = {
    "window": "Mix++: SDE-DPM-Solver++ for lo <= t < hi, DPM-Solver++ elsewhere (orders of both given)",
    "mixstar": "Mix*: a share of noise for every noise level, with its order, grid and scale of eps",
}
SHOWN = 30  # of the candidates, the best


def write_tuning(out: Path, title: str, results: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """tuning.md, records.json, and the plan of every winner; returns the text.

    Each of `results` has `steps`, the options of the `chosen` sampler and its `plan`, records of what was
    `tried`, the table `confirmed` (whose first row is the chosen one) and the `calls` that both took.
    `settings` has the metric that chose, the metrics that are shown, the spacing, the family, the model and the
    `words` of the command line that say which it is.
    """
    record = results[0].confirmed.records[0]
    about = (
        f"{FAMILIES[settings['family']]}; spacing {settings['spacing']} where none is said.  Protocol "
        f"{record['protocol']}, extractor {record['extractor']}, {reference_words(record)}.  ± is half the 95% "
        f"interval.  {differences_sentence(results[0].confirmed, settings['metric'])}"
    )
    for result in results:
        write_text(out / plan_name(result, settings), result.plan.to_json())
    sections = [part for r in results for part in _section(r, settings, out)]
    text = document([f"# {printable(title)}", about, *sections])
    write_text(out / "tuning.md", text)
    save_records(out / "records.json", [record for result in results for record in _stored(result)])
    return text


def plan_name(result: Any, settings: Mapping[str, Any]) -> str:
    family = {"window": "mixpp"}.get(settings["family"], settings["family"])
    return f"{family}-{settings['model']}-{result.steps}.json"


def _section(result: Any, settings: Mapping[str, Any], out: Path) -> list[str]:
    steps, metrics, metric = result.steps, settings["metrics"], settings["metric"]
    winner, *rivals = result.confirmed.rows
    verdicts = [verdict(result.confirmed, row, steps, metric) for row in rivals]
    path = out / plan_name(result, settings)
    return [
        f"## {steps} steps",
        f"Confirmed on fresh seeds, {result.confirmed.n(steps):,} samples:",
        scores_grid(result.confirmed, steps, metrics),
        "\n".join(f"- {winner} is {in_markdown(words)}." for words in verdicts),
        f"All of this took {result.calls:,} image calls.  To use it:",
        *lines_to_copy(result.chosen, steps, settings, path),
        f"The best candidates on seeds of tuning, of {len(result.tried)}:",
        tried_grid(result.tried, metric),
    ]


def tried_grid(records: Sequence[Record], metric: str) -> str:
    """A Markdown table of candidates: those with most samples first, and of these the best."""
    sign = 1 if METRICS[metric].lower_is_better else -1
    scored = [(r["n"], score(r, metric), r["row"]) for r in records]
    known = [(n, value, row) for n, value, row in scored if value is not None]
    known.sort(key=lambda one: (-one[0], sign * one[1].value))
    rows = [[row, f"{n:,}", format_score(metric, value)] for n, value, row in known[:SHOWN]]
    return grid(["candidate", "N", METRICS[metric].title], rows)


def verdict(confirmed: Table, rival: str, steps: int, metric: str) -> str:
    """Whether the tuned sampler differs from a rival by more than the 95% interval."""
    tuned = confirmed.score(confirmed.rows[0], steps, metric)
    difference = gain(metric, tuned, confirmed.score(rival, steps, metric))
    return (
        f"{difference.words} {rival} "
        f"({METRICS[metric].title} {difference.text(decimals(metric))} in its favour)"
    )


def lines_to_copy(
    sampler: Mapping[str, Any], steps: int, settings: Mapping[str, Any], path: Path
) -> list[str]:
    """How to use a sampler, or its plan at `path`, from the command line and in diffusers."""
    return [
        f"    {command(sampler, steps, settings)}\n"
        f"    python sample.py {_of_model(settings)} "
        f"{shlex.join(['sampler=plan', f'sampler.path={path}'])} steps=null",
        "or in a pipeline of diffusers:",
        f"    pipe.scheduler = PlanScheduler.from_json({json.dumps(str(path))}, like=pipe.scheduler)",
    ]


def command(sampler: Mapping[str, Any], steps: int, settings: Mapping[str, Any]) -> str:
    """The command that samples with it."""
    chosen = {"spacing": settings["spacing"], **sampler}
    spacing = chosen.pop("spacing")
    words = [
        f"sampler={chosen.pop('name')}",
        *(f"sampler.{k}={as_word(v)}" for k, v in chosen.items()),
    ]
    if spacing != "even":
        words.insert(0, f"spacing={as_word(spacing)}")
    return f"python sample.py {_of_model(settings)} steps={steps} {shlex.join(words)}"


def _of_model(settings: Mapping[str, Any]) -> str:
    """The words of the command line that say which model it is, and what of; `model=NAME` unless told."""
    return shlex.join(settings.get("words") or [f"model={settings['model']}"])


def scores_grid(table: Table, steps: int, metrics: Sequence[str]) -> str:
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
    return phased({"tuning": result.tried, "fresh": result.confirmed.records})


def phased(phases: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Records for records.json, each with what it was for; of the many that were tried the scores alone."""
    return [
        {"row": r["row"], "phase": phase, **{k: v for k, v in kept.items() if k != "row"}}
        for phase, records in phases.items()
        for r in records
        for kept in [r if phase == "fresh" else without_spreads(r)]
    ]
