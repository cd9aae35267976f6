"""Tables and figures from stored records: Markdown, CSV, LaTeX and PNG.

Everything is rendered from records alone, so that no number can come from memory.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only, on any machine
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import ScalarFormatter

from eval.files import write_atomic
from eval.metrics import Score
from eval.records import Record, load_records, save_records, score
from eval.sheets import Pictures

METRIC_NAMES = {
    "is": "IS",
    "fid": "FID",
    "sfid": "sFID",
    "diagonal_fid": "Diagonal FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "label_agreement": "Label agreement",
    "clip_score": "CLIP score",
    "total": "Total score",
    "quality": "Quality score",
    "semantic": "Semantic score",
}
LOWER_IS_BETTER = ("fid", "sfid", "diagonal_fid", "kid")
DIGITS = {
    "is": 2,
    "fid": 2,
    "sfid": 2,
    "diagonal_fid": 2,
    "kid": 4,
    "clip_score": 2,
    "total": 2,
    "quality": 2,
    "semantic": 2,
}  # decimals shown; 3 for the others


@dataclass(frozen=True)
class Cell:
    """One record at its place in a table: `row` is the sampler as printed, `steps` the column."""

    row: str
    steps: int
    record: Record


def save_cells(path: Path, cells: Sequence[Cell]) -> None:
    """A table's records.json.  `steps` is a cell's column: Heun makes other calls at "10 steps"."""
    save_records(path, [{"row": c.row, "steps": c.steps, **c.record} for c in cells])


def load_cells(path: Path) -> list[Cell]:
    """The cells of a table's records.json.  Raises as `load_records`."""
    try:
        return [Cell(r.pop("row"), r.pop("steps"), r) for r in load_records(path)]
    except (AttributeError, KeyError):
        raise ValueError(f"{path} holds no table's records: remove it and run again") from None


def metric_title(metric: str, extractor: str) -> str:
    """ "FID (digits)": scores of different extractors never share a name."""
    arrow = "lower" if metric in LOWER_IS_BETTER else "higher"
    return f"{METRIC_NAMES[metric]} ({extractor}), {arrow} is better"


def write_table(
    folder: Path,
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> None:
    """table.md, table.csv, table.tex and table.png of a sampler x steps table.

    `paper` is a file of results/paper as a dictionary.  Its numbers go beside ours, with the
    difference, where the model is the paper's; else below ours, since they are of another data
    set.  Raises ValueError if the cells were not all scored alike.
    """
    check_one_protocol(cells)
    write_atomic(folder / "table.md", _text(_markdown(title, cells, metrics, paper)))
    write_atomic(folder / "table.csv", lambda p: _write_csv(p, cells, paper))
    write_atomic(folder / "table.tex", _text(_latex(title, cells, metrics, paper)))
    write_atomic(folder / "table.png", lambda p: _plot_table(p, title, cells, metrics, paper))


def _text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


PROTOCOL = (
    "protocol",
    "extractor",
    "extractor_weights",
    "reference",
    "reference_digest",
    "options",
    "preprocess",
    "prompts",
)


def check_one_protocol(cells: Sequence[Cell]) -> None:
    """Raise ValueError unless all cells were scored alike, and all of a column with one N."""
    first = cells[0]
    for cell in cells:
        for key in PROTOCOL:
            here, there = cell.record.get(key), first.record.get(key)
            if here != there:
                raise ValueError(
                    f"a table never mixes protocols: {key} is {there} in row "
                    f"{first.row} at {first.steps} steps, {here} in row {cell.row} at "
                    f"{cell.steps}; evaluate them anew with one metrics= and reference="
                )
        n = next(other.record["n"] for other in cells if other.steps == cell.steps)
        if cell.record["n"] != n:
            raise ValueError(
                f"a column never mixes numbers of samples: {n} and {cell.record['n']} at "
                f"{cell.steps} steps"
            )


def is_the_papers(paper: dict[str, Any] | None, record: Record) -> bool:
    """Whether the record is of the model that the paper's numbers are of, made and scored alike.

    The paper mentions no classifier guidance, and clean-fid's FID is another by design.
    """
    made = record["cell"]["config"]
    if paper is None or paper.get("backbone") != made["model"]["name"]:
        return False
    if paper.get("pipeline") not in (None, made["model"].get("id")):
        return False
    return "guidance" not in made and record["protocol"] != "clean"


# --- what a cell says ------------------------------------------------------------------------


def format_score(metric: str, value: Score | None) -> str:
    """ "3.21 ± 0.20": the value and the half width of its 95% interval."""
    if value is None:
        return "-"
    places = DIGITS.get(metric, 3)
    if metric == "kid" and value.se > 0.01:
        places = (
            2  # KID has the scale of the features cubed: small with Inception's, large with digits'
        )
    half = "" if np.isnan(value.se) else f" ± {1.96 * value.se:.{places}f}"
    return f"{value.value:.{places}f}{half}"


class Gain(NamedTuple):
    """By how much one score is better than another, in the metric's units, and half the 95% interval.

    The interval treats both as independent.  Samplers share their noise, so true differences are
    known somewhat better than this says.
    """

    value: float
    half: float

    @property
    def words(self) -> str:
        if abs(self.value) <= self.half:
            return "not told apart from"
        return "better than" if self.value > 0 else "worse than"


def gain(metric: str, ours: Score, theirs: Score) -> Gain:
    """Positive where ours is the better one."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return Gain(sign * (theirs.value - ours.value), 1.96 * float(np.hypot(ours.se, theirs.se)))


def undecided_best(metric: str, scores: dict[str, Score]) -> set[str]:
    """The best row and every row that cannot be told from it (see `Gain`)."""
    if not scores:
        return set()
    pick = min if metric in LOWER_IS_BETTER else max
    best = scores[pick(scores, key=lambda row: scores[row].value)]
    return {row for row, value in scores.items() if value is best
            or gain(metric, best, value).value <= gain(metric, best, value).half}  # fmt: skip


def _columns(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell.steps for cell in cells}, reverse=True)


def _rows(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.row for cell in cells))


def _column(cells: Sequence[Cell], steps: int, metric: str) -> dict[str, Score]:
    found = {c.row: score(c.record, metric) for c in cells if c.steps == steps}
    return {row: value for row, value in found.items() if value is not None}


def _floor(cells: Sequence[Cell], steps: int, metric: str) -> Score | None:
    return next((score(c.record, metric, "floor") for c in cells if c.steps == steps), None)


def _sizes(cells: Sequence[Cell]) -> dict[int, int]:
    return {cell.steps: cell.record["n"] for cell in cells}


def paper_value(paper: dict[str, Any] | None, row: str, steps: int, metric: str) -> float | None:
    """The paper's number for a row as printed, there or in our tables, or None."""
    for entry in (paper or {}).get("rows", []):
        if row in (entry["name"], entry.get("ours")):
            for cell in entry["cells"]:
                # Table 4 does not state its steps (null).
                if cell.get("steps") in (steps, None) and metric in cell:
                    return float(cell[metric])
    return None


# --- Markdown, CSV, LaTeX ----------------------------------------------------------------------


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


def protocol_sentence(record: Record) -> str:
    """What the numbers are and how a table shows them, in words."""
    floor = (
        " *Real* is the real-vs-real floor: as many real images in place of samples, which is what "
        "a perfect sampler would score. FID and recall depend on N: across columns of different "
        "N, compare with that floor."
    )
    return (
        f"{scored_sentence(record)} "
        "± is the half width of the 95% interval. **Bold**: the best of its column and all that "
        f"cannot be told from it.{floor if record['floor'] else ''}"
    )


def scored_sentence(record: Record) -> str:
    """How samples were made and scored."""
    return (
        f"{made_sentence(record['cell']['config'])} "
        f"Extractor `{record['extractor']}` ({record['extractor_weights']}), "
        f"{reference_words(record)}."
    )


def reference_words(record: Record) -> str:
    """What the samples were compared with, and at which size."""
    if record["reference"] is None:
        return "no reference"
    reduced = record.get("preprocess")
    size = f", both at {reduced['size']} pixels by {reduced['name']}" if reduced else ""
    return (
        f"reference `{record['reference']}` ({record['reference_n']} images, "
        f"{record['reference_digest']}){size}"
    )


def made_sentence(made: dict[str, Any]) -> str:
    """How samples were made, from the config in their manifest."""
    labels = {None: "at random", "balanced": "balanced"}.get(made["label"], str(made["label"]))
    model = made["model"]
    checkpoint = model.get("checkpoint") or model.get("id") or model["sha256"][:12]
    precision = f", precision {model['precision']}" if "precision" in model else ""
    guidance = made.get("guidance")
    scale = model.get("guidance_scale", 1)
    evaluations = made.get("evaluations_per_call", 1)
    text = f", classifier-free guidance {scale:g}" if scale != 1 else ""
    text += " (two network evaluations a call)" if evaluations == 2 else ""
    prompts = made.get("prompts")
    if prompts:
        each = "a sample each" if made["label"] is None else "in turn"
        labels = f"{prompts['count']} prompts ({prompts['sha256'][:12]}) {each}"
    else:
        labels = f"labels {labels}"
    guided = f", {guidance['name']} guidance with scale {guidance['scale']:g}" if guidance else ""
    return (
        f"Model `{model['name']}`, checkpoint `{checkpoint}` "
        f"({model['sha256'][:12]}){precision}{guided}{text}; spacing `{made['spacing']}`, seed "
        f"{made['seed']}, {labels}, x0 {'clipped' if model['clip'] else 'not clipped'}."
    )


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


# --- figures -----------------------------------------------------------------------------------


def _plot_table(
    path: Path,
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> None:
    """Score against steps, one panel a metric; then the paper's, where it has that metric."""
    rows, columns, sizes = _rows(cells), _columns(cells), _sizes(cells)
    beside = is_the_papers(paper, cells[0].record)
    theirs = [
        m
        for m in metrics
        if paper
        and not beside
        and any(m in c and c["steps"] for r in paper["rows"] for c in r["cells"])
    ]
    count = len(metrics) + len(theirs)
    across = min(4, count)
    down = math.ceil(count / across)
    figure, axes = plt.subplots(down, across, figsize=(3.8 * across, 3.1 * down), squeeze=False)
    panels = list(axes.flat)
    for ax in panels[count:]:
        ax.axis("off")
    for ax, metric in zip(panels, metrics, strict=False):
        for row in rows:
            colour = f"C{rows.index(row)}"
            for part, label in _of_one_size(columns, sizes, row):
                known = _known([(s, _column(cells, s, metric).get(row)) for s in part])
                ax.errorbar([s for s, _ in known], [v.value for _, v in known],
                            [1.96 * v.se for _, v in known],
                            color=colour, marker="o", ms=3, capsize=2, label=label)  # fmt: skip
            if beside:
                published = [(s, paper_value(paper, row, s, metric)) for s in columns]
                ax.plot([s for s, _ in published], [np.nan if v is None else v for _, v in published],
                        color=colour, ls="--", lw=0.8, label=f"{row}, paper")  # fmt: skip
        for part, label in _of_one_size(columns, sizes, "real"):
            floor = _known([(s, _floor(cells, s, metric)) for s in part])
            if floor:
                ax.plot([s for s, _ in floor], [f.value for _, f in floor], "k:", label=label)
        _style(ax, metric_title(metric, cells[0].record["extractor"]), metric, columns)
        ax.set_xticks(columns, [f"{s}\nN={sizes[s]}" for s in columns])
    panels[0].legend(fontsize=7)
    for ax, metric in zip(panels[len(metrics) :], theirs, strict=False):
        assert paper is not None
        for row in paper["rows"]:
            known_cells = [c for c in row["cells"] if metric in c]
            steps = [c["steps"] for c in known_cells]
            ax.plot(steps, [c[metric] for c in known_cells], marker="o", ms=3, label=row["name"])
        _style(ax, f"paper: {METRIC_NAMES[metric]} on {paper['dataset']}", metric, steps)
        ax.set_facecolor("whitesmoke")
    save_figure(figure, path, title)


def _of_one_size(
    columns: Sequence[int], sizes: dict[int, int], label: str
) -> list[tuple[list[int], str | None]]:
    """Runs of columns with the same N, which one line may join; only the first is labelled."""
    parts = [list(part) for _, part in groupby(columns, key=sizes.__getitem__)]
    return [(part, None if i else label) for i, part in enumerate(parts)]


def _known(points: list[tuple[int, Score | None]]) -> list[tuple[int, Score]]:
    return [(x, score) for x, score in points if score is not None]


def _style(ax: Any, title: str, metric: str, steps: Sequence[int]) -> None:
    ax.set_title(title, fontsize=8)
    ax.set_xscale("log")
    ax.set_xticks(steps, [str(s) for s in steps])
    ax.minorticks_off()
    ax.set_xlabel("network calls", fontsize=8)
    if metric == "fid":
        ax.set_yscale("log")
        for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis(ScalarFormatter())
    ax.tick_params(labelsize=7, which="both")
    ax.grid(alpha=0.3, which="both", lw=0.4)


def save_figure(figure: Any, path: Path, title: str, bottom: float = 0.0) -> None:
    """Write a figure whole and the same for the same data, and close it.

    `bottom` is the share of its height that is kept free for a legend.
    """
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    # A fixed "Software" field, or the file would change with matplotlib's version.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def write_cutoff_figure(
    folder: Path,
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> None:
    """figure.md, figure.csv and figure.png: scores against Mix's cutoff, one panel a step count.

    `cells` are Mix cells whose records hold `sampler.cutoff`; cutoff 0 is Skipped-Step, T DDIM.
    The range that the paper (results/paper/figure4.yaml) calls optimal is shaded.
    """
    check_one_protocol(cells)
    record = cells[0].record
    lines = [f"# {title}", "", protocol_sentence(record), ""]
    if paper:
        other = "" if is_the_papers(paper, record) else ", another data set"
        low, high = paper["optimal_cutoffs"]
        lines += [f"The paper ({paper['source']}; {paper['dataset']}{other}) finds the "
                  f"best cutoffs within [{low}, {high}], and prints no numbers.", ""]  # fmt: skip
    for metric in metrics:
        lines += [f"## {metric_title(metric, record['extractor'])}", ""]
        lines += [*_markdown_cutoffs(cells, metric), ""]
    write_atomic(folder / "figure.md", _text("\n".join(lines)))
    write_atomic(folder / "figure.csv", lambda p: _write_csv(p, cells, None))
    write_atomic(folder / "figure.png", lambda p: _plot_cutoffs(p, title, cells, metrics, paper))


def cutoff(cell: Cell) -> float:
    """Of Mix, and of what it becomes at both ends: 0 for Skipped-Step, T = 1000 for DDIM; else NaN."""
    sampler = cell.record["cell"]["config"]["sampler"]
    ends = {"skipped": 0, "ddim": 1000}
    return float(sampler.get("cutoff", ends.get(sampler["name"], math.nan)))


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


def _plot_cutoffs(
    path: Path,
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> None:
    """As the paper's figure 4: one panel a step count, first metric left axis, second right."""
    columns = sorted(_columns(cells))
    figure, axes = plt.subplots(1, len(columns), figsize=(4.2 * len(columns), 3.4), squeeze=False)
    colours = ("tab:orange", "tab:blue")
    for ax, steps in zip(axes[0], columns, strict=True):
        mine = sorted((c for c in cells if c.steps == steps), key=cutoff)
        for metric, colour, side in zip(metrics[:2], colours, (ax, ax.twinx()), strict=False):
            points = [(cutoff(c), score(c.record, metric)) for c in mine]
            known = [(t, v) for t, v in points if v is not None]
            t = np.array([t for t, _ in known])
            y, half = (
                np.array(v) for v in zip(*((v.value, 1.96 * v.se) for _, v in known), strict=True)
            )
            side.plot(t, y, marker="o", ms=3, color=colour)
            side.fill_between(t, y - half, y + half, color=colour, alpha=0.2, lw=0)
            side.set_ylabel(
                metric_title(metric, mine[0].record["extractor"]), color=colour, fontsize=8
            )
            side.tick_params(labelsize=7)
        if paper:
            ax.axvspan(*paper["optimal_cutoffs"], color="k", alpha=0.06, lw=0)
        ax.set_title(f"{steps} steps (N={mine[0].record['n']})", fontsize=9)
        ax.set_xlabel("cutoff (0: Skipped-Step, 1000: DDIM)", fontsize=8)
        ax.grid(alpha=0.3)
    save_figure(figure, path, title)


# --- pictures ----------------------------------------------------------------------------------


def write_pictures(folder: Path, title: str, rows: Sequence[Pictures]) -> None:
    """figure.png, one labelled row of pictures a sampler and step count, and figure.md.

    Picture i of every row is sample i of the seed: the same x_T, label and noise.
    """
    rows = sorted(rows, key=lambda pictures: -pictures.steps)
    n = len(rows[0].images)
    lines = [f"# {title}", "", made_sentence(rows[0].config)]
    what = "prompt" if "prompts" in rows[0].config else "label"
    lines += [f"The first {n} samples of the seed, none chosen; picture i of every row has the "
              f"same x_T, {what} and noise.", "", "| Row | Sampler | Network calls |", "|---|---|---|"]  # fmt: skip
    for i, pictures in enumerate(rows, 1):
        sampler = ", ".join(f"{k} {v}" for k, v in pictures.config["sampler"].items())
        lines.append(f"| {i} | {pictures.row} ({sampler}) | {pictures.steps} |")
    write_atomic(folder / "figure.md", _text("\n".join([*lines, ""])))
    write_atomic(folder / "figure.png", lambda p: _draw_pictures(p, title, rows))


PER_LINE = 12  # pictures side by side; a longer row continues on the next line


def _draw_pictures(path: Path, title: str, rows: Sequence[Pictures]) -> None:
    n = len(rows[0].images)
    across, lines = min(n, PER_LINE), math.ceil(n / PER_LINE)
    height, width = rows[0].images.shape[1:3]
    inch = min(1.6 * max(1, width / height), 15 / across)  # a picture's width
    size = (across * inch + 1.4, len(rows) * lines * inch * height / width + 0.6)
    figure, axes = plt.subplots(len(rows) * lines, across, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for pictures, block in zip(rows, axes.reshape(len(rows), -1), strict=True):
        for i, (ax, image) in enumerate(zip(block, pictures.images, strict=False)):
            ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)  # fmt: skip
            if pictures is rows[0] and pictures.titles is not None:
                ax.set_title(textwrap.fill(pictures.titles[i], int(14 * inch)), fontsize=7, pad=2)
        block[0].text(-0.1, 0.5, f"{pictures.row}\n{pictures.steps} steps", fontsize=8,
                      ha="right", va="center", transform=block[0].transAxes)  # fmt: skip
    save_figure(figure, path, title)
