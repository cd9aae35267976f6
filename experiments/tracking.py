"""Weights & Biases beside the local records: what is made, as it is made.

One run of W&B a cell and job type (sample, eval), and one report a table or figure.  Their ids
are functions of what they are about, so that a job which starts again continues its run, and the
same result is never there twice.  The records under runs/ and results/ remain the truth: without
a key, network or W&B itself everything else goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from eval.records import Record, score
from experiments.cells import Job, Size
from experiments.config import plain
from experiments.folder import read_facts, read_manifest
from files.whole import write_atomic

if TYPE_CHECKING:
    from eval.table import Cell

MODES = ("online", "offline", "disabled")
PATIENCE = 30  # seconds that a server may take to answer, and 60 to take what is left at the end


class Tracker:
    """Tells nobody: `logger=none`."""

    def sampling(self, jobs: Sequence[Job], size: Size, k: int) -> None:
        """Shard k of these jobs was written."""

    def sampled(self, jobs: Sequence[Job]) -> None:
        """These jobs are complete."""

    def evaluated(self, record: Record) -> None:
        """A cell was scored, or found so."""

    def reported(self, title: str, cells: Sequence[Cell], cutoffs: bool) -> None:
        """A table, or the cutoff figure, was written."""


def tracker_named(logger: DictConfig, group: str) -> Tracker:
    """The tracker of configs/logger; runs without a group of their own are in `group`.

    Raises ValueError for an unknown logger or mode.
    """
    options: dict[str, Any] = plain(logger)
    name = options.pop("name")
    if name not in ("none", "wandb"):
        raise ValueError(f"unknown logger {name!r}: choose none or wandb")
    if name == "none":
        return Tracker()
    if options["mode"] not in MODES:
        raise ValueError(f"unknown logger.mode {options['mode']!r}: choose {', '.join(MODES)}")
    if options["mode"] == "disabled":
        return Tracker()
    try:
        return WandbTracker(**{**options, "group": options["group"] or group})
    except ImportError:
        raise ValueError("logger=wandb needs the package wandb: pip install wandb") from None


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Whatever goes wrong in W&B, say so once and go on without it."""

    def guarded(self: WandbTracker, *args: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *args)
        except Exception as error:
            self.broken = True
            _say(
                f"stopped ({_first_line(error)}): going on without it; the local records are whole"
            )

    guarded.__doc__ = method.__doc__
    return guarded


class WandbTracker(Tracker):
    """Tells W&B; `dir` holds its local files and a note of what was told.

    Falls back to offline mode, whose files `wandb sync` uploads, if there is no key or no answer.
    """

    def __init__(self, mode: str, project: str, entity: str | None, group: str, dir: str):
        import wandb

        self.wandb = wandb
        self.mode, self.group, self.folder = mode, group, Path(dir)
        self.broken = False
        self.options = {"project": project, "entity": entity, "group": group}
        self.options["dir"] = str(self.folder.absolute())
        self._live: dict[str, Any] = {}  # runs of cells that are being sampled
        self.folder.mkdir(parents=True, exist_ok=True)
        if mode == "online" and (obstacle := self._obstacle()):
            self._go_offline(obstacle)

    def _obstacle(self) -> str | None:
        """Why W&B cannot be reached, found out without asking on the terminal."""
        try:
            known = self.wandb.login(prompt=False)  # asks the server, too
            return None if known else "there is no key (`wandb login` stores one)"
        except Exception as error:
            return f"no answer ({_first_line(error)})"

    def _go_offline(self, why: str) -> None:
        self.mode = "offline"
        upload = f"wandb sync {self.folder}/wandb/offline-run-*"
        _say(f"{why}: going on offline; upload later with `{upload}`")

    @_harmless
    def sampling(self, jobs: Sequence[Job], size: Size, k: int) -> None:
        """Progress of each cell over all processes, and the speed of the last shard."""
        for job in jobs:
            if job.digest not in self._live:
                self._live[job.digest] = self._open("sample", job.digest, job.config)
            made = [i for i in range(size.num_shards) if job.shard(i).exists()]
            samples = sum(len(size.ids(i)) for i in made)
            row = {"samples": samples, "shards": len(made), **_speed(job, k)}
            self._live[job.digest].log(row, step=samples)

    @_harmless
    def sampled(self, jobs: Sequence[Job]) -> None:
        """The first samples as a picture, and the totals."""
        for job in jobs:
            manifest = read_manifest(job.folder)
            if (
                manifest is None
                or not manifest["complete"]
                or self._told("sample", job.digest, manifest)
            ):
                continue  # fmt: skip
            run = self._live.pop(job.digest, None) or self._open("sample", job.digest, job.config)
            grid = self.wandb.Image(str(job.folder / "grid.png"), caption=manifest["plan"])
            totals = {"samples": manifest["num_samples"], "nfe": manifest["nfe"], "grid": grid}
            run.log(totals, step=manifest["num_samples"])
            run.summary["device_seconds"] = manifest["seconds"]
            self._close(run, "sample", job.digest, manifest)

    @_harmless
    def evaluated(self, record: Record) -> None:
        """All scores of a cell with their 95% half-intervals, over its number of network calls."""
        what = {"cell": record["cell"], "protocol": record["protocol"], "n": record["n"]}
        identity = _digest(what)
        if self._told("eval", identity, record):
            return
        run = self._open("eval", identity, {**_cell_config(record), **what, "cell": None})
        run.define_metric("*", step_metric="nfe")
        run.log({"nfe": _nfe(record), "n": record["n"], **_values(record)}, step=0)
        self._close(run, "eval", identity, record)

    @_harmless
    def reported(self, title: str, cells: Sequence[Cell], cutoffs: bool) -> None:
        """The table, and every metric as an interactive plot over NFE or over the cutoff."""
        from eval.scoring import METRIC_NAMES

        identity = _digest({"title": title, "group": self.group})
        content = [{"row": c.row, "record": c.record} for c in cells]
        if self._told("report", identity, content):
            return
        run = self._open("report", identity, {"title": title})
        metrics = [m for m in cells[0].record["scores"] if m in METRIC_NAMES]
        columns: list[str | int] = [
            "sampler",
            "nfe",
            "n",
            *(f"{m}{x}" for m in metrics for x in ("", " ±")),
        ]
        rows = [
            [c.row, c.steps, c.record["n"], *(_values(c.record).get(f"{m}{x}") for m in metrics for x in ("", "_ci95"))]
            for c in cells
        ]  # fmt: skip
        shown: dict[str, Any] = {"table": self.wandb.Table(columns=columns, data=rows)}
        for metric in metrics:
            lines = _lines(cells, metric, cutoffs)
            shown[f"plot/{metric}"] = self.wandb.plot.line_series(
                xs=[[x for x, _ in points] for points in lines.values()],
                ys=[[y for _, y in points] for points in lines.values()],
                keys=list(lines),
                title=f"{title}: {METRIC_NAMES[metric]}",
                xname="cutoff" if cutoffs else "network calls (NFE)",
            )
        run.log(shown, step=0)
        self._close(run, "report", identity, content)

    # --- runs ------------------------------------------------------------------------------

    def _open(self, job_type: str, identity: str, config: dict[str, Any]) -> Any:
        def start() -> Any:
            return self.wandb.init(
                **self.options,
                id=f"{job_type}-{identity[:16]}",
                name=f"{job_type} {_title(config)}",
                job_type=job_type,
                config=config,
                mode=self.mode,
                resume="allow",
                reinit="create_new",
                settings=self.wandb.Settings(
                    silent=True, console="off", init_timeout=PATIENCE, finish_timeout=2 * PATIENCE
                ),
            )

        try:
            return start()
        except Exception as error:
            # Runs that are under way would end with W&B's process, which remembers the failed id.
            if self.mode == "offline" or self._live:
                raise
            self._go_offline(f"no answer ({_first_line(error)})")
            self.wandb.teardown()
            return start()

    def _note(self, job_type: str, identity: str) -> Path:
        return self.folder / "told" / f"{job_type}-{identity[:16]}"

    def _told(self, job_type: str, identity: str, content: Any) -> bool:
        """Whether this very content was told before, perhaps by another process."""
        note = self._note(job_type, identity)
        return note.is_file() and note.read_text() == _digest(content)

    def _close(self, run: Any, job_type: str, identity: str, content: Any) -> None:
        run.finish()
        digest = _digest(content)
        write_atomic(self._note(job_type, identity), lambda p: p.write_text(digest))


def _speed(job: Job, k: int) -> dict[str, float]:
    """Throughput and memory of the process that made shard k."""
    facts = read_facts(job, k)
    if not facts or not facts["seconds"]:
        return {}
    speed = {
        "samples_per_second": facts["samples"] / facts["seconds"],
        "ms_per_image_call": 1000 * facts["seconds"] / facts["samples"] / len(job.plan),
    }
    return speed | ({"gpu_memory_gb": facts["memory"] / 1e9} if facts["memory"] else {})


def _values(record: Record) -> dict[str, float]:
    values = {}
    for metric in record["scores"]:
        s = score(record, metric)
        assert s is not None
        values[metric] = s.value
        values[f"{metric}_ci95"] = 1.96 * s.se
    return values


def _lines(
    cells: Sequence[Cell], metric: str, cutoffs: bool
) -> dict[str, list[tuple[float, float]]]:
    """Points (x, score) of each line: a sampler over NFE, or a step count over the cutoff."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        value = score(cell.record, metric)
        if value is None:
            continue
        key, x = cell.row, float(cell.steps)
        if cutoffs:
            key = f"{cell.steps} steps"
            x = float(cell.record["cell"]["config"]["sampler"]["cutoff"])
        lines.setdefault(key, []).append((x, value.value))
    return {key: sorted(points) for key, points in lines.items()}


def _cell_config(record: Record) -> dict[str, Any]:
    return dict((record["cell"] or {}).get("config") or {})


def _nfe(record: Record) -> int | None:
    return (record["cell"] or {}).get("nfe")


def _title(config: dict[str, Any]) -> str:
    if "title" in config:
        return str(config["title"])
    sampler = config.get("sampler", {})
    options = " ".join(f"{k}={v}" for k, v in sampler.items() if k != "name")
    return f"{sampler.get('name', '')} {options} {config.get('steps', '')} steps".replace("  ", " ")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]


def _say(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr)
