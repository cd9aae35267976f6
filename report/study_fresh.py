"""The study's main table: all samplers on their best grids and Mix*, on seeds that chose nothing.

From the records of `make tune` (results/digits/tune_star), and of its runs on other networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.records import Record, load_records, score
from eval.score import Score
from eval.table import Gain, Table, gain
from eval.words import format_score
from report.formats import bold, grid, score_grid
from report.study_theory import claim
from report.words import listed
from sampling import Plan

MIXSTAR = "Mix*"
METRIC = "fid"
NETWORKS = ("exact", "unet-6500", "unet-1000")  # by the network's error
SHOWN = (MIXSTAR, "DDIM", "DPM-Solver++(2M)", "SDE-DPM-Solver++(2M)")
NETWORK_STEPS = 10  # at which they are tuned alike


@dataclass(frozen=True)
class Fresh:
    """What tuning tried, and the confirmation: rows are samplers, each on the grid that was its best.

    `spacing` names that grid, by row and step count.
    """

    tried: list[Record]
    table: Table
    spacing: Mapping[tuple[str, int], str]
    plans: Mapping[int, Plan]

    @staticmethod
    def load(path: Path, remedy: str) -> Fresh:
        """Raises FileNotFoundError, with the remedy, if the records are missing."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {remedy} samples and scores it")
        records = load_records(path)
        tried, fresh = ([r for r in records if r["phase"] == p] for p in ("tuning", "fresh"))
        rows = [{**r, "row": r["row"].partition(", ")[0]} for r in fresh]
        spacing = {(r["row"], r["steps"]): str(r["cell"]["config"]["spacing"]) for r in rows}
        plans = {
            int(file.stem.rpartition("-")[2]): Plan.from_json(file.read_text(encoding="utf-8"))
            for file in path.parent.glob("mixstar-*.json")
        }
        return Fresh(tried, Table(rows), spacing, plans)

    @property
    def steps(self) -> list[int]:
        return sorted(self.table.columns)

    @property
    def named(self) -> list[str]:
        return [row for row in self.table.rows if row != MIXSTAR]

    def best_named(self, steps: int) -> str:
        return self.table.best(steps, METRIC, self.named)

    def lead(self, steps: int) -> Gain:
        """Of Mix* over the best of the others."""
        return self.gain(MIXSTAR, self.best_named(steps), steps)

    def gain(self, ours: str, theirs: str, steps: int, metric: str = METRIC) -> Gain:
        return gain(metric, *(self.table.score(row, steps, metric) for row in (ours, theirs)))

    def options(self, steps: int) -> dict[str, Any]:
        """Of the tuned sampler."""
        record = self.table.record(MIXSTAR, steps)
        assert record is not None
        options: dict[str, Any] = record["cell"]["config"]["sampler"]
        return options

    def when_tuned(self, steps: int) -> Score:
        """The tuned sampler's score on the seed that chose it, of as many samples as it got there."""
        config = _chosen(self.table.record(MIXSTAR, steps))
        same = [r for r in self.tried if _chosen(r) == config]
        found = score(max(same, key=lambda r: r["n"]), METRIC)
        assert found is not None
        return found

    def cost(self, steps: int) -> int:
        """Image calls of everything that was tried at a step count, as if no two shared any."""
        return sum(r["n"] * r["cell"]["nfe"] for r in self.tried if r["steps"] == steps)

    def noise(self, steps: int) -> float:
        """How much noise the tuned sampler adds, as a share of the variance that Skipped-Step adds: the mean of its rows."""
        plan = self.plans[steps]
        alpha, sigma = (
            plan.alpha[1:],
            plan.sigma[1:],
        )  # at s of every row but the last, which ends without noise
        r = plan.alpha[:-1] * sigma / (alpha * plan.sigma[:-1])
        return float(np.mean(plan.noise[:-1] ** 2 / (sigma**2 * (1 - r**2))))


def slots(fresh: Fresh, networks: Mapping[str, Fresh], scales: Table) -> dict[str, Any]:
    """What the template's braces hold of it."""
    steps = fresh.steps
    leads = {s: fresh.lead(s) for s in steps}
    ahead = [s for s in steps if leads[s].words == "better than"]
    recalls = {
        s: fresh.table.score(MIXSTAR, s, "recall").value
        - getattr(fresh.table.floor(s, "recall"), "value", np.nan)
        for s in steps
    }
    added = [fresh.noise(s) for s in steps]
    seed = fresh.table.records[0]["cell"]["config"]["seed"]
    return {
        "fresh_n": fresh.table.n(steps[0]),
        "fresh_seed": seed,
        "fresh_steps": listed(steps),
        "fresh_table": _table(fresh),
        "fresh_leads": _leads(fresh),
        "fresh_numbers": _numbers(fresh),
        "fresh_best": "; ".join(_best(fresh, s) for s in steps),
        "fresh_ahead": listed(ahead),
        "fresh_not_ahead": listed([s for s in steps if s not in ahead], "none"),
        "fresh_recall": f"{min(recalls.values()):+.3f} to {max(recalls.values()):+.3f}",
        "noise_by_calls": listed(
            [f"{share:.2f} at {s}" for s, share in zip(steps, added, strict=True)]
        ),
        "fresh_networks": _networks(networks),
        **_noise_by_network(networks),
        **_on_scales(scales),
        "scale_table": score_grid(scales, METRIC),
        **{
            f"fresh_{key}": _against(fresh, *pair)
            for key, pair in {
                "mix_ddim": ("Mix", "DDIM"),
                "mix_ddpm": ("Mix", "DDPM"),
                "mix_skipped": ("Mix", "Skipped-Step"),
            }.items()
        },
    }


def _chosen(record: Record | None) -> list[Any]:
    """What a record's sampler is, seed aside."""
    config = record["cell"]["config"] if record else {}
    return [config.get(key) for key in ("sampler", "steps", "spacing")]


def _against(fresh: Fresh, ours: str, theirs: str) -> str:
    """ "better at 5, 8; worse at 25"."""
    verdicts = fresh.table.against(ours, theirs, METRIC)
    words = zip(("better at", "worse at", "not told apart at"), verdicts.values(), strict=True)
    return "; ".join(f"{word} {listed(steps)}" for word, steps in words if steps)


def _best(fresh: Fresh, steps: int) -> str:
    row = fresh.best_named(steps)
    score = format_score(METRIC, fresh.table.score(row, steps, METRIC))
    return f"{row} at {steps} ({score})"


def _table(fresh: Fresh) -> str:
    rows = []
    for row in fresh.table.rows:
        cells = []
        for steps in fresh.steps:
            score = format_score(METRIC, fresh.table.value(row, steps, METRIC))
            said = bold(score, row in fresh.table.tied(steps, METRIC))
            where = fresh.spacing.get((row, steps), "-")
            cells.append(said if row == MIXSTAR else f"{said} {where}")
        rows.append([row, *cells])
    floors = [format_score(METRIC, fresh.table.floor(steps, METRIC)) for steps in fresh.steps]
    heads = ["FID", *(f"{steps} calls" for steps in fresh.steps)]
    return grid(heads, [*rows, ["*Real*", *floors]])


def _leads(fresh: Fresh) -> str:
    heads = [
        "Calls",
        "Mix*",
        "When tuned",
        "Best of the others",
        "Mix* better by",
        "Recall",
        "Real images'",
        "Image calls tried",
    ]
    rows = []
    for steps in fresh.steps:
        best = fresh.best_named(steps)
        scores = [
            format_score(METRIC, fresh.table.score(r, steps, METRIC)) for r in (MIXSTAR, best)
        ]
        lead = fresh.lead(steps)
        told = "" if lead.words != "not told apart from" else " (not told apart)"
        recall = format_score("recall", fresh.table.score(MIXSTAR, steps, "recall"))
        floor = format_score("recall", fresh.table.floor(steps, "recall"))
        rows.append(
            [
                *(str(steps), scores[0], format_score(METRIC, fresh.when_tuned(steps))),
                *(f"{best} {scores[1]}", f"{lead.text(2)}{told}"),
                *(recall, floor, f"{fresh.cost(steps):,}"),
            ]
        )
    return grid(heads, rows)


def _numbers(fresh: Fresh) -> str:
    """The tuned numbers themselves; a named sampler that won has its name."""
    heads = [
        "Calls",
        "Shares of noise, from much noise to little",
        "Orders",
        "Grid",
        "Scale of eps",
    ]
    rows = []
    for steps in fresh.steps:
        options = fresh.options(steps)
        if options["name"] != "mixstar":
            bounds = ", ".join(
                f"{key} {value:g}" for key, value in options.items() if key in ("lo", "hi")
            )
            said = [f"{options['name']} {bounds}".strip(), "-"]
        else:
            shares = ", ".join(f"{share:g} at {level:g}" for level, share in options["knots"])
            orders = " then ".join(map(str, options["orders"]))
            switch = options.get("switches")
            said = [shares, f"{orders} from {switch[0]:g}" if switch else orders]
        rows.append(
            [str(steps), *said, fresh.spacing[MIXSTAR, steps], _scale(options.get("eps_scale"))]
        )
    return grid(heads, rows)


def _scale(value: Any) -> str:
    """At t = 999 and at 0."""
    k, b = value if isinstance(value, Sequence) else (0.0, value or 1.0)
    return f"{999 * k + b:.4f} to {b:.4f}"


def _networks(networks: Mapping[str, Fresh]) -> str:
    """The same tuner on networks of different error."""
    heads = ["Network", "Calls", "N", "Noise added", *SHOWN]
    rows = []
    for name, fresh in networks.items():
        steps = NETWORK_STEPS
        scores = [format_score(METRIC, fresh.table.value(row, steps, METRIC)) for row in SHOWN]
        rows.append(
            [name, str(steps), f"{fresh.table.n(steps):,}", f"{fresh.noise(steps):.2f}", *scores]
        )
    return grid(heads, rows)


def _noise_by_network(networks: Mapping[str, Fresh]) -> dict[str, Any]:
    """Whether the tuned share of noise grows with the network's error; `networks` are in its order."""
    shares = {name: fresh.noise(NETWORK_STEPS) for name, fresh in networks.items()}
    return {
        "noise_follows_error": claim(list(shares.values()) == sorted(set(shares.values()))),
        "exact_noise": shares["exact"],
        "exact_gain": networks["exact"].gain(MIXSTAR, "DDIM", NETWORK_STEPS).words,
        "noise_by_network": listed([f"{share:.2f} for {name}" for name, share in shares.items()]),
    }


def _on_scales(table: Table) -> dict[str, Any]:
    """The best scale for eps with and without noise; rows are "noise" and "no noise", with ", eps / b" or none."""
    (steps,) = table.columns
    bests = {}
    for kind in ("no noise", "noise"):
        rows = [row for row in table.rows if row.partition(",")[0] == kind]
        bests[kind] = table.best(steps, METRIC, rows)
    scores = {
        row: table.score(row, steps, METRIC) for row in ("no noise", "noise", *bests.values())
    }
    none, noise = bests["no noise"], bests["noise"]
    pairs = {
        "a scale without noise is {} noise without a scale": (none, "noise"),
        "both together are {} noise alone": (noise, "noise"),
        "and {} a scale alone": (noise, none),
    }
    words = [
        said.format(gain(METRIC, scores[a], scores[b]).words) for said, (a, b) in pairs.items()
    ]
    return {
        "scale_n": table.n(steps),
        "scale_seed": table.records[0]["cell"]["config"]["seed"],
        "scale_words": f"By the paired difference {'; '.join(words)} (the scales are picked by the same scores).",
        "scale_best_none": none.rpartition("/ ")[2] if "/" in none else "1",
        "scale_best_noise": noise.rpartition("/ ")[2] if "/" in noise else "1",
        "scale_none": format_score(METRIC, scores["no noise"]),
        "scale_none_best": format_score(METRIC, scores[none]),
        "scale_noise": format_score(METRIC, scores["noise"]),
        "scale_noise_best": format_score(METRIC, scores[noise]),
    }
