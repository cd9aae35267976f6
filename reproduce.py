"""Regenerate a table or figure of the paper.

    python reproduce.py experiment=table1 model=digits

Samples what is missing, evaluates what is missing, and renders Markdown, CSV, LaTeX and PNG
into out=DIR (default results/<model>/<experiment>), the paper's numbers below ours.
"""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from eval.metrics import check_metrics
from eval.records import Record, load_records, save_records
from eval.report import Cell, write_cutoff_figure, write_table
from scripts.commands import ROOT, load_backbone, make_job, pick_device, plain, run_command
from scripts.evaluation import Evaluator
from scripts.generate import Size, distributed_rank, generate


def main(cfg: DictConfig) -> None:
    experiment = plain(cfg.experiment)
    out = Path(cfg.out)
    cells = _stored(out) if cfg.render_only else _measured(cfg, experiment)
    save_records(out / "records.json", [{"row": c.row, **c.record} for c in cells])
    paper = (
        yaml.safe_load((ROOT / experiment["paper"]).read_text()) if experiment["paper"] else None
    )
    if experiment["kind"] == "table":
        write_table(out, experiment["title"], cells, experiment["metrics"], paper)
        print((out / "table.md").read_text())
    else:
        write_cutoff_figure(out, experiment["title"], cells, experiment["metrics"], paper)
        print((out / "figure.md").read_text())
    print(f"written: {out}")


def _stored(out: Path) -> list[Cell]:
    records: list[Record] = load_records(out / "records.json")
    return [Cell(r.pop("row"), r["cell"]["nfe"], r) for r in records]


def _rows(experiment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Samplers by the name they have in the table; a cutoff ablation is one row a cutoff."""
    if experiment["kind"] == "table":
        rows: dict[str, dict[str, Any]] = experiment["rows"]
        return rows
    if experiment["kind"] != "cutoffs":
        raise ValueError(f"unknown experiment.kind {experiment['kind']!r}: choose table or cutoffs")
    return {f"cutoff {c:g}": {"name": "mix", "cutoff": c} for c in experiment["cutoffs"]}


def _columns(cfg: DictConfig, experiment: dict[str, Any]) -> list[tuple[int, int]]:
    """(steps, number of samples) of each column."""
    steps, sizes = experiment["steps"], cfg.num_samples or experiment["num_samples"]
    if isinstance(sizes, int):
        sizes = [sizes] * len(steps)
    if len(sizes) != len(steps):
        raise ValueError(
            f"experiment.num_samples has {len(sizes)} entries for {len(steps)} step counts: "
            "give one number, or one a step count"
        )
    return list(zip(steps, sizes, strict=True))


def _measured(cfg: DictConfig, experiment: dict[str, Any]) -> list[Cell]:
    """Sample and evaluate every cell, or find it done; the cheapest columns first."""
    absent = set(check_metrics(experiment["metrics"])) - {*cfg.metrics.scores, "label_agreement"}
    if absent:
        raise ValueError(
            f"experiment.metrics names {', '.join(absent)}, which metrics.scores lacks"
        )
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device)
    evaluator = Evaluator(cfg.metrics, cfg.reference, str(device))
    rank, world = distributed_rank()
    rows, cells = _rows(experiment), []
    for steps, num_samples in sorted(_columns(cfg, experiment)):
        jobs = {
            row: make_job(
                cfg.model,
                backbone,
                sampler,
                steps=steps,
                spacing=experiment["spacing"],
                seed=cfg.seed,
                label=cfg.label,
            )
            for row, sampler in rows.items()
        }
        print(f"{steps} steps, {num_samples} samples: {', '.join(rows)}", flush=True)
        size = Size(num_samples, cfg.batch_size, cfg.shard_size)
        complete = generate(
            list(jobs.values()),
            backbone,
            size,
            seed=cfg.seed,
            label=cfg.label,
            device=device,
            rank=rank,
            world=world,
        )
        if not complete:
            raise SystemExit("this process is done; run again when the others have sampled, too")
        for row, job in jobs.items():
            path = job.folder / f"evaluation-{cfg.metrics.extractor}-{num_samples}.json"
            record = evaluator.record(job.folder, path, num_samples=num_samples)
            cells.append(Cell(row, steps, record))
    return [cell for row in rows for cell in cells if cell.row == row]


if __name__ == "__main__":
    run_command(main, "reproduce")
