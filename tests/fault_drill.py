"""Kill workers at random moments, damage files, skew clocks; then look whether all is as it must be.

    OMP_NUM_THREADS=1 python tests/fault_drill.py --kills 500 --tables 100 --alterations 5000 --seed 1
    make drill                                    # the long one: hours

Workers sample the digits model into one folder, as ranks of one, two or three, or as two jobs that
know nothing of each other.  They are killed (SIGKILL, SIGTERM, SIGUSR2 as submitit handles it), or
their disk is full; between rounds shards are cut or altered, manifests spoilt, and files dated
years ahead or back.  Whenever a folder is complete it must hold, byte for byte, what an
undisturbed run makes, each sample once, and nothing else.

Other workers (--tables) go all the way: they sample, evaluate, render a table and write the report, and
are killed anywhere.  --alterations flips single bits of every kind of file that a run stores, one at a
time, every bit of headers first (tests/alterations.py): each must be noticed, or change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import alterations
import numpy as np
from tqdm import tqdm

from eval.sheets import Pictures, write_sheets
from eval.table import Table
from experiments.cells import Cell, Settings, Size
from experiments.config import composed, evaluator_of
from experiments.folder import is_complete
from experiments.generate import generate
from experiments.scorers import ImageScorer, placed
from files.places import ROOT
from files.whole import read_json
from models.digits.backbone import load
from report.page import write_page
from report.render import render
from sampling import mix, skipped, timesteps

SIZE = Size(num_samples=57, batch_size=8, shard_size=8)
TEAMS = [[(0, 1)], [(0, 2), (1, 2)], [(0, 3), (1, 3), (2, 3)], [(0, 1), (0, 1)]]
WAYS = ["SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR2", "full disk"]

# Forked processes would share tqdm's lock and its thread, which those of a cluster do not.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

Job = Callable[[Path, int, int], None]

BACKBONE = load(device="cpu")
WORDS = ["metrics.options.kid_subset_size=40", "metrics.options.bootstrap=2"]
EVALUATOR = evaluator_of(composed("evaluate", "samples=none", "reference=digits", *WORDS))
GRID = timesteps(BACKBONE.schedule.T, 5, "even")
PLANS = {
    "mix": mix(BACKBONE.schedule, GRID, cutoff=400),
    "skipped": skipped(BACKBONE.schedule, GRID),
}


def cells(folder: Path) -> list[Cell]:
    return [
        Cell(plan, folder / name, {"plan": name, "seed": 7, "label": None}, SIZE)
        for name, plan in PLANS.items()
    ]


def table_column(folder: Path) -> list[Cell]:
    """Cells as a command makes them, of so many samples as their scores need."""
    model = {"name": "digits", "_target_": "models.digits.load", "checkpoint": "unet-6500"}
    settings = Settings(
        model, BACKBONE, "even", seed=7, label="balanced", batch_size=40, shard_size=20
    )
    samplers = {"Mix": {"name": "mix", "cutoff": 400}, "Skipped-Step": {"name": "skipped"}}
    column = settings.column(samplers, 2, 70).cells
    return [replace(cell, folder=folder / cell.config["sampler"]["name"]) for cell in column]


def work(folder: Path, rank: int, world: int) -> None:
    generate(cells(folder), BACKBONE, rank=rank, world=world)


def make_table(folder: Path, rank: int, world: int) -> None:
    """All of the way: samples, records, contact sheets, a table and the page of it."""
    column, paper = table_column(folder), folder / "results/paper"
    paper.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        paper.symlink_to(ROOT / "results/paper")
    if not generate(column, BACKBONE, rank=rank, world=world):
        return
    out = folder / "results/digits/table1"
    records = placed(column, ImageScorer(EVALUATOR).score(column))
    images = [(cell, cell.media.pictures(cell.folder, ["0"] * 5, 1)) for cell in column]
    write_sheets(out, [Pictures(c.row, c.steps, x, list("01234"), c.config) for c, x in images])
    render("table", out, "A drill", Table(records), ["fid", "is"], None)
    write_page(folder / "results", folder / "report.html")


def start(make: Job, folder: Path, rank: int, world: int, full_at: int | None) -> int:
    """A worker as a process of its own; it cannot write files beyond `full_at` bytes."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:  # whatever happens, a worker must not go on as its parent does
        try:
            status = worker(make, folder, rank, world, full_at)
        finally:
            os._exit(status)
    finally:
        os._exit(status)


def worker(make: Job, folder: Path, rank: int, world: int, full_at: int | None) -> int:
    """Work in silence until something happens; the exit status that tells what."""
    screen = os.dup(2)
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as our commands do
        signal.signal(signal.SIGUSR2, lambda *_: sys.exit(255))  # as submitit does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        if full_at is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (full_at, full_at))
        make(folder, rank, world)
        return 0
    except SystemExit as stop:
        return int(str(stop.code))
    except Exception as error:
        if isinstance(error.__context__, SystemExit):  # it came while tqdm held its lock
            return int(str(error.__context__.code))
        if full_at is not None and isinstance(error, OSError) and error.errno == errno.EFBIG:
            return 28
        os.write(screen, traceback.format_exc().encode())
        return 1


def round_of_faults(
    make: Job, longest: float, folder: Path, dice: random.Random, killed: Counter[str]
) -> None:
    """A team at work, each of it ended in its own way within `longest` seconds, or spared."""
    team = dice.choice(TEAMS)
    fates = [(dice.choice(WAYS), time.monotonic() + dice.uniform(0.0, longest)) for _ in team]
    workers = [
        start(
            make,
            folder,
            rank,
            world,
            dice.randrange(100, 9000 if make is work else 300_000) if way == "full disk" else None,
        )
        for (rank, world), (way, _) in zip(team, fates, strict=True)
    ]
    for pid, (way, when) in sorted(zip(workers, fates, strict=True), key=lambda pair: pair[1][1]):
        if way != "full disk" and dice.random() < 0.9:
            time.sleep(max(0.0, when - time.monotonic()))
            os.kill(pid, getattr(signal, way))
    for pid, (way, _) in zip(workers, fates, strict=True):
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        # A signal that came when all was done, or before the handler was there, counts as it is.
        expected = {
            "SIGKILL": (-9,),
            "SIGTERM": (143, -15),
            "SIGUSR2": (255, -12),
            "full disk": (28,),
        }
        if code in expected[way]:
            killed[way] += 1
        elif code != 0:
            raise SystemExit(f"a worker that was to end by {way} ended with status {code}")


def damage(folder: Path, dice: random.Random, done: Counter[str]) -> set[Path]:
    """What disks and clocks do between two rounds, in folders that are not complete.

    Returns the shards of which a byte was altered.
    """
    altered = set()
    unfinished = [cell for cell in cells(folder) if cell.folder.exists() and not complete(cell)]
    files = [p for cell in unfinished for p in cell.folder.rglob("*") if p.is_file()]
    shards = [p for p in files if p.suffix == ".npz"]
    if files and dice.random() < 0.5:
        for path in dice.sample(files, len(files) // 2):
            moment = time.time() + dice.uniform(-1e8, 1e8)
            os.utime(path, (moment, moment))
        done["clock skew"] += 1
    if shards and dice.random() < 0.3:
        path = dice.choice(shards)
        content = bytearray(path.read_bytes())
        if content and dice.random() < 0.5:
            content[dice.randrange(len(content))] ^= 0xFF
            done["altered shard"] += 1
            altered.add(path)
        else:
            content = content[: dice.randrange(len(content) + 1)]
            done["cut shard"] += 1
        path.write_bytes(content)
    manifests = [p for p in files if p.name == "manifest.json"]
    if manifests and dice.random() < 0.1:
        path = dice.choice(manifests)
        path.write_text(path.read_text()[: dice.randrange(50)])
        done["spoilt manifest"] += 1
    return altered


def complete(cell: Cell) -> bool:
    try:
        return is_complete(cell)
    except ValueError:
        return False


def check(folder: Path, undisturbed: Path, altered: set[Path]) -> None:
    """The folder holds what the undisturbed one does, and each sample once.  SystemExit if not."""
    for ours, theirs in zip(cells(folder), cells(undisturbed), strict=True):
        names = [
            sorted(str(p.relative_to(cell.folder)) for p in cell.folder.rglob("*") if p.is_file())
            for cell in (ours, theirs)
        ]
        if names[0] != names[1]:
            raise SystemExit(f"files differ: {sorted({*names[0]} ^ {*names[1]})}")
        for name in names[0]:
            a, b = ours.folder / name, theirs.folder / name
            equal = a.suffix == ".json" or a.read_bytes() == b.read_bytes()
            # An altered date in a zip header, say, escapes its checksums, and harms nothing.
            if not equal and not (a in altered and same_arrays(a, b)):
                raise SystemExit(f"{a} differs")
        ids = np.concatenate([np.load(ours.shard(k))["ids"] for k in range(SIZE.num_shards)])
        if ids.tolist() != list(range(SIZE.num_samples)):
            raise SystemExit(f"samples are missing or double: {ids.tolist()}")


def same_arrays(a: Path, b: Path) -> bool:
    with np.load(a) as ours, np.load(b) as theirs:
        return ours.files == theirs.files and all(
            ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name])
            for name in ours.files
        )


def drill(kills: int, seed: int) -> None:
    dice, killed, done, folders = random.Random(seed), Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = Path(scratch, "undisturbed")
        work(undisturbed, 0, 1)
        while killed.total() < kills:
            folder, altered = Path(scratch, f"folder-{folders}"), set[Path]()
            while killed.total() < kills and not all(map(complete, cells(folder))):
                round_of_faults(work, 0.5, folder, dice, killed)
                altered |= damage(folder, dice, done)
            work(folder, 0, 1)
            check(folder, undisturbed, altered)
            folders += 1
    print(
        f"seed {seed}: {killed.total()} workers killed in {folders} folders, all whole in the end"
    )
    for counts in (killed, done):
        print("  " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


def drill_tables(kills: int, seed: int) -> None:
    """Kill whole tables at work; in the end each has what an undisturbed one has."""
    dice, killed, folders = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = Path(scratch, "undisturbed")
        make_table(undisturbed, 0, 1)
        while killed.total() < kills:
            folder = Path(scratch, f"folder-{folders}")
            for _ in range(dice.randrange(1, 12)):
                if killed.total() < kills:
                    round_of_faults(make_table, 2.0, folder, dice, killed)
            make_table(folder, 0, 1)
            check_table(folder, undisturbed)
            folders += 1
    print(f"seed {seed}: {killed.total()} tables killed in {folders} folders, all whole in the end")
    print("  " + ", ".join(f"{name} {count}" for name, count in sorted(killed.items())))


def check_table(folder: Path, undisturbed: Path) -> None:
    """The same files, the same scores, and the same bytes of all that has no times in it."""
    names = [
        sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file())
        for f in (folder, undisturbed)
    ]
    if names[0] != names[1]:
        raise SystemExit(f"files differ: {sorted({*names[0]} ^ {*names[1]})}")
    for name in names[0]:
        a, b = folder / name, undisturbed / name
        if a.suffix == ".json":
            equal = untimed(read_json(a, "look")) == untimed(read_json(b, "look"))
        else:
            equal = a.read_bytes() == b.read_bytes()
        if not equal:
            raise SystemExit(f"{a} differs")


def untimed(content: Any) -> Any:
    """Without what no two runs have alike."""
    if isinstance(content, list):
        return [untimed(entry) for entry in content]
    return {k: v for k, v in content.items() if k not in ("seconds", "worker", "run")}


def drill_bits(count: int, seed: int) -> None:
    """Flip bits of all that a finished table and its run have stored."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        os.environ["SKIPPED_STEP_DOWNLOADS"] = scratch
        folder = Path(scratch)
        make_table(folder, 0, 1)
        kinds = alterations.kinds_of(folder, table_column(folder)[0], BACKBONE, EVALUATOR)
        kinds += alterations.table_kinds(folder / "results/digits/table1")
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            results = alterations.alter(kinds, count, random.Random(seed))
    print(f"seed {seed}: {count} bits altered, all noticed or harmless")
    for name, outcomes in results.items():
        print(f"  {name}: " + ", ".join(f"{how} {n}" for how, n in sorted(outcomes.items())))


if __name__ == "__main__":
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--tables", type=int, default=0)
    parser.add_argument("--alterations", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for job, count in (
        (drill, args.kills),
        (drill_tables, args.tables),
        (drill_bits, args.alterations),
    ):
        if count:
            job(count, args.seed)
