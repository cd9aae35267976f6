"""`make status`: what the folders tell, whatever the clocks say."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from eval.records import save_records
from experiments.progress import PLANS, file_clock, progress, table
from files.whole import write_json
from scripts import status

NOW = 1_000_000.0
RECORD = {
    "protocol": "digits",
    "n": 50,
    "extractor": "digits",
    "options": {},
    "cell": None,
    "scores": {"fid": {"value": 1.0, "se": 0.1}},
    "floor": None,
}


def cell(
    folder: Path, made: int, *, row="Mix", age=10.0, workers=("a:1",), scored=False, complete=None
):
    """A cell of 50 samples in shards of 20, at 10 network calls each."""
    (folder / "shards").mkdir(parents=True)
    for k in range(made):
        path = folder / "shards" / f"shard-{k:05d}.npz"
        path.touch()
        facts = {"seconds": 4.0, "samples": [20, 20, 10][k], "worker": workers[k % len(workers)]}
        path.with_suffix(".json").write_text(json.dumps(facts))
        os.utime(path, (NOW - age, NOW - age))
    if scored:
        save_records(folder / "record.json", RECORD)
    joined = made == 3 if complete is None else complete
    facts = {"config": {}, "plan": "mix", "nfe": 10, "num_samples": 50, "shard_size": 20}
    manifest = {**facts, "complete": joined}
    if joined:
        np.savez(folder / "samples.npz", arr_0=np.zeros((50, 20, 20, 1), np.uint8))
        manifest["bytes"] = (folder / "samples.npz").stat().st_size
    write_json(folder / "manifest.json", manifest)
    del facts["config"], facts["plan"]
    record = str(folder / "record.json")
    return {**facts, "row": row, "steps": 10, "folder": str(folder), "record": record}


@pytest.mark.parametrize(
    ("made", "age", "scored", "state"),
    [
        (0, 10, False, "missing"),
        (1, 10, False, "running 1/3"),
        (2, 3600, False, "stopped 2/3"),
        (2, -3600, False, "running 2/3"),  # a file from the future: some clock is wrong
        (3, 10, False, "sampled"),
        (3, 3600, True, "done"),
    ],
)
def test_states(tmp_path, made, age, scored, state):
    assert progress(cell(tmp_path, made, age=age, scored=scored), NOW).state == state


def test_all_shards_are_not_yet_a_complete_cell(tmp_path):
    """Killed while joining: it must be sampled once more, which only joins."""
    seen = progress(cell(tmp_path, 3, complete=False), NOW)
    assert (seen.state, seen.sampled, seen.calls_left) == ("running 3/3", False, 0)


def test_a_complete_cell_stays_so_without_its_shards(tmp_path):
    planned = cell(tmp_path, 3, scored=True)
    shutil.rmtree(tmp_path / "shards")
    seen = progress(planned, NOW)
    assert (seen.state, seen.calls_left) == ("done", 0)
    (tmp_path / "manifest.json").write_text("{")
    assert progress(planned, NOW).state == "missing"


LOSSES = {
    "no samples": lambda folder: (folder / "samples.npz").unlink(),
    "cut samples": lambda folder: cut(folder / "samples.npz"),
    "a flipped bit": lambda folder: flip(folder / "samples.npz", 19000),
    "fewer samples": lambda folder: np.savez(
        folder / "samples.npz", arr_0=np.zeros((49, 20, 20, 1), np.uint8)
    ),
    "an empty record": lambda folder: (folder / "record.json").write_bytes(b""),
    "no record": lambda folder: (folder / "record.json").unlink(),
    "another record": lambda folder: (folder / "record.json").write_text('{"scores": 5}'),
    "a flipped digit": lambda folder: flip(folder / "record.json", 32),
    "a folder as record": lambda folder: (
        (folder / "record.json").unlink() or (folder / "record.json").mkdir()
    ),
    "a spoilt manifest": lambda folder: cut(folder / "manifest.json"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_what_is_there_and_can_be_loaded_is_done(tmp_path, loss):
    planned = cell(tmp_path, 3, scored=True)
    assert progress(planned, NOW).state == "done"
    LOSSES[loss](tmp_path)
    assert progress(planned, NOW).state != "done"


def test_large_samples_are_read_to_their_end_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.progress.SMALL", 100)
    planned = cell(tmp_path, 3, scored=True)
    flip(tmp_path / "samples.npz", 19000)
    assert progress(planned, NOW).state == "done"
    assert progress(planned, NOW, verify=True).state == "running 3/3"


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "list", "no cells", "number", "folder"])
def test_a_damaged_plan_stops_no_other(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["status.py"])
    plan = {"model": "digits", "experiment": "table1", "config": "0", "cells": [cell(tmp_path, 3)]}
    for name in "abc":
        write_json(PLANS / f"{name}.json", {**plan, "experiment": name})
    path = PLANS / "b.json"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        whole = (PLANS / "a.json").read_text()
        texts = {
            "cut": whole[:90],
            "empty": "",
            "flip": whole.replace("table1", "table0"),
            "list": "[]",
        }
        texts |= {
            "no cells": '{"cells": []}',
            "number": whole.replace('"num_samples": 50', '"num_samples": 0'),
        }
        texts["flip"] = whole.replace('"steps": 10', '"steps": 11')
        path.write_text(texts[damage])
    status.main()
    said = capsys.readouterr().out
    assert said.count("0 of 1 cells done") == 2
    assert "b.json" in said


def test_time_left_is_that_of_the_missing_calls_shared_by_those_at_work(tmp_path):
    cells = [cell(tmp_path / "a", 2, workers=("a:1", "b:1")), cell(tmp_path / "b", 0, row="DDIM")]
    text = table({"experiment": "table1", "model": "digits", "cells": cells}, NOW)
    # 400 image calls took 8 s; 100 and 500 are left.
    assert (
        "600 image calls to do, about 12 s of one process: 6 s with the 2 that are at work" in text
    )
    assert "table1 on digits: 0 of 2 cells done" in text
    for k in (0, 1):
        os.utime(tmp_path / f"a/shards/shard-0000{k}.npz", (0, 0))
    text = table({"experiment": "table1", "model": "digits", "cells": cells}, NOW)
    assert "none is at work" in text


def test_a_shard_whose_facts_are_lost_still_counts(tmp_path):
    planned = cell(tmp_path, 2)
    (tmp_path / "shards" / "shard-00000.json").unlink()
    (tmp_path / "shards" / "shard-00001.json").write_text("{")
    found = progress(planned, NOW)
    assert (found.done, found.calls_left) == (2, 100)


def test_the_clock_is_that_of_the_files(tmp_path):
    before = time.time()
    assert abs(file_clock(tmp_path) - before) < 5
    assert list(tmp_path.iterdir()) == []


def test_nothing_begun_is_an_error_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["status.py", "--runs", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tables were begun here"):
        status.main()
