"""An experiment: columns of cells, what scores them, and what is rendered of the scores.

`perform` does one command's share of it: sample, score, and hand over what is to be rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from eval.records import Record, check_results, check_same_kind
from eval.sheets import Pictures, sheet_size, write_sheets
from eval.table import Table
from experiments.cells import (
    Cell,
    Column,
    Model,
    Settings,
    file_names,
    labels_of,
    predicts_variance,
)
from experiments.choices import CONFIGS, options_of
from experiments.config import (
    Config,
    config_digest,
    evaluator_of,
    load_backbone,
    plain,
    settings_of,
    tracker_of,
)
from experiments.folder import is_complete, read_manifest
from experiments.generate import generate, generate_all
from experiments.progress import write_plan
from experiments.scorers import ImageScorer, Scorer, VideoScorer, placed
from experiments.tracking import Tracker
from experiments.workers import agree, connected, first_process, say, share, worker
from models.backbone import Backbone
from models.weights import has_bf16
from sampling.options import check_choice
from sampling.samplers import Unfit

STAGES = ("all", "sample", "evaluate", "render")
SCORERS = ("images", "videos", "none")
RENDERERS = ("table", "cutoffs", "pictures", "none")
REQUIRED = ("name", "title", "steps", "num_samples", "spacing", "rows")

# Samplers by their names in tables, where these are others than in configs.
TITLES = {
    **{"ddpm": "DDPM", "ddim": "DDIM", "skipped": "Skipped-Step", "mix": "Mix", "mixpp": "Mix++"},
    **{"mixstar": "Mix*"},
    **{"dpmpp": "DPM-Solver++(2M)", "sde_dpmpp": "SDE-DPM-Solver++(2M)", "unipc": "UniPC"},
    **{"deis": "DEIS", "sa_solver": "SA-Solver", "heun": "Heun"},
}


@dataclass(frozen=True)
class Experiment:
    """What configs/experiment describes: columns x scorer x renderer.

    `rows` are samplers by the name they have in the table, or are given by `cutoffs`: one row of
    Mix a cutoff.  `num_samples` is one number or one for each of `steps`.  `paper` is a file of the
    paper's own numbers; `names` and `frames` are for videos.  Of rows by `samplers` the `fitting` are
    kept: those that the model cannot do are left out.
    """

    name: str
    title: str
    scorer: str
    renderer: str
    steps: Sequence[int]
    num_samples: int | Sequence[int]
    spacing: Any
    rows: Mapping[str, dict[str, Any]]
    metrics: Sequence[str] = ()
    paper: str | None = None
    names: str = "id"
    frames: int = 1
    fitting: bool = False

    @staticmethod
    def of(cfg: Config) -> Experiment:
        """The config's experiment, with `steps` and `num_samples` where the command gives them.

        Raises ValueError, with the choices, for what makes no experiment.
        """
        options: dict[str, Any] = plain(cfg.experiment)
        if cfg.steps is not None:
            options["steps"] = plain(cfg.steps)
        if isinstance(options.get("steps"), int):
            options["steps"] = [options["steps"]]
        if cfg.num_samples is not None:
            options["num_samples"] = plain(cfg.num_samples)
        cutoffs = options.pop("cutoffs", None)
        if cfg.get("samplers") is not None:
            if cutoffs is not None or not cfg.samplers:
                raise ValueError(
                    "samplers names the rows of a table: give [ddim,mix,...], or leave it null"
                )
            options |= {"rows": sampler_rows(plain(cfg.samplers)), "fitting": True}
        if cutoffs is not None:
            options["rows"] = {f"cutoff {c:g}": {"name": "mix", "cutoff": c} for c in cutoffs}
        if "family" in options:
            script = "advise" if options["family"] == "named" else "tune"
            raise ValueError(f"{options['name']} is run by `python -m scripts.{script}`")
        for axis, choices in (("scorer", SCORERS), ("renderer", RENDERERS)):
            check_choice(f"experiment.{axis}", str(options.get(axis)), choices)
        if absent := [key for key in REQUIRED if not options.get(key)]:
            raise ValueError(
                f"experiment.{absent[0]} is missing or empty: give experiment.{absent[0]}=..."
            )
        _check_rendered(options, cutoffs)
        if len(set(options["steps"])) < len(options["steps"]):
            raise ValueError("experiment.steps names a step count twice: give each once")
        takes = [field.name for field in fields(Experiment)]
        return Experiment(**{key: value for key, value in options.items() if key in takes})

    def columns(self, settings: Settings) -> list[Column]:
        """The cells of every step count, the cheapest first."""
        sizes = self.num_samples
        sizes = [sizes] * len(self.steps) if isinstance(sizes, int) else sizes
        if len(sizes) != len(self.steps):
            raise ValueError(
                f"experiment.num_samples has {len(sizes)} entries for {len(self.steps)} step "
                "counts: give one number, or one a step count"
            )
        pairs = sorted(zip(self.steps, sizes, strict=True))
        rows = able(settings, self.rows, pairs[0][0]) if self.fitting else self.rows
        return [settings.column(rows, steps, n) for steps, n in pairs]


def _check_rendered(options: Mapping[str, Any], cutoffs: Any) -> None:
    """Raise ValueError for what could not be rendered when all samples are there."""
    renderer = options["renderer"]
    if renderer in ("table", "cutoffs") and not options.get("metrics"):
        raise ValueError("experiment.metrics must not be empty: name what the table shows")
    if renderer in ("table", "cutoffs") and options["scorer"] == "none":
        raise ValueError(f"a {renderer} shows scores: set experiment.scorer=images or videos")
    if renderer == "cutoffs" and cutoffs is None:
        raise ValueError(
            "its rows are cutoffs: give experiment.cutoffs=[100,200], or renderer=table"
        )
    if (frames := options.get("frames", 1)) < 1:
        raise ValueError(f"experiment.frames must be at least 1, got {frames}")


def sampler_rows(samplers: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Rows of a table: configs/sampler by the name, or as options say that go over it."""
    rows = {}
    for sampler in samplers:
        stated = sampler if isinstance(sampler, dict) else {"name": sampler}
        check_choice("sampler", stated.get("name"), options_of("sampler"))
        path = Path(CONFIGS, "sampler", f"{stated['name']}.yaml")
        more = ", ".join(f"{key}={value}" for key, value in stated.items() if key != "name")
        title = TITLES.get(stated["name"], str(stated["name"])) + (f" ({more})" if more else "")
        rows[title] = {**yaml.safe_load(path.read_text(encoding="utf-8")), **stated}
    return rows


def able(
    settings: Settings, rows: Mapping[str, dict[str, Any]], steps: int
) -> dict[str, dict[str, Any]]:
    """The rows that the model can do; says which are left out, and why.  ValueError if none is left."""
    fitting = {}
    for row, sampler in rows.items():
        try:
            plan = settings.cell(row, sampler, steps, 1).plan
            if np.isfinite(plan.noise_high).any() and not predicts_variance(settings.backbone):
                raise Unfit("the network predicts no variance")
        except Unfit as error:
            say(f"left out: {row}: {error}")
        else:
            fitting[row] = sampler
    if not fitting:
        raise ValueError("no sampler is left: set samplers=[ddim,skipped,mix]")
    return fitting


class Results(NamedTuple):
    """What is to be rendered, and how; the arguments of `report.render.render`."""

    renderer: str
    out: Path
    title: str
    content: Table | Sequence[Pictures]
    metrics: Sequence[str]
    paper: str | None


def stored_results(cfg: Config) -> Results:
    """The results of an experiment's stored records.  FileNotFoundError without them."""
    experiment, out = Experiment.of(cfg), Path(cfg.out)
    if experiment.renderer in ("pictures", "none"):
        raise ValueError(f"{experiment.name} has no table to render: leave render_only")
    table = Table.load(out / "records.json")
    return Results(
        experiment.renderer, out, experiment.title, table, experiment.metrics, experiment.paper
    )


def perform(cfg: Config) -> Results | None:
    """Sample and score every cell, or find it done; or one stage of that.

    Returns what is to be rendered, in the one process that should: None in those that end before
    the others do, of connected processes in all but the first, and after the stages that render
    nothing.
    """
    if cfg.stage not in STAGES:
        raise ValueError(f"unknown stage {cfg.stage!r}: choose {', '.join(STAGES)}")
    work = Work(cfg)
    if cfg.stage in ("all", "sample"):
        complete = work.sample()
        if cfg.stage == "all" and not complete:
            print("this process is done: the one that ends last goes on")
        if cfg.stage == "sample" or not complete:
            return None
    records = work.score()
    if cfg.stage == "evaluate" or not first_process():
        return None
    return work.results(records)


class Work:
    """One experiment on one model, as far as this process does it."""

    def __init__(self, cfg: Config):
        self.cfg, self.stage, self.out = cfg, cfg.stage, Path(cfg.out)
        self.experiment = experiment = Experiment.of(cfg)
        self.rank, self.world = share(cfg.part, cfg.parts)
        self.backbone = load_backbone(cfg)
        asked = cfg.experiment.get("precision"), cfg.model.get("precision")
        if asked == ("fp32", "fp32") and not has_bf16(self.backbone.device):
            say(f"bf16 would be slow on this device: sampling in fp32, into {self.out}")
        settings = settings_of(cfg, self.backbone, experiment.spacing, experiment.names)
        self.columns = experiment.columns(settings)
        self.scorer = scorer_of(cfg, experiment, self.columns)
        self.tracker = tracker_of(cfg, f"{cfg.model.name}-{experiment.name}")
        if worker()[0] == 0:
            protocol = cfg.metrics.name if experiment.scorer == "images" else None
            write_plan(cfg.model.name, experiment.name, config_digest(cfg), self.cells, protocol)

    @property
    def cells(self) -> list[Cell]:
        return [cell for column in self.columns for cell in column.cells]

    @cached_property
    def wanted(self) -> list[Column]:
        """The columns that this command works on."""
        if self.cfg.only is None:
            return self.columns
        if self.stage not in ("sample", "evaluate"):
            raise ValueError(
                "only= is for stage=sample or stage=evaluate: for a table of fewer columns set "
                "experiment.steps"
            )
        if plain(self.cfg.only) == []:
            raise ValueError("only=[] is no step count: name some, or leave only=null")
        only = [self.cfg.only] if isinstance(self.cfg.only, int) else plain(self.cfg.only)
        steps = [column.steps for column in self.columns]
        if unknown := [n for n in only if n not in steps]:
            raise ValueError(
                f"only={unknown} is no step count of this experiment: choose among {steps}"
            )
        return [column for column in self.columns if column.steps in only]

    def sample(self) -> bool:
        """Sample what is missing of this process's share; whether everything is complete then."""
        return sample_columns(self.wanted, self.backbone, self.tracker, (self.rank, self.world))

    def score(self) -> list[Record]:
        """The records of the cells that this process scores, each with its row and steps."""
        if self.scorer is None:
            return []
        cells = [cell for column in self.wanted for cell in column.cells]
        if self.stage == "evaluate":
            # Connected processes evaluate each cell together, others different ones.
            together = connected()
            part, parts = (self.cfg.part, self.cfg.parts) if together else (self.rank, self.world)
            cells = cells[part::parts]
        for cell in cells:
            if not is_complete(cell):
                raise FileNotFoundError(
                    f"{cell.row} at {cell.steps} steps is not complete in {cell.folder}: "
                    "run stage=sample first (make status shows what is missing)"
                )
        records = self.scorer.score(cells, self.stage)
        if first_process():
            for record in records:
                self.tracker.evaluated(record)
        return placed(cells, records)

    def results(self, records: Sequence[Record]) -> Results | None:
        """What is to be rendered; contact sheets of scored images are written beside it."""
        what = self.experiment
        if what.renderer == "none":
            return None
        content: Table | list[Pictures]
        if what.renderer == "pictures":
            content = self.pictures(max(column.size.num_samples for column in self.columns))
        else:
            content = self._table(records)
        return Results(what.renderer, self.out, what.title, content, what.metrics, what.paper)

    def _table(self, records: Sequence[Record]) -> Table:
        rows = list(self.experiment.rows)
        table = Table(sorted(records, key=lambda record: rows.index(record["row"])))
        if self.experiment.scorer == "images":
            write_sheets(self.out, self.pictures(self._sheet_size()))
        by_cutoff = self.experiment.renderer == "cutoffs"
        self.tracker.reported(self.experiment.title, table, by_cutoff)
        return table

    def _sheet_size(self) -> int:
        if isinstance(self.backbone, Backbone):
            return sheet_size(self.backbone.shape)
        return sheet_size((3, *self.backbone.media.size[-3:-1]))

    def pictures(self, count: int) -> list[Pictures]:
        """The first pictures of every step count and sampler, the same ids in all."""
        return [self._pictures_of(cell, count) for cell in self.cells]

    def _pictures_of(self, cell: Cell, count: int) -> Pictures:
        ids = range(min(count, cell.size.num_samples))
        labels = labels_of(cell, self.backbone, ids)
        titles = None
        if labels is not None:
            names = self.backbone.prompts or [str(k) for k in range(self.backbone.num_classes or 0)]
            titles = [names[k] for k in labels.tolist()]
        manifest = read_manifest(cell.folder)
        assert manifest is not None
        files = file_names(cell, self.backbone, ids)
        images = cell.media.pictures(cell.folder, files, self.experiment.frames)
        return Pictures(cell.row, cell.steps, images, titles, manifest["config"])


def sample_columns(
    columns: Sequence[Column], backbone: Model, tracker: Tracker, part: tuple[int, int]
) -> bool:
    """Sample what is missing of the part (rank, world); whether everything is complete then.

    Of processes that torchrun started, all learn that together; of others, the one that ends last
    does.
    """
    rank = part[0]
    watch = tracker.sampling if rank == 0 else None
    for column in columns:
        if rank == 0:
            rows = ", ".join(cell.row for cell in column.cells)
            print(f"{column.steps} steps, {column.size.num_samples} samples: {rows}", flush=True)
        if generate(column.cells, backbone, rank=rank, world=part[1], watch=watch):
            tracker.sampled(column.cells)
    # A column that others were still sampling then may be complete now.
    complete = [generate_all(column.cells, backbone, part, watch) for column in columns]
    if first_process():
        tracker.sampled([cell for column in columns for cell in column.cells])
    return agree(all(complete))


def scorer_of(cfg: Config, experiment: Experiment, columns: Sequence[Column]) -> Scorer | None:
    """What scores the experiment's cells, after it has refused what cannot end well.

    Raises ValueError if out= holds a table of another kind, or files that are not ours.
    """
    stored = check_results(Path(cfg.out))
    if experiment.scorer == "none":
        return None
    videos = experiment.scorer == "videos"
    scorer: Scorer = VideoScorer() if videos else ImageScorer(evaluator_of(cfg))
    scorer.check(experiment.metrics, columns)
    for record in stored[:1]:
        try:
            check_same_kind(record, scorer.protocol, columns[0].cells[0].config)
        except ValueError as error:
            raise ValueError(f"{cfg.out}: {error}") from None
    return scorer
