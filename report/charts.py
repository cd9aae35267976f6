"""Data of the page's charts and pictures."""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, score
from eval.score import Score
from eval.scoring import METRICS
from eval.sheets import read_sheets
from eval.table import Table, cutoff
from eval.words import format_score
from report import study_closed
from report.escape import in_link
from report.styles import MARKERS, REAL, Style, in_groups, ordinal, styles_of
from report.words import (
    differences_sentence,
    listed,
    metric_title,
    network_words,
    scored_sentence,
)

Found = Mapping[Path, Table]  # the tables under results/ by their folders
FILES = (  # what is written of an experiment, in the order of the links to it
    *("table.md", "figure.md", "tuning.md", "advice.md", "coverage.md", "table.csv", "figure.csv"),
    *("table.tex", "table.png", "figure.png", "records.json"),
)


def link(text: str, target: Path, page: Path) -> dict[str, str]:
    """A link of a page that is in folder `page`."""
    return {"text": text, "href": in_link(target, page)}


def links(folder: Path, page: Path) -> list[dict[str, str]]:
    """A folder, and what is written in it for people."""
    known = [folder / name for name in FILES]
    more = sorted(p for p in folder.glob("*.png") if p not in known)
    files = [path for path in (*known, *more) if path.is_file()]
    folders = [link(f"{folder.parent.name}/{folder.name}/", folder, page)]
    return [*folders, *(link(path.name, path, page) for path in files)]


def plain(markdown: str) -> str:
    """A sentence of ours without the marks of Markdown."""
    return markdown.replace("`", "")


def damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"the records in {folder} are damaged ({error!r}): remove them and run again")


def charts(found: Found, page: Path, kinds: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What the script of the page reads.

    `kinds` are the folders of each kind: ablations, curves, dials, closed.  Raises ValueError for
    records that were changed by other hands.
    """

    def read(part: Callable[..., Any], folder: Path) -> Any:
        try:
            return part(folder, found[folder], page)
        except (TypeError, AttributeError, LookupError) as error:
            raise damaged(folder, error) from None

    closed = (read(_closed, folder) for folder in kinds["closed"])
    return {
        "ablations": [read(_ablation, folder) for folder in kinds["ablations"]],
        "curves": [read(_curves, folder) for folder in kinds["curves"]],
        "dials": _dials({folder: found[folder] for folder in kinds["dials"]}),
        "closed": [part for part in closed if part],
        "markers": MARKERS,
        "real": _look(REAL),
    }


def _look(style: Style) -> dict[str, Any]:
    return {
        "light": style.colour,
        "dark": style.dark,
        "dash": list(style.dash),
        "marker": style.marker,
    }


def _ablation(folder: Path, table: Table, page: Path) -> dict[str, Any]:
    """Scores and pictures at every cutoff and step count."""
    metrics, panels = _metrics(table), {}
    for steps in sorted(table.columns):
        cells = table.dial(steps)
        if cells:
            panels[steps] = {
                "n": table.n(steps),
                "cutoffs": [cutoff(c) for c in cells],
                "rows": [c["row"] for c in cells],
                "scores": [_scores(c, metrics) for c in cells],
                "floor": _scores(cells[0], metrics, "floor"),
            }
    styles = [_look(style) for style in ordinal(2)]  # of the left and of the right axis
    about = _about(folder, table, page)
    return {**about, "panels": panels, "styles": styles, "pictures": _sheets(folder)}


def _curves(folder: Path, table: Table, page: Path) -> dict[str, Any]:
    """Scores of every sampler against network calls."""
    metrics, columns = _metrics(table), sorted(table.columns)
    styles, drawn = styles_of(table.rows), in_groups(table.rows)[0]

    def point(r: Record) -> dict[str, Any]:
        calls = {"steps": r["steps"], "nfe": r["cell"]["nfe"], "n": r["n"]}
        return {**calls, "scores": _scores(r, metrics)}

    samplers = [
        {
            "name": row,
            "drawn": row in drawn,
            "style": _look(styles[row]),
            "points": [point(r) for steps in columns if (r := table.record(row, steps))],
        }
        for row in table.rows
    ]
    return {
        **_about(folder, table, page),
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


def _dials(tables: Found) -> list[dict[str, Any]]:
    """Scores against the cutoff for networks after different lengths of training, by step count."""
    named = {folder.name.partition("-")[2]: table for folder, table in tables.items()}
    by_training = sorted(named, key=lambda name: (name == "exact", len(name), name))
    looks = [_look(style) for style in ordinal(len(by_training))]
    return [
        {
            "checkpoint": network_words(name),
            "style": look,
            "steps": steps,
            "points": [
                {"cutoff": cutoff(r), "scores": _scores(r, ["fid"])}
                for r in named[name].dial(steps)
            ],
        }
        for name, look in zip(by_training, looks, strict=True)
        for steps in sorted(named[name].columns)
    ]


def _closed(folder: Path, table: Table, page: Path) -> dict[str, Any] | None:
    """What was measured in pixels beside the closed form, and that against the cutoff."""
    theory = study_closed.closed_form(table)
    if theory is None:
        return None
    metric, styles = study_closed.METRIC, styles_of(theory.measured)
    samplers = [
        {
            "name": row,
            "style": _look(styles[row]),
            "measured": [
                [s, *t] for s, v in theory.measured[row].items() if (t := _triple(metric, v))
            ],
            "closed": list(theory.closed.get(row, {}).items()),
        }
        for row in theory.measured
    ]
    looks = map(_look, ordinal(len(theory.by_cutoff)))
    cutoffs = [
        {"name": name, "style": look, "points": list(by.items())}
        for (name, by), look in zip(theory.by_cutoff.items(), looks, strict=True)
    ]
    about = {**_about(folder, table, page), "steps": study_closed.STEPS}
    return {**about, "samplers": samplers, "cutoffs": cutoffs}


def _about(folder: Path, table: Table, page: Path) -> dict[str, Any]:
    """What charts say about themselves."""
    record = table.records[0]
    config, extractor = record["cell"]["config"], record["extractor"]
    exact = ", exact denoiser" if config["model"].get("checkpoint") == "exact" else ""
    where = f"{folder.parent.name}/{folder.name}"
    return {
        "name": f"{config['model']['name']}{exact}, {config['spacing']} spacing ({where})",
        "protocol": plain(scored_sentence(record)),
        "links": links(folder, page),
        "metrics": [
            {"key": m, "name": METRICS[m].title, "title": metric_title(m, extractor)}
            for m in _metrics(table)
        ],
    }


def _metrics(table: Table) -> list[str]:
    return [m for m in METRICS if any(m in record["scores"] for record in table.records)]


def _scores(record: Record, metrics: Iterable[str], of: str = "scores") -> dict[str, Any]:
    return {m: _triple(m, score(record, m, of)) for m in metrics}


def _triple(metric: str, value: Score | None) -> list[Any] | None:
    """Value, half the 95% interval (null if there is none), and both as they are printed."""
    if value is None or not math.isfinite(value.value):
        return None
    half = round(value.half, 5) if math.isfinite(value.half) else None
    return [round(value.value, 5), half, format_score(metric, value)]


def _sheets(folder: Path) -> dict[str, Any] | None:
    """The folder's contact sheets with the pictures inside, or None if it has none."""
    index = read_sheets(folder)
    for sheet in index["sheets"].values() if index else ():
        content = base64.b64encode(sheet.pop("content")).decode()
        sheet["image"] = f"data:image/webp;base64,{content}"
    return index
