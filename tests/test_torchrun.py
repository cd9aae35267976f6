"""torchrun on the CPU: the same bytes from one, two and three processes, and the same scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, shards

from experiments import workers as distributed

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
# The last bits of a convolution depend on the number of threads, which torchrun sets to one.
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
SAMPLE = ["sampler=mix", "sampler.cutoff=500", "steps=8", "num_samples=130", "shard_size=10", "seed=3"]  # fmt: skip


def start(ranks: int, script: str, *words: str, cwd: Path) -> subprocess.Popen[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [TORCHRUN, "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.Popen(
        [*launcher, str(ROOT / script), *words],
        cwd=cwd,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(ranks: int, script: str, *words: str, cwd: Path) -> str:
    process = start(ranks, script, *words, cwd=cwd)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    call(1, "sample.py", *SAMPLE, "out=out", cwd=folder)
    assert len(shards(folder)) == 14
    return folder / "out"


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_same_bytes(undisturbed, tmp_path, ranks):
    out = call(ranks, "sample.py", *SAMPLE, "out=out", cwd=tmp_path)
    assert shards(tmp_path) == shards(undisturbed)
    assert out.count("130 samples, 8 network calls each") >= 1  # of those that end together, each
    workers = {json.loads(p.read_text())["worker"] for p in tmp_path.rglob("shard-*.json")}
    assert len(workers) == ranks


def test_a_mixture_of_all_of_them_each_ended_before_its_time(undisturbed, tmp_path):
    for ranks in (2, 1, 3):
        made = len(shards(tmp_path))
        process = start(ranks, "sample.py", *SAMPLE, "out=out", cwd=tmp_path)
        end = time.monotonic() + 300
        while len(shards(tmp_path)) < made + 2 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert process.returncode != 0, out + err
        assert made < len(shards(tmp_path)) < 14
    call(2, "sample.py", *SAMPLE, "out=out", cwd=tmp_path)
    assert shards(tmp_path) == shards(undisturbed)
    assert not list(tmp_path.rglob(".part-*"))


def test_features_that_ranks_bring_together_give_the_same_record(undisturbed, tmp_path):
    words = ["metrics=digits", "metrics.options.kid_subset_size=50", "metrics.options.bootstrap=20"]
    records = []
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        shutil.copytree(undisturbed, folder)
        # More images than one batch of 500, so that there is something to share.
        with np.load(folder / "samples.npz") as file:
            images, labels = file["arr_0"], file["arr_1"]
        many = tmp_path / f"many-{ranks}.npz"
        np.savez(many, arr_0=np.tile(images, (9, 1, 1, 1)), arr_1=np.tile(labels, 9))
        for samples in (folder, many) if ranks != 2 else (many,):
            out = call(ranks, "evaluate.py", f"samples={samples}", *words, cwd=tmp_path)
            assert out.count("FID (digits)") == 1  # the first process tells
        stored = [
            folder / "evaluation-digits.json",
            tmp_path / f"many-{ranks}.evaluation-digits.json",
        ]
        records.append([json.loads(path.read_text()) for path in stored if path.exists()])
    one, two, three = records
    assert one[1]["n"] == 1170
    assert one == three and one[1:] == two


def test_a_table_by_two_ranks_is_that_of_one(tmp_path):
    words = ["experiment=table1", "model=digits", "experiment.steps=[2,3]", "num_samples=70",
             "shard_size=15", "metrics.options.kid_subset_size=50", "out=out"]  # fmt: skip
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        out = call(ranks, "reproduce.py", *words, cwd=folder)
        assert out.count("written: out") == 1
    one, two = tmp_path / "1", tmp_path / "2"
    assert shards(one / "runs") == shards(two / "runs")
    for name in ("table.md", "table.csv", "table.tex"):
        assert (one / "out" / name).read_text() == (two / "out" / name).read_text()


def test_an_error_in_one_rank_ends_them_all(tmp_path):
    process = start(2, "sample.py", "sampler=ddim", "steps=2000", cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "error: steps must be between 1 and T = 1000, got 2000" in err


def test_who_i_am(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.worker() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert distributed.worker() == (0, 1)  # in a batch script
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert distributed.worker() == (3, 8)
    assert distributed.share(1, 4) == (11, 32)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.worker() == (1, 2)  # torchrun inside of srun
    assert not distributed.connected()  # but without anyone to talk to
    assert distributed.gather(7) == [7] and distributed.agree(7) == 7


@pytest.mark.parametrize(("parts", "world"), [(1, 1), (3, 1), (1, 4), (5, 8)])
def test_parts_and_ranks_share_without_overlap(monkeypatch, parts, world):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    seen = []
    for part in range(parts):
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            first, step = distributed.share(part, parts)
            seen += range(first, 100, step)
    assert sorted(seen) == list(range(100))


@pytest.mark.parametrize(("part", "parts"), [(-1, 2), (2, 2), (0, 0), (0.5, 2), (0, "3")])
def test_parts_that_make_no_sense(part, parts):
    with pytest.raises(ValueError, match="part"):
        distributed.share(part, parts)
