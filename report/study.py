"""docs/study.md: which sampler at how many network calls on digits, and why.

Rendered from the records that `make study` leaves under results/digits, and from the closed form of
sampling/gaussian.py.  The prose is report/study.md.  Every number and comparison in it is a slot
in braces that is filled here; a claim begins with one that says so if the records do not bear it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np

from eval.scoring import METRICS
from eval.table import Row, Table, cutoff, gain
from eval.words import format_score
from report import study_fresh
from report.formats import bold, grid, score_grid
from report.paper import Paper
from report.study_fresh import NETWORKS, Fresh
from report.study_theory import (
    SCHEDULE,
    SMALL_ERROR,
    BySteps,
    Theory,
    ahead,
    claim,
    lowest,
    place,
    slots_of_errors,
    slots_of_ranks,
)
from report.words import differences_sentence, listed, scored_sentence

WINDOWS = {  # of Mix++, by the spacing and the number of steps for which they were tuned
    "even": {10: "Mix++ 444..", 25: "Mix++ 166..624"},
    "log_snr": {10: "Mix++ 410..886", 25: "Mix++ 11..999"},
}
RIVALS = ("DPM", "SDE", "UniPC", "DEIS", "SA", "Heun")  # how their rows begin
CHECKPOINTS = ("unet-1000", "unet-3000", "unet-6500", "exact")
TUNED = {
    "unet-6500": "tune_star"
}  # where the tuner's records are, of networks but the default `tune_star-NAME`
Slots = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Its tables, by spacing (even, log_snr) and by checkpoint (dial), and the paper's FIDs.

    On CIFAR-10: figure 4 (natural), Table 1 (natural_paper) and the rivals (natural_rivals).
    """

    even: Table
    log_snr: Table
    exact: Table
    pixels: Table
    pairs: Table
    natural: Table
    natural_paper: Table
    natural_rivals: Table
    dial: dict[str, Table]
    paper: BySteps
    fresh: Fresh
    networks: dict[str, Fresh]
    scales: Table

    @staticmethod
    def load(results: Path) -> Study:
        """Raises FileNotFoundError, with the remedy, if a table is missing."""

        def table(name: str, model: str = "digits", command: str = "make study") -> Table:
            path = results / model / name / "records.json"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {command} samples and scores it")
            return Table.load(path)

        natural = partial(table, model="cifar10", command="make study-natural")
        printed = results / "paper" / "table1.yaml"
        return Study(
            even=table("study"),
            log_snr=table("study_log_snr"),
            exact=table("study_exact"),
            pixels=table("study_pixels"),
            pairs=table("pairs"),
            dial={checkpoint: table(f"study_dial-{checkpoint}") for checkpoint in CHECKPOINTS},
            paper={
                row["name"]: {cell["steps"]: cell["fid"] for cell in row["cells"]}
                for row in Paper.load(printed)["rows"]
            },
            fresh=_fresh(results, "tune_star"),
            networks={
                name: _fresh(results, TUNED.get(name, f"tune_star-{name}")) for name in NETWORKS
            },
            scales=table("study_scale"),
            natural=natural("figure4").by_cutoff(),
            natural_paper=natural("table1"),
            natural_rivals=natural("study"),
        )


def _fresh(results: Path, name: str) -> Fresh:
    return Fresh.load(results / "digits" / name / "records.json", "make study")


# --- what the records say, by FID ---------------------------------------------------------------


def fid(table: Table, row: str, steps: int) -> str:
    return format_score("fid", table.score(row, steps, "fid"))


def rows_of(table: Table, *starts: str) -> list[str]:
    """The names of rows that begin with one of `starts`."""
    return [row for row in table.rows if row.startswith(starts)]


def cutoffs_of(table: Table) -> list[str]:
    """Skipped-Step, Mix at every cutoff, DDIM."""
    return rows_of(table, "Skipped", "Mix ", "DDIM")


def others(table: Table, steps: int, best: str, rows: Sequence[str], empty: str) -> str:
    """The rows that cannot be told from the best."""
    tied = table.tied(steps, "fid", rows) - {best}
    return listed([row for row in rows if row in tied], empty)


def leads(table: Table, row: str) -> list[int]:
    """The step counts at which a row cannot be told from the best of all."""
    return [s for s in sorted(table.columns) if row in table.tied(s, "fid")]


def at_floor(table: Table, row: str) -> list[int]:
    """The step counts at which a row cannot be told from real images."""
    floors = [(s, table.floor(s, "fid")) for s in sorted(table.columns)]
    gains = [(s, gain("fid", table.score(row, s, "fid"), floor)) for s, floor in floors if floor]
    return [s for s, g in gains if g.words == "not told apart from"]


def ddim_ratio(table: Table, steps: int) -> float:
    """How many times Skipped-Step's FID DDIM's is."""
    return table.score("DDIM", steps, "fid").value / table.score("Skipped-Step", steps, "fid").value


def differences(table: Table, ours: Row, theirs: Row, metric: str = "fid") -> Slots:
    """The step counts at which one row is better, worse or neither, and claims on them."""
    better, worse, tied = table.against(ours, theirs, metric).values()
    words = {"better at": better, "worse at": worse, "not told apart at": tied}
    return {
        "better": listed(better),
        "worse": listed(worse),
        "tied": listed(tied),
        "all": "; ".join(f"{word} {listed(steps)}" for word, steps in words.items() if steps),
        "if_better": claim(bool(better) and not worse),
        "if_both": claim(bool(better) and bool(worse)),
        "unless_better": claim(not better),
    }


# --- the text -----------------------------------------------------------------------------------


def text(study: Study, theory: Theory) -> str:
    """docs/study.md."""
    slots = {
        **_protocol(study),
        **_on_the_cause(study, theory),
        **_on_mixpp(study),
        **_tables(study),
        **_differences(study),
        **_on_pairing(study),
        **_on_discretisation(study, theory),
        **slots_of_errors(theory, _measured(study), study.paper),
        **slots_of_ranks(theory, study.even, "SDE-DPM-Solver++(2M)", 10),
        **study_fresh.slots(study.fresh, study.networks, study.scales),
        **_dial(study, 25),
        **_dial(study, 10),
        **_on_natural_images(study),
        **_on_natural_cutoffs(study.natural),
    }
    return Path(__file__).with_suffix(".md").read_text(encoding="utf-8").format_map(slots)


def _protocol(study: Study) -> Slots:
    by_size = groupby(sorted(study.even.columns), study.even.n)
    return {
        "scored": scored_sentence(study.even.records[0]),
        "sizes": ", ".join(f"{n:,} at {listed(list(steps))} steps" for n, steps in by_size),
        "dial_n": study.dial["exact"].n(25),
        "dial_floor": format_score("fid", study.dial["exact"].floor(25, "fid")),
    }


def _on_the_cause(study: Study, theory: Theory) -> Slots:
    """Noise forgets the network's errors, and costs discretisation."""
    *trained, exact = tables = list(study.dial.values())
    ratios = [ddim_ratio(table, 25) for table in tables]
    skips, ddims = (exact.score(row, 25, "fid") for row in ("Skipped-Step", "DDIM"))
    against_one = gain("fid", skips, ddims).words
    bests = [table.best(25, "fid", cutoffs_of(table)) for table in trained]
    tied = [(table, table.tied(25, "fid", cutoffs_of(table))) for table in tables]
    highest = [max(int(cutoff(r)) for r in t.column(25) if r["row"] in rows) for t, rows in tied]
    paper, closed = ahead(study.paper), ahead(theory.at_291(SMALL_ERROR))
    by = theory.by_cutoff(100, SMALL_ERROR)
    at = lowest(by)
    steady = ratios == sorted(ratios, reverse=True)
    return {
        "noise_forgets": claim(steady and against_one != "better than"),
        "trained_ratios": listed([f"{ratio:.1f}" for ratio in ratios[:-1]]),
        "exact_ratio": ratios[-1],
        "exact_verdict": against_one,
        "cutoff_zero_is_best": claim(set(bests) == {"Skipped-Step"}),
        "highest_cutoffs": listed([place(at) for at in highest]),
        "closed_form_orders_alike": claim([s for s in closed if s in study.paper["DDIM"]] == paper),
        "paper_behind": listed([s for s in sorted(study.paper["DDIM"]) if s not in paper]),
        "paper_ahead": listed(paper),
        "small_error": 100 * SMALL_ERROR,
        "cutoff_is_between": claim(0 < at < SCHEDULE.T),
        "best_cutoff": at,
        "at_best": by[at],
        "at_ddim": by[SCHEDULE.T],
        "at_skipped": by[0],
    }


def _on_mixpp(study: Study) -> Slots:
    beat, tuned = [], []
    for spacing, table in (("even", study.even), ("log_snr", study.log_snr)):
        for steps, row in WINDOWS[spacing].items():
            ours, mixes = (table.score(r, steps, "fid") for r in (row, "Mix"))
            beat.append(gain("fid", ours, mixes).words == "better than")
            both = f"{format_score('fid', ours)} against {format_score('fid', mixes)}"
            tuned.append(f"{spacing}, {steps} steps, {both}")
    noise = leads(study.log_snr, "SDE-DPM-Solver++(2M)")
    windows = [(row, leads(study.log_snr, row)) for row in WINDOWS["log_snr"].values()]
    even = [(row, leads(study.even, row)) for row in study.even.rows]
    return {
        "windows_beat_mix": claim(all(beat)),
        "windows_tuned": "; ".join(tuned),
        "windows": differences(study.even, *WINDOWS["even"].values()),
        "noise_leads_everywhere": claim(noise == sorted(study.log_snr.columns)),
        "noise_leads": listed(noise),
        "windows_lead": "; ".join(f"{row} at {listed(steps)}" for row, steps in windows),
        "even_leads": "; ".join(f"{row} at {listed(steps)}" for row, steps in even if steps),
    }


def _tables(study: Study) -> Slots:
    heads = ["Calls", "Spacing", "Best", "Its FID", "Not told apart from it", "DDIM"]
    rows = [_best_row(study.even, "even", s) for s in sorted(study.even.columns)]
    rows += [_best_row(study.log_snr, "log-SNR", s) for s in sorted(study.log_snr.columns)]
    return {
        "even_table": score_grid(study.even, "fid"),
        "log_snr_table": score_grid(study.log_snr, "fid"),
        "exact_table": score_grid(study.exact, "fid"),
        "best_table": grid([*heads, "DDIM minus best"], rows),
    }


def _best_row(table: Table, spacing: str, steps: int) -> list[str]:
    row = table.best(steps, "fid")
    tied = others(table, steps, row, table.rows, "-")
    difference = gain("fid", table.score(row, steps, "fid"), table.score("DDIM", steps, "fid"))
    real = "" if difference.words == "better than" else " (not told apart)"
    minus = f"{difference.text(2).removeprefix('+')}{real}"
    return [
        str(steps),
        spacing,
        row,
        fid(table, row, steps),
        tied,
        fid(table, "DDIM", steps),
        minus,
    ]


def _differences(study: Study) -> Slots:
    """Which differences are real."""
    slots = {"even_mix_ddpm": differences(study.even, "Mix", "DDPM")}
    for name, table in (("even", study.even), ("log_snr", study.log_snr)):
        plus = partial(table.best, metric="fid", rows=rows_of(table, "Mix++"))
        rival = partial(table.best, metric="fid", rows=rows_of(table, *RIVALS))
        slots[f"{name}_mix_ddim"] = differences(table, "Mix", "DDIM")
        slots[f"{name}_mix_skipped"] = differences(table, "Mix", "Skipped-Step")
        slots[f"{name}_skipped_ddim"] = differences(table, "Skipped-Step", "DDIM")
        slots[f"{name}_dpm_ddim"] = differences(table, "DPM-Solver++(2M)", "DDIM")
        slots[f"{name}_plus_mix"] = differences(table, plus, "Mix")
        slots[f"{name}_plus_rival"] = differences(table, plus, rival)
    return slots


PAIRS = [
    ("Mix", "DDIM"),
    ("Mix", "DDPM"),
    ("Mix", "Skipped-Step"),
    ("Skipped-Step", "DDIM"),
    ("DPM-Solver++(2M)", "DDIM"),
]
WIDTHS = {"Mix and DDIM": ("Mix", "DDIM"), "Mix and Skipped-Step": ("Mix", "Skipped-Step")}


def _on_pairing(study: Study) -> Slots:
    """What changes by judging differences by the noise that samplers share."""
    changed, count = [], 0
    for name, table in (("even", study.even), ("log-SNR", study.log_snr)):
        alone = table.unpaired()
        steps = table.paired_columns("fid")
        pairs = [pair for pair in PAIRS if set(pair) <= set(table.rows)]
        count += len(steps) * len(pairs)
        for (ours, theirs), s in product(pairs, steps):
            verdicts = [
                gain("fid", *(t.score(row, s, "fid") for row in (ours, theirs))).words
                for t in (alone, table)
            ]
            if verdicts[0] != verdicts[1]:
                changed.append(
                    f"- {name}, {s} steps: {ours} is {verdicts[1]} {theirs}, "
                    f"which was {verdicts[0]}."
                )
    return {
        "pairing": differences_sentence(study.even, "fid"),
        "pairing_log_snr": differences_sentence(study.log_snr, "fid"),
        "compared": count,
        "changed": len(changed),
        "changes": "\n".join(changed),
        "widths": _widths(study.pairs),
        "widths_steps": listed(study.pairs.paired_columns("fid")),
        "widths_n": study.pairs.n(10),
    }


def _widths(table: Table) -> str:
    """How wide paired intervals are, as shares of those that take both samplers for independent."""
    alone, steps = table.unpaired(), table.paired_columns("fid")
    metrics = [
        m for m in ("fid", "is", "kid", "precision", "recall") if m in table.records[0]["scores"]
    ]

    def share(pair: tuple[str, str], metric: str, s: int) -> float:
        halves = [
            gain(metric, *(t.score(row, s, metric) for row in pair)).half for t in (table, alone)
        ]
        return halves[0] / halves[1]

    rows = [
        [
            name,
            *(
                f"{np.median([share(pair, m, s) for s in steps]):.2f}" if steps else "-"
                for m in metrics
            ),
        ]
        for name, pair in WIDTHS.items()
    ]
    return grid(["Median share", *(METRICS[m].title for m in metrics)], rows)


def _on_discretisation(study: Study, theory: Theory) -> Slots:
    """The closed form beside the measurement; and the digits without a network."""
    pixels, steps = study.pixels, sorted(study.pixels.columns)
    rows = []
    for row in pixels.rows:
        closed = theory.of_row(pixels, row)
        measured = [pixels.score(row, s, "diagonal_fid").value for s in steps]
        if None not in closed:
            pairs = zip(closed, measured, strict=True)
            rows.append([row, *(f"{theirs:.2f} / {ours:.2f}" for theirs, ours in pairs)])
    floors = [format_score("diagonal_fid", pixels.floor(s, "diagonal_fid")) for s in steps]
    rows.append(["*Real*", *(f"- / {floor.partition(' ')[0]}" for floor in floors)])
    return {
        "closed_table": grid(["Sampler", *(f"{s} steps" for s in steps)], rows),
        "pixels": differences(pixels, "DDIM", "Skipped-Step", "diagonal_fid"),
        "ddim_at_floor": listed(at_floor(study.exact, "DDIM")),
        "skipped_at_floor": listed(at_floor(study.exact, "Skipped-Step")),
        "ddim_100": fid(study.even, "DDIM", 100),
        "floor_100": format_score("fid", study.even.floor(100, "fid")),
        "exact_ddim_100": fid(study.exact, "DDIM", 100),
    }


def _measured(study: Study) -> BySteps:
    even = study.even
    return {r: {s: even.score(r, s, "fid").value for s in even.columns} for r in study.paper}


def _dial(study: Study, steps: int) -> Slots:
    """How the best cutoff moves with the network, at one step count."""
    bests = [(table, table.best(steps, "fid")) for table in study.dial.values()]
    rows = [
        [row, *(bold(fid(table, row, steps), row == best) for table, best in bests)]
        for row in study.dial["exact"].rows
    ]
    words = []
    for name, table in study.dial.items():
        cutoffs = cutoffs_of(table)
        at = table.best(steps, "fid", cutoffs)
        words.append(
            f"- {name}, {steps} steps: of all cutoffs the best is {at}; not told apart from it: "
            f"{others(table, steps, at, cutoffs, 'none')}.  DDIM's FID is "
            f"{ddim_ratio(table, steps):.1f} times Skipped-Step's."
        )
    return {
        f"dial_{steps}_table": grid([f"{steps} steps", *CHECKPOINTS], rows),
        f"dial_{steps}_words": "\n".join(words),
    }


def _on_natural_images(study: Study) -> Slots:
    """Table 1 and the rivals on CIFAR-10."""
    paper, rivals = study.natural_paper, study.natural_rivals
    best = [
        f"{steps} calls: {at} ({fid(rivals, at, steps)}), not told apart from it: "
        f"{others(rivals, steps, at, rivals.rows, 'none')}"
        for steps, at in ((s, rivals.best(s, "fid")) for s in sorted(rivals.columns))
    ]
    return {
        "natural_scored": scored_sentence(paper.records[0]),
        "natural_n": paper.n(25),
        "natural_ddim": differences(paper, "Mix", "DDIM"),
        "natural_ddpm": differences(paper, "Mix", "DDPM"),
        "natural_skipped": differences(paper, "Mix", "Skipped-Step"),
        "natural_ends": differences(paper, "Skipped-Step", "DDIM"),
        "natural_paper_table": score_grid(paper, "fid"),
        "natural_rivals_table": score_grid(rivals, "fid"),
        "natural_best": "; ".join(best),
    }


def _on_natural_cutoffs(table: Table) -> Slots:
    """Figure 4 on CIFAR-10: is a cutoff in the middle better than both ends?"""
    ends = (place(0), place(SCHEDULE.T))
    words, both = [], []
    for steps in sorted(table.columns):
        at = table.best(steps, "fid")
        best = table.score(at, steps, "fid")
        against = [gain("fid", best, table.score(row, steps, "fid")).words for row in ("0", "1000")]
        both.append(against == ["better than"] * 2)
        verdicts = "; ".join(f"{word} {end}" for word, end in zip(against, ends, strict=True))
        words.append(
            f"- {steps} steps: lowest FID at cutoff {at} ({format_score('fid', best)}), {verdicts}; "
            f"not told apart from it: {others(table, steps, at, table.rows, 'none')}."
        )
    inside = [steps for steps, holds in zip(sorted(table.columns), both, strict=True) if holds]
    return {
        "natural_table": score_grid(table, "fid"),
        "natural_words": "\n".join(words),
        "natural_inside": listed(inside, "none of these"),
        "natural_pairing": differences_sentence(table, "fid"),
    }
