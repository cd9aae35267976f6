"""What to use on a model at how many network calls: the text of advice.md, and the plans."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, save_records
from eval.scoring import METRICS
from eval.table import gain
from eval.words import decimals, format_score, reference_words
from files.whole import printable, write_text
from report.escape import in_markdown
from report.formats import document, grid
from report.tuning import lines_to_copy, phased, scores_grid, tried_grid

SHOWN = 5  # of those that are not told apart from the best


def write_advice(out: Path, title: str, results: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """advice.md, records.json, and the plan of every best sampler; returns the text.

    Each of `results` has `steps`, the `best` row, what was `left`, it included, the `samplers` by row, the best one's
    `plan`, the records `tried`, the table `confirmed` or None, the `calls` that it took, and the `baseline` row.
    `settings` has the metric that chose, the metrics that are shown, the spacing and the model.
    """
    for result in results:
        write_text(out / plan_name(result, settings), result.plan.to_json())
    record, metric = results[0].tried[0], settings["metric"]
    title_of = METRICS[metric].title
    about = (
        f"By {title_of}, protocol {record['protocol']}, extractor {record['extractor']}, "
        f"{reference_words(record)}.  Scores are of fresh seeds, ± is half the 95% interval.  To use is the first of "
        "those that neither the race nor fresh seeds tell apart from their best, by the paired difference.  All of it "
        f"took {sum(result.calls for result in results):,} image calls."
    )
    heads = [
        "Calls",
        "Use",
        title_of,
        "N",
        "Not told apart from it",
        f"Better than {results[0].baseline} by",
    ]
    table = grid(heads, [_row(result, metric) for result in results])
    sections = [part for result in results for part in _section(result, settings, out)]
    text = document([f"# {printable(title)}", about, _itself(record, settings), table, *sections])
    write_text(out / "advice.md", text)
    save_records(out / "records.json", [record for result in results for record in _stored(result)])
    return text


def plan_name(result: Any, settings: Mapping[str, Any]) -> str:
    return f"advice-{settings['model']}-{result.steps}.json"


def _itself(record: Record, settings: Mapping[str, Any]) -> str:
    if record["reference"] != "itself":
        return ""
    steps, n = settings["against"]["steps"], record["reference_n"]
    return (
        "There were no real images: the scores say how near samples come to those that the model itself makes in "
        f"{steps} steps, which share its faults.  These took {steps * n:,} image calls more."
    )


def _row(result: Any, metric: str) -> list[str]:
    others = _others(result.left[1:])
    table, steps = result.confirmed, result.steps
    if table is None:
        tried = next(r for r in result.tried if r["row"] == result.best)
        return [str(steps), result.best, "not confirmed", f"{tried['n']:,}", others, "-"]
    ours = table.score(result.best, steps, metric)
    theirs = table.value(result.baseline, steps, metric)
    lead = "-"
    if theirs is not None and result.best != result.baseline:
        difference = gain(metric, ours, theirs)
        told = "" if difference.words != "not told apart from" else " (not told apart)"
        lead = f"{difference.text(decimals(metric))}{told}"
    return [
        str(steps),
        result.best,
        format_score(metric, ours),
        f"{table.n(steps):,}",
        others,
        lead,
    ]


def _others(rows: Sequence[str]) -> str:
    """A name has a comma before its grid."""
    more = f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return "; ".join(rows[:SHOWN]) + more or "nothing"


def _section(result: Any, settings: Mapping[str, Any], out: Path) -> list[str]:
    steps, metric = result.steps, settings["metric"]
    path = out / plan_name(result, settings)
    fresh = []
    if result.confirmed is not None:
        fresh = [
            f"The best on fresh seeds, {result.confirmed.n(steps):,} samples:",
            scores_grid(result.confirmed, steps, settings["metrics"]),
        ]
    return [
        f"## {steps} calls",
        f"{in_markdown(result.best)}, for {result.calls:,} image calls.  To use it:",
        *lines_to_copy(result.samplers[result.best], steps, settings, path),
        *fresh,
        *_all_left(result),
        "The race, those with most samples first:",
        tried_grid(result.tried, metric),
    ]


def _all_left(result: Any) -> list[str]:
    if len(result.left) - 1 <= SHOWN:
        return []
    return [f"Not told apart from the best: {in_markdown('; '.join(result.left[1:]))}."]


def _stored(result: Any) -> list[Record]:
    fresh = [] if result.confirmed is None else result.confirmed.records
    return phased({"race": result.tried, "fresh": fresh})
