"""Score samples against a reference.

    python evaluate.py samples=runs/mix reference=digits

Works on a run's folder, any .npz with arr_0, or a folder of PNG, JPEG or WebP files; how well images fit their
prompts is scored by metrics=clip reference=none.  Writes a JSON record
and prints it with the real-vs-real floor, which is what a perfect sampler would score.  Under
torchrun the processes share the images.

The protocol gate: a sample batch that ADM's authors published is scored as they do, or not,

    python evaluate.py samples=downloads/admnet_imagenet256.npz reference=adm_imagenet256 metrics=adm

and the command ends with PASS, or with FAIL and exit status 1, or says why there is no verdict.  With
metrics=dinov2 it is compared with what dgm-eval's authors published.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.gate import GATES, changed_option, gate
from eval.records import Record, score
from eval.scoring import METRICS, Options
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
from report.words import format_score, reference_words


def main(cfg: Config) -> None:
    path = Path(cfg.samples)
    if cfg.labels not in ("auto", "off"):
        raise ValueError(f"unknown labels {cfg.labels!r}: choose auto or off")
    tracker = tracker_of(cfg, path.parent.name)
    beside = path / "evaluation" if path.is_dir() else path.with_suffix(".evaluation")
    subject = Subject(
        path,
        out=Path(cfg.out or f"{beside}-{cfg.metrics.name}.json"),
        num_samples=cfg.num_samples,
        use_labels=cfg.labels == "auto",
        prompts=cfg.prompts and Path(cfg.prompts),
    )
    record = evaluator_of(cfg).record(subject)
    if not first_process():
        return
    if record["cell"]:
        tracker.evaluated(record)
    print_record(record)
    print(f"record: {subject.out}")
    published = plain(cfg.reference.get("published") or {}).get(path.stem)
    obstacle = gate_obstacle(cfg, path.stem, published)
    if obstacle:
        print(f"protocol gate: no verdict: {obstacle}")
    elif published:
        passed = print_gate(record, path.stem, published["scores"][record["protocol"]])
        sys.exit(1 if passed is False else 0)


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
    run_command(main, "evaluate")
