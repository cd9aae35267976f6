"""Everything that is written of a table or figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.table import Cell, check_one_protocol
from files.whole import write_atomic
from report.formats import _latex, _markdown, _markdown_cutoffs, _text, _write_csv
from report.paper import is_the_papers
from report.plots import _plot_cutoffs, _plot_table
from report.words import metric_title, protocol_sentence


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
