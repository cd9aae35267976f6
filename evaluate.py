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

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.protocols import Judged
from eval.records import Record, draws, score
from eval.score import Score, paired
from eval.scoring import METRICS, Options
from eval.table import gain
from eval.words import decimals, print_record, print_verdict
from experiments.config import Config, evaluator_of, plain, run_command, tracker_of
from experiments.evaluate import Evaluator, Subject
from experiments.workers import first_process


def main(cfg: Config) -> None:
    if cfg.labels not in ("auto", "off"):
        raise ValueError(f"unknown labels {cfg.labels!r}: choose auto or off")
    path = Path(cfg.samples)
    tracker = tracker_of(cfg, path.parent.name)
    subject = subject_of(cfg, path, cfg.out)
    evaluator = evaluator_of(cfg)
    second = cfg.against and subject_of(cfg, Path(cfg.against), None)
    if second:
        check_both(subject, second, evaluator)
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
    options = Options.of(plain(cfg.metrics.options))
    judged = Judged(path.stem, published, cfg.metrics.name, options, cfg.num_samples is None)
    if not print_verdict(record, judged):
        sys.exit(1)


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


def check_both(first: Subject, second: Subject, evaluator: Evaluator) -> None:
    """Raise ValueError for sets of different numbers, on which scores depend, or for one record of both."""
    sizes = [evaluator.count(subject) for subject in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{sizes[0]} samples do not compare with {sizes[1]}: set num_samples={min(sizes)}"
        )
    if first.path.resolve() != second.path.resolve() and (
        first.out.resolve() == second.out.resolve()
    ):
        raise ValueError(f"{first.out} is the record of {second.path}: choose another out=FILE")


def pairing_words(both: Sequence[tuple[str, Score, Score]], same_noise: bool) -> str:
    """Of which scores of both sets the errors are known to be shared."""
    alone = {metric: pair for metric, *pair in both if not paired(*pair)}
    how = "paired: both are made from the same noise"
    if alone:  # all of them, or those whose errors do not tell (bootstrap=0)
        names = ", ".join(METRICS[metric].title for metric in alone)
        how = "as if independent" if len(alone) == len(both) else f"{how}; alone: {names}"
    scores = [score for pair in alone.values() for score in pair]
    if same_noise and any(s.spread is None and not math.isnan(s.se) for s in scores):
        how += "; a record of before does not tell what they share: remove it and run again"
    return how


def print_differences(record: Record, other: Record) -> None:
    """By how much the first set of samples is better than the second, and whether that is real."""
    both = [
        (metric, ours, theirs)
        for metric in record["scores"]
        if (ours := score(record, metric)) and (theirs := score(other, metric))
    ]
    how = pairing_words(both, draws(record) is not None and draws(record) == draws(other))
    print(f"difference, positive where the first is better ({how})")
    for metric, ours, theirs in both:
        difference = gain(metric, ours, theirs)
        words = difference.text(decimals(metric))
        print(f"{METRICS[metric].title:<28}{words:>18}   {difference.words} the second")


if __name__ == "__main__":
    run_command(main, "evaluate")  # as @hydra.main, by which the shell knows what it can complete
