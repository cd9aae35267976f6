"""A real SLURM on this machine: jobs cancelled, requeued and pre-empted, and the same table.

Those that need it are skipped where it or its accounting is not installed; `.ci/run` installs them on Debian.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import FEW, ROOT, alone, done, refused

import reproduce
import sample
from experiments.config import composed
from experiments.progress import table
from scripts import slurm as submit_script

NEEDED = ("sbatch", "slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd")
ABSENT = [p for p in NEEDED if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]

absent = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")

SITE = [
    f"hydra.launcher.{option}" for option in ("gpus_per_node=null", "cpus_per_task=1", "mem_gb=2")
]
TABLE = ["experiment=table1_small", "experiment.steps=[2,20]", "num_samples=75"]
TABLE += ["shard_size=15", "out=out", *FEW]


@pytest.fixture(scope="module")
def cluster():
    """The environment in which commands find a cluster of their own, one node of 4 make-believe CPUs."""
    folder = f"/tmp/skipped-step-slurm-{os.getpid()}"
    env = {
        **os.environ,
        "LOCAL_SLURM_DIR": folder,
        "LOCAL_SLURM_PORT": str(20000 + os.getpid() % 10000),
        "LOCAL_SLURM_CPUS": "4",
        "LOCAL_SLURM_ACCOUNTING": "1",
    }
    scripts = ROOT / "tests" / "slurm"
    try:
        subprocess.run([scripts / "start-local-slurm.sh"], env=env, check=True, timeout=120)
        yield {**env, "SLURM_CONF": f"{folder}/etc/slurm.conf"}
    finally:
        subprocess.run([scripts / "stop-local-slurm.sh"], env=env, check=True, timeout=120)


def python(script: str, *words: str, cwd: Path, env: dict[str, str], prefix=()) -> str:
    """Run one of our commands, which must succeed; its output."""
    where = ["-m", script] if script.startswith("scripts.") else [str(ROOT / script)]
    command = [*prefix, sys.executable, *where, *words]
    env = {**env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def slurm(*words: str, env: dict[str, str]) -> str:
    return subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout


def wait_until(condition, seconds: float = 500):
    """The first true value of the condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)
    return value


def running(env, name: str) -> list[str]:
    """Ids of the running jobs (of an array, job_task) of that name."""
    lines = slurm("squeue", "-h", "-r", "-t", "R", "-o", "%i %j", env=env).splitlines()
    return [line.split()[0] for line in lines if line.split()[1] == name]


def status(folder: Path) -> str:
    """What `make status` shows of the only table there."""
    (plan,) = (folder / "runs" / "plans").iterdir()
    with contextlib.chdir(folder):
        return table(json.loads(plan.read_text()), time.time())


def same_samples(a: Path, b: Path) -> None:
    """All shards and joined samples, byte for byte, and nothing half-written."""
    names = {p.relative_to(a) for p in a.rglob("*.npz")}
    assert names == {p.relative_to(b) for p in b.rglob("*.npz")}
    assert len(names) > 0
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert not list(b.rglob(".part-*"))


@absent
@pytest.mark.slurm
def test_a_table_survives_cancelled_requeued_and_preempted_jobs(cluster, tmp_path):
    here, there = tmp_path / "without", tmp_path / "with"
    here.mkdir()
    there.mkdir()
    submit = ["scripts.slurm", *TABLE, "parts=2", *SITE]
    out = python(*submit, cwd=there, env=cluster)
    assert "digits-table1-render: 1 job, after" in out
    runs = there / "runs"

    # One job is put back into the queue, one gets SLURM's signals of a pre-emption, one is ended.
    wait_until(lambda: list(runs.glob("digits/*-20steps-*/shards/*.npz")))
    large = running(cluster, "digits-table1-20-sample")
    slurm("scontrol", "requeue", large[0], env=cluster)
    for signal in ("TERM", "USR2"):
        slurm("scancel", f"--signal={signal}", large[1], env=cluster)
    two = [f"digits-table1-2-{stage}" for stage in ("sample", "evaluate")]
    small = wait_until(lambda: [job for name in two for job in running(cluster, name)])
    slurm("scancel", small[0], env=cluster)

    alone(reproduce, *TABLE, cwd=here)  # meanwhile, without SLURM
    assert wait_until(lambda: not slurm("squeue", "-h", env=cluster).strip())
    assert not (there / "out" / "table.md").exists()  # it waited for the cancelled job
    assert "table1 on digits:" in status(there) and "8 of 8" not in status(there)
    logs = "".join(p.read_text() for p in runs.glob("slurm/**/*_log.*"))
    assert "preempted" in logs and "Requeued job" in logs

    out = python(*submit, cwd=there, env=cluster)  # submits what is missing
    assert "-20-sample" not in out
    assert wait_until(lambda: not slurm("squeue", "-h", env=cluster).strip())
    assert "8 of 8 cells done" in status(there)
    same_samples(here / "runs", runs)
    for name in ("table.md", "table.csv"):
        assert (there / "out" / name).read_text() == (here / "out" / name).read_text()


@absent
@pytest.mark.slurm
def test_a_multirun_is_one_array_and_goes_on_after_a_time_out(cluster, tmp_path):
    small = ["num_samples=90", "shard_size=10"]
    # submitit takes the signal for a time-out if less than 10 minutes were asked for.
    site = [*SITE, "hydra.launcher.timeout_min=9"]
    sweep = ["-m", "sampler=ddim", "steps=2,20", *small, "hydra/launcher=slurm", *site]
    command = [sys.executable, str(ROOT / "sample.py"), *sweep]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=cluster, stdout=subprocess.PIPE, text=True
    )
    shards = "runs/digits/*20steps*/shards/*.npz"
    wait_until(lambda: list(tmp_path.glob(shards)) or process.poll() is not None)
    assert process.poll() is None
    jobs = [name for name in running(cluster, "sample") if name.endswith("_1")]
    slurm("scancel", "--signal=USR2", jobs[0], env=cluster)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    assert "all jobs have ended" in out
    logs = "".join(p.read_text() for p in tmp_path.glob("runs/multirun/**/*_log.*"))
    assert "this job is timed-out" in logs
    manifests = list(tmp_path.glob("runs/digits/*/manifest.json"))
    assert len(manifests) == 2
    assert all('"complete": true' in m.read_text() for m in manifests)


@absent
@pytest.mark.slurm
def test_an_error_of_a_job_comes_back(cluster, tmp_path):
    small = ["num_samples=30", "shard_size=10"]
    wrong = ["-m", "steps=2000", "hydra/launcher=slurm", *small, *SITE]
    command = [sys.executable, str(ROOT / "sample.py"), *wrong]
    done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: steps must be between 1 and T = 1000, got 2000" in done.stderr


@absent
@pytest.mark.slurm
def test_tasks_of_srun_share_the_shards_and_a_batch_script_is_one_process(cluster, tmp_path):
    words = ["sampler=ddim", "steps=2", "num_samples=60", "shard_size=10"]
    alone(sample, *words, "out=one", cwd=tmp_path)
    python("sample.py", *words, "out=two", cwd=tmp_path, env=cluster, prefix=("srun", "-n2"))
    same_samples(tmp_path / "one", tmp_path / "two")
    facts = [json.loads(p.read_text()) for p in (tmp_path / "two").glob("shards/*.json")]
    assert len({fact["worker"] for fact in facts}) == 2
    script = tmp_path / "batch.sh"
    call = " ".join([sys.executable, str(ROOT / "sample.py"), *words, "out=batch"])
    script.write_text(f"#!/bin/bash\n#SBATCH --ntasks=2\n{call}\n")
    slurm("sbatch", "-D", str(tmp_path), str(script), env=cluster)
    assert wait_until(lambda: not slurm("squeue", "-h", env=cluster).strip())
    same_samples(tmp_path / "one", tmp_path / "batch")


@pytest.fixture
def submitted(script, monkeypatch, tmp_path):
    """scripts/slurm.py in this process, where there is no SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return partial(script, submit_script.main)


def test_a_dry_run_says_what_would_be_submitted(submitted, tmp_path):
    out = done(submitted(*TABLE, "parts=3", "--dry"))
    assert out.count("stage=sample") == out.count("stage=evaluate") == 6
    assert out.count("stage=render") == 1
    # Nodes may differ in the precision that they are fast in: one for all, which names the folder.
    precision = composed("reproduce", *TABLE).model.precision
    assert out.count(f" model.precision={precision} ") == out.count("stage=") == 13
    assert "after <digits-table1-2-evaluate>, <digits-table1-20-evaluate>" in out
    assert not (tmp_path / "runs").exists()


def test_pictures_have_no_evaluation_and_tables_of_the_same_samples_wait_for_each_other(submitted):
    out = done(submitted("experiment=figure2_small,figure3_small", "--dry"))
    assert "stage=evaluate" not in out
    assert "digits-figure3-100-sample: 1 job, after <digits-figure2-" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=table1_small"], "no sbatch here"),
        (["experiment=table1", "stage=sample", "--dry"], "stage=sample is what this script sets"),
        (["experiment=table9", "--dry"], "no experiment 'table9': choose one of"),
    ],
)
def test_mistakes_are_one_line(submitted, words, said):
    refused(submitted(*words), said)


def test_the_site_is_in_the_launcher():
    cfg = composed("reproduce", "hydra/launcher=slurm", with_hydra=True)
    site = yaml.safe_load((ROOT / "configs/site/default.yaml").read_text())
    assert {key: cfg.hydra.launcher[key] for key in site} == site
    assert cfg.hydra.launcher.max_num_timeout > 0
