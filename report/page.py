"""One self-contained web page of everything under results/: tables, curves, pictures.

Built from stored records and contact sheets alone; `python -m scripts.report` writes it.  Style,
script, data and pictures are inside the page, which asks the network for nothing.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.metrics import Score
from eval.records import Record, score
from eval.scoring import LOWER_IS_BETTER, METRIC_NAMES
from eval.sheets import INDEX
from eval.table import Cell, cutoff, load_cells
from report.paper import is_the_papers, paper_value
from report.words import format_score, metric_title, scored_sentence

ASSETS = Path(__file__).parent / "assets"
PAPER_TABLES = ("table1", "table2", "table3", "table4")
ABLATION = "figure4"
# What is drawn against network calls, and listed in full.
CURVES = ("study", "study_log_snr", "study_exact", "table1", "table1_full", "table2", "table3")
# Samplers drawn at first, where there are more than these; the others are a click away.
DRAWN = ("DDPM", "DDIM", "Skipped-Step", "Mix", "Mix++", "DPM-Solver++(2M)", "UniPC")
LIMIT = 10_000_000  # bytes


def build_page(results: Path) -> str:
    """The page as HTML.

    Raises FileNotFoundError if there are no records at all, ValueError for a damaged file or a page
    of more than 10 MB.
    """
    folders = {p.parent for p in results.glob("*/*/records.json")}
    if not folders:
        raise FileNotFoundError(f"no records under {results}: run make table1 MODEL=digits first")
    stored = {(p.parent.name, p.name): p for p in sorted(folders)}
    ablations = [_ablation(p) for (_, name), p in stored.items() if name == ABLATION]
    curves = [_curves(p) for name in CURVES for (_, n), p in stored.items() if n == name]
    dials = _dial([p for (_, n), p in stored.items() if n.startswith("study_dial-")])
    tables = [_paper_table(results / "paper" / f"{name}.yaml", stored) for name in PAPER_TABLES]
    tables += [_full_table(data) for data in curves]
    data = {"ablations": ablations, "curves": curves, "dials": dials}
    page = (ASSETS / "page.html").read_text()
    # "</" would end the script element early.
    parts = {
        "style": (ASSETS / "page.css").read_text(),
        "script": (ASSETS / "page.js").read_text(),
        "data": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        "paper": "\n".join(tables[: len(PAPER_TABLES)]),
        "ours": "\n".join(tables[len(PAPER_TABLES) :]),
    }
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    if len(page.encode()) > LIMIT:
        raise ValueError(
            f"the page would have {len(page.encode()) / 1e6:.1f} MB, more than {LIMIT / 1e6:g}: remove "
            f"pictures-*.webp and {INDEX} from some folders of {results}"
        )
    return page


# --- data of the charts and pictures ------------------------------------------------------------


def _triple(metric: str, value: Score | None) -> list[Any] | None:
    """Value, half the 95% interval, and both as they are printed."""
    if value is None:
        return None
    half = 1.96 * value.se if value.se == value.se else None
    return [round(value.value, 5), half and round(half, 5), format_score(metric, value)]


def _scores(record: Record, metrics: Sequence[str], of: str = "scores") -> dict[str, Any]:
    return {m: _triple(m, score(record, m, of)) for m in metrics}


def _metrics(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    present = [m for m in METRIC_NAMES if any(m in c.record["scores"] for c in cells)]
    extractor = cells[0].record["extractor"]
    return [
        {
            "key": m,
            "name": METRIC_NAMES[m],
            "title": metric_title(m, extractor),
            "lower": m in LOWER_IS_BETTER,
        }
        for m in present
    ]


def _sheets(folder: Path) -> dict[str, Any] | None:
    """The folder's contact sheets with the pictures inside, or None if it has none."""
    if not (folder / INDEX).is_file():
        return None
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        for sheet in index["sheets"].values():
            content = (folder / sheet.pop("file")).read_bytes()
            sheet["image"] = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"the pictures in {folder} are damaged or incomplete: remove {INDEX} and make them anew"
        ) from None
    return index


def _about(folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """What charts say about themselves."""
    made = cells[0].record["cell"]["config"]
    return {
        "id": f"{folder.parent.name}-{folder.name}",
        "name": f"{made['model']['name']}, {made['spacing']} spacing ({folder.name})",
        "protocol": _plain(scored_sentence(cells[0].record)),
        "metrics": _metrics(cells),
    }


def _plain(markdown: str) -> str:
    """A sentence of ours without the marks of Markdown."""
    return markdown.replace("`", "")


def _ablation(folder: Path) -> dict[str, Any]:
    """Scores and pictures at every cutoff and step count."""
    cells = load_cells(folder / "records.json")
    about = _about(folder, cells)
    metrics = [m["key"] for m in about["metrics"]]
    panels = {}
    for steps in sorted({c.steps for c in cells}):
        mine = sorted((c for c in cells if c.steps == steps), key=cutoff)
        panels[steps] = {
            "n": mine[0].record["n"],
            "cutoffs": [cutoff(c) for c in mine],
            "rows": [c.row for c in mine],
            "scores": [_scores(c.record, metrics) for c in mine],
            "floor": _scores(mine[0].record, metrics, "floor"),
        }
    return {**about, "panels": panels, "pictures": _sheets(folder)}


def _curves(folder: Path) -> dict[str, Any]:
    """Scores of every sampler against network calls."""
    cells = load_cells(folder / "records.json")
    about = _about(folder, cells)
    metrics = [m["key"] for m in about["metrics"]]
    names = list(dict.fromkeys(c.row for c in cells))
    samplers = [
        {
            "name": name,
            "drawn": len(names) <= len(DRAWN) or name.split(" ")[0] in DRAWN,
            "points": [
                {
                    "steps": c.steps,
                    "nfe": c.record["cell"]["nfe"],
                    "n": c.record["n"],
                    "scores": _scores(c.record, metrics),
                }
                for c in sorted(cells, key=lambda c: c.steps)
                if c.row == name
            ],
        }
        for name in names
    ]
    floor = {c.steps: _scores(c.record, metrics, "floor") for c in cells}
    return {**about, "samplers": samplers, "floor": floor, "pictures": _sheets(folder)}


def _dial(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Scores against the cutoff for networks after different lengths of training, by step count."""
    runs = [(p.name.removeprefix("study_dial-"), load_cells(p / "records.json")) for p in folders]
    runs.sort(key=lambda run: (run[0] == "exact", len(run[0]), run[0]))  # by training
    return [
        {
            "checkpoint": name,
            "steps": steps,
            "points": [
                {"name": c.row, "cutoff": cutoff(c), "scores": _scores(c.record, ["fid", "is"])}
                for c in cells
                if c.steps == steps and not math.isnan(cutoff(c))
            ],
        }
        for name, cells in runs
        for steps in sorted({c.steps for c in cells})
    ]


# --- tables -------------------------------------------------------------------------------------


def _paper_table(path: Path, stored: dict[tuple[str, str], Path]) -> str:
    """The paper's numbers, ours beside them; ours are of the paper's own model or absent."""
    paper = yaml.safe_load(path.read_text())
    name = path.stem
    ours = [c for (_, n), p in stored.items() if n == name for c in load_cells(p / "records.json")]
    ours = [c for c in ours if is_the_papers(paper, c.record)]
    found = {(c.row, c.steps): c for c in ours}
    metrics = [m["key"] for m in paper["metrics"]]
    heads = ["Sampler", "Steps"]
    heads += [f"{METRIC_NAMES[m]}, {who}" for m in metrics for who in ("paper", "ours")]
    rows = []
    for row in paper["rows"]:
        label = row.get("ours", row["name"])
        for cell in row["cells"]:
            steps = cell["steps"]
            mine = found.get((label, steps)) or next(
                (c for c in ours if steps is None and c.row == label), None
            )
            texts = [(row["name"], None), (str(steps or "not stated"), steps)]
            for m in metrics:
                theirs = paper_value(paper, row["name"], steps, m)
                value = None if mine is None else score(mine.record, m)
                texts.append((f"{theirs:g}" if theirs is not None else "-", theirs))
                own = None if value is None else value.value
                texts.append(("not run" if mine is None else format_score(m, value), own))
            rows.append(texts)
    if ours:
        note = _plain(scored_sentence(ours[0].record))
    else:
        note = (
            f"Not run: ours needs {paper['model']} and a GPU (make {name}).  No other model or data set "
            "stands in for it here."
        )
    return _table(paper["title"], f"{paper['source']}. {note}", heads, rows)


def _full_table(data: dict[str, Any]) -> str:
    """All numbers behind a chart."""
    heads = ["Sampler", "Steps", "Network calls", "N", *(m["name"] for m in data["metrics"])]
    rows = []
    for sampler in data["samplers"]:
        for point in sampler["points"]:
            texts = [(sampler["name"], None)]
            texts += [(f"{point[key]:,}", point[key]) for key in ("steps", "nfe", "n")]
            for m in data["metrics"]:
                value = point["scores"][m["key"]]
                texts.append(("-", None) if value is None else (value[2], value[0]))
            rows.append(texts)
    return _table(data["name"], data["protocol"], heads, rows, folded=True)


def _table(
    title: str,
    note: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[tuple[str, float | None]]],
    folded: bool = False,
) -> str:
    """A table that sorts by a click or a key on any of its heads; cells are (text, number)."""
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(h)}</button></th>' for h in heads
    )
    lines = []
    for row in rows:
        cells = []
        for i, (text, number) in enumerate(row):
            tag = 'th scope="row"' if i == 0 else "td"
            value = "" if number is None else f' data-value="{number}"'
            absent = ' class="absent"' if text == "not run" else ""
            cells.append(f"<{tag}{value}{absent}>{html.escape(text)}</{tag[:2]}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    heading, about = html.escape(title), f'<p class="note">{html.escape(note)}</p>'
    if folded:
        return f"<details><summary>{heading}</summary>{about}{table}</details>"
    return f"<h3>{heading}</h3>{about}{table}"
