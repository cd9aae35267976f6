"""The closed form for Gaussian data, as the page draws it beside what was measured in pixels."""

from typing import NamedTuple

from eval.score import Score
from eval.table import Table
from report.study_theory import ERRORS, Theory, percent

FOLDER = "study_pixels"
METRIC = "diagonal_fid"
SHOWN = ("DDIM", "Skipped-Step", "Mix", "DPM-Solver++(2M)")
STEPS = 25  # of the curves against the cutoff, as in the study


class Closed(NamedTuple):
    """Distances by steps of some samplers, measured and in closed form; by cutoff for erring scores."""

    measured: dict[str, dict[int, Score]]
    closed: dict[str, dict[int, float]]
    by_cutoff: dict[str, dict[int, float]]


def closed_form(table: Table) -> Closed | None:
    """None unless the table is of digits, whose covariance the closed form takes, and has such scores."""
    if table.records[0]["cell"]["config"]["model"]["name"] != "digits":
        return None
    theory = Theory.of_digits()
    measured: dict[str, dict[int, Score]] = {}
    closed: dict[str, dict[int, float]] = {}
    for row in SHOWN:
        for steps in sorted(table.columns):
            record, value = table.record(row, steps), table.value(row, steps, METRIC)
            if record is None or value is None:
                continue
            measured.setdefault(row, {})[steps] = value
            if (distance := theory.of_record(record)) is not None:
                closed.setdefault(row, {})[steps] = distance
    by_cutoff = {f"error {percent(e)}": theory.by_cutoff(STEPS, e) for e in ERRORS}
    return Closed(measured, closed, by_cutoff) if measured else None
