"""Score samples against a reference.

    python evaluate.py samples=runs/mix reference=digits

Works on a run's folder, any .npz with arr_0, or a folder of PNG, JPEG or WebP files; how well images fit their
prompts is scored by metrics=clip reference=none.  Writes a JSON record
and prints it with the real-vs-real floor, which is what a perfect sampler would score.  Under
torchrun the processes share the images.

The protocol gate: a sample batch that ADM's authors published is scored as they do, or not,

    python evaluate.py samples=downloads/admnet_imagenet256.npz reference=adm_imagenet256 metrics=adm

and the command ends with PASS, or with FAIL and exit status 1, or says why there is no verdict.
"""

import sys
from pathlib import Path

from eval.protocols import Judged
from eval.words import print_record, print_verdict
from experiments.config import Config, evaluator_of, plain, run_command, tracker_of
from experiments.evaluate import Subject
from experiments.workers import first_process


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
    options = plain(cfg.metrics.options)
    judged = Judged(path.stem, published, cfg.metrics.name, options, cfg.num_samples is None)
    if not print_verdict(record, judged):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, "evaluate")
