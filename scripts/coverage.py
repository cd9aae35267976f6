"""How often 95% intervals of differences hold the truth, on digits: results/digits/coverage/coverage.md.

    python -m scripts.coverage
    python -m scripts.coverage --draws 50 --pool 2000 steps=5 out=runs/coverage

A pool of samples stands for all samples of a sampler: sets are drawn from it with replacement, rows
in common where two samplers share their noise.  The truth is the mean difference over all draws.
Takes half an hour on two cores; overrides are those of reproduce.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.endings import parser
from eval.extractors import Extracted, Extractor
from eval.reference import Reference
from eval.score import Score, difference_se
from eval.scoring import METRICS, Options, evaluate
from experiments.config import (
    Config,
    composed,
    evaluator_of,
    load_backbone,
    settings_of,
    tracker_of,
)
from experiments.endings import reported
from experiments.experiment import sample_columns
from experiments.workers import worker
from files.images import load_samples
from files.places import ROOT
from files.whole import write_text
from report.formats import document, grid

SCORES = ("fid", "is", "precision", "recall")
REAL = 1000  # real images for precision and recall: as many as samples
MIX: dict[str, Any] = {"name": "mix", "cutoff": 291}
FIRST: dict[str, dict[str, Any]] = {
    "Mix": MIX,
    "DDIM": {"name": "ddim"},
    "Skipped-Step": {"name": "skipped"},
}
OTHER = "Mix, other noise"
COMPARED = [("Mix", OTHER), ("Mix", "Skipped-Step"), ("Mix", "DDIM")]


def main() -> None:
    command = parser(__doc__)
    command.add_argument("overrides", nargs="*", help="settings of reproduce.py, as steps=25")
    command.add_argument("--draws", type=int, default=500, help="sets that are drawn and compared")
    command.add_argument("--pool", type=int, default=6000, help="samples that sets are drawn from")
    command.add_argument("--samples", type=int, default=1000, help="samples of a set")
    args = command.parse_args()
    cfg = composed("reproduce", "experiment=study", "steps=10", *args.overrides)
    evaluator = evaluator_of(cfg)
    pools = pools_of(cfg, evaluator.extractor, args.pool)
    draws = drawn(pools, evaluator.reference, args.samples, args.draws)
    out = ROOT / "results" / "digits" / "coverage" / "coverage.md"
    if "out=" in " ".join(args.overrides):
        out = Path(cfg.out) / out.name
    text = report(draws, cfg.steps, args.samples, args.pool)
    write_text(out, text)
    print(f"{text}\nwritten: {out}")


def pools_of(cfg: Config, extractor: Extractor, size: int) -> dict[str, Extracted]:
    """Features of every sampler's pool; that of OTHER is of another seed."""
    backbone = load_backbone(cfg)
    settings = settings_of(cfg, backbone, "even", "id")
    pools = {}
    for seed, samplers in ((0, FIRST), (1, {OTHER: MIX})):
        column = replace(settings, seed=seed).column(samplers, cfg.steps, size)
        sample_columns([column], backbone, tracker_of(cfg, "coverage"), worker())
        for cell in column.cells:
            pools[cell.row] = extractor(load_samples(cell.folder).images)
    return pools


def drawn(
    pools: Mapping[str, Extracted], reference: Reference | None, n: int, draws: int
) -> list[dict[str, dict[str, Score]]]:
    """The scores of every sampler's set in every draw; sets share their rows but that of OTHER."""
    assert reference is not None
    reference = replace(reference, features=reference.features[:REAL])
    rng, options = np.random.default_rng(0), Options(bootstrap=100)
    size, result = len(pools["Mix"].features), []
    for _ in tqdm(range(draws), desc="draws", unit="draw"):
        shared, own = (rng.integers(size, size=n) for _ in range(2))
        sets = {}
        for name, pool in pools.items():
            rows = own if name == OTHER else shared
            part = Extracted._make(None if x is None else x[rows] for x in pool)
            scores = evaluate(part, reference, metrics=SCORES, options=options)
            sets[name] = {m: _of(score, name) for m, score in scores.items()}
        result.append(sets)
    return result


def _of(score: Score, name: str) -> Score:
    """The score with the noise that it shares with others."""
    assert score.spread is not None
    return score._replace(spread=replace(score.spread, draws=None if name == OTHER else "shared"))


def report(draws: list[dict[str, dict[str, Score]]], steps: int, n: int, pool: int) -> str:
    """The tables in Markdown: coverage, and paired widths as shares of the true ones."""
    covered, widths = [], []
    for ours, theirs in COMPARED:
        cells, shares = [], []
        for metric in SCORES:
            pairs = [(sets[ours][metric], sets[theirs][metric]) for sets in draws]
            values = np.array([a.value - b.value for a, b in pairs])
            errors = np.array([difference_se(a, b) for a, b in pairs])
            alone = np.array([np.hypot(a.se, b.se) for a, b in pairs])
            truth = values.mean()
            cells += [
                f"{100 * np.mean(np.abs(values - truth) <= 1.96 * e):.1f}%" for e in (errors, alone)
            ]
            shares += [f"{np.median(e) / values.std(ddof=1):.2f}" for e in (errors, alone)]
        covered.append([f"{ours} / {theirs}", *cells])
        widths.append([f"{ours} / {theirs}", *shares])
    heads = ["", *(f"{METRICS[m].title}, {how}" for m in SCORES for how in ("paired", "alone"))]
    margin = 196 * np.sqrt(0.95 * 0.05 / len(draws))
    return document(
        [
            "# How often 95% intervals of differences hold the truth",
            f"Digits, {steps} steps, {len(draws)} draws of {n:,} samples from pools of {pool:,}; written by "
            f"`python -m scripts.coverage`.  A share of 95% is measured to {margin:.1f} points.  *Paired*: by "
            "the noise that both share (none in the first row, where both ways are the same); *alone*: as if "
            f"independent.  Precision and recall: k = 3, {REAL:,} real images.",
            grid(heads, covered),
            "Median standard error as a share of the true spread of the difference (1 is right, more is wide):",
            grid(heads, widths),
        ]
    )


if __name__ == "__main__":
    reported(main)
