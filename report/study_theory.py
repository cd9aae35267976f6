"""The study's closed form: what samplers do to Gaussian data with the covariance of real digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.records import Record
from eval.table import Table
from models.digits.data import load_images, to_model_range
from report.formats import grid
from report.words import listed
from sampling import Plan, Schedule, ddim, mix, skipped, timesteps
from sampling.borrowed import sampler_at
from sampling.gaussian import gaussian_frechet

ERRORS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)  # of the score in the closed form
SMALL_ERROR = 0.005  # the one at which it orders the samplers as the paper's Table 1 does
ORDERED = (5, 8, 10, 15, 20, 25, 50, 100, 500, 1000)  # step counts at which it orders the samplers
SHOWN = (10, 25, 50, 100)  # step counts of tables
SCHEDULE = Schedule.linear()


BySteps = dict[str, dict[int, float]]  # a distance by sampler and steps


@dataclass(frozen=True)
class Theory:
    """The closed form for Gaussian data with the covariance of real digits: `eigenvalues` [784]."""

    eigenvalues: NDArray[np.float64]

    @staticmethod
    def of_digits() -> Theory:
        pixels = to_model_range(load_images("reference")[0]).flatten(1).double().numpy()
        return Theory(np.linalg.eigvalsh(np.cov(pixels.T)).clip(min=0))

    def error(self, plan: Plan, score_error: float = 0.0) -> float:
        return gaussian_frechet(plan, self.eigenvalues, None, score_error)

    def of_record(self, record: Record, score_error: float = 0.0) -> float | None:
        """What it says of a record's sampler; None where the network says how much noise is added."""
        config = record["cell"]["config"]
        options = dict(config["sampler"])
        name = options.pop("name")
        if options.get("variance") == "learned":
            return None
        return self.error(_plan(name, config["steps"], config["spacing"], **options), score_error)

    def of_row(self, table: Table, row: str) -> list[float | None]:
        """As `of_record`, at every step count of a row in ascending order."""
        return [self.of_record(table.record(row, s) or {}) for s in sorted(table.columns)]

    def at_291(self, score_error: float) -> BySteps:
        """The error of the paper's three."""
        samplers: dict[str, Callable[..., Plan]] = {"DDIM": ddim, "Skipped-Step": skipped}
        samplers["Mix"] = partial(mix, cutoff=291)
        grids = {steps: timesteps(SCHEDULE, steps) for steps in ORDERED}
        return {
            name: {s: self.error(plan(SCHEDULE, grid), score_error) for s, grid in grids.items()}
            for name, plan in samplers.items()
        }

    def by_cutoff(self, steps: int, score_error: float) -> dict[int, float]:
        """The error of Mix at every cutoff that makes a difference; 0 is Skipped-Step, T DDIM."""
        grid = timesteps(SCHEDULE, steps)
        cutoffs = [0, *(int(t) for t in grid[-2::-1]), SCHEDULE.T]
        return {c: self.error(mix(SCHEDULE, grid, cutoff=c), score_error) for c in cutoffs}


@cache  # of diffusers' samplers it takes seconds
def _plan(name: str, steps: int, spacing: str, **options: Any) -> Plan:
    return sampler_at(name, SCHEDULE, steps, spacing, **options)


def ahead(by: BySteps) -> list[int]:
    """The step counts at which Skipped-Step is before DDIM."""
    return [s for s in sorted(by["DDIM"]) if by["Skipped-Step"][s] < by["DDIM"][s]]


def lowest(by: dict[int, float]) -> int:
    return min(by, key=by.__getitem__)


def percent(error: float) -> str:
    return f"{100 * error:g}%"


def place(at: int) -> str:
    """A cutoff, or what Mix is there."""
    return {0: "Skipped-Step", SCHEDULE.T: "DDIM"}.get(at, str(at))


def claim(holds: bool) -> str:
    """What begins a sentence of the template: nothing, unless the records do not bear it out."""
    return "" if holds else "(Not borne out by these records:) "


# --- the text -----------------------------------------------------------------------------------


def slots_of_errors(theory: Theory, measured: BySteps, paper: BySteps) -> dict[str, Any]:
    """The closed form for a score that errs, and the order of the samplers that it gives.

    `measured` and `paper` are FIDs of DDIM, Skipped-Step and Mix.
    """
    closed = {error: theory.at_291(error) for error in ERRORS}
    best = {e: {s: theory.by_cutoff(s, e) for s in SHOWN} for e in ERRORS}
    at = {e: [lowest(by) for by in columns.values()] for e, columns in best.items()}
    falls_with_steps = all(a >= b for row in at.values() for a, b in pairwise(row))
    falls_with_error = all(
        a >= b for one, two in pairwise(at.values()) for a, b in zip(one, two, strict=True)
    )
    orders = {error: (ahead(by), before_both(by)) for error, by in closed.items()}
    digits = ahead(measured), before_both(measured)
    alike = [one for one in orders.values() if _at(one, measured) == digits]
    long = timesteps(SCHEDULE, 1000)
    exact = closed[0.0]
    keeps = {plan: theory.error(plan(SCHEDULE, long), 0.02) for plan in (ddim, skipped)}
    rows = [[f"closed form, {percent(e)}", *map(listed, order)] for e, order in orders.items()]
    rows.append(["the paper's Table 1, FID", listed(ahead(paper)), listed(before_both(paper))])
    rows.append(["digits, FID (point estimates)", *map(listed, digits)])
    heads = ["", "Skipped-Step before DDIM: steps", "Mix before both: steps"]
    return {
        "errors_table": grid(
            ["Error of the score", *(f"{s} steps" for s in SHOWN)],
            [
                [percent(e), *(_best_words(by) for by in columns.values())]
                for e, columns in best.items()
            ],
        ),
        "moving_cutoffs": listed(
            [f"{place(c)} at {s} steps" for c, s in zip(at[SMALL_ERROR], SHOWN, strict=True)]
        ),
        "noise_costs": claim(all(exact["Skipped-Step"][s] > exact["DDIM"][s] for s in SHOWN)),
        "noise_forgets_closed": claim(keeps[skipped] < keeps[ddim]),
        "cutoff_falls": claim(falls_with_steps and falls_with_error),
        "ddim_keeps": keeps[ddim],
        "skipped_keeps": keeps[skipped],
        "ordered": listed(ORDERED),
        "orders_table": grid(heads, rows),
        "paper_like": claim(_at(orders[SMALL_ERROR], paper)[0] == ahead(paper)),
        "paper_mix_before": listed(before_both(paper)),
        "closed_mix_before": listed(before_both(closed[SMALL_ERROR])),
        "digits_mix_before": listed(digits[1]),
        "no_row_is_digits": claim(
            not alike and all(between for _, between in list(orders.values())[1:])
        ),
    }


def before_both(by: Mapping[str, Mapping[int, float]]) -> list[int]:
    """The step counts at which Mix is before Skipped-Step and DDIM."""
    ends = by["DDIM"], by["Skipped-Step"]
    return [s for s in sorted(by["Mix"]) if by["Mix"][s] < min(end[s] for end in ends)]


def _at(order: tuple[list[int], list[int]], measured: BySteps) -> tuple[list[int], list[int]]:
    """Only at the step counts that were measured."""
    first, second = ([s for s in steps if s in measured["DDIM"]] for steps in order)
    return first, second


def _best_words(by: dict[int, float]) -> str:
    at = lowest(by)
    return f"{place(at)} ({by[SCHEDULE.T]:.2f} / {by[at]:.2f} / {by[0]:.2f})"


def slots_of_ranks(theory: Theory, table: Table, row: str, steps: int) -> dict[str, Any]:
    """Where a sampler stands among others in the closed form with a small error, and by FID."""
    closed = {}
    for record in table.column(steps):
        value = theory.of_record(record, SMALL_ERROR)
        if value is not None:
            closed[record["row"]] = value
    fids = {name: table.score(name, steps, "fid").value for name in closed}
    ranks = [sorted(by, key=by.__getitem__).index(row) + 1 for by in (closed, fids)]
    return {"sde_closed": ranks[0], "sde_measured": ranks[1], "sde_of": len(closed)}
