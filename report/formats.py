"""Tables as Markdown, CSV and LaTeX."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, score
from eval.score import Score
from eval.scoring import METRICS
from eval.table import Table
from eval.words import decimals, format_score
from files.whole import printable
from report.escape import in_csv, in_latex, in_markdown
from report.paper import Paper
from report.words import (
    against_cutoffs,
    curves_caption,
    cutoffs_caption,
    metric_title,
    protocol_sentence,
)


def document(parts: Iterable[str]) -> str:
    """A Markdown file of paragraphs, headings and tables; those that are empty are left out."""
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown(title: str, table: Table, metrics: Sequence[str], paper: Paper | None) -> str:
    """A Markdown file of a table: one grid a metric, and the paper's numbers beside or below."""
    record, about, below = table.records[0], "", []
    beside = paper if paper and paper.is_of(record) else None
    if beside:
        about = (
            f"In parentheses: the paper's number ({beside['source']}) and ours minus the paper's.  "
            "The paper states no uncertainty, and leaves open much of the protocol: see "
            "docs/paper_notes.md."
        )
    elif paper and (shared := [m for m in metrics if paper.has(m)]):
        other = "model" if "prompts" in record["cell"]["config"] else "data set"
        below = [
            f"## The paper: {paper['title']}",
            f"{paper['source']}.  Data: {paper['dataset']}, another {other} than ours: compare "
            "orderings, not numbers.",
            *(_paper_grid(paper, metric) for metric in shared),
        ]
    grids = [score_grid(table, metric, beside) for metric in metrics]
    if against_cutoffs(table, beside is not None):
        picture = image("table.png", *cutoffs_caption(table, metrics, shaded=False))
    else:
        picture = image("table.png", *curves_caption(table, metrics, beside is not None))
    return document([*_scored(title, table, about, metrics, grids), picture, *below])


def cutoffs_markdown(title: str, table: Table, metrics: Sequence[str], paper: Paper | None) -> str:
    """A Markdown file of scores against Mix's cutoff; the table's rows are cutoffs."""
    about = ""
    if paper and "optimal_cutoffs" in paper.data:
        other = "" if paper.is_of(table.records[0]) else ", another data set"
        low, high = paper["optimal_cutoffs"]
        about = (
            f"The paper ({paper['source']}; {paper['dataset']}{other}) finds the best cutoffs within "
            f"[{low}, {high}], and prints no numbers."
        )
    grids = [score_grid(table, metric, head="Cutoff") for metric in metrics]
    picture = image("figure.png", *cutoffs_caption(table, metrics[:2], shaded=bool(about)))
    return document([*_scored(title, table, about, metrics, grids), picture])


def _scored(
    title: str, table: Table, about: str, metrics: Sequence[str], grids: Sequence[str]
) -> list[str]:
    record = table.records[0]
    heads = [f"## {metric_title(metric, record['extractor'])}" for metric in metrics]
    pairs = zip(heads, grids, strict=True)
    return [
        f"# {printable(title)}",
        protocol_sentence(table),
        about,
        *(part for pair in pairs for part in pair),
    ]


def _paper_grid(paper: Paper, metric: str) -> str:
    columns = [cell["steps"] for cell in paper["rows"][0]["cells"]]
    heads = [f"{s} steps" if s else "steps not stated" for s in columns]
    names = [row["name"] for row in paper["rows"]]
    rows = [[name, *(paper.printed(name, s, metric) or "-" for s in columns)] for name in names]
    return grid([METRICS[metric].title, *heads], rows)


def image(file: str, title: str, caption: str) -> str:
    """A picture of the same folder, and below it what it shows, to be read without the rest."""
    return f"![{in_markdown(title)}]({file})\n\n*{in_markdown(title)}.* {in_markdown(caption)}"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    texts = [[f" {in_markdown(text)} " if text else " " for text in row] for row in (heads, *rows)]
    head, *lines = (f"|{'|'.join(row)}|" for row in texts)
    return "\n".join([head, "|---" * len(heads) + "|", *lines])


def score_grid(
    table: Table, metric: str, beside: Paper | None = None, head: str = "Sampler"
) -> str:
    """Samplers x steps of one metric, the best in bold, the floor below."""
    tied = {steps: table.tied(steps, metric) for steps in table.columns}

    def text(row: str, steps: int) -> str:
        value = table.value(row, steps, metric)
        text = bold(format_score(metric, value), row in tied[steps])
        return text + _beside(metric, value, beside.printed(row, steps, metric) if beside else None)

    rows = [[row, *(text(row, steps) for steps in table.columns)] for row in table.rows]
    floors = [table.floor(steps, metric) for steps in table.columns]
    if any(floors):
        rows.append(["*Real*", *(format_score(metric, floor) for floor in floors)])
    return grid([head, *(f"{s} steps (N={table.n(s)})" for s in table.columns)], rows)


def bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _beside(metric: str, ours: Score | None, theirs: str | None) -> str:
    """ " (9.41, +0.64)": the paper's number and the difference; empty where one lacks."""
    if ours is None or theirs is None:
        return ""
    return f" ({theirs}, {ours.value - float(theirs):+.{decimals(metric)}f})"


def write_csv(path: Path, table: Table, paper: Paper | None) -> None:
    """One line a score, with its protocol."""
    lines = [_csv_line(r, metric, paper) for r in table.records for metric in r["scores"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows({key: in_csv(v) for key, v in line.items()} for line in lines)


def _csv_line(record: Record, metric: str, paper: Paper | None) -> dict[str, Any]:
    cell, config = record["cell"], record["cell"]["config"]
    value, floor = record["scores"][metric], score(record, metric, "floor")
    theirs = paper.value(record["row"], record["steps"], metric) if paper else None
    return {
        "sampler": record["row"],
        "steps": record["steps"],
        "nfe": cell["nfe"],
        "cutoff": config["sampler"].get("cutoff", ""),
        "spacing": config["spacing"],
        "seed": config["seed"],
        "n": record["n"],
        "metric": metric,
        "value": value["value"],
        "se": value["se"],
        "floor": floor.value if floor else "",
        "protocol": record["protocol"],
        "extractor": record["extractor"],
        "reference": record["reference"],
        "paper": "" if theirs is None else theirs,
        "difference": value["value"] - theirs if theirs and paper and paper.is_of(record) else "",
    }


def latex(title: str, table: Table, metrics: Sequence[str], paper: Paper | None) -> str:
    """A booktabs table: samplers x (steps x metrics)."""
    columns, record = table.columns, table.records[0]
    beside = paper if paper and paper.is_of(record) else None
    heads = [
        f"\\multicolumn{{{len(metrics)}}}{{c}}{{{s} steps ($N={table.n(s)}$)}}" for s in columns
    ]
    of = in_latex(record["extractor"])
    names = [f"{METRICS[m].title} ({of})" for m in metrics] * len(columns)
    places = [(s, m) for s in columns for m in metrics]
    tied = {(s, m): table.tied(s, m) for s, m in places}

    def number(metric: str, value: Score | None) -> str:
        return format_score(metric, value).replace(" ± ", " \\pm ")

    def text(row: str, s: int, m: str) -> str:
        value = table.value(row, s, m)
        text = number(m, value)
        text = f"$\\mathbf{{{text}}}$" if row in tied[s, m] else f"${text}$"
        return text + _beside(m, value, beside.printed(row, s, m) if beside else None)

    lines = [
        f"% {printable(title)}; +- is the half width of the 95% interval; Real: real images for samples"
        + ("; in parentheses the paper's number and the difference" if beside else ""),
        f"\\begin{{tabular}}{{l{'r' * len(names)}}}",
        "\\toprule",
        "Sampler & " + " & ".join(heads) + " \\\\",
        " & " + " & ".join(names) + " \\\\",
        "\\midrule",
    ]
    for row in table.rows:
        lines.append(
            f"{in_latex(row)} & " + " & ".join(text(row, s, m) for s, m in places) + " \\\\"
        )
    floors = [(m, table.floor(s, m)) for s, m in places]
    if any(floor for _, floor in floors):
        real = " & ".join(f"${number(m, floor)}$" for m, floor in floors)
        lines += ["\\midrule", f"Real & {real} \\\\"]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])
