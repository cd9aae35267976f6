"""W&B: what its offline files hold, that nothing is told twice, and that it can fail."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb
from conftest import FEW, done, refused
from wandb.proto import wandb_internal_pb2 as pb

import evaluate
import reproduce
import sample
from experiments import tracking

OFFLINE = ["logger=wandb", "logger.mode=offline"]
SMALL = ["num_samples=70", "shard_size=25", "out=out", *FEW, *OFFLINE]
TABLE = ["experiment=table1_small", "experiment.steps=[2,3]", *SMALL]
TABLE += ["~experiment.rows.DDPM", "~experiment.rows.Skipped-Step"]
FIGURE = ["experiment=figure4_small", "experiment.steps=[4]", *SMALL]
FIGURE += ["experiment.cutoffs=[0,400]"]


def records(path: Path):
    """The records of a .wandb file: blocks of 32 KiB, in which chunks have a header of 7 bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + length > len(data):
            return  # still being written
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the record's only chunk, or its last
            record = pb.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def finished(path: Path):
    """The records of a run that has ended: W&B's own process may write the last a moment later."""
    for _ in range(300):
        stored = list(records(path))
        if stored and stored[-1].WhichOneof("record_type") == "exit":
            return stored
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


class Stored:
    """One offline run, read back from its file."""

    def __init__(self, folder: Path):
        (self.file,) = folder.glob("run-*.wandb")
        self.media = sorted((folder / "files" / "media").rglob("*.*"))
        self.rows, self.summary, self.config, self.axes = [], {}, {}, {}
        for record in finished(self.file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config = {u.key: json.loads(u.value_json) for u in record.run.config.update}
            elif kind == "history":
                items = record.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                self.rows.append(row)
            elif kind == "metric":
                self.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric


def stored_runs(folder: Path) -> dict[str, list[Stored]]:
    """By job type."""
    runs: dict[str, list[Stored]] = {}
    for path in sorted(folder.glob("runs/wandb/wandb/offline-run-*")):
        run = Stored(path)
        runs.setdefault(run.run.job_type, []).append(run)
    return runs


def test_a_table_in_offline_files(command, tmp_path):
    done(command(reproduce, *TABLE))
    runs = stored_runs(tmp_path)
    counts = {kind: len(of_kind) for kind, of_kind in runs.items()}
    assert counts == {"sample": 4, "eval": 4, "report": 1}
    every = [run for of_kind in runs.values() for run in of_kind]
    assert len({run.run.run_id for run in every}) == 9
    assert {run.run.run_group for run in every} == {"digits-table1"}

    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("runs/digits/*/manifest.json")]
    for run in runs["sample"]:
        assert run.config["sampler"]["name"] in ("ddim", "mix")
        assert [row["samples"] for row in run.rows] == [25, 50, 70]
        assert [row["_step"] for row in run.rows] == [25, 50, 70]
        assert all(row["samples_per_second"] > 0 for row in run.rows)
        assert all(row["ms_per_image_call"] > 0 for row in run.rows)
        (picture,) = run.media
        assert run.rows[-1]["grid/_type"] == "image-file"
        assert any(m["config"]["sampler"] == run.config["sampler"] for m in manifests)
        assert picture.suffix == ".png"

    local = json.loads((tmp_path / "out" / "records.json").read_text())
    told = {(r["cell"]["config"]["sampler"]["name"], r["cell"]["nfe"]): r["scores"] for r in local}
    for run in runs["eval"]:
        assert run.axes == {"*": "nfe"}
        (row,) = run.rows
        scores = told[run.config["sampler"]["name"], row["nfe"]]
        assert row["fid"] == scores["fid"]["value"]
        assert row["fid_ci95"] == pytest.approx(1.96 * scores["fid"]["se"])
        assert {"is", "kid", "precision", "recall"} <= set(row)

    (report,) = runs["report"]
    tables = [json.loads(p.read_text()) for p in report.media]
    (table,) = [t for t in tables if "sampler" in t["columns"]]
    assert len(table["data"]) == 4
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row["sampler"] == "DDIM" and row["fid"] == told["ddim", row["nfe"]]["fid"]["value"]
    plots = [t for t in tables if "sampler" not in t["columns"]]
    assert len(plots) == len(local[0]["scores"])


def test_the_same_is_told_once_and_new_results_again(command, tmp_path):
    done(command(reproduce, *FIGURE))
    first = stored_runs(tmp_path)
    (report,) = first["report"]
    shown = {key.split("/")[1] for key in report.rows[0] if key.startswith("plot/")}
    scores = ("fid", "is", "kid", "precision", "recall", "label_agreement")
    assert shown == {f"{score}_table" for score in scores}
    local = json.loads((tmp_path / "out" / "records.json").read_text())
    cutoffs = [r["cell"]["config"]["sampler"]["cutoff"] for r in local]
    values = [r["scores"]["fid"]["value"] for r in local]
    points = {(cutoff, "4 steps", value) for cutoff, value in zip(cutoffs, values, strict=True)}
    tables = [json.loads(p.read_text())["data"] for p in report.media]
    assert points in [{tuple(row) for row in table} for table in tables]

    done(command(reproduce, *FIGURE))
    assert len(list(tmp_path.glob("runs/wandb/wandb/offline-run-*"))) == 5
    # Other metric options are another record: the cells' runs go on under their old ids.
    done(command(reproduce, *FIGURE, "metrics.options.k=4"))
    again = stored_runs(tmp_path)
    assert len(again["sample"]) == 2
    assert len(again["eval"]) == 4
    assert len({run.run.run_id for run in again["eval"]}) == 2
    assert len({run.run.run_id for run in again["report"]}) == 1


def test_single_runs_and_their_evaluation(command, tmp_path):
    words = ["sampler=ddim", "steps=3", "num_samples=80", "out=out"]
    done(command(sample, *words, *OFFLINE))
    done(command(evaluate, "samples=out", *FEW, *OFFLINE))
    runs = stored_runs(tmp_path)
    assert [run.run.run_group for run in runs["sample"]] == ["digits"]
    assert len(runs["eval"]) == 1
    assert runs["eval"][0].config["sampler"]["name"] == "ddim"


def test_off_by_default_and_disabled_leave_no_trace(command, tmp_path):
    words = ["sampler=ddim", "steps=2", "num_samples=3", "out=out"]
    done(command(sample, *words))
    done(command(sample, *words, "logger=wandb", "logger.mode=disabled"))
    assert not (tmp_path / "runs" / "wandb").exists()
    outcome = command(sample, *words, "logger=wandb", "logger.mode=offlin")
    refused(outcome, "unknown logger.mode 'offlin': choose online, offline, disabled")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No key of the machine's user, and little patience."""
    monkeypatch.setattr(tracking, "ANSWER_WITHIN", 1)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    yield
    wandb.teardown()


class Failing(BaseHTTPRequestHandler):
    """A W&B server with a bad day: it answers 500, or not at all."""

    hangs = False

    def do_POST(self):
        if self.hangs:
            time.sleep(60)
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("trouble", ["no key", "refused", "500", "hangs", "later"])
def test_an_outage_does_not_stop_sampling(nowhere, command, monkeypatch, tmp_path, trouble):
    """`later`: nothing here accepts a key, so that question is skipped, and the first run fails."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    server.daemon_threads = True
    monkeypatch.setattr(Failing, "hangs", trouble == "hangs")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if trouble != "no key":
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    if trouble in ("500", "hangs"):
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    if trouble == "later":
        monkeypatch.setattr(tracking.WandbTracker, "_obstacle", lambda self: None)
    start = time.monotonic()
    words = ["sampler=ddim", "steps=2", "num_samples=30", "out=out", "logger=wandb"]
    status, out, err = command(sample, *words)
    server.shutdown()
    assert status == 0 and "30 samples" in out, err
    assert time.monotonic() - start < 60
    assert ("there is no key" if trouble == "no key" else "W&B: no answer (") in err
    assert "going on offline" in err and " sync runs/wandb/wandb/offline-run-*`" in err
    assert len(stored_runs(tmp_path)["sample"]) == 1


@pytest.mark.parametrize(
    ("how", "program"), [("setting", "on PATH"), ("variable", "in the environment")]
)
def test_offline_tells_the_folder_and_the_line_that_uploads(
    command, monkeypatch, tmp_path, how, program
):
    folder = "my runs/W&B's"
    words = ["sampler=ddim", "steps=2", "num_samples=30", "out=out", "logger=wandb"]
    words.append(f'logger.dir="{folder}"')
    if how == "setting":
        words.append("logger.mode=offline")
    else:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setattr(tracking.WandbTracker, "_obstacle", lambda self: pytest.fail("asked"))
    bin = tmp_path / "bin"
    bin.mkdir()
    if program == "on PATH":
        (bin / "wandb").write_text(f'#!/bin/sh\nexec {sys.executable} -m wandb "$@"\n')
        (bin / "wandb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    status, _, err = command(sample, *words)
    assert status == 0 and err.count("W&B: ") == 1, err
    assert f"W&B: offline: runs are kept in {folder}/wandb; upload them with `" in err
    line = re.search("with `(.*)`", err)[1]
    assert line.startswith("wandb " if program == "on PATH" else f"{sys.executable} -m wandb ")
    (run,) = (tmp_path / folder / "wandb").glob("offline-run-*")
    dry = line.replace(" sync ", " sync --dry-run ")
    told = subprocess.run(
        ["bash", "-c", dry], capture_output=True, encoding="utf-8", cwd=tmp_path, check=True
    )
    assert "Would sync 1 run(s)" in told.stderr and run.name in told.stderr


def test_a_failure_in_the_middle_is_said_once_and_sampling_goes_on(command, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("the disk of W&B is full\nand more")

    monkeypatch.setattr(wandb.Run, "log", fail)
    words = ["sampler=ddim", "steps=2", "num_samples=30", "shard_size=5", "out=out"]
    status, out, err = command(sample, *words, *OFFLINE)
    assert status == 0 and "30 samples" in out
    assert err.count("W&B: stopped") == 1
    assert "stopped (the disk of W&B is full): going on without it" in err
