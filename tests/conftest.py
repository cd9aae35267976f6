"""Shared fixtures: the golden numbers recorded from guided-diffusion.

Imports nothing that the wheel's tests do not need: these run with the oldest versions and no more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from files.threads import thread_defaults

# Before NumPy and torch start their threads: two processes of two threads each on two cores are slower
# than one, and a process compares to the last bit only with one of as many threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(thread_defaults(os.environ))

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from experiments.check.golden import (
    GOLDEN,
    golden_config,
    golden_json,  # noqa: F401  (for the tests, which find all that is recorded here)
    golden_network,
)
from models.adm.cards import layout_digest
from models.adm.networks import UNet
from sampling import Schedule
from sampling.denoise import Clip, NetworkDenoiser, Reading

# What is compared class by class with diffusers 0.42 needs it; all else runs with older ones.
OF_DIFFUSERS_042 = [
    f"sampling/test_{name}.py" for name in ("every_sampler", "flow", "inherit", "tabulate")
]
is_older = tuple(map(int, version("diffusers").split(".")[:2])) < (0, 42)
collect_ignore = OF_DIFFUSERS_042 if is_older else []

ROOT = Path(__file__).resolve().parents[1]

# The files that take longest, the longest first: one begun as the last keeps one process alone at work.
LONGEST = (
    *("slurm", "adm_standin", "training", "torchrun", "sd_standin", "tune", "shell_lines"),
    *("notebooks", "tracking", "faults", "check", "function", "hub", "plan", "opensora", "help"),
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist's order: those of most tests first


def pytest_collection_modifyitems(items):
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda i: names.index(i.path.stem) if i.path.stem in names else len(names))


# `make test` is a make, and a make within it prints the folders that it enters and leaves.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)


def bound(network, schedule=None, clip=False, gradient=None, condition=None) -> NetworkDenoiser:
    """A network (x, t, condition) -> (eps, v) as a denoiser."""
    reading = Reading(limit=Clip() if clip else None)
    schedule = Schedule.linear() if schedule is None else schedule
    return NetworkDenoiser(network, schedule, reading, condition, gradient)


@pytest.fixture(scope="session")
def unet_forward() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "unet_forward.safetensors")


@pytest.fixture(scope="session")
def trajectories() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "trajectories.safetensors")


@pytest.fixture(scope="session")
def golden_schedules():
    return np.load(GOLDEN / "schedules.npz")


def recorded_options(entry: dict[str, Any]) -> dict[str, Any]:
    """The options of a released network as the original was run with (`state_dict_manifest`)."""
    config, derived = entry["config"], entry["derived"]
    flags = "num_channels num_res_blocks learn_sigma dropout use_scale_shift_norm resblock_updown"
    options = {name: config.get(name) for name in [*flags.split(), "use_new_attention_order"]}
    # A width of heads overrides their number.
    heads = "num_heads" if config.get("num_head_channels") == -1 else "num_head_channels"
    options |= {"num_classes": derived.get("num_classes"), heads: config.get(heads)}
    if entry["kind"] == "classifier":
        options = {"image_size": config["image_size"], "num_labels": derived["out_channels"]}
        options |= {"num_head_channels": derived["num_head_channels"]}
        names = {"num_channels": "width", "num_res_blocks": "depth"}
        for name in ("num_channels", "num_res_blocks", "use_scale_shift_norm", "resblock_updown"):
            options[name] = config[f"classifier_{names.get(name, name)}"]
    shape = {"channel_mult": "channel_mult", "attention_ds": "attention_downsample_factors"}
    return options | {name: derived[theirs] for name, theirs in shape.items()}


@pytest.fixture(scope="session")
def golden_t64(unet_forward) -> UNet:
    """The tiny class-conditional network that the golden trajectories used."""
    return golden_network("t64", unet_forward)


def write_standin(
    folder: Path,
    name: str,
    tensors: dict[str, torch.Tensor],
    url: str = "https://example.org",
    **entries: Any,
) -> Path:
    """A stand-in for a published checkpoint: `<name>.pt` as the original saves it, and its card.

    A tiny golden network (`unet_forward.json`) with its recorded weights.  Returns the card.
    """
    kind, network = golden_config(name)
    weights = dict(golden_network(name, tensors).state_dict())  # in the original's order
    torch.save(weights, folder / f"{name}.pt")
    card = {
        "title": f"stand-in {name}",
        "kind": kind,
        "url": f"{url}/{name}.pt",
        "sha256": None,
        "licence": "made up for tests",
        "image_size": 16,
        "network": network,
        "tensors": len(weights),
        "parameters": sum(w.numel() for w in weights.values()),
        "layout": layout_digest({key: list(w.shape) for key, w in weights.items()}),
        **entries,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(card, sort_keys=False))
    return path


def standin_inception(path: Path) -> Path:
    """A weights file of the FID Inception: the real architecture, random numbers.

    Batch norm is scaled so that activations neither vanish nor explode on their way.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, *args, **kwargs):  # its constructor insists
            return None

    torch.save({}, path)
    torch.manual_seed(0)
    net = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(net.state_dict(), path)
    return path


# With these, 70 samples are enough to be scored, and fast.
FEW = ["metrics.options.kid_subset_size=50", "metrics.options.bootstrap=5"]


@pytest.fixture
def command(script, monkeypatch, tmp_path):
    """Run a command in-process in an empty folder: (exit status, stdout, stderr)."""
    from experiments.config import run_command

    monkeypatch.chdir(tmp_path)

    def call(module, *overrides):
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            return script(partial(run_command, module.main, Path(module.__file__).stem), *overrides)
        finally:
            os.environ.pop("HYDRA_FULL_ERROR", None)

    return call


@pytest.fixture
def script(monkeypatch, capsys):
    """Call the main function of a script with words: (exit status, stdout, stderr)."""
    from experiments.endings import reported

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
        status = 0
        try:
            reported(main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def done(outcome: tuple[int, str, str]) -> str:
    """What a command, which ended well, has printed."""
    status, out, err = outcome
    assert status == 0, err
    return out


def refused(outcome: tuple[int, str, str], said: str) -> None:
    """A command ended with exit status 2 and one line, which says that, but for progress bars."""
    status, _, err = outcome
    lines = [
        line for line in err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line
    ]
    assert (status, len(lines)) == (2, 1), err
    assert lines[0].startswith("error: ") and said in lines[0]


def alone(module: ModuleType, *words: str, cwd: Path) -> None:
    """Run a command in this process, which has as many threads as those that it starts."""
    from experiments.config import composed

    with contextlib.chdir(cwd):
        module.main(composed(Path(module.__file__).stem, *words))


def shards(folder: Path) -> dict[str, bytes]:
    """Every finished .npz file under a folder, by name; not those that are being written."""
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("[!.]*.npz"))}


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is driven by Playwright; without either, tests that ask for it are skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def interrupt(args: list[str], cwd: Path, pattern: str) -> None:
    """Start a command, and press Ctrl-C as soon as a file appears; it must end as it promises."""
    process = subprocess.Popen(
        args,
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores SIGINT, and so would all its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(cwd.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "run the same command to continue" in err
