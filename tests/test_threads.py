"""Every command has OpenMP's threads sleep while they wait, unless the user has said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from torch import __config__

from files.threads import (
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    OF_OPENBLAS,
    OF_OPENMP,
    keep_freed_memory,
    thread_defaults,
)

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
COMMANDS = [
    *(p for p in ROOT.glob("*.py") if p.name != "setup.py"),
    *(ROOT / "scripts").glob("[!_]*.py"),
    ROOT / "tests/conftest.py",
]
# Ends a command at its first import of torch, with what its environment then says.
WATCH = """
import importlib.abc, os, runpy, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OPENBLAS_NUM_THREADS"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.path.insert(0, "")
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
print("torch was never imported")
"""


def environment(**more: str) -> dict[str, str]:
    """That of a user: this process has set the default for itself already."""
    ours = OF_OPENMP | OF_OPENBLAS
    return {key: value for key, value in os.environ.items() if key not in ours} | more


def at_first_import_of_torch(command: str) -> str:
    """What the two variables then are; `command` is a path or the name of a module."""
    words = [sys.executable, "-c", WATCH, command]
    return subprocess.run(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout.strip()


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_it_is_set_before_torch_is_imported(path):
    name = f"scripts.{path.stem}" if path.parent.name == "scripts" else str(path)
    # The tests' own setting of OMP_NUM_THREADS holds for NumPy, too.
    expected = "1000 None" if path.stem == "conftest" else "1000 1"
    assert at_first_import_of_torch(name) == expected


def test_a_command_that_imports_torch_too_early_is_noticed(tmp_path):
    (tmp_path / "early.py").write_text("import torch\nimport eval\n")
    assert at_first_import_of_torch(str(tmp_path / "early.py")) == "None None"


@pytest.mark.parametrize(
    ("said", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", "OPENBLAS_NUM_THREADS": "1"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OPENBLAS_NUM_THREADS": "1"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OPENBLAS_NUM_THREADS": "1"}),
        ({"OMP_NUM_THREADS": "2"}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OPENBLAS_NUM_THREADS": "4"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_what_the_user_has_said_stays(said, added):
    assert thread_defaults(said | {"PATH": "/bin"}) == added


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's way of giving memory back")
def test_freed_memory_is_reused(monkeypatch):
    """Five tensors of 16 MiB, twenty times over: almost no page is asked for again.

    What would be else is glibc's beginning, 128 KiB of each, which it may have left by itself.
    """
    at_first = "ctypes.CDLL(None).mallopt({0}, 2**17)"
    script = (
        "import ctypes, resource, sys\n"
        f"{at_first.format(M_MMAP_THRESHOLD)}; {at_first.format(M_TRIM_THRESHOLD)}\n"
        "{0}\nimport torch\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for k in range(20):\n"
        "    if k == 10: before = faults()\n"
        "    tensors = [torch.ones(2**22) for _ in range(5)]\n    del tensors\n"
        "print(faults() - before)"
    )
    reused = "from files.threads import keep_freed_memory as keep; assert keep()"
    counts = [
        int(subprocess.check_output([sys.executable, "-c", script.format(line)], cwd=ROOT))
        for line in ("", reused)
    ]
    assert counts[1] < 1000 < counts[0] / 50
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert not keep_freed_memory()


@pytest.mark.skipif(
    sys.platform != "linux" or "OpenMP" not in __config__.parallel_info(),
    reason="reads what GNU's OpenMP, which torch's builds for Linux use, says of itself",
)
def test_openmp_itself_has_read_it_in_the_workers_of_torchrun():
    """Those two, and not torchrun itself, which only waits for them."""
    done = subprocess.run(
        [TORCHRUN, "--standalone", "--nproc_per_node=2", "sample.py", "--cfg", "job"],
        cwd=ROOT,
        env=environment(OMP_DISPLAY_ENV="VERBOSE"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert said.count("1000") == 2, done.stderr
