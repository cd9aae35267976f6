"""`model=function`: a loader of one's own, found where the command runs, and what can go wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import FEW, ROOT, done, refused

import reproduce
import sample
from experiments.config import composed, load_backbone
from experiments.folder import read_manifest
from models.digits import load as load_digits
from models.function import load

MINE = """
import torch
from sampling import Schedule
from {name}.parts import denoiser
from beside_{name} import SHAPE

def load(scale=1.0, device=None):
    return denoiser(scale), Schedule.linear(), SHAPE

def classes(device="cpu", **more):
    from models.digits import load
    model = load(device=device, **more)
    return lambda x, t, y: model.given(y)(x, t), model.schedule, model.shape, model.num_classes

def backbone(needed):
    raise AssertionError

def bare():
    from dataclasses import replace
    from models.digits import load
    return replace(load(), sha256="")

def wrong(what):
    good = [denoiser(1.0), Schedule.linear(), (1, 8, 8), 3]
    bad = dict(denoiser=0, schedule=1, shape=2, classes=3)
    if what in bad:
        good[bad[what]] = "this"
        return good
    if what == "latents":
        return (*good[:2], (4, 8, 8))
    if what == "returned":
        return "this"
    outs = dict(tensor=lambda x: x, small=lambda x: (x[..., 1:], None), v=lambda x: (x, x[:, :, 1:]),
                gradient=lambda x: (x, None, x))
    return (lambda x, t: outs[what](x)), *good[1:3]
"""
PARTS = """
def denoiser(scale):
    return lambda x, t: (x * scale / (1 + t), None)
"""


@pytest.fixture
def mine(tmp_path, request):
    """A package in the folder where the commands run, with a module beside it; its name."""
    name = f"mine{abs(hash(request.node.name)) % 10**8}"  # a module is imported once a process
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "parts.py").write_text(PARTS)
    (tmp_path / name / "models.py").write_text(MINE.replace("{name}", name))
    (tmp_path / f"beside_{name}.py").write_text("SHAPE = (3, 8, 8)\n")
    path = list(sys.path)
    yield f"{name}.models"
    sys.path[:] = path


FAST = ["steps=3", "num_samples=4"]


def test_from_outside_the_clone_in_a_process_of_its_own(tmp_path, mine):
    words = ["model=function", f"model.load={mine}:load", "model.options.scale=0.5", *FAST, "out=o"]
    ran = subprocess.run(
        [sys.executable, str(ROOT / "sample.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "o/samples.npz") as file:
        assert file["arr_0"].shape == (4, 8, 8, 3) and "arr_1" not in file


def test_what_samples_are_known_by(command, tmp_path, mine):
    words = ["model=function", f"model.load={mine}:load", *FAST, "out=o"]
    done(command(sample, *words, "model.options.scale=0.5", "model.version=3"))
    model = read_manifest(tmp_path / "o")["config"]["model"]
    assert (model["load"], model["options"]) == (f"{mine}:load", {"scale": 0.5})
    assert model["version"] == 3 and len(model["sha256"]) == 64
    # `+`, and all options at once, are the same options.
    for options in ("+model.options.scale=0.5", "model.options={scale: 0.5}"):
        done(command(sample, *words, options, "model.version=3"))
    for others, said in (
        (["model.options.scale=0.25", "model.version=3"], "model.options.scale is 0.5 there, 0.25"),
        (["model.options.scale=0.5", "model.version=4"], "model.sha256 is"),
        (["model.options.scale=0.5"], "model.sha256 is"),
    ):
        refused(command(sample, *words, *others), said)


def test_the_digits_table_is_byte_identical(command, tmp_path, mine):
    """By the repository's own loader, and by a denoiser with labels of one's own."""
    table = ["experiment=table1_small", "experiment.steps=[2]", "num_samples=70", *FEW]
    table += ["model.precision=fp32", "metrics=digits", "reference=digits"]
    done(command(reproduce, *table, "model=digits", "out=digits"))
    named = ["model.name=digits", "model.checkpoint=unet-6500"]
    own = ["model=function", "model.load=models.digits:load", *named]
    done(command(reproduce, *table, *own, "out=function"))
    names = [
        path.name for path in sorted((tmp_path / "digits").iterdir()) if path.suffix != ".json"
    ]
    assert {"table.md", "table.csv", "table.tex"} <= set(names)
    for name in names:
        pair = [(tmp_path / out / name).read_bytes() for out in ("digits", "function")]
        assert pair[0] == pair[1], name
    done(command(sample, *FAST, "out=a"))
    done(command(sample, *FAST, "out=b", "model=function", f"model.load={mine}:classes"))
    with np.load(tmp_path / "a/samples.npz") as a, np.load(tmp_path / "b/samples.npz") as b:
        assert sorted(a) == sorted(b) and all(np.array_equal(a[key], b[key]) for key in a)


def test_interrupted_by_shards_and_resumed(command, tmp_path, mine):
    words = ["model=function", f"model.load={mine}:load", "steps=3", "shard_size=2", "out=o"]
    done(command(sample, *words, "num_samples=2"))
    done(command(sample, *words, "num_samples=5"))
    done(command(sample, *words[:-1], "num_samples=5", "out=whole"))
    with np.load(tmp_path / "o/samples.npz") as a, np.load(tmp_path / "whole/samples.npz") as b:
        assert np.array_equal(a["arr_0"], b["arr_0"])


def test_a_backbone_without_a_hash_gets_that_of_its_words(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = {load(f"{mine}:bare", version=version).sha256 for version in (None, 1, 2)}
    assert len(digests) == 3 and "" not in digests
    cfg = composed("sample", "model=function", "model.load=models.digits:load")
    assert load_backbone(cfg).sha256 == load_digits().sha256


LOADS = {
    "nothing": "names no function: write MODULE:FUNCTION",
    "nowhere_at_all:load": "there is no module nowhere_at_all in ",
    "models.mine:load": "there is no module models.mine in",
    "{}:absent": "has no function absent: write one",
    "{}.deeper:load": "no module",
}
OPTIONS = {
    "load options.scales=2": "has no option 'scales': it takes scale, device",
    "backbone": "cannot be called so (missing a required argument: 'needed')",
    "wrong options.what=denoiser": "the denoiser of",
    "wrong options.what=schedule": "return a sampling.Schedule",
    "wrong options.what=shape": "return (C, H, W) with 1 or 3 channels",
    "wrong options.what=latents": "is (4, 8, 8): return (C, H, W) with 1 or 3 channels, or a Backbone",
    "wrong options.what=classes": "return a positive integer or None",
    "wrong options.what=returned": "has returned a str: let it return a models.backbone.Backbone",
    "wrong options.what=tensor": "return (x0, v), and v = None",
    "wrong options.what=small": "x0 of",
    "wrong options.what=v": "v of",
    "wrong options.what=gradient": "return a Backbone with guidance",
    "load options.scale=1 label=3": "this model is unconditional: leave label=null",
    "load options.scale=1 guidance=classifier": "has no classifier: use guidance=none",
    "load options.scale=1 prompts=[a]": "takes no prompts",
    "load options.scale=1 sampler=ddpm": "needs a learned variance",
}


def test_wrong_uses_end_in_one_line(command, tmp_path, mine):
    for path, said in LOADS.items():
        refused(command(sample, "model=function", f"model.load={path.format(mine)}", *FAST), said)
    for words, said in OPTIONS.items():
        name, *more = words.split()
        more = [f"model.{word}" if word.startswith("options") else word for word in more]
        outcome = command(sample, "model=function", f"model.load={mine}:{name}", *FAST, *more)
        refused(outcome, said)
    (tmp_path / "needs.py").write_text("import not_installed_here\n")
    outcome = command(sample, "model=function", "model.load=needs:load", *FAST)
    refused(outcome, "the module needs of model.load needs not_installed_here: install it first")
    refused(command(sample, "model=function", *FAST), "model.load is missing: give model.load=...")


THEIRS = """
import numpy as np, torch
from sampling import Schedule

def load(does="nothing"):
    if does == "fails": raise KeyError("weights")
    if does == "has no file": torch.load("nothing.pt")
    schedule = Schedule.edm([10.0, 5.0, 1.0, 0.1]) if does == "edm" else Schedule.linear()
    x0 = {
        "numpy": lambda x: x.numpy(), "int": lambda x: x.int(), "complex": lambda x: x + 1j,
        "half": lambda x: (x * 0).half(), "in place": lambda x: x.zero_(), "divides": lambda x: 1 / 0,
        "matrix": lambda x: torch.zeros(2, 3) @ torch.zeros(2, 3), "not finite": lambda x: x / 0,
    }.get(does, lambda x: x * 0)
    takes = {"x alone": lambda x: (x, None), "labels": lambda x, t, y: (x, None)}
    return takes.get(does, lambda x, t: (x0(x), None)), schedule, (3, 8, 8)
"""
RAISED = {
    "fails": "their:load has raised KeyError: 'weights' (",
    "has no file": "their.py:7): mend it there; TRACEBACK=1 before the command",
    "divides": "the denoiser of their:load has raised ZeroDivisionError: division by zero (",
    "matrix": "mat1 and mat2 shapes cannot be multiplied",
    "numpy": "x0 of their:load's denoiser is a ndarray: return a torch.Tensor of floating point",
    "int": "is a torch.int32: return a torch.Tensor of floating point",
    "complex": "is a torch.complex64: return",
    "x alone": "is called with (x_t, t) and takes (x): let it take these",
    "labels": "takes (x, t, y): let it take these, or return the number of classes as a fourth",
    "not finite": "are not finite",
    "edm": "this model is told sigma: say sampler.cutoff=1.2 for the same sigma",
}


def test_what_a_users_own_code_raises_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "their.py").write_text(THEIRS)
    settings = ["model=function", "steps=3", "num_samples=2"]
    for does, said in RAISED.items():
        words = [*settings, "model.load=their:load", f"model.options.does={does}"]
        refused(command(sample, *words, "out=wrong"), said)
    done(command(sample, *words, "sampler.cutoff=1.2", "out=edm"))  # as the line says
    for does in ("nothing", "half", "in place"):  # each of these is right
        words = [*settings, "model.load=their:load", f"model.options.does={does}", f"out={does}"]
        done(command(sample, *words))
    images = [
        np.load(tmp_path / out / "samples.npz")["arr_0"] for out in ("nothing", "half", "in place")
    ]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    (tmp_path / "cut.py").write_text("def load(:")
    refused(command(sample, *settings, "model.load=cut:load"), "has raised SyntaxError")
    (tmp_path / "early.py").write_text("raise ValueError('at import')")
    refused(
        command(sample, *settings, "model.load=early:load"), "has raised ValueError: at import ("
    )
    path = tmp_path / "their.py"
    said = f"in the folder {tmp_path} write model.load=their:load"
    refused(command(sample, *settings, f"model.load={path}:load"), said)


def test_a_module_here_takes_no_other_ones_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "sampling.py").write_text("raise AssertionError\n")
    (tmp_path / "own_loader.py").write_text(
        "from sampling import Schedule\n"
        "def load(): return (lambda x, t: (x, None)), Schedule.cosine(), (1, 8, 8)\n"
    )
    model = load("own_loader:load")
    x0, v = model.given(None)(torch.ones(2, 1, 8, 8), 5.0)[:2]
    assert v is None and torch.equal(x0, torch.ones(2, 1, 8, 8))
