"""torchrun on the CPU: the same bytes from one, two and three processes, and the same scores."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEW, ROOT, alone, done, shards

import evaluate
import reproduce
import sample
from experiments import workers
from models.adm.flags import read_flags
from models.adm.networks import UNet

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
SAMPLE = ["sampler=mix", "sampler.cutoff=500", "steps=8", "num_samples=130", "shard_size=10"]
TABLE = ["experiment=table1_small", "experiment.steps=[2]", "num_samples=70", "shard_size=15"]


def start(ranks: int, script: str, *words: str, cwd: Path) -> subprocess.Popen[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [TORCHRUN, "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.Popen(
        [*launcher, str(ROOT / script), *words],
        cwd=cwd,
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
    alone(sample, *SAMPLE, "out=out", cwd=folder)
    assert len(shards(folder)) == 14
    return folder / "out"


def test_ranks_give_the_same_bytes(undisturbed, tmp_path):
    out = call(3, "sample.py", *SAMPLE, "out=out", cwd=tmp_path)
    assert shards(tmp_path) == shards(undisturbed)
    assert out.count("130 samples, 8 network calls each") >= 1  # of those that end together, each
    hosts = {json.loads(p.read_text())["worker"] for p in tmp_path.rglob("shard-*.json")}
    assert len(hosts) == 3


def test_a_mixture_of_all_of_them_each_ended_before_its_time(undisturbed, tmp_path):
    for ranks in (2, 1):
        before = len(shards(tmp_path))
        process = start(ranks, "sample.py", *SAMPLE, "out=out", cwd=tmp_path)
        end = time.monotonic() + 300
        while len(shards(tmp_path)) < before + 2 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert process.returncode != 0, out + err
        assert before < len(shards(tmp_path)) < 14
    alone(sample, *SAMPLE, "out=out", cwd=tmp_path)
    assert shards(tmp_path) == shards(undisturbed)
    assert not list(tmp_path.rglob(".part-*"))


def test_features_that_ranks_bring_together_give_the_same_record(undisturbed, tmp_path):
    """Of a folder, whose one batch of 500 leaves a rank without work, and of three batches."""
    with np.load(undisturbed / "samples.npz") as file:
        many = {name: np.concatenate([array] * 9) for name, array in file.items()}
    for folder in ("one", "several"):
        shutil.copytree(undisturbed, tmp_path / folder)
        np.savez(tmp_path / f"{folder}.npz", **many)
    for suffix in ("", ".npz"):
        alone(evaluate, f"samples=one{suffix}", *FEW, cwd=tmp_path)
    out = call(2, "evaluate.py", "-m", "samples=several,several.npz", *FEW, cwd=tmp_path)
    assert out.count("FID (digits)") == 2  # of each, the first process tells
    one, several = (
        [
            json.loads((tmp_path / folder / "evaluation-digits.json").read_text()),
            json.loads((tmp_path / f"{folder}.evaluation-digits.json").read_text()),
        ]
        for folder in ("one", "several")
    )
    assert one[1]["n"] == 1170
    assert one == several


def test_a_table_by_two_ranks_is_that_of_one(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    alone(reproduce, *TABLE, *FEW, "out=out", cwd=one)
    out = call(2, "reproduce.py", *TABLE, *FEW, "out=out", cwd=two)
    assert out.count("written: out") == 1
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
    assert workers.worker() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert workers.worker() == (0, 1)  # in a batch script
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert workers.worker() == (3, 8)
    assert workers.share(1, 4) == (11, 32)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers.worker() == (1, 2)  # torchrun inside of srun
    assert not workers.connected()  # but without anyone to talk to
    assert workers.gather(7) == [7] and workers.agree(7) == 7


def test_processes_that_cannot_meet_are_one_line(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    for port in ("", "x"):
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(
            ValueError, match=r"cannot meet \(.*start them with torchrun, or `unset"
        ):
            workers.connected()


@pytest.mark.parametrize(("parts", "world"), [(1, 1), (3, 1), (1, 4), (5, 8)])
def test_parts_and_ranks_share_without_overlap(monkeypatch, parts, world):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    seen = []
    for part in range(parts):
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            first, step = workers.share(part, parts)
            seen += range(first, 100, step)
    assert sorted(seen) == list(range(100))


@pytest.mark.parametrize(("part", "parts"), [(-1, 2), (2, 2), (0, 0), (0.5, 2), (0, "3")])
def test_parts_that_make_no_sense(part, parts):
    with pytest.raises(ValueError, match="part"):
        workers.share(part, parts)


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_what_all_processes_would_say_is_said_by_the_first(
    command, tmp_path, monkeypatch, rank, times
):
    flags = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --lr 1"
    flags += " --attention_resolutions 8"
    torch.manual_seed(0)
    torch.save(UNet(**read_flags(flags).network).state_dict(), tmp_path / "mine.pt")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["model=adm", "model.checkpoint=mine.pt", f"model.flags={flags}", "sampler=ddim"]
    words += ["model.precision=bf16", "steps=2", "num_samples=2", "shard_size=1", "out=a"]
    out = done(command(sample, *words, "show_plan=true"))
    for said in ("model.flags: not followed", "model.flags: a network without", "x0_previous"):
        assert out.count(said) == times, said
