"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.metrics import Score
from eval.records import score
from eval.scoring import DIGITS, METRIC_NAMES
from eval.table import Cell, _column, _columns, _floor, _rows, _sizes, cutoff, undecided_best
from report.paper import is_the_papers, paper_value
from report.words import format_score, metric_title, protocol_sentence


def _text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def _markdown(
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> str:
    record = cells[0].record
    beside = is_the_papers(paper, record)
    lines = [f"# {title}", "", protocol_sentence(record), ""]
    if paper and beside:
        lines += [f"In parentheses: the paper's number ({paper['source']}) and ours minus the "
                  "paper's.  The paper states no uncertainty, and leaves open much of the "
                  "protocol: see docs/paper_notes.md.", ""]  # fmt: skip
    for metric in metrics:
        lines += [f"## {metric_title(metric, record['extractor'])}", ""]
        lines += [*markdown_grid(cells, metric, paper if beside else None), ""]
    shared = [m for m in metrics if paper and any(m in c for c in paper["rows"][0]["cells"])]
    if paper and shared and not beside:
        other = "model" if "prompts" in record["cell"]["config"] else "data set"
        lines += [f"## The paper: {paper['title']}", ""]
        lines += [f"{paper['source']}.  Data: {paper['dataset']}, another {other} than ours: "
                  "compare orderings, not numbers.", ""]  # fmt: skip
        for metric in shared:
            lines += [*_markdown_paper(paper, metric), ""]
    return "\n".join(lines)


def markdown_grid(
    cells: Sequence[Cell], metric: str, paper: dict[str, Any] | None = None
) -> list[str]:
    """A sampler x steps table of one metric in Markdown, the best in bold, the floor below."""
    columns, sizes = _columns(cells), _sizes(cells)
    best = {steps: undecided_best(metric, _column(cells, steps, metric)) for steps in columns}
    lines = ["| Sampler | " + " | ".join(f"{s} steps (N={sizes[s]})" for s in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in _rows(cells):
        texts = []
        for steps in columns:
            value = _column(cells, steps, metric).get(row)
            text = format_score(metric, value)
            text = f"**{text}**" if row in best[steps] else text
            texts.append(text + _beside(metric, value, paper_value(paper, row, steps, metric)))
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    floors = [_floor(cells, steps, metric) for steps in columns]
    if any(floors):
        lines.append("| *Real* | " + " | ".join(format_score(metric, f) for f in floors) + " |")
    return lines


def _beside(metric: str, ours: Score | None, theirs: float | None) -> str:
    """ " (9.41, +0.64)": the paper's number and the difference; empty where one lacks."""
    if ours is None or theirs is None:
        return ""
    return f" ({theirs:g}, {ours.value - theirs:+.{DIGITS.get(metric, 3)}f})"


def _markdown_paper(paper: dict[str, Any], metric: str) -> list[str]:
    columns = [cell["steps"] for cell in paper["rows"][0]["cells"]]
    heads = [f"{s} steps" if s else "steps not stated" for s in columns]
    lines = [f"| {METRIC_NAMES[metric]} | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in paper["rows"]:
        values = [paper_value(paper, row["name"], s, metric) for s in columns]
        lines.append(f"| {row['name']} | " + " | ".join(map(str, values)) + " |")
    return lines


def _markdown_cutoffs(cells: Sequence[Cell], metric: str) -> list[str]:
    columns, sizes = _columns(cells), _sizes(cells)
    lines = ["| Cutoff | " + " | ".join(f"{s} steps (N={sizes[s]})" for s in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    values = {(c.steps, cutoff(c)): score(c.record, metric) for c in cells}
    best = {
        s: undecided_best(metric, {str(t): v for (s2, t), v in values.items() if s2 == s and v})
        for s in columns
    }
    for t in sorted({cutoff(c) for c in cells}):
        texts = []
        for s in columns:
            text = format_score(metric, values.get((s, t)))
            texts.append(f"**{text}**" if str(t) in best[s] else text)
        lines.append(f"| {t:g} | " + " | ".join(texts) + " |")
    floors = [_floor(cells, s, metric) for s in columns]
    if any(floors):
        lines.append("| *Real* | " + " | ".join(format_score(metric, f) for f in floors) + " |")
    return lines


def _write_csv(path: Path, cells: Sequence[Cell], paper: dict[str, Any] | None) -> None:
    fields = ["sampler", "steps", "nfe", "cutoff", "spacing", "seed", "n", "metric", "value", "se"]
    fields += ["floor", "protocol", "extractor", "reference", "paper", "difference"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for cell in cells:
            made = cell.record["cell"]
            for metric, value in cell.record["scores"].items():
                floor = score(cell.record, metric, "floor")
                theirs = paper_value(paper, cell.row, cell.steps, metric)
                comparable = theirs is not None and is_the_papers(paper, cell.record)
                writer.writerow({
                    "sampler": cell.row,
                    "steps": cell.steps,
                    "nfe": made["nfe"],
                    "cutoff": made["config"]["sampler"].get("cutoff", ""),
                    "spacing": made["config"]["spacing"],
                    "seed": made["config"]["seed"],
                    "n": cell.record["n"],
                    "metric": metric,
                    **value,
                    "floor": floor.value if floor else "",
                    "protocol": cell.record["protocol"],
                    "extractor": cell.record["extractor"],
                    "reference": cell.record["reference"],
                    "paper": "" if theirs is None else theirs,
                    "difference": value["value"] - theirs if theirs and comparable else "",
                })  # fmt: skip


def _latex(
    title: str, cells: Sequence[Cell], metrics: Sequence[str], paper: dict[str, Any] | None
) -> str:
    columns, sizes = _columns(cells), _sizes(cells)
    extractor = cells[0].record["extractor"]
    beside = paper if is_the_papers(paper, cells[0].record) else None
    heads = [f"\\multicolumn{{{len(metrics)}}}{{c}}{{{s} steps ($N={sizes[s]}$)}}" for s in columns]
    names = [f"{METRIC_NAMES[m]} ({extractor})" for m in metrics] * len(columns)
    lines = [
        f"% {title}; +- is the half width of the 95% interval; Real: real images for samples"
        + ("; in parentheses the paper's number and the difference" if beside else ""),
        f"\\begin{{tabular}}{{l{'r' * len(names)}}}",
        "\\toprule",
        "Sampler & " + " & ".join(heads) + " \\\\",
        " & " + " & ".join(names) + " \\\\",
        "\\midrule",
    ]
    best = {(s, m): undecided_best(m, _column(cells, s, m)) for s in columns for m in metrics}
    for row in _rows(cells):
        texts = []
        for s in columns:
            for m in metrics:
                value = _column(cells, s, m).get(row)
                text = format_score(m, value).replace(" ± ", " \\pm ")
                text = f"$\\mathbf{{{text}}}$" if row in best[s, m] else f"${text}$"
                texts.append(text + _beside(m, value, paper_value(beside, row, s, m)))
        lines.append(f"{row} & " + " & ".join(texts) + " \\\\")
    floors = [_floor(cells, s, m) for s in columns for m in metrics]
    if any(floors):
        texts = [format_score(m, floor).replace(" ± ", " \\pm ")
                 for m, floor in zip([*metrics] * len(columns), floors, strict=True)]  # fmt: skip
        lines += ["\\midrule", "Real & " + " & ".join(f"${text}$" for text in texts) + " \\\\"]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])
