"""Everything that is written of a table or of pictures."""

from collections.abc import Sequence
from pathlib import Path

from eval.sheets import Pictures, label_sheets
from eval.table import Table
from files.places import ROOT
from files.whole import remove_partial, write_atomic, write_text
from report.formats import cutoffs_markdown, latex, markdown, write_csv
from report.paper import Paper
from report.pictures import write_pictures
from report.plots import plot_cutoffs, plot_table


def write_table(
    out: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> str:
    """table.md, .csv, .tex and .png of samplers x steps, and records.json; returns the Markdown.

    The paper's numbers go beside ours, with the difference, where the model is the paper's; else
    below ours, since they are of another data set.
    """
    text = markdown(title, table, metrics, paper)
    write_text(out / "table.md", text)
    write_atomic(out / "table.csv", lambda p: write_csv(p, table, paper))
    write_text(out / "table.tex", latex(title, table, metrics, paper))
    write_atomic(out / "table.png", lambda p: plot_table(p, title, table, metrics, paper))
    table.save(out / "records.json")
    return text


def write_cutoffs(
    out: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> str:
    """figure.md, .csv and .png of scores against Mix's cutoff, and records.json; returns the Markdown.

    Cutoff 0 is Skipped-Step, T is DDIM.  The range that the paper (results/paper/figure4.yaml)
    calls optimal is shaded.
    """
    ordered = table.by_cutoff()
    text = cutoffs_markdown(title, ordered, metrics, paper)
    write_text(out / "figure.md", text)
    write_atomic(out / "figure.csv", lambda p: write_csv(p, table, None))
    write_atomic(out / "figure.png", lambda p: plot_cutoffs(p, title, ordered, metrics[:2], paper))
    table.save(out / "records.json")
    return text


# What may be left half-written by a killed process, of it and of the contact sheets beside.
FILES = r"(table|figure)\.(md|csv|tex|png)|(records|pictures)\.json|pictures-\d+\.webp"
RENDERERS = {"table": write_table, "cutoffs": write_cutoffs}


def render(
    renderer: str,
    out: Path,
    title: str,
    content: Table | Sequence[Pictures],
    metrics: Sequence[str],
    paper: str | None,
) -> str:
    """Write a table by one of RENDERERS, or pictures, into `out`; returns the Markdown.

    A table's contact sheets that have no words yet get them.
    `paper` is the path of a file of results/paper within the repository.
    """
    if not isinstance(content, Table):
        text = write_pictures(out, title, content)
    else:
        numbers = None if paper is None else Paper.load(ROOT / paper)
        text = RENDERERS[renderer](out, title, content, metrics, numbers)
        label_sheets(out, content.records[0]["cell"]["config"])
    remove_partial(out, FILES)
    return text
