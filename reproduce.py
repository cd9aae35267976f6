"""Regenerate a table or figure of the paper.

    python reproduce.py experiment=table1 model=digits
    python reproduce.py experiment=table1 dry=true

Samples what is missing, evaluates what is missing, and renders Markdown, CSV, LaTeX and PNG
into out=DIR (default results/<model>/<experiment>), the paper's numbers beside ours where the
model is the paper's and below ours where it is another.  A dry run prints what would be done
and what it would cost.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import DictConfig

from eval.files import load_samples
from eval.metrics import check_metrics
from eval.records import Record, load_records, save_records
from eval.report import Cell, Pictures, write_cutoff_figure, write_pictures, write_table
from models.backbone import Backbone
from scripts import dry_run
from scripts.commands import (
    ROOT,
    load_backbone,
    make_job,
    pick_device,
    plain,
    run_command,
    takes_option,
)
from scripts.evaluation import Evaluator
from scripts.generate import (
    Job,
    Size,
    batch_labels,
    distributed_rank,
    generate,
    read_manifest,
    video_names,
)
from scripts.vbench import result_files, vbench_record
from scripts.video import film_strip

KINDS = ("table", "cutoffs", "samples", "videos")


def main(cfg: DictConfig) -> None:
    experiment = plain(cfg.experiment)
    if experiment["kind"] not in KINDS:
        raise ValueError(
            f"unknown experiment.kind {experiment['kind']!r}: choose {', '.join(KINDS)}"
        )
    if cfg.dry:
        _dry_run(cfg, experiment)
    elif experiment["kind"] == "samples":
        _pictures(cfg, experiment)
    else:
        _scores(cfg, experiment)


def _scores(cfg: DictConfig, experiment: dict[str, Any]) -> None:
    """A table or the cutoff figure, from records."""
    out = Path(cfg.out)
    cells = _stored(out) if cfg.render_only else _measured(cfg, experiment)
    paper = yaml.safe_load((ROOT / experiment["paper"]).read_text())
    if not cells:
        return  # only sampled, for another table
    if experiment["kind"] in ("table", "videos"):
        write_table(out, experiment["title"], cells, experiment["metrics"], paper)
        text = out / "table.md"
    else:
        write_cutoff_figure(out, experiment["title"], cells, experiment["metrics"], paper)
        text = out / "figure.md"
    save_records(out / "records.json", [{"row": c.row, **c.record} for c in cells])
    print(text.read_text())
    print(f"written: {out}")


def _stored(out: Path) -> list[Cell]:
    records: list[Record] = load_records(out / "records.json")
    return [Cell(r.pop("row"), r["cell"]["nfe"], r) for r in records]


def _measured(cfg: DictConfig, experiment: dict[str, Any]) -> list[Cell]:
    """Sample and evaluate every cell, or find it done; the cheapest columns first."""
    if experiment["kind"] == "videos":
        return _videos(cfg, experiment)
    absent = set(check_metrics(experiment["metrics"])) - {*cfg.metrics.scores, "label_agreement"}
    if absent:
        raise ValueError(
            f"experiment.metrics names {', '.join(sorted(absent))}, which metrics.scores lacks: "
            f"set experiment.metrics=[{','.join(cfg.metrics.scores)}] or another metrics="
        )
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts)
    evaluator = Evaluator(cfg.metrics, cfg.reference, str(device))
    evaluator.check_reference()  # before days of sampling
    columns = _columns(cfg, experiment, backbone)
    for _, size, _ in columns:
        evaluator.check_size(size.num_samples)
    _check_same_table(Path(cfg.out), cfg.metrics.name, next(iter(columns[0][2].values())))
    _generate(cfg, columns, backbone, device)
    cells = []
    for steps, size, jobs in columns:
        for row, job in jobs.items():
            path = job.folder / f"evaluation-{cfg.metrics.name}-{size.num_samples}.json"
            cells.append(
                Cell(row, steps, evaluator.record(job.folder, path, num_samples=size.num_samples))
            )
    return [cell for row in _rows(experiment) for cell in cells if cell.row == row]


def _videos(cfg: DictConfig, experiment: dict[str, Any]) -> list[Cell]:
    """Sample every cell; VBench, which runs elsewhere, must have scored them."""
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts)
    columns = _columns(cfg, experiment, backbone)
    _check_same_table(Path(cfg.out), "vbench", next(iter(columns[0][2].values())))
    _generate(cfg, columns, backbone, device)
    if not experiment["metrics"]:
        return []
    folders = [job.folder for _, _, jobs in columns for job in jobs.values()]
    unscored = " ".join(str(folder) for folder in folders if not result_files(folder))
    if unscored:
        raise FileNotFoundError(
            f"VBench has not scored {unscored}: on a GPU, `python scripts/vbench.py run {unscored}` "
            "does, and then the same command renders the table"
        )
    return [
        Cell(row, steps, vbench_record(job.folder))
        for steps, _, jobs in columns
        for row, job in jobs.items()
    ]


def _check_same_table(out: Path, protocol: str, job: Job) -> None:
    """Raise ValueError if `out` holds a table of another model, protocol, guidance, seed..."""
    if not (out / "records.json").is_file():
        return

    def facts(protocol: str, config: dict[str, Any]) -> dict[str, Any]:
        kept = {key: config.get(key) for key in ("guidance", "spacing", "seed", "label")}
        return {"protocol": protocol, "checkpoint": config["model"]["sha256"], **kept}

    stored = load_records(out / "records.json")[0]
    there = facts(stored["protocol"], stored["cell"]["config"])
    here = facts(protocol, json.loads(json.dumps(job.config)))
    for key, value in here.items():
        if there[key] != value:
            raise ValueError(
                f"{out} holds results of another kind ({key} is {there[key]} there, {value} here): "
                "choose another out=DIR"
            )


def _pictures(cfg: DictConfig, experiment: dict[str, Any]) -> None:
    """A labelled grid: one row of pictures a step count and sampler, the same ids in all."""
    if cfg.render_only:
        raise ValueError("pictures are rendered from samples, not from records: leave render_only")
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts)
    rows, out = [], Path(cfg.out)
    columns = _columns(cfg, experiment, backbone)
    _generate(cfg, columns, backbone, device)
    for steps, size, jobs in columns:
        for row, job in jobs.items():
            manifest = read_manifest(job.folder)
            assert manifest is not None
            labels = batch_labels(cfg.seed, range(size.num_samples), backbone, cfg.label)
            titles = None
            if labels is not None:
                names = backbone.prompts or [str(k) for k in range(backbone.num_classes or 0)]
                titles = [names[k] for k in labels.tolist()]
            if backbone.fps is None:
                images = load_samples(job.folder).images[: size.num_samples]
            else:
                files = video_names(job, backbone, range(size.num_samples))
                paths = [job.folder / "videos" / name for name in files]
                images = np.stack([film_strip(path, experiment["frames"]) for path in paths])
            rows.append(Pictures(row, steps, images, titles, manifest["config"]))
    write_pictures(out, experiment["title"], rows)
    print(f"written: {out}")


def _dry_run(cfg: DictConfig, experiment: dict[str, Any]) -> None:
    device = pick_device(cfg.device)
    calibrated: dict[
        str, Any
    ] = {}  # the network that is timed; what is looked for is that of the config
    if device.type == "cpu" and cfg.model.get("precision") == "fp16":
        print("on a CPU half precision takes ages: calibrating with model.precision=fp32")
        calibrated["precision"] = "fp32"
    if takes_option(cfg.model, "encode"):
        calibrated["encode"] = False  # a large text encoder is not needed to measure speed
    try:
        backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts, **calibrated)
    except FileNotFoundError as missing:
        if not takes_option(cfg.model, "untrained"):
            raise
        print(f"not yet: {missing}")
        more = {"untrained": True, **calibrated}
        backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts, **more)
    columns = _columns(cfg, experiment, backbone)
    print(f"{experiment['name']} on {cfg.model.name} would sample, batch {cfg.batch_size}:")
    print(dry_run.report(columns, backbone, cfg.batch_size, device))


def _rows(experiment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Samplers by the name they have in the table; a cutoff ablation is one row a cutoff."""
    if experiment["kind"] == "cutoffs":
        return {f"cutoff {c:g}": {"name": "mix", "cutoff": c} for c in experiment["cutoffs"]}
    rows: dict[str, dict[str, Any]] = experiment["rows"]
    return rows


def _columns(
    cfg: DictConfig, experiment: dict[str, Any], backbone: Backbone
) -> list[dry_run.Column]:
    """(step count, size, job of every row) of each column, the cheapest first."""
    steps, sizes = experiment["steps"], cfg.num_samples or experiment["num_samples"]
    if isinstance(sizes, int):
        sizes = [sizes] * len(steps)
    if len(sizes) != len(steps):
        raise ValueError(
            f"experiment.num_samples has {len(sizes)} entries for {len(steps)} step counts: "
            "give one number, or one a step count"
        )

    def jobs(steps: int) -> dict[str, Job]:
        settings = {"steps": steps, "spacing": experiment["spacing"]}
        settings |= {"seed": cfg.seed, "label": cfg.label, "names": experiment.get("names", "id")}
        return {
            row: make_job(cfg.model, backbone, sampler, **settings)
            for row, sampler in _rows(experiment).items()
        }

    return [
        (count, Size(n, cfg.batch_size, cfg.shard_size), jobs(count))
        for count, n in sorted(zip(steps, sizes, strict=True))
    ]


def _generate(
    cfg: DictConfig, columns: list[dry_run.Column], backbone: Backbone, device: torch.device
) -> None:
    """Sample what is missing; of several processes, only the one that ends last returns."""
    rank, world = distributed_rank()

    def complete(size: Size, jobs: dict[str, Job]) -> bool:
        return generate(
            list(jobs.values()),
            backbone,
            size,
            seed=cfg.seed,
            label=cfg.label,
            device=device,
            rank=rank,
            world=world,
        )

    for steps, size, jobs in columns:
        print(f"{steps} steps, {size.num_samples} samples: {', '.join(jobs)}", flush=True)
        complete(size, jobs)
    # A column that others were still sampling then may be complete now.
    if not all(complete(size, jobs) for _, size, jobs in columns):
        print("this process is done: the one that ends last goes on")
        raise SystemExit(0)


if __name__ == "__main__":
    run_command(main, "reproduce")
