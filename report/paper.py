"""The paper's own numbers."""

from __future__ import annotations

from typing import Any

from eval.records import Record


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


def paper_value(paper: dict[str, Any] | None, row: str, steps: int, metric: str) -> float | None:
    """The paper's number for a row as printed, there or in our tables, or None."""
    for entry in (paper or {}).get("rows", []):
        if row in (entry["name"], entry.get("ours")):
            for cell in entry["cells"]:
                # Table 4 does not state its steps (null).
                if cell.get("steps") in (steps, None) and metric in cell:
                    return float(cell[metric])
    return None
