"""The page's tables: conclusion, tuning, the paper's numbers, and all of ours, as HTML."""

import html
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from eval.records import Record, score
from eval.scoring import METRICS
from eval.table import Table
from eval.words import format_score
from report.charts import plain
from report.conclusion import Conclusion
from report.paper import Paper
from report.tuning import verdict
from report.words import extractor_sentence, options_words, scored_sentence

Entry = tuple[str, float | None]  # the text of a cell, and the number by which it sorts
Rows = Sequence[Sequence[Entry]]


def paragraph(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def bullets(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(s)}</li>' for s in sentences if s)}</ul>"


def folded(title: str, inner: str, opened: bool = False) -> str:
    head = f"<details{' open' if opened else ''}><summary>{html.escape(title)}</summary>"
    return f"{head}{inner}</details>"


def table(label: str, heads: Sequence[str], rows: Rows, kind: str = "") -> str:
    """A table that sorts by a click or a key on any of its heads; `kind` is a class of page.css."""
    buttons = (f'<button type="button">{html.escape(head)}</button>' for head in heads)
    head = "".join(f'<th scope="col">{button}</th>' for button in buttons)
    body = "".join(_row(row, heads) for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(entries: Sequence[Entry], heads: Sequence[str]) -> str:
    """A line of a table; the first entry is its head."""
    cells = []
    for i, ((text, number), head) in enumerate(zip(entries, heads, strict=True)):
        tag = 'th scope="row"' if i == 0 else "td"
        value = "" if number is None else f' data-value="{html.escape(str(number))}"'
        said = f' data-head="{html.escape(head)}"'  # for a phone, where lines are cards
        cells.append(f"<{tag}{value}{said}>{html.escape(text)}</{tag[:2]}>")
    return f"<tr>{''.join(cells)}</tr>"


def _number(metric: str, record: Record | None) -> Entry:
    value = None if record is None else score(record, metric)
    if value is None or not math.isfinite(value.value):
        return "-", None
    return format_score(metric, value), value.value


# --- conclusion -----------------------------------------------------------------------------------


def conclusions(found: Sequence[Conclusion]) -> str:
    """The fullest table of each model is open, others are a click away."""
    opened: set[str] = set()
    parts = []
    for one in found:
        model = one.table.records[0]["cell"]["config"]["model"]["name"]
        rows = [[(text, _sorting(text)) for text in row] for row in one.rows()]
        inner = bullets(one.sentences()) + table(one.title, one.heads, rows, "words")
        parts.append(folded(one.title, inner + paragraph(plain(one.note)), model not in opened))
        opened.add(model)
    return "\n".join(parts)


def _sorting(text: str) -> float | None:
    whole = text.replace(",", "")
    return float(whole) if whole.isdecimal() else None


# --- tuning -------------------------------------------------------------------------------------


def tuning(name: str, records: Sequence[Record]) -> str:
    """What was chosen at each step count, how it did on fresh seeds, and what it was chosen from.

    Each of the records, of scripts.tune or its like, says its `phase`: "fresh", or another for what chose.
    """
    parts = [f"<h3>{html.escape(name)}</h3>", paragraph(plain(extractor_sentence(records[0])))]
    placed = [{**r, "steps": r["cell"]["config"]["steps"]} for r in records]
    for steps, of_steps in groupby(sorted(placed, key=lambda r: r["steps"]), lambda r: r["steps"]):
        tried: list[Record] = []
        fresh: list[Record] = []
        for record in of_steps:
            (fresh if record["phase"] == "fresh" else tried).append(record)
        parts.append(f"<h4>{steps} steps</h4>")
        parts += [_confirmed(name, steps, Table(fresh))] if fresh else []
        if tried:
            title = f"Candidates at {steps} steps, on the seeds that chose"
            parts.append(folded(title, _scored(title, tried)))
    return "".join(parts)


def _confirmed(name: str, steps: int, fresh: Table) -> str:
    """The chosen one, which is the first row, against the others on seeds that chose nothing."""
    scores = fresh.records[0]["scores"]
    metric = "fid" if "fid" in scores else next(iter(scores))
    chosen, *rivals = fresh.rows
    known = [
        r for r in rivals if fresh.value(r, steps, metric) and fresh.value(chosen, steps, metric)
    ]
    words = [f"{chosen} is {verdict(fresh, r, steps, metric)}." for r in known]
    return (
        bullets(words)
        + paragraph("Confirmed on fresh seeds:")
        + _scored(f"{name}, {steps} steps, fresh seeds", fresh.records)
    )


def _scored(label: str, records: Sequence[Record]) -> str:
    """Samplers x metrics."""
    metrics = [m for m in METRICS if any(m in r["scores"] for r in records)]
    heads = ["Sampler", "N", *(METRICS[m].title for m in metrics)]
    rows = [
        [(r["row"], None), (f"{r['n']:,}", r["n"]), *(_number(m, r) for m in metrics)]
        for r in records
    ]
    return table(label, heads, rows)


# --- the paper's tables -------------------------------------------------------------------------


def paper_table(path: Path, tables: Sequence[Table]) -> str:
    """The paper's numbers, and ours beside them where there are any of its own model.

    Folded away where there are none; no line says of a number that it was not measured.
    """
    paper = Paper.load(path)
    ours = [r for t in tables for r in t.records if paper.is_of(r)]
    metrics = [m["key"] for m in paper["metrics"]]
    whose = ("paper", "ours") if ours else ("paper",)
    heads = ["Sampler", "Steps", *(f"{METRICS[m].title}, {who}" for m in metrics for who in whose)]
    known: list[list[Entry]] = []
    rest: list[list[Entry]] = []
    for entry, cell in [(row, cell) for row in paper["rows"] for cell in row["cells"]]:
        name, steps = entry["name"], cell["steps"]
        same = (r for r in ours if r["row"] == entry.get("ours", name))
        record = next((r for r in same if steps in (None, r["steps"])), None)
        line: list[Entry] = [(name, None), (str(steps or "not stated"), steps)]
        for m in metrics:
            line += [(str(cell[m]), float(cell[m])), _number(m, record)][: len(whose)]
        (rest if ours and record is None else known).append(line)
    title, source = paper["title"], paper["source"]
    needs = f"Ours needs {paper['model']} and a GPU: make {path.stem}."
    if not ours:
        note = f"{source}. {needs} No other model or data set stands in for it here."
        return folded(f"{title}: the paper's numbers", paragraph(note) + table(title, heads, known))
    parts = [f"<h3>{html.escape(title)}</h3>"]
    parts += [paragraph(f"{source}. {plain(scored_sentence(ours[0]))}"), table(title, heads, known)]
    if rest:
        bare = [[*row[:2], *row[2::2]] for row in rest]
        titles = [*heads[:2], *heads[2::2]]
        lines = f"{len(rest)} lines of the paper that ours lack"
        parts.append(folded(lines, paragraph(needs) + table(f"{title}: {lines}", titles, bare)))
    return "".join(parts)


# --- all of ours ----------------------------------------------------------------------------------


def full_table(name: str, whole: Table) -> str:
    """All numbers of a table, folded away, and with which options every sampler was run."""
    metrics = [m for m in METRICS if any(m in r["scores"] for r in whole.records)]
    heads = ["Sampler", "Steps", "Network calls", "N", *(METRICS[m].title for m in metrics)]
    rows = []
    for record in sorted(whole.records, key=lambda r: (whole.rows.index(r["row"]), r["steps"])):
        counts = (record["steps"], record["cell"]["nfe"], record["n"])
        entries: list[Entry] = [(record["row"], None), *((f"{x:,}", x) for x in counts)]
        rows.append([*entries, *(_number(m, record) for m in metrics)])
    about = paragraph(plain(scored_sentence(whole.records[0])))
    options = paragraph(f"Samplers: {'; '.join(map(_options, _firsts(whole)))}.")
    return folded(name, about + options + table(name, [*heads], rows))


def _firsts(whole: Table) -> list[Record]:
    """A record of every row."""
    return [next(r for r in whole.records if r["row"] == row) for row in whole.rows]


def _options(record: Record) -> str:
    sampler: dict[str, Any] = record["cell"]["config"]["sampler"]
    return f"{record['row']} is {sampler['name']}{options_words(sampler)}"
