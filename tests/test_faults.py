"""Faults survived: the drill, briefly; a disk that is full; commands that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, alone, shards

import sample

WORDS = ["sampler=ddim", "num_samples=120", "shard_size=8", "out=out"]
SAMPLE = [sys.executable, str(ROOT / "sample.py")]


def test_the_drill():
    """`make drill` is the long one."""
    words = ["--kills", "15", "--tables", "2", "--alterations", "300", "--seed", "5"]
    drill = [sys.executable, str(ROOT / "tests" / "fault_drill.py"), *words]
    done = subprocess.run(drill, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("all whole in the end") == 2
    assert "300 bits altered, all noticed or harmless" in done.stdout


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KB, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if os.getuid() != 0 or not mount("size=300k"):
        pytest.skip("only root may mount a small disk")
    yield folder, lambda: mount("remount", "size=30m")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_nothing_is_lost(small_disk, tmp_path):
    folder, enlarge = small_disk
    words = [*WORDS, "steps=2", "num_samples=600"]
    done = subprocess.run([*SAMPLE, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "free some space and run the same command to continue" in done.stderr
    before = shards(folder)
    assert 0 < len(before) < 75
    assert not list(folder.rglob(".part-*"))
    assert enlarge()
    alone(sample, *words, cwd=folder)
    alone(sample, *words, cwd=tmp_path)
    assert shards(folder / "out") == shards(tmp_path / "out")
    assert before.items() <= shards(folder).items()


@pytest.mark.parametrize(("number", "status"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_command_that_is_killed_continues(tmp_path, number, status):
    words = [*WORDS, "steps=12"]
    process = subprocess.Popen(
        [*SAMPLE, *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 300
    while len(shards(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=200)
    assert process.returncode == status
    assert ("run the same command to continue" in err) == (number == "SIGINT")
    before = shards(tmp_path)
    assert 2 <= len(before) < 15
    assert number == "SIGKILL" or not list(tmp_path.rglob(".part-*"))
    alone(sample, *words, cwd=tmp_path)
    assert len(shards(tmp_path)) == 16
    assert before.items() <= shards(tmp_path).items()
    assert not list(tmp_path.rglob(".part-*"))
