"""What an experiment would do and cost, before it does: cells, network calls, hours, bytes."""

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.cells import Cell, Column, Model, network_calls
from experiments.check.machine import (
    MACHINES,
    Speed,
    device_name,
    matching_speed,
    mode_of,
    read_machine,
    record_path,
)
from experiments.config import Config, load_backbone, prompts_of, settings_of, takes_option
from experiments.contest import Contest, Expense
from experiments.devices import pick_device
from experiments.experiment import Experiment
from experiments.folder import read_manifest
from experiments.workers import say
from files.places import ROOT
from files.whole import Damaged
from models.backbone import Backbone
from models.memory import ran_out
from sampling import Plan, SampleNoise, count_calls, run, skipped

CALIBRATION_SECONDS = 20.0  # a batch that would take longer is measured by one image


def dry_run(cfg: Config) -> Iterator[str]:
    """The dry run of a config's experiment, line by line: all that is counted before any timing.

    Nothing is fetched.  A model whose checkpoint is not there is timed with random weights, where its
    loader can, or counted alone; prompts that are not there count as others would.
    """
    experiment = Experiment.of(cfg)
    sizes = experiment.num_samples
    backbone = _timed_backbone(cfg, sizes if isinstance(sizes, int) else max(sizes))
    settings = settings_of(cfg, backbone, experiment.spacing, experiment.names)
    yield f"{experiment.name} on {cfg.model.name} would sample, batch {cfg.batch_size}:"
    mode = mode_of(cfg.model, backbone.device)
    yield from report(experiment.columns(settings), backbone, mode)


def dry_contest(
    cfg: Config,
    expenses_of: Callable[[Config, Callable[[Config], Model]], tuple[Contest, list[Expense]]],
) -> Iterator[str]:
    """As `dry_run`, of tuning or advice."""
    contest, expenses = expenses_of(cfg, lambda cfg: _timed_backbone(cfg, 1))
    yield f"{cfg.experiment.name} on {cfg.model.name} would race, batch {cfg.batch_size}, in image calls:"
    yield from contest_report(expenses, contest)


def _timed_backbone(cfg: Config, num_prompts: int) -> Model:
    """The network that is timed; what is looked for on the disk is that of the config.

    Prompts that are not there yet are as many of any.
    """
    changes: dict[str, Any] = {}
    if pick_device(cfg.device).type == "cpu" and cfg.model.get("precision") == "fp16":
        say("on a CPU half precision takes ages: calibrating with model.precision=fp32")
        changes["precision"] = "fp32"
    if takes_option(cfg, "encode"):
        changes["encode"] = False  # a large text encoder is not needed to measure speed
    if takes_option(cfg, "fetch"):
        changes["fetch"] = False  # nothing is downloaded in order to count
    if takes_option(cfg, "prompts") and cfg.prompts is not None:
        try:
            prompts_of(cfg.prompts)
        except FileNotFoundError as missing:
            say(f"not yet: {missing}")
            changes["prompts"] = [f"prompt {i}" for i in range(num_prompts)]
    try:
        return load_backbone(cfg, **changes)
    except FileNotFoundError as missing:
        if not takes_option(cfg, "untrained"):
            raise
        say(f"not yet: {missing}")
        return load_backbone(cfg, untrained=True, **changes)


class Cost(NamedTuple):
    """Network calls x images: of every plan by itself, as one tree, and to do; bytes written, to do."""

    alone: int = 0
    tree: int = 0
    missing: int = 0
    written: float = 0.0
    unwritten: float = 0.0


def count(
    column: Column,
    stored_bytes: float = 0.0,
    calls_of: Callable[[Sequence[Plan]], int] = count_calls,
) -> Cost:
    """What sampling a column costs, and what is still missing of it.

    `calls_of` plans are a sample's network calls.
    """
    size, plans = column.size, column.plans
    calls = cache(lambda todo: calls_of([plans[i] for i in todo]))
    missing, done = 0, [shards_done(cell) for cell in column.cells]
    for k in range(size.num_shards):
        todo = tuple(i for i, shards in enumerate(done) if k not in shards)
        missing += calls(todo) * len(size.ids(k))
    n, everything = size.num_samples, tuple(range(len(plans)))
    share = sum(1 - len(shards) / size.num_shards for shards in done)
    return Cost(
        sum(map(len, plans)) * n,
        calls(everything) * n,
        missing,
        stored_bytes * n * len(plans),
        stored_bytes * n * share,
    )


def shards_done(cell: Cell) -> set[int]:
    """The shards whose file exists, and is long enough if the folder is to grow.

    `generate` looks into them, and may find one damaged.
    """
    size = cell.size
    try:
        manifest = read_manifest(cell.folder)
    except Damaged:  # `generate` writes it anew, and looks into every shard
        manifest = {"num_samples": size.num_samples}
    n = manifest["num_samples"] if manifest else 0
    return {k for k in range(size.num_shards) if size.ids(k)[-1] < n and cell.shard(k).exists()}


def calibrate(backbone: Backbone, batch_size: int) -> tuple[float, int]:
    """(seconds an image and network call, batch size of the measurement), guidance included.

    After a first call, which only warms up, the batch doubles until it is whole or the next one
    would take too long; the last measurement counts.
    """
    plan = skipped(backbone.schedule, [backbone.schedule.T - 1])

    def seconds(size: int) -> float:
        labels = None
        if backbone.num_classes:
            labels = torch.arange(size) % backbone.num_classes
        noise = SampleNoise(0, range(size), backbone.shape, device=backbone.device)
        start = time.perf_counter()
        x = run(backbone.given(labels), plan, noise)
        x.sum().item()  # wait for the device
        return (time.perf_counter() - start) / size

    seconds(1)
    size, each = 1, seconds(1)
    while size < batch_size and 2 * size * each <= CALIBRATION_SECONDS:
        larger = min(2 * size, batch_size)
        try:
            seconds(larger)  # a new size may be compiled or tuned for
            each = seconds(larger)
        except Exception as error:  # sampling would go on with smaller batches, too
            if not ran_out(error):
                raise
            break
        size = larger
    return each, size


def report(columns: Sequence[Column], backbone: Model, mode: str = "eager") -> Iterator[str]:
    """What the columns cost, line by line; `mode` is what is done to the network (`Speed`)."""
    calls_of = partial(network_calls, backbone)
    costs = [count(column, backbone.media.stored_bytes, calls_of) for column in columns]
    total = Cost(*map(sum, zip(*costs, strict=True)))
    cells = sum(len(column.cells) for column in columns)
    saved = 100 * (1 - total.tree / total.alone)
    yield (
        f"{'steps':>6}{'samples':>9}  {'calls alone':>14}{'as one tree':>14}{'still to do':>14}"
        "  cells: shards done"
    )
    for column, cost in zip(columns, costs, strict=True):
        yield _line(column, cost)
    yield (
        f"{cells} cells, {total.alone:,} image calls, {total.tree:,} as trees that share "
        f"beginnings ({saved:.0f}% saved), {total.missing:,} still to do"
    )
    yield from _evaluations(backbone)
    yield from _disk(total, columns[0].cells[0].folder)
    seconds = yield from _seconds(backbone, mode, columns[0].size.batch_size)
    if seconds is not None:
        yield (
            f"still to do: {_hours(total.missing * seconds)} of one such device, "
            f"all of it: {_hours(total.tree * seconds)}; several share it evenly"
        )
    yield from _memory(backbone, columns[0].size.batch_size)


def contest_report(expenses: Sequence[Expense], contest: Contest) -> Iterator[str]:
    """What a race costs, whose course depends on what it finds, line by line."""
    backbone, batch_size = contest.backbone, contest.settings.batch_size
    yield f"{'':<16}{'entrants':>9}{'first round':>14}{'at most':>14}{'confirmation':>14}"
    for part in expenses:
        on_top = f"{part.confirmation:>+14,}" if part.confirmation else f"{'within':>14}"
        yield f"{part.what:<16}{part.entrants:>9}{part.least:>14,}{part.most:>14,}{on_top}"
    least = sum(part.least for part in expenses)
    most = sum(part.most + part.confirmation for part in expenses)
    yield f"{least:,} to {most:,} image calls in all; what is there of them is found and not made again"
    yield from _evaluations(backbone)
    seconds = yield from _seconds(
        backbone, mode_of(contest.settings.model, backbone.device), batch_size
    )
    if seconds is not None:
        yield f"{_hours(least * seconds)} to {_hours(most * seconds)} of one such device, and the scoring"
    yield from _memory(backbone, batch_size)


def _evaluations(model: Model) -> Iterator[str]:
    """What a call is, where that is more than one evaluation of the network."""
    if not isinstance(model, Backbone) and model.pipe is None:
        yield "with guidance most pipelines evaluate the network twice a call: how often, it tells once it is here"
        return
    n = model.evaluations_per_call if isinstance(model, Backbone) else model.evaluations
    if n > 1:
        yield f"each call is {n} evaluations of the network, with and without condition (guidance)"


def _line(column: Column, cost: Cost) -> str:
    shards = column.size.num_shards
    done = {cell.row: len(shards_done(cell)) for cell in column.cells}
    cells = ", ".join(f"{row} {n}/{shards}" for row, n in done.items())
    if not any(done.values()):
        cells = f"none of {shards} in any of {len(column.cells)}"
    return (
        f"{column.steps:>6}{column.size.num_samples:>9,}  {cost.alone:>14,}{cost.tree:>14,}"
        f"{cost.missing:>14,}  {cells}"
    )


def _seconds(backbone: Model, mode: str, batch_size: int) -> Generator[str, None, float | None]:
    """Of an image call, from the machine's record or a calibration; None where nothing is timed."""
    if not isinstance(backbone, Backbone):
        yield "time: a pipeline that runs as a whole is not timed here; num_samples=1 tells"
        return None
    if backbone.is_counted_only:
        yield "time: not known before the model is there"
        return None
    known = yield from _known_speed(backbone, mode, batch_size)
    if known is not None:
        return known.seconds
    yield f"calibration: timing calls with batches of up to {batch_size} now"
    seconds, measured = calibrate(backbone, batch_size)
    what = "random weights" if backbone.sha256 == "untrained" else "the model"
    yield (
        f"calibration: {1000 * seconds:.3g} ms an image call ({what}, batch {measured}, "
        f"{device_name(backbone.device)})"
    )
    return seconds


def _memory(backbone: Model, batch_size: int) -> Iterator[str]:
    """Where the model can estimate it."""
    if (
        isinstance(backbone, Backbone)
        and not backbone.is_counted_only
        and backbone.memory is not None
    ):
        yield (
            f"memory while sampling: about {_bytes(backbone.memory(batch_size))} on the device with "
            f"batch {batch_size} (estimated from the largest tensors)"
        )


def _known_speed(
    backbone: Backbone, mode: str, batch_size: int
) -> Generator[str, None, Speed | None]:
    """The speed that `python -m scripts.check` measured on this device; says in which file it is."""
    path = record_path(MACHINES, device_name(backbone.device))
    if not path.is_file():
        return None
    try:
        record = read_machine(path)
    except ValueError as error:
        yield str(error)
        return None
    speed = matching_speed(record["speeds"], backbone, mode, batch_size)
    if speed is not None:
        yield (
            f"{1000 * speed.seconds:.3g} ms an image call on {record['device']}, batch "
            f"{speed.batch}, {mode}: by {_shown(path)} of {record['date']}{_blemish(record)}"
        )
    return speed


def _blemish(record: dict[str, Any]) -> str:
    """What is to be said of a record that is not whole, or not good."""
    failed = [check["name"] for check in record["checks"] if check["status"] == "FAIL"]
    cut = "" if record["complete"] else ", which was cut short"
    return cut + (f", where a check failed: {', '.join(failed)}" if failed else "")


def _shown(path: Path) -> Path:
    """The path within the repository, where it is in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _disk(total: Cost, folder: Path) -> Iterator[str]:
    folder = folder.absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    yield (
        f"bytes written: {_bytes(total.written)}, {_bytes(total.unwritten)} of them still to come; "
        f"free here: {_bytes(free)}"
    )
    if total.unwritten > free:
        yield "the disk is too small for that: link runs/ to a larger one"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
