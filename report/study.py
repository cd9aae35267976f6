"""Write docs/study.md and its figures: which sampler at how many network calls on digits, and why.

    python -m scripts.study

Rendered from the records that `make study` leaves under results/digits, and from the closed form of
sampling/gaussian.py; every number and every comparison in the text is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml
from numpy.typing import NDArray

from eval.metrics import Score
from eval.records import score
from eval.scoring import METRIC_NAMES
from eval.table import Cell, cutoff, gain, load_cells
from models.digits.data import load_images, to_model_range
from report.formats import markdown_grid
from report.plots import save_figure
from report.words import metric_title, scored_sentence
from sampling import Plan, Schedule, ddim, mix, named, skipped, timesteps
from sampling.gaussian import gaussian_frechet

WINDOWS = {  # of Mix++, by the spacing and the number of steps for which they were tuned
    "even": {10: "Mix++ 444..", 25: "Mix++ 166..624"},
    "log_snr": {10: "Mix++ 410..886", 25: "Mix++ 11..999"},
}
CHECKPOINTS = ("unet-1000", "unet-3000", "unet-6500", "exact")
ERRORS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)  # of the score in the closed form
LIKE_THE_PAPER = 0.005  # the error at which it orders the samplers as the paper's Table 1 does
ORDERED = (5, 8, 10, 15, 20, 25, 50, 100, 500, 1000)  # step counts at which it orders the samplers
SCHEDULE = Schedule.linear()
FIGURES = Path("digits") / "study"  # under results/
BySteps = dict[str, dict[int, float]]  # a distance by sampler and steps


@dataclass(frozen=True)
class Study:
    """The cells of each of its tables."""

    even: list[Cell]
    log_snr: list[Cell]
    exact: list[Cell]
    pixels: list[Cell]
    dial: dict[str, list[Cell]]
    paper: BySteps  # FID of its Table 1

    @staticmethod
    def load(results: Path) -> Study:
        """Raises FileNotFoundError, with the remedy, if a table is missing."""

        def cells(name: str) -> list[Cell]:
            path = results / "digits" / name / "records.json"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: make study samples and scores it")
            return load_cells(path)

        return Study(
            even=cells("study"),
            log_snr=cells("study_log_snr"),
            exact=cells("study_exact"),
            pixels=cells("study_pixels"),
            dial={checkpoint: cells(f"study_dial-{checkpoint}") for checkpoint in CHECKPOINTS},
            paper=_paper_fids(results / "paper" / "table1.yaml"),
        )


def _paper_fids(table: Path) -> BySteps:
    rows = yaml.safe_load(table.read_text())["rows"]
    return {row["name"]: {c["steps"]: c["fid"] for c in row["cells"]} for row in rows}


# --- the closed form ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Theory:
    """Gaussian data with the covariance of the real digits: `eigenvalues` [784]."""

    eigenvalues: NDArray[np.float64]

    @staticmethod
    def of_digits() -> Theory:
        pixels = to_model_range(load_images("reference")[0]).flatten(1).double().numpy()
        return Theory(np.linalg.eigvalsh(np.cov(pixels.T)).clip(min=0))

    def error(self, plan: Plan, score_error: float = 0.0) -> float:
        return gaussian_frechet(plan, self.eigenvalues, None, score_error)

    def of_cell(self, cell: Cell) -> float | None:
        """What the closed form says of a cell's sampler; None for those that are no plans."""
        made = cell.record["cell"]["config"]
        options = dict(made["sampler"])
        name = options.pop("name")
        if name in ("unipc", "deis", "sa_solver", "heun"):
            return None
        grid = timesteps(SCHEDULE, made["steps"], made["spacing"])
        return self.error(named(name, SCHEDULE, grid, **options))

    def at_291(self, score_error: float) -> BySteps:
        """The error of the paper's three."""
        found: BySteps = {"DDIM": {}, "Skipped-Step": {}, "Mix": {}}
        for steps in ORDERED:
            grid = timesteps(SCHEDULE, steps)
            found["DDIM"][steps] = self.error(ddim(SCHEDULE, grid), score_error)
            found["Skipped-Step"][steps] = self.error(skipped(SCHEDULE, grid), score_error)
            found["Mix"][steps] = self.error(mix(SCHEDULE, grid, cutoff=291), score_error)
        return found

    def by_cutoff(self, steps: int, score_error: float) -> dict[int, float]:
        """The error of Mix at every cutoff that makes a difference; 0 is Skipped-Step, T DDIM."""
        grid = timesteps(SCHEDULE, steps)
        cutoffs = [0, *(int(t) for t in grid[-2::-1]), SCHEDULE.T]
        return {c: self.error(mix(SCHEDULE, grid, cutoff=c), score_error) for c in cutoffs}


# --- what the records say -----------------------------------------------------------------------


def columns(cells: Sequence[Cell]) -> list[int]:
    return sorted({c.steps for c in cells})


def value(cells: Sequence[Cell], row: str, steps: int, metric: str = "fid") -> Score:
    """Raises ValueError if the table has no such cell."""
    for cell in cells:
        found = score(cell.record, metric)
        if (cell.row, cell.steps) == (row, steps) and found is not None:
            return found
    raise ValueError(f"the study lacks {metric} of {row} at {steps} steps: run make study")


def floor(cells: Sequence[Cell], steps: int, metric: str = "fid") -> Score:
    found = next(score(c.record, metric, "floor") for c in cells if c.steps == steps)
    assert found is not None
    return found


def best(cells: Sequence[Cell], rows: Sequence[str], steps: int) -> str:
    """The row of the lowest FID among some."""
    return min(rows, key=lambda row: value(cells, row, steps).value)


def tied(cells: Sequence[Cell], row: str, steps: int, rows: Sequence[str]) -> list[str]:
    """Those of `rows` whose FID cannot be told from that of `row`, itself among them."""
    ours = value(cells, row, steps)
    return [
        other
        for other in rows
        if gain("fid", ours, value(cells, other, steps)).words == "not told apart from"
    ]


def rows_of(cells: Sequence[Cell], *starts: str) -> list[str]:
    """The names of all rows, or of those that begin with one of `starts`."""
    names = dict.fromkeys(c.row for c in cells)
    return [name for name in names if not starts or name.startswith(starts)]


Choose = Callable[[int], str]  # step count -> row


def against(
    cells: Sequence[Cell], ours: str | Choose, theirs: str | Choose, metric: str = "fid"
) -> dict[str, list[int]]:
    """The step counts at which one row is better than another, worse, or neither."""
    found: dict[str, list[int]] = {"better than": [], "worse than": [], "not told apart from": []}
    for steps in columns(cells):
        a, b = (row if isinstance(row, str) else row(steps) for row in (ours, theirs))
        found[
            gain(metric, value(cells, a, steps, metric), value(cells, b, steps, metric)).words
        ].append(steps)
    return found


def tally(
    cells: Sequence[Cell],
    ours: str | Choose,
    theirs: str | Choose,
    named: tuple[str, str] | None = None,
) -> str:
    """ "**Mix** against **DDIM**: better at 5, 8 steps, not told apart at 50." """
    who = named or (str(ours), str(theirs))
    words = {"better than": "better at", "worse than": "worse at", "not told apart from": "not told apart at"}  # fmt: skip
    found = against(cells, ours, theirs)
    parts = [f"{words[k]} {', '.join(map(str, v))}" for k, v in found.items() if v]
    return f"- **{who[0]}** against **{who[1]}**: {'; '.join(parts)} steps."


def shown(found: Score) -> str:
    return f"{found.value:.2f} ± {1.96 * found.se:.2f}"


# --- the text -----------------------------------------------------------------------------------


def text(study: Study, theory: Theory) -> str:
    """docs/study.md."""
    sections = [_head(study), _verdict(study, theory), _few_calls(study), _claims(study), _why(study, theory), _dial(study)]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _head(study: Study) -> str:
    sizes: dict[int, list[int]] = {}
    for steps in columns(study.even):
        n = next(c.record["n"] for c in study.even if c.steps == steps)
        sizes.setdefault(n, []).append(steps)
    samples = ", ".join(f"{n:,} at {_list(at)} steps" for n, at in sizes.items())
    return f"""# Which sampler at how many network calls, and why

Written by `python -m scripts.study` from the records under `results/digits`; `make study` samples and
scores everything anew (about three hours on two cores) and ends with that command.  Every number and
comparison below is computed: do not edit this file.

{scored_sentence(study.even[0].record)}  Samples: {samples}.  ± is half the 95% interval, **bold** the
best of a column and all that cannot be told from it; the intervals take samplers for independent.
Seed 2 was used for nothing else: the windows of Mix++ were chosen on seeds 0 and 1
(`results/digits/tune`, `results/digits/tune_log_snr`).  Scores of digits' own features say nothing about
other data sets; FID depends on N, so compare columns of different N with their floor, *Real*.

Skipped-Step is also SDE-DPM-Solver++(1), and *Mix* is the paper's, with its cutoff of 291.  A column is
named by its steps, which are network calls, but for Heun, which makes two a jump and one call fewer
than an even count of steps."""


def _few_calls(study: Study) -> str:
    lines = ["## At how many network calls is which sampler best?", "", "FID, even spacing:", ""]
    lines += markdown_grid(study.even, "fid")
    lines += ["", "FID, spacing uniform in log-SNR:", "", *markdown_grid(study.log_snr, "fid"), ""]
    lines += [
        "![FID against network calls for both spacings and for the exact denoiser; IS, precision and "
        "recall for the even spacing](../results/digits/study/quality.png)",
        "",
        "KID, IS, precision, recall and label agreement: `results/digits/study/table.md`, "
        "`results/digits/study_log_snr/table.md`.  `results/report.html` (`make report`) has it all to "
        "play with.",
        "",
        "The best of each grid against DDIM on the same grid (picking the best of a column by the same "
        "scores favours it):",
        "",
        "| Calls | Spacing | Best | Its FID | Not told apart from it | DDIM | DDIM minus best |",
        "|---" * 7 + "|",
    ]
    for spacing, cells in (("even", study.even), ("log-SNR", study.log_snr)):
        for steps in columns(cells):
            row = best(cells, rows_of(cells), steps)
            ours, ddims = value(cells, row, steps), value(cells, "DDIM", steps)
            found = gain("fid", ours, ddims)
            real = "" if found.words == "better than" else " (not told apart)"
            others = [r for r in tied(cells, row, steps, rows_of(cells)) if r != row]
            lines.append(
                f"| {steps} | {spacing} | {row} | {shown(ours)} | {', '.join(others) or '-'} | "
                f"{shown(ddims)} | {found.value:.2f} ± {found.half:.2f}{real} |"
            )
    return "\n".join(lines)


def _claims(study: Study) -> str:
    plus = partial(best, study.even, rows_of(study.even, "Mix++"))
    rival = partial(best, study.even, rows_of(study.even, "DPM", "SDE", "UniPC", "DEIS", "SA", "Heun"))  # fmt: skip
    log_plus = partial(best, study.log_snr, rows_of(study.log_snr, "Mix++"))
    log_rival = partial(best, study.log_snr, rows_of(study.log_snr, "DPM", "SDE", "UniPC", "DEIS", "SA"))  # fmt: skip
    lines = [
        "## Which differences are real?",
        "",
        "By FID at equal steps, beyond the 95% interval of the difference.  Even spacing:",
        "",
        tally(study.even, "Mix", "DDIM"),
        tally(study.even, "Mix", "DDPM"),
        tally(study.even, "Mix", "Skipped-Step"),
        tally(study.even, "Skipped-Step", "DDIM"),
        tally(study.even, plus, "Mix", ("the better of the two Mix++", "Mix")),
        tally(study.even, plus, rival, ("the better of the two Mix++", "the best rival")),
        tally(study.even, "DPM-Solver++(2M)", "DDIM"),
        "",
        "Spacing uniform in log-SNR:",
        "",
        tally(study.log_snr, "Mix", "DDIM"),
        tally(study.log_snr, "Mix", "Skipped-Step"),
        tally(study.log_snr, log_plus, "Mix", ("the better of the two Mix++", "Mix")),
        tally(
            study.log_snr, log_plus, log_rival, ("the better of the two Mix++", "the best rival")
        ),
        "",
        "*Better of the two* and *best rival* are picked for every column by the same scores, which favours "
        "them.",
    ]
    return "\n".join(lines)


def _why(study: Study, theory: Theory) -> str:
    lines = ["## Why: a sampler's own error, and the network's", "", *_in_pixels(study, theory), ""]
    lines += [
        *_without_network(study),
        "",
        *_with_an_error(theory),
        "",
        *_orders(study, theory),
        "",
    ]
    lines.append(
        "![Left: closed form and measurement against steps; right: closed form against the cutoff for "
        "several errors of the score](../results/digits/study/why.png)"
    )
    return "\n".join(lines)


def _in_pixels(study: Study, theory: Theory) -> list[str]:
    """Discretisation: closed form beside measurement."""
    steps = columns(study.pixels)
    plans = [row for row in rows_of(study.pixels) if row != "DDPM" and _closed(study, theory, row, steps[0])]  # fmt: skip
    lines = [
        "**Closed form.**  For Gaussian data the exact score is known and a plan's output can be computed "
        "without sampling (`sampling/gaussian.py`).  With the covariance of the real digits' pixels it gives "
        "the Frechet distance that is a sampler's own doing, its discretisation error.  Beside it, measured on "
        "the samples above: the same distance, with covariances taken as diagonal in the real images' "
        "principal components (`metrics=pixels`).  Closed form / measured:",
        "",
        "| Sampler | " + " | ".join(f"{s} steps" for s in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for row in plans:
        texts = [
            f"{_closed(study, theory, row, s):.2f} / {value(study.pixels, row, s, 'diagonal_fid').value:.2f}"
            for s in steps
        ]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    real = " | ".join(f"- / {floor(study.pixels, s, 'diagonal_fid').value:.2f}" for s in steps)
    nearer = against(study.pixels, "DDIM", "Skipped-Step", "diagonal_fid")["better than"]
    farther = against(study.even, "Skipped-Step", "DDIM")["better than"]
    return [
        *lines,
        f"| *Real* | {real} |",
        "",
        f"In pixels DDIM is nearer to the data than Skipped-Step at {_list(nearer)} steps, beyond the intervals, as "
        "the closed form says (the numbers differ: digits are not Gaussian, x0 is clipped, and the measured "
        "distance leaves out correlations).  By FID on the classifier's features it is the other way round at "
        f"{_list(farther)} steps.  So what makes the stochastic sampler better is not discretisation.",
    ]


def _without_network(study: Study) -> list[str]:
    return [
        "**The same digits without a network.**  `model.checkpoint=exact` replaces the network by the exact "
        "denoiser of 4,300 real images: what a perfect training on them would find.  A perfect sampler of it "
        "scores the floor.  FID, even spacing:",
        "",
        *markdown_grid(study.exact, "fid"),
        "",
        f"At {_near_floor(study)} steps DDIM cannot be told from the floor, nor can Skipped-Step at "
        f"{_near_floor(study, 'Skipped-Step')}.  Above, with the trained network, DDIM at 100 steps scores "
        f"{shown(value(study.even, 'DDIM', 100))} (floor {shown(floor(study.even, 100))}), and with the exact "
        f"denoiser {shown(value(study.exact, 'DDIM', 100))}: the difference is the network's error, as DDIM "
        "passes it on.  (The exact denoiser knows its images by heart and its last steps snap to one of them, "
        "so it shows only errors of which image is drawn and how often.  At few steps the smoother field of a "
        "network has discretisation error of its own; the comparison at 100 steps is the clean one.)",
    ]


def _with_an_error(theory: Theory) -> list[str]:
    """The closed form for a score that errs."""
    lines = [
        "**Closed form with a network's error.**  Let the score be too steep by a fixed fraction.  Then, at "
        "every number of steps, this cutoff is best, and gives (DDIM / best Mix / Skipped-Step):",
        "",
        "| Error of the score | " + " | ".join(f"{s} steps" for s in (10, 25, 50, 100)) + " |",
        "|---|---|---|---|---|",
    ]
    for error in ERRORS:
        texts = []
        for s in (10, 25, 50, 100):
            by = theory.by_cutoff(s, error)
            at = min(by, key=by.__getitem__)
            texts.append(f"{_place(at)} ({by[SCHEDULE.T]:.2f} / {by[at]:.2f} / {by[0]:.2f})")
        lines.append(f"| {100 * error:g}% | {' | '.join(texts)} |")
    grid = timesteps(SCHEDULE, 1000)
    kept, forgotten = (theory.error(b(SCHEDULE, grid), 0.02) for b in (ddim, skipped))
    return [
        *lines,
        "",
        f"With 1,000 steps discretisation is out of the way, and an error of 2% leaves DDIM {kept:.2f} from the "
        f"data and Skipped-Step {forgotten:.2f}: fresh noise makes the sampler forget the errors made at "
        "higher noise, while the deterministic path carries them to the end.  Fresh noise costs discretisation "
        "error.  The less of that there is (many steps) and the worse the network, the lower the best cutoff.",
    ]


def _orders(study: Study, theory: Theory) -> list[str]:
    """Where Skipped-Step is before DDIM, and Mix before both: closed form, the paper, measured."""

    def row(name: str, by: BySteps) -> str:
        mixes = by["Mix"]
        between = [s for s in sorted(mixes) if mixes[s] < min(by["DDIM"][s], by["Skipped-Step"][s])]
        return f"| {name} | {_list(_ahead(by))} | {_list(between)} |"

    measured = {
        r: {s: value(study.even, r, s).value for s in columns(study.even)} for r in study.paper
    }
    return [
        "**The order of the samplers tells how large the network's error is.**  Steps at which one is nearer to "
        f"the data than another (closed form: of {_list(ORDERED)} steps; Mix with cutoff 291):",
        "",
        "| | Skipped-Step before DDIM: steps | Mix before both: steps |",
        "|---|---|---|",
        *(row(f"closed form, {100 * e:g}%", theory.at_291(e)) for e in ERRORS),
        row("the paper's Table 1, FID", study.paper),
        row("digits, FID (point estimates)", measured),
        "",
        "One number, the error of the score, decides the order.  With a small one Skipped-Step is behind DDIM at "
        "few steps and ahead at many, and Mix is ahead of both in between: so it is in the paper.  With a large "
        "one Skipped-Step is ahead almost everywhere: so it is on digits.  (The covariance is that of digits, "
        "so the percentages measure no other network's error; the pattern is what carries over.)",
    ]


def _ahead(by: BySteps) -> list[int]:
    """The step counts at which Skipped-Step is before DDIM."""
    return [s for s in sorted(by["DDIM"]) if by["Skipped-Step"][s] < by["DDIM"][s]]


def _closed(study: Study, theory: Theory, row: str, steps: int) -> float | None:
    return theory.of_cell(next(c for c in study.pixels if (c.row, c.steps) == (row, steps)))


def _list(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "no"


def _place(at: int) -> str:
    return {0: "Skipped-Step", SCHEDULE.T: "DDIM"}.get(at, str(at))


def _near_floor(study: Study, row: str = "DDIM") -> str:
    near = [
        s
        for s in columns(study.exact)
        if gain("fid", value(study.exact, row, s), floor(study.exact, s)).words
        == "not told apart from"
    ]
    return _list(near)


def _dial(study: Study) -> str:
    lines = [
        "## The dial: how the best cutoff moves with the network",
        "",
        "The network after 1,000, 3,000 and 6,500 steps of training, and the exact denoiser in its place.  FID, "
        f"N = {study.dial['exact'][0].record['n']:,} (floor {shown(floor(study.dial['exact'], 25))}):",
        "",
    ]
    for steps in (25, 10):
        rows = rows_of(study.dial["exact"])
        lines += [f"| {steps} steps | " + " | ".join(CHECKPOINTS) + " |", "|---" * 5 + "|"]
        for row in rows:
            texts = [
                f"**{shown(found)}**" if row == best(cells, rows, steps) else shown(found)
                for cells in study.dial.values()
                for found in [value(cells, row, steps)]
            ]
            lines.append(f"| {row} | {' | '.join(texts)} |")
        lines += ["", "Bold is the lowest of a column.", ""]
        for name, cells in study.dial.items():
            at = best(cells, cutoffs_of(cells), steps)
            others = [row for row in tied(cells, at, steps, cutoffs_of(cells)) if row != at]
            lines.append(
                f"- {name}, {steps} steps: of all cutoffs the best is {at}; not told apart from it: "
                f"{', '.join(others) or 'none'}.  DDIM's FID is {_ratio(cells, steps):.1f} times "
                "Skipped-Step's."
            )
        lines.append("")
    lines.append("![FID against the cutoff for four networks](../results/digits/study/dial.png)")
    return "\n".join(lines)


def cutoffs_of(cells: Sequence[Cell]) -> list[str]:
    """Skipped-Step, Mix at every cutoff, DDIM."""
    return rows_of(cells, "Skipped", "Mix ", "DDIM")


def _ratio(cells: Sequence[Cell], steps: int) -> float:
    return value(cells, "DDIM", steps).value / value(cells, "Skipped-Step", steps).value


def _verdict(study: Study, theory: Theory) -> str:
    lines = ["## Verdict", "", "The paper's claim, on digits:", "", *_on_mix(study.even)]
    lines += ["", "Why:", "", *_on_the_cause(study, theory)]
    lines += ["", "Mix++, tuned on other seeds:", "", *_on_mixpp(study), "", *_on_choosing(study)]
    return "\n".join(lines)


def _on_mix(even: Sequence[Cell]) -> list[str]:
    ddim_, ddpm, skip = (against(even, "Mix", row) for row in ("DDIM", "DDPM", "Skipped-Step"))
    return [
        claim(
            bool(ddim_["better than"]) and not ddim_["worse than"],
            f"Mix beats DDIM: beyond the intervals at {_list(ddim_['better than'])} steps, not told apart at "
            f"{_list(ddim_['not told apart from'])}.",
        ),
        claim(
            not ddpm["better than"],
            f"It does not beat DDPM: not told apart at {_list(ddpm['not told apart from'])} steps, worse at "
            f"{_list(ddpm['worse than'])}.",
        ),
        claim(
            not skip["better than"],
            "Nor does it beat pure Skipped-Step, which is Mix with cutoff 0: not told apart at "
            f"{_list(skip['not told apart from'])} steps, worse at {_list(skip['worse than'])}.",
        ),
    ]


def _on_the_cause(study: Study, theory: Theory) -> list[str]:
    ratios = [_ratio(cells, 25) for cells in study.dial.values()]
    with_exact = gain(
        "fid",
        value(study.dial["exact"], "Skipped-Step", 25),
        value(study.dial["exact"], "DDIM", 25),
    )
    by = theory.by_cutoff(100, LIKE_THE_PAPER)
    at = min(by, key=by.__getitem__)
    behind = [s for s in sorted(study.paper["DDIM"]) if s not in _ahead(study.paper)]
    closed = _ahead(theory.at_291(LIKE_THE_PAPER))
    return [
        claim(
            ratios == sorted(ratios, reverse=True) and with_exact.words != "better than",
            "Stochastic steps pay because they forget the network's errors, not because they discretise "
            "better.  As training goes on, DDIM's FID at 25 steps is "
            f"{', '.join(f'{r:.1f}' for r in ratios[:-1])} times Skipped-Step's; with the exact denoiser it is "
            f"{ratios[-1]:.1f} times, which is {with_exact.words} 1.",
        ),
        claim(
            all(best(cells, cutoffs_of(cells), 25) == "Skipped-Step" for cells in list(study.dial.values())[:-1]),
            "For each of the three networks the best cutoff is 0, pure Skipped-Step, and what moves is the range "
            "of cutoffs that cannot be told from it: at 25 steps up to "
            f"{', '.join(_place(_highest(cells, 25)) for cells in study.dial.values())}.",
        ),
        claim(
            [s for s in closed if s in study.paper["DDIM"]] == _ahead(study.paper),
            f"In the paper's Table 1 Skipped-Step is behind DDIM at {_list(behind)} steps and ahead at "
            f"{_list(_ahead(study.paper))}.  The closed form gives the same order for a score that errs by "
            f"{100 * LIKE_THE_PAPER:g}%: with a good network noise pays only where discretisation costs nothing.",
        ),
        claim(
            0 < at < SCHEDULE.T,
            "A cutoff in between, as the paper finds on ImageNet, is what the closed form gives for a network of "
            f"small error: with {100 * LIKE_THE_PAPER:g}% and 100 steps {at} is best ({by[at]:.2f} against "
            f"{by[SCHEDULE.T]:.2f} for DDIM and {by[0]:.2f} for Skipped-Step).  So the best cutoff belongs to a network and a number of steps; "
            "291 is no constant, and `experiment=tune` finds yours.",
        ),
    ]  # fmt: skip


def _on_mixpp(study: Study) -> list[str]:
    tuned = [
        (spacing, steps, value(cells, row, steps), value(cells, "Mix", steps))
        for spacing, cells in (("even", study.even), ("log_snr", study.log_snr))
        for steps, row in WINDOWS[spacing].items()
    ]
    each = against(study.even, WINDOWS["even"][10], WINDOWS["even"][25])
    all_noise = "SDE-DPM-Solver++(2M)"
    windows = "; ".join(
        f"{r} at {_list(_leads(study.log_snr, r))}" for r in WINDOWS["log_snr"].values()
    )
    return [
        claim(
            all(gain("fid", ours, mixes).words == "better than" for _, _, ours, mixes in tuned),
            "Each window beats the paper's Mix on the grid and at the number of steps for which it was tuned: "
            + "; ".join(f"{g}, {s} steps, {shown(o)} against {shown(m)}" for g, s, o, m in tuned)
            + ".",
        ),
        claim(
            bool(each["better than"]) and bool(each["worse than"]),
            f"On the even grid no one window serves all: that of 10 steps is better than that of 25 at "
            f"{_list(each['better than'])} steps, worse at {_list(each['worse than'])}.",
        ),
        claim(
            _leads(study.log_snr, all_noise) == columns(study.log_snr),
            f"On the log-SNR grid {all_noise}, which is Mix++ with noise in every jump and needs no tuning, has the "
            f"lowest FID, or cannot be told from it, at {_list(_leads(study.log_snr, all_noise))} steps; {windows}.",
        ),
    ]  # fmt: skip


def _on_choosing(study: Study) -> list[str]:
    leads = {row: _leads(study.even, row) for row in rows_of(study.even)}
    words = "; ".join(f"{row} at {_list(at)}" for row, at in leads.items() if at)
    return [
        f"Lowest FID on the even grid, or not told from it: {words} steps.",
        "",
        "All of this is one small network on one easy data set, by features of a digits classifier.  What "
        "carries over is the mechanism and the way to measure it, not the numbers.",
    ]


def _leads(cells: Sequence[Cell], row: str) -> list[int]:
    """The step counts at which `row` cannot be told from the best."""
    rows = rows_of(cells)
    return [s for s in columns(cells) if row in tied(cells, best(cells, rows, s), s, rows)]


def _highest(cells: Sequence[Cell], steps: int) -> int:
    """The highest cutoff that cannot be told from the best; T is DDIM."""
    near = tied(cells, best(cells, cutoffs_of(cells), steps), steps, cutoffs_of(cells))
    return max(int(cutoff(c)) for c in cells if c.steps == steps and c.row in near)


def claim(holds: bool, sentence: str) -> str:
    """A sentence that the records bear out; other records may not, and then it says so."""
    return f"- {sentence}" if holds else f"- (Not borne out by these records:) {sentence}"


# --- figures ------------------------------------------------------------------------------------

DRAWN = ("DDIM", "Skipped-Step", "Mix", "Mix++ 444..", "Mix++ 166..624", "Mix++ 410..886", "DPM-Solver++(2M)", "SDE-DPM-Solver++(2M)", "UniPC", "DEIS")  # fmt: skip


def draw_quality(path: Path, study: Study) -> None:
    """FID for both spacings and the exact denoiser; IS, precision and recall for the even one."""
    panels = [
        (study.even, "fid", "even spacing"),
        (study.log_snr, "fid", "uniform in log-SNR"),
        (study.exact, "fid", "exact denoiser, even spacing"),
        (study.even, "is", "even spacing"),
        (study.even, "precision", "even spacing"),
        (study.even, "recall", "even spacing"),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6))
    for ax, (cells, metric, title) in zip(axes.flat, panels, strict=True):
        for i, row in enumerate(DRAWN):
            if row in rows_of(cells):
                _band(ax, [(s, value(cells, row, s, metric)) for s in columns(cells)], f"C{i}", row)
        real = [(s, floor(cells, s, metric)) for s in columns(cells)]
        ax.plot([s for s, _ in real], [f.value for _, f in real], "k:", label="real")
        ax.set_xscale("log")
        ax.set_xticks(columns(study.even), [str(s) for s in columns(study.even)], fontsize=8)
        ax.minorticks_off()
        if metric == "fid":
            ax.set_yscale("log")
            ax.set_ylim(0.5, 120)
        ax.set_title(f"{metric_title(metric, 'digits')}\n{title}", fontsize=9)
        ax.set_xlabel("network calls", fontsize=8)
        ax.grid(alpha=0.3)
    handles = {
        label: handle
        for ax in axes.flat
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, fontsize=8)
    save_figure(figure, path, "Samplers on digits; bands are 95% intervals", bottom=0.08)


def draw_why(path: Path, study: Study, theory: Theory) -> None:
    """The closed form beside the measurement, and against the cutoff with an erring score."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    steps = columns(study.pixels)
    for i, row in enumerate(("DDIM", "Skipped-Step", "Mix", "DPM-Solver++(2M)")):
        closed = [_closed(study, theory, row, s) for s in steps]
        left.plot(steps, closed, color=f"C{i}", ls="--", lw=1)
        _band(left, [(s, value(study.pixels, row, s, "diagonal_fid")) for s in steps], f"C{i}", row)
    real = [floor(study.pixels, s, "diagonal_fid").value for s in steps]
    left.plot(steps, real, "k:", label="real")
    left.set(xscale="log", yscale="log", xlabel="network calls")
    left.set_xticks(steps, [str(s) for s in steps])
    left.minorticks_off()
    left.set_title("Frechet distance in pixels\ndashed: closed form for Gaussian data", fontsize=9)
    for i, error in enumerate(ERRORS):
        by = theory.by_cutoff(25, error)
        right.plot(
            list(by), list(by.values()), color=f"C{i}", label=f"score error {100 * error:g}%"
        )
        at = min(by, key=by.__getitem__)
        right.plot([at], [by[at]], "o", color=f"C{i}")
    right.set(yscale="log", xlabel="cutoff (0: Skipped-Step, 1000: DDIM)")
    right.set_title("Closed form at 25 steps; dots: the best cutoff", fontsize=9)
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    save_figure(figure, path, "A sampler's own error")


def draw_dial(path: Path, study: Study) -> None:
    """FID against Mix's cutoff for every network."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for ax, steps in zip(axes, (25, 10), strict=True):
        for i, (name, cells) in enumerate(study.dial.items()):
            mixes = [c for c in cells if c.steps == steps and not np.isnan(cutoff(c))]
            points = [(cutoff(c), value(cells, c.row, steps)) for c in sorted(mixes, key=cutoff)]
            _band(ax, points, f"C{i}", name)
        ax.axhline(floor(study.dial["exact"], steps).value, color="k", ls=":", label="real")
        ax.set(yscale="log", xlabel="cutoff (0: Skipped-Step, 1000: DDIM)")
        ax.set_title(f"{METRIC_NAMES['fid']} (digits) at {steps} steps", fontsize=9)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    save_figure(figure, path, "Mix's cutoff along training")


def _band(ax: Any, points: Sequence[tuple[Any, Score]], colour: str, label: str) -> None:
    x = [x for x, _ in points]
    y = np.array([s.value for _, s in points])
    half = np.array([1.96 * s.se for _, s in points])
    ax.plot(x, y, color=colour, marker="o", ms=3, lw=1.2, label=label)
    ax.fill_between(x, np.maximum(y - half, 0.05 * y), y + half, color=colour, alpha=0.15, lw=0)
