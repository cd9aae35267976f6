"""Score samples against a reference.

    python evaluate.py samples=runs/mix reference=digits
    python evaluate.py samples=runs/mix reference=digits metrics.scores=[kid,is] num_samples=400
    python evaluate.py samples=runs/mix metrics=pixels reference.images=runs/mix/samples.npz

Works on a run's folder, any .npz with arr_0, or a folder of PNG, JPEG or WebP files; how well images fit their
prompts is scored by metrics=clip reference=none.  Writes a JSON record and prints it with the real-vs-real floor,
which is what a perfect sampler would score.  against=FOLDER scores a second set, too, and prints the difference
with its own interval: samples of the same seed and labels are paired.  Under
torchrun the processes share the images.

The protocol gate: a sample batch that ADM's authors published is scored as they do, or not,

    python evaluate.py samples=downloads/admnet_imagenet256.npz reference=adm_imagenet256 metrics=adm

and the command ends with PASS, or with FAIL and exit status 1, or says why there is no verdict.  With
metrics=dinov2 it is compared with what dgm-eval's authors published.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("evaluate", __doc__)

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.gate import GATES, changed_option, gate
from eval.records import Record, score
from eval.score import paired
from eval.scoring import METRICS, Options
from eval.table import gain
from experiments.config import (
    Config,
    evaluator_of,
    plain,
    reference_with,
    run_command,
    tracker_of,
)
from experiments.evaluate import Subject
from experiments.workers import first_process
from report.words import decimals, format_score, reference_words


def main(cfg: Config) -> None:
    if cfg.labels not in ("auto", "off"):
        raise ValueError(f"unknown labels {cfg.labels!r}: choose auto or off")
    path = Path(cfg.samples)
    tracker = tracker_of(cfg, path.parent.name)
    subject = subject_of(cfg, path, cfg.out)
    evaluator = evaluator_of(cfg)
    second = cfg.against and subject_of(cfg, Path(cfg.against), None)
    record = evaluator.record(subject)
    other = evaluator.record(second) if second else None
    if not first_process():
        return
    if record["cell"]:
        tracker.evaluated(record)
    print_record(record)
    print(f"record: {subject.out}")
    if other:
        print_record(other)
        print_differences(record, other)
    published = plain(cfg.reference.get("published") or {}).get(path.stem)
    obstacle = gate_obstacle(cfg, path.stem, published)
    if obstacle:
        print(f"protocol gate: no verdict: {obstacle}")
    elif published:
        passed = print_gate(record, path.stem, published["scores"][record["protocol"]])
        sys.exit(1 if passed is False else 0)


def subject_of(cfg: Config, path: Path, out: str | None) -> Subject:
    """The samples at a path, and where their record goes: `out`, or beside them."""
    beside = path / "evaluation" if path.is_dir() else path.with_suffix(".evaluation")
    return Subject(
        path,
        out=Path(out or f"{beside}-{cfg.metrics.name}.json"),
        num_samples=cfg.num_samples,
        use_labels=cfg.labels == "auto",
        prompts=cfg.prompts and Path(cfg.prompts),
    )


def gate_obstacle(cfg: Config, batch: str, published: Any) -> str | None:
    """Why a published batch cannot be judged by these settings; None if it can, or is not one."""
    home = reference_with(batch)
    if not published:
        return home and f"this batch is judged with reference={home}"
    judged = [name for name in GATES if published["scores"].get(name)]
    if not judged:
        return f"no published score of {batch} is known here"
    protocol = cfg.metrics.name
    if protocol not in judged:
        return "it needs " + " or ".join(f"metrics={name}" for name in judged)
    if cfg.num_samples is not None:
        return "it needs the whole batch, num_samples=null"
    changed = changed_option(protocol, Options.of(plain(cfg.metrics.options)))
    return changed and f"it needs {changed}"


def print_record(record: Record) -> None:
    print(
        f"{record['n']} samples, protocol {record['protocol']}, extractor {record['extractor']} "
        f"({record['extractor_weights']}), {reference_words(record)}"
    )
    print(f"{'score':<28}{'samples':>18}{'real (floor)':>18}   ± is half the 95% interval")
    for metric in record["scores"]:
        name = f"{METRICS[metric].title} ({record['extractor']})"
        ours = format_score(metric, score(record, metric))
        floor = format_score(metric, score(record, metric, "floor"))
        print(f"{name:<28}{ours:>18}{floor:>18}")


def print_differences(record: Record, other: Record) -> None:
    """By how much the first set of samples is better than the second, and whether that is real.

    Raises ValueError for sets of different sizes, on which scores depend.
    """
    sizes = record["n"], other["n"]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{sizes[0]} samples do not compare with {sizes[1]}: set num_samples={min(sizes)}"
        )
    both = [
        (metric, ours, theirs)
        for metric in record["scores"]
        if (ours := score(record, metric)) and (theirs := score(other, metric))
    ]
    shared = all(paired(ours, theirs) for _, ours, theirs in both)
    how = "paired: both are made from the same noise" if shared else "as if independent"
    print(f"difference, positive where the first is better ({how})")
    for metric, ours, theirs in both:
        difference = gain(metric, ours, theirs)
        places = decimals(metric)
        words = f"{difference.value:+.{places}f} ± {difference.half:.{places}f}"
        print(f"{METRICS[metric].title:<28}{words:>18}   {difference.words} the second")


def print_gate(record: Record, batch: str, published: Mapping[str, float]) -> bool | None:
    """Ours beside the published scores of that batch; whether all agree that compare, if any do."""
    checks = gate(record, published)
    print(f"protocol gate: {batch} against its published scores")
    for check in checks:
        verdict = {True: "pass", False: "FAIL", None: f"no verdict: {check.obstacle}"}[check.passed]
        print(
            f"  {METRICS[check.metric].title:<12}{check.ours:10.4f}   published "
            f"{check.published:10.4f} ± {check.tolerance:.4f}   {verdict}"
        )
    verdicts = [check.passed for check in checks if check.passed is not None]
    if not verdicts:
        print("protocol gate: no verdict: none of these scores compares with this reference")
        return None
    passed = all(verdicts)
    remedy = "" if passed else ": do not trust scores made here before this is explained"
    print(f"protocol gate: {'PASS' if passed else 'FAIL'}{remedy}")
    return passed


if __name__ == "__main__":
    run_command(main, "evaluate")  # as @hydra.main, by which the shell knows what it can complete
