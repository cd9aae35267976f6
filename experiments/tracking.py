"""Weights & Biases beside the local records: what is made, as it is made.

One run of W&B a cell and job type (sample, eval), and one report a table or figure.  Their ids
are functions of what they are about, so that a job which starts again continues its run, and the
same result is never there twice.  The records under runs/ and results/ remain the truth: without
a key, network or W&B itself everything else goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.records import Record, score
from eval.scoring import METRICS
from eval.table import Table, cutoff
from experiments.cells import Cell
from experiments.folder import read_facts, read_manifest
from files.whole import write_text

ANSWER_WITHIN = 30  # seconds for a server to answer; twice that to take what is left at the end


class Tracker:
    """What happens, for whoever wants to know; this one ignores it (`logger=none`)."""

    def sampling(self, cells: Sequence[Cell], k: int) -> None:
        """Shard k of these cells was written."""

    def sampled(self, cells: Sequence[Cell]) -> None:
        """These cells are complete."""

    def evaluated(self, record: Record) -> None:
        """A cell was scored, or its record found."""

    def reported(self, title: str, table: Table, by_cutoff: bool) -> None:
        """A table, or the cutoff figure, was written."""


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

    Falls back to offline mode, whose files `wandb sync` uploads, if there is no key or no answer, or
    if WANDB_MODE says so.
    """

    MODES = ("online", "offline", "disabled")

    def __init__(self, mode: str, project: str, entity: str | None, group: str, dir: str):
        import wandb

        self.wandb = wandb
        self.mode, self.group, self.folder = mode, group, Path(dir)
        self.broken = False
        self.options = {"project": project, "entity": entity, "group": group}
        self.options["dir"] = str(self.folder.absolute())
        self._live: dict[str, Any] = {}  # runs of cells that are being sampled
        self.folder.mkdir(parents=True, exist_ok=True)
        # W&B itself would not look at its variable, since each run is given a mode.
        asked = os.environ.get("WANDB_MODE", mode)
        if mode == "online" and asked in self.MODES:
            self.mode = asked
        if self.mode == "online" and (obstacle := self._obstacle()):
            self._go_offline(obstacle)
        elif self.mode == "offline":
            _say(f"offline: {self._upload()}")

    def _obstacle(self) -> str | None:
        """Why W&B cannot be reached, found out without asking on the terminal."""
        try:
            known = self.wandb.login(prompt=False)  # asks the server, too
            return None if known else "there is no key (`wandb login` stores one)"
        except Exception as error:
            return f"no answer ({_first_line(error)})"

    def _go_offline(self, why: str) -> None:
        self.mode = "offline"
        _say(f"{why}: going on offline; {self._upload()}")

    def _upload(self) -> str:
        """Where the files of offline runs lie, and the line that uploads them."""
        runs = self.folder / "wandb"
        program = "wandb" if shutil.which("wandb") else f"{shlex.quote(sys.executable)} -m wandb"
        line = f"{program} sync {shlex.quote(str(runs))}/offline-run-*"
        return f"runs are kept in {runs}; upload them with `{line}`"

    @_harmless
    def sampling(self, cells: Sequence[Cell], k: int) -> None:
        """Progress of each cell over all processes, and the speed of the last shard."""
        for cell in cells:
            if cell.digest not in self._live:
                self._live[cell.digest] = self._open("sample", cell.digest, cell.config)
            shards = [i for i in range(cell.size.num_shards) if cell.shard(i).exists()]
            samples = sum(len(cell.size.ids(i)) for i in shards)
            row = {"samples": samples, "shards": len(shards), **_speed(cell, k)}
            self._live[cell.digest].log(row, step=samples)

    @_harmless
    def sampled(self, cells: Sequence[Cell]) -> None:
        """The first samples as a picture, and the totals."""
        for cell in cells:
            manifest = read_manifest(cell.folder)
            if manifest is None or not manifest["complete"]:
                continue
            if self._told("sample", cell.digest, manifest):
                continue
            run = self._live.pop(cell.digest, None)
            run = run or self._open("sample", cell.digest, cell.config)
            grid = self.wandb.Image(str(cell.folder / "grid.png"), caption=manifest["plan"])
            totals = {"samples": manifest["num_samples"], "nfe": manifest["nfe"], "grid": grid}
            run.log(totals, step=manifest["num_samples"])
            run.summary["device_seconds"] = manifest["seconds"]
            self._close(run, "sample", cell.digest, manifest)

    @_harmless
    def evaluated(self, record: Record) -> None:
        """All scores of a cell with their 95% half-intervals, over its number of network calls."""
        cell = record["cell"] or {}
        what = {"cell": record["cell"], "protocol": record["protocol"], "n": record["n"]}
        identity = _digest(what)
        if self._told("eval", identity, record):
            return
        run = self._open("eval", identity, {**cell.get("config", {}), **what, "cell": None})
        run.define_metric("*", step_metric="nfe")
        run.log({"nfe": cell.get("nfe"), "n": record["n"], **_values(record)}, step=0)
        self._close(run, "eval", identity, record)

    @_harmless
    def reported(self, title: str, table: Table, by_cutoff: bool) -> None:
        """The table, and every metric as an interactive plot over NFE or over the cutoff."""
        identity = _digest({"title": title, "group": self.group})
        content = [{"row": r["row"], "record": _unplaced(r)} for r in table.records]
        if self._told("report", identity, content):
            return
        run = self._open("report", identity, {"title": title})
        metrics = [metric for metric in table.records[0]["scores"] if metric in METRICS]
        shown: dict[str, Any] = {"table": self._wandb_table(table, metrics)}
        for metric in metrics:
            lines = _lines(table, metric, by_cutoff)
            shown[f"plot/{metric}"] = self.wandb.plot.line_series(
                xs=[[x for x, _ in points] for points in lines.values()],
                ys=[[y for _, y in points] for points in lines.values()],
                keys=list(lines),
                title=f"{title}: {METRICS[metric].title}",
                xname="cutoff" if by_cutoff else "network calls (NFE)",
            )
        run.log(shown, step=0)
        self._close(run, "report", identity, content)

    def _wandb_table(self, table: Table, metrics: Sequence[str]) -> Any:
        columns = [
            (f"{m}{mark}", f"{m}{key}")
            for m in metrics
            for mark, key in (("", ""), (" ±", "_ci95"))
        ]
        rows = []
        for record in table.records:
            values = _values(record)
            rows.append(
                [record["row"], record["steps"], record["n"], *(values.get(k) for _, k in columns)]
            )
        heads: list[str | int] = ["sampler", "nfe", "n", *(head for head, _ in columns)]
        return self.wandb.Table(columns=heads, data=rows)

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
                    silent=True,
                    console="off",
                    init_timeout=ANSWER_WITHIN,
                    finish_timeout=2 * ANSWER_WITHIN,
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
        return note.is_file() and note.read_text("utf-8", "replace") == _digest(content)

    def _close(self, run: Any, job_type: str, identity: str, content: Any) -> None:
        run.finish()
        write_text(self._note(job_type, identity), _digest(content))


def _speed(cell: Cell, k: int) -> dict[str, float]:
    """Throughput and memory of the process that made shard k."""
    facts = read_facts(cell, k)
    if not facts or not facts["seconds"]:
        return {}
    speed = {
        "samples_per_second": facts["samples"] / facts["seconds"],
        "ms_per_image_call": 1000 * facts["seconds"] / facts["samples"] / len(cell.plan),
    }
    return speed | ({"gpu_memory_gb": facts["memory"] / 1e9} if facts["memory"] else {})


def _values(record: Record) -> dict[str, float]:
    values = {}
    for metric in record["scores"]:
        s = score(record, metric)
        assert s is not None
        values[metric] = s.value
        values[f"{metric}_ci95"] = s.half
    return values


def _unplaced(record: Record) -> Record:
    """The record without its place in a table."""
    return {key: value for key, value in record.items() if key not in ("row", "steps")}


def _lines(table: Table, metric: str, by_cutoff: bool) -> dict[str, list[tuple[float, float]]]:
    """Points (x, score) of each line: a sampler over NFE, or a step count over the cutoff."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in table.records:
        value = score(record, metric)
        if value is None:
            continue
        key, x = record["row"], float(record["steps"])
        if by_cutoff:
            key, x = f"{record['steps']} steps", cutoff(record)
        lines.setdefault(key, []).append((x, value.value))
    return {key: sorted(points) for key, points in lines.items()}


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
