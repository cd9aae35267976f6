"""One self-contained web page of everything under results/: tables, curves, pictures.

Built from stored records and contact sheets alone; `python -m scripts.report` writes it.  Style,
script, data and pictures are inside the page, which asks the network for nothing.
"""

import base64
import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, score
from eval.score import Score
from eval.scoring import METRICS
from eval.sheets import INDEX, read_sheets
from eval.table import Table, cutoff
from eval.words import format_score
from files.whole import remove_partial, write_text
from report.escape import in_script
from report.paper import Paper
from report.words import differences_sentence, listed, metric_title, scored_sentence

ASSETS = Path(__file__).parent / "assets"
PAPER_TABLES = ("table1", "table2", "table3", "table4")
ABLATION = "figure4"
DIAL = "study_dial-"
# What is drawn against network calls, and listed in full.
CURVES = ("study", "study_log_snr", "study_exact", "table1", "table1_full", "table2", "table3")
# Samplers drawn at first, where there are more than these; the others are a click away.
DRAWN = ("DDPM", "DDIM", "Skipped-Step", "Mix", "Mix++", "DPM-Solver++(2M)", "UniPC")
LIMIT = 10_000_000  # bytes
TITLE = "<title>Skipped-Step and Mix: results</title>"  # as it stands in page.html


def build_page(results: Path) -> str:
    """The page as HTML.

    Raises FileNotFoundError if there are no records at all, ValueError for a damaged file or a page
    of more than 10 MB.
    """
    folders = sorted(p.parent for p in results.glob("*/*/records.json"))
    if not folders:
        raise FileNotFoundError(f"no records under {results}: run make table1 MODEL=digits first")
    curves = [_read(_curves, p) for name in CURVES for p in folders if p.name == name]
    data = {
        "ablations": [_read(_ablation, p) for p in folders if p.name == ABLATION],
        "curves": curves,
        "dials": _dials([p for p in folders if p.name.startswith(DIAL)]),
    }
    paper = [_paper_table(results / "paper" / f"{name}.yaml", folders) for name in PAPER_TABLES]
    parts = {
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": (ASSETS / "page.js").read_text(encoding="utf-8"),
        "data": in_script(data),
        "paper": "\n".join(paper),
        "ours": "\n".join(_full_table(data) for data in curves),
    }
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    # In one pass: what is put in may have such a mark in it.
    page = re.sub(f"<!--({'|'.join(parts)})-->", lambda match: parts[match[1]], page)
    if len(page.encode()) > LIMIT:
        raise ValueError(
            f"the page would have {len(page.encode()) / 1e6:.1f} MB, more than {LIMIT / 1e6:g}: remove "
            f"pictures-*.webp and {INDEX} from some folders of {results}"
        )
    return page


def write_page(results: Path, out: Path) -> int:
    """Write the page of a folder of results; returns its bytes.

    Raises as `build_page`, and ValueError if `out` is a file that is no such page.
    """
    page = build_page(results)
    if out.exists() and (out.is_dir() or TITLE not in out.read_text("utf-8", errors="replace")):
        raise ValueError(f"{out} is no page of ours: choose another --out FILE, or move it away")
    write_text(out, page)
    remove_partial(out.parent, re.escape(out.name))
    return len(page.encode())


# --- data of the charts and pictures ------------------------------------------------------------


def _read(part: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """A part of the page; ValueError for records that were changed by other hands."""
    try:
        return part(folder)
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"the records in {folder} are damaged ({error!r}): remove them and run again"
        ) from None


def _ablation(folder: Path) -> dict[str, Any]:
    """Scores and pictures at every cutoff and step count."""
    table = Table.load(folder / "records.json")
    panels = {}
    for steps in sorted(table.columns):
        cells = sorted(table.column(steps), key=cutoff)
        panels[steps] = {
            "n": table.n(steps),
            "cutoffs": [cutoff(c) for c in cells],
            "rows": [c["row"] for c in cells],
            "scores": [_scores(c, _metrics(table)) for c in cells],
            "floor": _scores(cells[0], _metrics(table), "floor"),
        }
    return {**_about(folder, table), "panels": panels, "pictures": _sheets(folder)}


def _curves(folder: Path) -> dict[str, Any]:
    """Scores of every sampler against network calls."""
    table = Table.load(folder / "records.json")
    metrics, columns = _metrics(table), sorted(table.columns)

    def point(r: Record) -> dict[str, Any]:
        calls = {"steps": r["steps"], "nfe": r["cell"]["nfe"], "n": r["n"]}
        return {**calls, "scores": _scores(r, metrics)}

    samplers = [
        {
            "name": row,
            "drawn": len(table.rows) <= len(DRAWN) or row.split(" ")[0] in DRAWN,
            "points": [point(r) for steps in columns if (r := table.record(row, steps))],
        }
        for row in table.rows
    ]
    return {
        **_about(folder, table),
        "samplers": samplers,
        "floor": {steps: _scores(table.column(steps)[0], metrics, "floor") for steps in columns},
        "verdicts": {m: _verdicts(table, m) for m in metrics},
        "pictures": _sheets(folder),
    }


def _verdicts(table: Table, metric: str) -> str:
    """Which rows are best at every step count, or cannot be told from it."""
    tied = {steps: table.tied(steps, metric) for steps in sorted(table.columns)}
    named = [
        f"{steps} steps: {listed([row for row in table.rows if row in rows])}"
        for steps, rows in tied.items()
        if rows
    ]
    return f"Best, or not told from it: {'; '.join(named)}. {differences_sentence(table, metric)}"


def _dials(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Scores against the cutoff for networks after different lengths of training, by step count."""
    tables = {p.name.removeprefix(DIAL): Table.load(p / "records.json") for p in folders}
    by_training = sorted(tables, key=lambda name: (name == "exact", len(name), name))
    return [
        {
            "checkpoint": name,
            "steps": steps,
            "points": [
                {"cutoff": cutoff(r), "scores": _scores(r, ["fid"])}
                for r in tables[name].column(steps)
                if not math.isnan(cutoff(r))
            ],
        }
        for name in by_training
        for steps in sorted(tables[name].columns)
    ]


def _about(folder: Path, table: Table) -> dict[str, Any]:
    """What charts say about themselves."""
    record = table.records[0]
    config, extractor = record["cell"]["config"], record["extractor"]
    return {
        "name": f"{config['model']['name']}, {config['spacing']} spacing ({folder.name})",
        "protocol": _plain(scored_sentence(record)),
        "metrics": [
            {"key": m, "name": METRICS[m].title, "title": metric_title(m, extractor)}
            for m in _metrics(table)
        ],
    }


def _metrics(table: Table) -> list[str]:
    return [m for m in METRICS if any(m in record["scores"] for record in table.records)]


def _scores(record: Record, metrics: Sequence[str], of: str = "scores") -> dict[str, Any]:
    return {m: _triple(m, score(record, m, of)) for m in metrics}


def _triple(metric: str, value: Score | None) -> list[Any] | None:
    """Value, half the 95% interval (null if there is none), and both as they are printed."""
    if value is None or not math.isfinite(value.value):
        return None
    half = None if math.isnan(value.se) else round(value.half, 5)
    return [round(value.value, 5), half, format_score(metric, value)]


def _plain(markdown: str) -> str:
    """A sentence of ours without the marks of Markdown."""
    return markdown.replace("`", "")


def _sheets(folder: Path) -> dict[str, Any] | None:
    """The folder's contact sheets with the pictures inside, or None if it has none."""
    index = read_sheets(folder)
    for sheet in index["sheets"].values() if index else ():
        content = base64.b64encode(sheet.pop("content")).decode()
        sheet["image"] = f"data:image/webp;base64,{content}"
    return index


# --- tables -------------------------------------------------------------------------------------

Entry = tuple[str, float | None]  # the text of a cell, and the number by which it sorts


def _paper_table(path: Path, folders: Sequence[Path]) -> str:
    """The paper's numbers, ours beside them; ours are of the paper's own model or absent."""
    paper = Paper.load(path)
    tables = [Table.load(p / "records.json") for p in folders if p.name == path.stem]
    ours = [r for table in tables for r in table.records if paper.is_of(r)]
    metrics = [m["key"] for m in paper["metrics"]]
    heads = ["Sampler", "Steps"]
    heads += [f"{METRICS[m].title}, {who}" for m in metrics for who in ("paper", "ours")]
    rows = []
    printed = [(row, cell) for row in paper["rows"] for cell in row["cells"]]
    for entry, cell in printed:
        name, steps = entry["name"], cell["steps"]
        row = entry.get("ours", name)
        same = (r for r in ours if r["row"] == row and steps in (None, r["steps"]))
        record = next(same, None)
        entries: list[Entry] = [(name, None), (str(steps or "not stated"), steps)]
        for m in metrics:
            entries += [(f"{cell[m]:g}", cell[m]), _own(m, record)]
        rows.append(entries)
    note = (
        f"Not run: ours needs {paper['model']} and a GPU (make {path.stem}).  No other model or data set "
        "stands in for it here."
    )
    if ours:
        note = _plain(scored_sentence(ours[0]))
    return _table(paper["title"], f"{paper['source']}. {note}", heads, rows)


def _own(metric: str, record: Record | None) -> Entry:
    if record is None:
        return "not run", None
    value = score(record, metric)
    return format_score(metric, value), None if value is None else value.value


def _full_table(curves: dict[str, Any]) -> str:
    """All numbers behind a chart, folded away."""
    metrics = curves["metrics"]
    heads = ["Sampler", "Steps", "Network calls", "N", *(m["name"] for m in metrics)]
    rows = []
    for sampler in curves["samplers"]:
        for point in sampler["points"]:
            entries: list[Entry] = [(sampler["name"], None)]
            entries += [(f"{point[key]:,}", point[key]) for key in ("steps", "nfe", "n")]
            triples = [point["scores"][m["key"]] or (None, None, "-") for m in metrics]
            rows.append([*entries, *((text, value) for value, _, text in triples)])
    return _table(curves["name"], curves["protocol"], heads, rows, folded=True)


def _table(
    title: str,
    note: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Entry]],
    folded: bool = False,
) -> str:
    """A table that sorts by a click or a key on any of its heads."""
    buttons = (f'<button type="button">{html.escape(head)}</button>' for head in heads)
    head = "".join(f'<th scope="col">{button}</th>' for button in buttons)
    body = "".join(_row(row) for row in rows)
    heading, about = html.escape(title), f'<p class="note">{html.escape(note)}</p>'
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{heading}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if folded:
        return f"<details><summary>{heading}</summary>{about}{table}</details>"
    return f"<h3>{heading}</h3>{about}{table}"


def _row(entries: Sequence[Entry]) -> str:
    """A line of a table; the first entry is its head."""
    cells = []
    for i, (text, number) in enumerate(entries):
        tag = 'th scope="row"' if i == 0 else "td"
        value = "" if number is None else f' data-value="{html.escape(str(number))}"'
        absent = ' class="absent"' if text == "not run" else ""
        cells.append(f"<{tag}{value}{absent}>{html.escape(text)}</{tag[:2]}>")
    return f"<tr>{''.join(cells)}</tr>"
