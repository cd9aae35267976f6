"""Regenerate a table or figure of the paper.

    python reproduce.py experiment=table1 model=digits
    python reproduce.py experiment=table1 dry=true

Samples what is missing, evaluates what is missing, and renders Markdown, CSV, LaTeX and PNG
into out=DIR (default results/<model>/<experiment>), the paper's numbers beside ours where the
model is the paper's and below ours where it is another.  A dry run prints what would be done
and what it would cost.  Under torchrun or srun the processes share the work; docs/scaling.md tells
how several commands share it.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import DictConfig

from eval.records import load_records
from eval.scoring import check_metrics
from eval.sheets import Pictures, sheet_size, write_sheets
from eval.table import Cell, load_cells, save_cells
from experiments import dry_run
from experiments.cells import Job, Size, make_job, video_names
from experiments.config import (
    experiment_of,
    load_backbone,
    pick_device,
    plain,
    run_command,
    takes_option,
)
from experiments.evaluate import Evaluator
from experiments.folder import is_complete, read_manifest
from experiments.generate import batch_labels, generate
from experiments.progress import PlannedCell, write_plan
from experiments.tracking import Tracker, tracker_named
from experiments.tune import tune, write_tuning
from experiments.vbench import result_files, run_vbench, vbench_record
from experiments.workers import agree, connected, share, wait_for_all, worker
from files.images import load_samples
from files.places import ROOT
from files.videos import film_strip
from models.backbone import Backbone
from report.pictures import write_pictures
from report.render import write_cutoff_figure, write_table
from sampling import count_calls, timesteps

KINDS = ("table", "cutoffs", "samples", "videos", "tune")


STAGES = ("all", "sample", "evaluate", "render")


def main(cfg: DictConfig) -> None:
    experiment = experiment_of(cfg)
    if experiment["kind"] not in KINDS:
        raise ValueError(
            f"unknown experiment.kind {experiment['kind']!r}: choose {', '.join(KINDS)}"
        )
    if cfg.stage not in STAGES:
        raise ValueError(f"unknown stage {cfg.stage!r}: choose {', '.join(STAGES)}")
    if experiment["kind"] == "tune" and (cfg.dry or cfg.render_only):
        raise ValueError("what tuning samples depends on what it finds: leave dry and render_only")
    if cfg.dry:
        _dry_run(cfg, experiment)
    elif cfg.render_only:
        _render(cfg, experiment, _stored(Path(cfg.out), experiment))
    elif experiment["kind"] == "tune":
        _tune(cfg, experiment)
    else:
        _work(cfg, experiment)


def _work(cfg: DictConfig, experiment: dict[str, Any]) -> None:
    """Sample and evaluate every cell, or find it done, then render; or one stage of that."""
    share(cfg.part, cfg.parts)
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts)
    columns = _columns(cfg, experiment, backbone)
    evaluator = _evaluator(cfg, experiment, columns, device)
    tracker = tracker_named(cfg.logger, f"{cfg.model.name}-{experiment['name']}")
    cells = _cells(cfg, experiment, columns)
    if worker()[0] == 0:
        write_plan(cfg, cells)
    mine = _wanted(cfg, columns)
    if cfg.stage in ("all", "sample"):
        complete = _generate(cfg, mine, backbone, device, tracker, cfg.seed)
        if cfg.stage == "all" and not complete:
            print("this process is done: the one that ends last goes on")
        if cfg.stage == "sample" or not complete:
            return
    silent = connected() and worker()[0] > 0  # the first process writes and tells
    if experiment["kind"] == "samples":
        if cfg.stage != "evaluate" and not silent:
            shown = max(size.num_samples for _, size, _ in columns)
            pictures = _pictures(cfg, experiment, backbone, columns, shown)
            write_pictures(Path(cfg.out), experiment["title"], pictures)
            print(f"written: {cfg.out}")
        return
    wanted = {steps for steps, _, _ in mine}
    todo = [cell for cell in cells if cell.steps in wanted]
    if cfg.stage == "evaluate":
        # Connected processes evaluate each cell together, others different ones.
        part, parts = (cfg.part, cfg.parts) if connected() else share(cfg.part, cfg.parts)
        todo = todo[part::parts]
    _check_complete(todo)
    scored = _score(cfg, experiment, todo, evaluator)
    if silent:
        return
    for cell in scored:
        tracker.evaluated(cell.record)
    if cfg.stage != "evaluate" and scored:
        in_order = [cell for row in _rows(experiment) for cell in scored if cell.row == row]
        if evaluator is not None:
            shown = sheet_size(backbone.shape)
            write_sheets(Path(cfg.out), _pictures(cfg, experiment, backbone, columns, shown))
        _render(cfg, experiment, in_order)
        tracker.reported(experiment["title"], in_order, experiment["kind"] == "cutoffs")


def _tune(cfg: DictConfig, experiment: dict[str, Any]) -> None:
    """Choose Mix++'s window at every step count, and confirm it on fresh seeds."""
    if cfg.stage != "all" or cfg.parts != 1 or (worker()[1] > 1 and not connected()):
        raise ValueError("tuning is one process or torchrun: leave stage, part and parts")
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts)
    evaluator = Evaluator(cfg.metrics, cfg.reference, str(device))
    evaluator.check_reference()
    tracker = tracker_named(cfg.logger, f"{cfg.model.name}-{experiment['name']}")
    for n in (experiment["tuning_samples"], experiment["num_samples"]):
        evaluator.check_size(n)

    def judge(
        steps: int, samplers: dict[str, dict[str, Any]], n: int, seed: int
    ) -> tuple[list[Cell], int]:
        column = _column(cfg, experiment, backbone, samplers, steps, n, seed)
        if not _generate(cfg, [column], backbone, device, tracker, seed):
            raise ValueError("others are sampling the same: wait for them and run this again")
        cells = _score(cfg, experiment, _cells(cfg, experiment, [column]), evaluator)
        return cells, count_calls([job.plan for job in column[2].values()]) * n

    tuned = []
    for steps in sorted(experiment["steps"]):
        grid = timesteps(backbone.schedule, steps, experiment["spacing"])
        tuned.append(tune(experiment, steps, grid, cfg.seed, partial(judge, steps)))
    if worker()[0] == 0:
        out = Path(cfg.out)
        print(write_tuning(out, experiment["title"], tuned, experiment, cfg.model.name))
        print(f"written: {out}")


def _render(cfg: DictConfig, experiment: dict[str, Any], cells: list[Cell]) -> None:
    """A table or the cutoff figure, from records."""
    out = Path(cfg.out)
    source = experiment["paper"]
    paper = source and yaml.safe_load((ROOT / source).read_text())
    if experiment["kind"] in ("table", "videos"):
        write_table(out, experiment["title"], cells, experiment["metrics"], paper)
        text = out / "table.md"
    else:
        write_cutoff_figure(out, experiment["title"], cells, experiment["metrics"], paper)
        text = out / "figure.md"
    save_cells(out / "records.json", cells)
    print(text.read_text())
    print(f"written: {out}")


def _stored(out: Path, experiment: dict[str, Any]) -> list[Cell]:
    if experiment["kind"] == "samples":
        raise ValueError("pictures are rendered from samples, not from records: leave render_only")
    return load_cells(out / "records.json")


def _evaluator(
    cfg: DictConfig,
    experiment: dict[str, Any],
    columns: list[dry_run.Column],
    device: torch.device,
) -> Evaluator | None:
    """What scores the images; None for videos and pictures.  Refuses what cannot end well.

    Raises FileNotFoundError or ValueError before days of sampling.
    """
    if experiment["kind"] == "samples":
        return None
    protocol, evaluator = "vbench", None
    if experiment["kind"] != "videos":
        absent = set(check_metrics(experiment["metrics"])) - {
            *cfg.metrics.scores,
            "label_agreement",
        }
        if absent:
            raise ValueError(
                f"experiment.metrics names {', '.join(sorted(absent))}, which metrics.scores lacks: "
                f"set experiment.metrics=[{','.join(cfg.metrics.scores)}] or another metrics="
            )
        protocol = cfg.metrics.name
        evaluator = Evaluator(cfg.metrics, cfg.reference, str(device))
        evaluator.check_reference()
        for _, size, _ in columns:
            evaluator.check_size(size.num_samples)
    _check_same_table(Path(cfg.out), protocol, next(iter(columns[0][2].values())))
    return evaluator


def _cells(
    cfg: DictConfig, experiment: dict[str, Any], columns: list[dry_run.Column]
) -> list[PlannedCell]:
    """Every cell with its folder and, of what is scored here, the path of its record."""
    scored = experiment["kind"] in ("table", "cutoffs", "tune")
    return [
        PlannedCell(
            row,
            steps,
            job,
            size,
            job.folder / f"evaluation-{cfg.metrics.name}-{size.num_samples}.json" if scored else None,
        )
        for steps, size, jobs in columns
        for row, job in jobs.items()
    ]  # fmt: skip


def _wanted(cfg: DictConfig, columns: list[dry_run.Column]) -> list[dry_run.Column]:
    """The columns that this command works on."""
    if cfg.only is None:
        return columns
    if cfg.stage not in ("sample", "evaluate"):
        raise ValueError("only= is for stage=sample or stage=evaluate: for a table of fewer columns "
                         "set experiment.steps")  # fmt: skip
    only = plain(cfg.only) if not isinstance(cfg.only, int) else [cfg.only]
    known = [steps for steps, _, _ in columns]
    if unknown := [steps for steps in only if steps not in known]:
        raise ValueError(
            f"only={unknown} is no step count of this experiment: choose among {known}"
        )
    return [column for column in columns if column[0] in only]


def _check_complete(cells: list[PlannedCell]) -> None:
    for cell in cells:
        if not is_complete(cell.job, cell.size):
            raise FileNotFoundError(
                f"{cell.row} at {cell.steps} steps is not complete in {cell.job.folder}: "
                "run stage=sample first (make status shows what is missing)"
            )


def _score(
    cfg: DictConfig,
    experiment: dict[str, Any],
    cells: list[PlannedCell],
    evaluator: Evaluator | None,
) -> list[Cell]:
    """Evaluate cells, or find that done; none for videos that only another table needs."""
    if evaluator is None:
        return _videos(cfg, experiment, cells)
    scored = []
    for cell in cells:
        assert cell.record is not None
        n = cell.size.num_samples
        if cfg.stage == "render":
            record = evaluator.stored(cell.job.folder, cell.record, num_samples=n)
            if record is None:
                raise FileNotFoundError(
                    f"{cell.row} at {cell.steps} steps is not evaluated: run stage=evaluate first"
                )
        else:
            record = evaluator.record(cell.job.folder, cell.record, num_samples=n)
        scored.append(Cell(cell.row, cell.steps, record))
    return scored


def _videos(cfg: DictConfig, experiment: dict[str, Any], cells: list[PlannedCell]) -> list[Cell]:
    """VBench, which has an environment of its own, scores when asked to; else it must have."""
    if not experiment["metrics"]:
        return []  # only sampled, for another table
    unscored = [cell.job.folder for cell in cells if not result_files(cell.job.folder)]
    if cfg.stage == "evaluate":
        run_vbench([cell.job.folder for cell in cells])
    elif unscored:
        names = " ".join(map(str, unscored))
        raise FileNotFoundError(
            f"VBench has not scored {names}: on a GPU, `python -m scripts.vbench run {names}` "
            "does, and then the same command renders the table"
        )
    return [Cell(cell.row, cell.steps, vbench_record(cell.job.folder)) for cell in cells]


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


def _pictures(
    cfg: DictConfig,
    experiment: dict[str, Any],
    backbone: Backbone,
    columns: list[dry_run.Column],
    count: int,
) -> list[Pictures]:
    """The first pictures of every step count and sampler, the same ids in all."""
    rows = []
    for steps, size, jobs in columns:
        ids = range(min(count, size.num_samples))
        labels = batch_labels(cfg.seed, ids, backbone, cfg.label)
        titles = None
        if labels is not None:
            names = backbone.prompts or [str(k) for k in range(backbone.num_classes or 0)]
            titles = [names[k] for k in labels.tolist()]
        for row, job in jobs.items():
            manifest = read_manifest(job.folder)
            assert manifest is not None
            if backbone.fps is None:
                images = load_samples(job.folder).images[: len(ids)]
            else:
                files = video_names(job, backbone, ids)
                paths = [job.folder / "videos" / name for name in files]
                images = np.stack([film_strip(path, experiment["frames"]) for path in paths])
            rows.append(Pictures(row, steps, images, titles, manifest["config"]))
    return rows


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
    steps, sizes = experiment["steps"], experiment["num_samples"]
    if isinstance(sizes, int):
        sizes = [sizes] * len(steps)
    if len(sizes) != len(steps):
        raise ValueError(
            f"experiment.num_samples has {len(sizes)} entries for {len(steps)} step counts: "
            "give one number, or one a step count"
        )

    rows = _rows(experiment)
    return [
        _column(cfg, experiment, backbone, rows, count, n, cfg.seed)
        for count, n in sorted(zip(steps, sizes, strict=True))
    ]


def _column(
    cfg: DictConfig,
    experiment: dict[str, Any],
    backbone: Backbone,
    rows: dict[str, dict[str, Any]],
    steps: int,
    num_samples: int,
    seed: int,
) -> dry_run.Column:
    """The jobs of some samplers at one step count."""
    settings = {"steps": steps, "spacing": experiment["spacing"], "seed": seed}
    settings |= {"label": cfg.label, "names": experiment.get("names", "id")}
    jobs = {
        row: make_job(cfg.model, backbone, sampler, **settings) for row, sampler in rows.items()
    }
    return steps, Size(num_samples, cfg.batch_size, cfg.shard_size), jobs


def _generate(
    cfg: DictConfig,
    columns: list[dry_run.Column],
    backbone: Backbone,
    device: torch.device,
    tracker: Tracker,
    seed: int,
) -> bool:
    """Sample what is missing of this process's share; whether everything is complete then.

    Of processes that torchrun started, all learn that together; of others, the one that ends last
    does.
    """
    rank, world = share(cfg.part, cfg.parts)

    def complete(size: Size, jobs: dict[str, Job]) -> bool:
        return generate(
            list(jobs.values()),
            backbone,
            size,
            seed=seed,
            label=cfg.label,
            device=device,
            rank=rank,
            world=world,
            watch=tracker.sampling if rank == 0 else None,
        )

    for steps, size, jobs in columns:
        if rank == 0:
            print(f"{steps} steps, {size.num_samples} samples: {', '.join(jobs)}", flush=True)
        if complete(size, jobs):
            tracker.sampled(list(jobs.values()))
    wait_for_all()
    # A column that others were still sampling then may be complete now.
    done = False
    if worker()[0] == 0 or not connected():
        finished = [complete(size, jobs) for _, size, jobs in columns]
        done = all(finished)
        tracker.sampled([job for _, _, jobs in columns for job in jobs.values()])
    return agree(done)


if __name__ == "__main__":
    run_command(main, "reproduce")
