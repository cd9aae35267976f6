"""Score samples against a reference.

    python evaluate.py samples=runs/digits/mix-... reference=digits

Works on a run's folder, any .npz with arr_0, or a folder of PNG files.  Writes a JSON record
and prints it with the real-vs-real floor, which is what a perfect sampler would score.
"""

from pathlib import Path

from omegaconf import DictConfig

from eval.records import Record, score
from eval.report import METRIC_NAMES, format_score
from scripts.commands import pick_device, run_command
from scripts.evaluation import Evaluator


def main(cfg: DictConfig) -> None:
    path = Path(cfg.samples)
    if cfg.labels not in ("auto", "off"):
        raise ValueError(f"unknown labels {cfg.labels!r}: choose auto or off")
    evaluator = Evaluator(cfg.metrics, cfg.reference, str(pick_device(cfg.device)))
    beside = path / "evaluation" if path.is_dir() else path.with_suffix(".evaluation")
    out = Path(cfg.out or f"{beside}-{cfg.metrics.extractor}.json")
    record = evaluator.record(
        path, out, num_samples=cfg.num_samples, use_labels=cfg.labels == "auto"
    )
    print_record(record)
    print(f"record: {out}")


def print_record(record: Record) -> None:
    print(f"{record['n']} samples, extractor {record['extractor']} ({record['extractor_weights']}), "
          f"reference {record['reference']} ({record['reference_n']} images)")  # fmt: skip
    print(f"{'score':<28}{'samples':>18}{'real (floor)':>18}   ± is half the 95% interval")
    for metric in record["scores"]:
        name = f"{METRIC_NAMES[metric]} ({record['extractor']})"
        ours = format_score(metric, score(record, metric))
        floor = format_score(metric, score(record, metric, "floor"))
        print(f"{name:<28}{ours:>18}{floor:>18}")


if __name__ == "__main__":
    run_command(main, "evaluate")
