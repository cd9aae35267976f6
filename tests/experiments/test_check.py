"""`python -m scripts.check`: every check can fail, and nothing that is lacking ends it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

import scripts.check
from experiments.check import behaviour, golden, throughput
from experiments.check.hours import hours, sentence
from experiments.check.machine import (
    Machine,
    Speed,
    device_name,
    matching_speed,
    mode_named,
    parameters_of,
    precision_of,
    read_machine,
    record_path,
)
from experiments.check.outcome import Finding, Skip, perform
from experiments.check.subjects import BUILDERS, Mode, Subject
from experiments.check.throughput import Bench, Budget, Step
from models.digits import load
from sampling import SampleNoise, Schedule, skipped

CPU = torch.device("cpu")


# --- where only the minimum is installed -----------------------------------------------------------

MINIMAL = """
import sys
sys.modules.update(dict.fromkeys({names!r}))  # importing any of them now raises ModuleNotFoundError
import scripts.check
sys.argv = ["check.py", "--short", "--device", "cpu", "--out", {out!r}]
sys.exit(scripts.check.main())
"""
LACKING = (
    "hydra omegaconf tqdm diffusers scipy transformers torch_fidelity yaml matplotlib torchvision "
    "av bs4 ftfy huggingface_hub"
)


def test_the_short_form_needs_no_more_than_the_minimum(tmp_path):
    """As in an environment with torch, NumPy, safetensors and Pillow alone."""
    code = MINIMAL.format(names=LACKING.split(), out=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and "Traceback" not in done.stderr
    assert "skipped: hours of tables: needs hydra-core" in done.stdout
    record = read_machine(next(tmp_path.glob("*.json")))
    assert record["complete"] and record["form"] == "short"
    status = {check["name"]: check["status"] for check in record["checks"]}
    assert status.pop("too little memory") == status.pop("samples as the CPU's fp16") == "SKIP"
    assert set(status.values()) == {"PASS"} and len(status) == 13
    assert [speed.batch for speed in record["speeds"]][:2] == [1, 2]


# --- every check can fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("part", ["forward", "stdit2", "trajectories"])
def test_a_wrong_network_fails(part, precision, monkeypatch):
    """One tensor of each network twice as large."""
    right = {"golden_network": golden.golden_network, "golden_stdit2": golden.golden_stdit2}

    def wrong(name):
        def build(*which):
            net = right[name](*which)
            matrices = [p for p in net.parameters() if p.ndim > 1]
            matrices[len(matrices) // 2].data *= 2
            return net

        return build

    for name in right:
        monkeypatch.setattr(golden, name, wrong(name))
    made = {
        "forward": lambda: golden.adm_forwards(CPU, precision),
        "stdit2": lambda: golden.stdit2_forwards(CPU, precision),
        "trajectories": lambda: golden.trajectories(CPU, precision, every=13),
    }
    outcome = perform("x", made[part])
    assert outcome.status == "FAIL"
    assert outcome.numbers["error"] > outcome.numbers["tolerance"]


@pytest.mark.parametrize("damage", ["shifted", "nan"])
@pytest.mark.parametrize("sheet", ["unet_forward", "opensora_stdit2_forward", "trajectories"])
def test_a_tampered_recording_fails(sheet, damage, monkeypatch):
    tensors = dict(golden.golden_tensors(sheet))
    for key, value in tensors.items():
        if key.endswith("/x" if sheet == "trajectories" else "/out"):
            tensors[key] = value + (0.01 if damage == "shifted" else torch.nan)
    real = golden.golden_tensors
    monkeypatch.setattr(golden, "golden_tensors", lambda n: tensors if n == sheet else real(n))
    made = {
        "unet_forward": lambda: golden.adm_forwards(CPU, "fp32"),
        "opensora_stdit2_forward": lambda: golden.stdit2_forwards(CPU, "fp32"),
        "trajectories": lambda: golden.trajectories(CPU, "fp32", every=26),
    }
    assert perform("x", made[sheet]).status == "FAIL"


def test_other_samples_than_the_cpus_fail():
    reference = behaviour.Reference(2, 4)
    assert reference.finding(load(), "fp32").ok
    for precision in ("fp32", "fp16", "bf16"):
        assert not reference.finding(load("unet-3000"), precision).ok


def test_a_single_wrong_pixel_fails():
    images = np.zeros((4, 28, 28, 1), np.uint8)
    other = images.copy()
    other[0, 0, 0] = 2
    assert behaviour.alike(images, images).ok
    assert not behaviour.alike(other, images).ok
    assert not behaviour.alike(images + np.uint8(1), images).ok


class OfTheBatch(SampleNoise):
    """Noise that depends on the place in the batch."""

    def at(self, t, s=-1.0, visit=0):
        z = super().at(t)
        return z.flip(0) if len(z) > 1 else z


def test_noise_that_depends_on_the_batch_fails(monkeypatch):
    monkeypatch.setattr(behaviour, "SampleNoise", OfTheBatch)
    finding = behaviour.batches(CPU, 4, 2)
    assert not finding.ok and "depends on its batch" in finding.said


@pytest.mark.parametrize("peek", [lambda x: x.sum().item(), lambda x: bool((x > 0).all())])
def test_a_loop_that_asks_the_device_for_a_number_fails(peek, monkeypatch):
    real = behaviour.run

    def run(denoiser, plan, noise):
        return real(lambda x, t: (peek(x), denoiser(x, t))[1], plan, noise)

    monkeypatch.setattr(behaviour, "run", run)
    assert perform("x", lambda: behaviour.asynchronous(CPU)).status == "FAIL"


@pytest.mark.parametrize(
    ("room", "spoilt", "ok"), [(5, False, True), (16, False, False), (5, True, False)]
)
def test_halving_is_seen_and_its_samples_compared(room, spoilt, ok):
    """With a network that has room for so many images; with room for all nothing is halved."""
    backbone, limited = load(), False
    network = backbone.network

    @contextlib.contextmanager
    def limit():
        nonlocal limited
        limited = True
        yield

    def small(x, t, y):
        if limited and len(x) > room:
            raise torch.OutOfMemoryError
        eps, v = network(x, t, y)
        return (eps + 0.1 if limited and spoilt else eps), v

    object.__setattr__(backbone, "network", small)
    finding = behaviour.halved(backbone, skipped(Schedule.linear(), [999, 500]), 16, limit)
    assert finding.ok == ok
    assert finding.numbers["halvings"] == (2 if room == 5 else 0)  # 16, 8, 4


def test_what_is_lacking_is_named_and_what_is_wrong_fails():
    def lacks(name):
        return lambda: (_ for _ in ()).throw(ModuleNotFoundError(f"No module {name}", name=name))

    assert perform("x", lacks("yaml.reader"))[1:3] == ("SKIP", "needs PyYAML")
    assert perform("x", lacks("experiments.gone")).status == "FAIL"
    assert perform("x", lambda: 1 / 0)[1:3] == ("FAIL", "ZeroDivisionError: division by zero")
    assert perform("x", lambda: behaviour.halving(CPU))[1:3] == ("SKIP", "needs a GPU")


@pytest.mark.parametrize("ok", [True, False])
def test_the_exit_status_tells(ok, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        scripts.check, "checks", lambda device, short: [("a", lambda: Finding(ok, "said"))]
    )
    monkeypatch.setattr(scripts.check, "steps_of", lambda device: [])
    monkeypatch.setattr(sys, "argv", ["check.py", "--device", "cpu", "--out", str(tmp_path)])
    assert scripts.check.main() == int(not ok)
    said = capsys.readouterr().out
    assert ("PASS  a: said" in said, "FAIL  a: said" in said) == (ok, not ok)
    assert "skipped: hours of tables: needs speeds" in said
    monkeypatch.setattr(sys, "argv", ["check.py", "--device", "cuda:77"])
    assert scripts.check.main() == 2
    assert "use auto or cpu" in capsys.readouterr().err


# --- speeds --------------------------------------------------------------------------------------------


def bench(monkeypatch, steps, subject, seconds=1e6, device=CPU):
    """What a bench keeps and skips, with `subject` in place of every network."""
    monkeypatch.setitem(BUILDERS, "digits", lambda precision, mode, device, small: subject(mode))
    kept, said = [], []
    Bench(device, Budget(seconds), kept.append, said.append).run(steps)
    return kept, said


def timed(monkeypatch, seconds, room=10**9):
    """Subjects whose call of n images takes seconds(n), by a clock of their own."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(throughput, "time", clock)

    def call(batch):
        def one():
            if batch > room:
                raise torch.OutOfMemoryError
            clock.now += seconds(batch)

        return one

    return lambda mode: Subject("digits", (1, 28, 28), 7, call)


def test_batches_double_as_long_as_that_pays(monkeypatch):
    subject = timed(monkeypatch, lambda n: 0.4 + 0.1 * n)  # 0.5, 0.3, 0.2, ... towards 0.1
    kept, said = bench(monkeypatch, [Step("digits", "fp32")], subject)
    assert [speed.batch for speed in kept] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [speed.seconds for speed in kept][:3] == [0.5, 0.3, 0.2]
    assert not said


def test_a_batch_without_memory_or_time_is_named(monkeypatch):
    steps = [Step("digits", "fp32"), Step("digits", "bf16", best=True)]
    kept, said = bench(monkeypatch, steps, timed(monkeypatch, lambda n: 1.0, room=4))
    assert [(s.batch, s.precision) for s in kept] == [
        (1, "fp32"),
        (2, "fp32"),
        (4, "fp32"),
        (4, "bf16"),
    ]
    assert said == ["digits fp32 eager, batch 8: out of memory"]
    steps.append(Step("digits", "fp16", best=True))
    kept, said = bench(monkeypatch, steps, timed(monkeypatch, lambda n: 1.0), seconds=16)
    assert [speed.batch for speed in kept] == [1, 2, 2]
    assert said == ["digits fp32 eager, batch 4: no time left", "digits fp16 eager: no time left"]


def test_a_failure_skips_its_step_alone(monkeypatch):
    working = timed(monkeypatch, lambda n: 0.1 * n)

    def subject(mode):
        if mode.channels_last:
            raise RuntimeError("no\nkernel")
        if mode.compiled:
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return working(mode)

    modes = (Mode(channels_last=True), Mode(compiled=True), Mode())
    steps = [Step("digits", "fp32"), *(Step("digits", "fp32", m, best=True) for m in modes)]
    kept, said = bench(monkeypatch, steps, subject)
    assert len(kept) == 3
    assert said == [
        "digits fp32 channels_last: RuntimeError: no kernel",
        "digits fp32 compiled: needs triton",
    ]


def test_a_compilation_needs_time_and_a_best_batch_a_first_one(monkeypatch):
    steps = [Step("digits", "fp32", best=True), Step("digits", "fp32", Mode(compiled=True))]
    kept, said = bench(monkeypatch, steps, timed(monkeypatch, lambda n: 1.0), seconds=30)
    assert not kept
    assert said == [
        "digits fp32 eager: its first measurement was skipped",
        "digits fp32 compiled: no time left",
    ]


PUBLISHED = {
    "adm_imagenet": ("fp16", 553_838_086, (3, 256, 256)),
    "sd21": ("fp16", 865_910_724, (4, 64, 64)),
    "sd21_vae": ("fp16", 83_653_863, (4, 64, 64)),
    "opensora11": ("bf16", 767_452_100, (4, 16, 30, 53)),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_what_is_timed_on_a_gpu_has_the_published_size(model):
    """Built and called without memory; the call's shapes fit."""
    precision, parameters, shape = PUBLISHED[model]
    subject = BUILDERS[model](precision, Mode(), torch.device("meta"), False)
    assert (subject.parameters, subject.shape) == (parameters, shape)
    with torch.no_grad():
        assert subject.call(2)()[0].shape[0] == 2


def test_every_step_of_both_plans_can_be_built():
    for kind in ("cpu", "cuda"):
        steps = throughput.steps_of(torch.device(kind))
        assert len({step.name for step in steps}) == len(steps)
        assert {step.model for step in steps} <= set(BUILDERS)
        first = {step.model for step in steps if not step.best}
        assert {step.model for step in steps if step.best} <= first


# --- records -------------------------------------------------------------------------------------------

SPEED = Speed("digits", 7, (1, 28, 28), "fp32", "eager", 8, 0.002)


def test_a_record_stands_after_every_measurement(tmp_path):
    """And one that was cut short says so."""
    machine = Machine(CPU, tmp_path)
    report = scripts.check.Report(machine, CPU)
    report.checked(perform("a", lambda: Finding(True, "said", {"error": 1.0})))
    report.timed(SPEED)
    record = read_machine(machine.path)
    assert machine.path == record_path(tmp_path, device_name(CPU))
    assert record["speeds"] == [SPEED] and record["checks"][0]["numbers"] == {"error": 1.0}
    assert record["complete"] is False and record["torch"] == torch.__version__
    machine.complete = True
    machine.save()
    assert read_machine(machine.path)["complete"] is True


@pytest.mark.parametrize("damage", ["cut", "another file", "a speed lacks its batch"])
def test_a_damaged_record_is_noticed(tmp_path, damage):
    machine = Machine(CPU, tmp_path)
    scripts.check.Report(machine, CPU).timed(SPEED)
    whole = json.loads(machine.path.read_text())
    text = {"cut": machine.path.read_text()[:-20], "another file": "[]"}
    del whole["speeds"][0]["batch"]
    machine.path.write_text(text.get(damage, json.dumps(whole)))
    with pytest.raises(ValueError, match=r"is damaged .*python -m scripts\.check"):
        read_machine(machine.path)


def test_names_of_files():
    assert record_path(ROOT, "NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"
    assert record_path(ROOT, "AMD EPYC(TM), 2 threads").name == "amd-epyc-tm-2-threads.json"


def test_a_speed_matches_by_size_precision_mode_and_batch():
    backbone = load(precision="bf16")
    net = backbone.network.net
    right = Speed("d", parameters_of(net), (1, 28, 28), "bf16", "eager", 16, 0.1)
    assert precision_of(net) == "bf16"
    speeds = [
        right,
        right._replace(batch=32),
        right._replace(batch=128),
        right._replace(batch=64, precision="fp32"),
        right._replace(batch=64, mode="compiled"),
        right._replace(batch=64, parameters=right.parameters + 1),
        right._replace(batch=64, shape=(1, 32, 32)),
        right._replace(batch=64, evaluations=2),
    ]
    assert matching_speed(speeds, backbone, "eager", 64) == speeds[1]
    assert matching_speed(speeds, backbone, "eager", 128) == speeds[2]
    assert matching_speed(speeds, backbone, "channels_last", 64) is None
    assert matching_speed(speeds[1:], backbone, "eager", 16) is None
    assert matching_speed(speeds, load("exact"), "eager", 64) is None
    assert mode_named(True, True) == "channels_last+compiled"


def test_the_hours_are_calls_times_seconds():
    """The calls of table 3 by hand: DDIM and Mix share none, 30,000 images of each."""
    speeds = [
        Speed("sd21", 1, (4, 64, 64), "fp16", "eager", 16, 0.02, evaluations=2),
        Speed("sd21", 1, (4, 64, 64), "fp16", "graphed", 16, 0.01, evaluations=2),
        Speed("sd21's VAE", 1, (4, 64, 64), "fp16", "eager", 1, 0.03),
    ]
    entries = [entry for entry in hours(speeds, CPU) if not isinstance(entry, str)]
    (entry,) = entries
    assert entry["image_calls"] == 30_000 * 2 * (50 + 30 + 20 + 10)
    assert (entry["hours"], entry["hours_at_best"]) == (36.7, 18.3)
    assert entry["decoding"] == pytest.approx(240_000 * 0.03 / 3600)
    assert "36.7 hours as configured (fp16 eager, batch 16), 18.3 at best" in sentence(entry)
    lines = [line for line in hours(speeds, CPU) if isinstance(line, str)]
    assert "hours of table1: needs the speed of adm_imagenet in fp16 eager" in lines
    with pytest.raises(Skip):
        next(hours([], CPU))


def test_what_the_docs_say_of_the_h100_is_its_record():
    said = (ROOT / "docs/check.md").read_text().replace("\n", " ")
    record = json.loads((ROOT / "results/machines/nvidia-h100-80gb-hbm3.json").read_text())
    assert {check["status"] for check in record["checks"]} == {"PASS"}
    assert f"all {len(record['checks'])} checks passed." in said
    hours = {entry["experiment"]: entry for entry in record["hours"]}
    assert f"takes {hours['table1']['hours']:.0f} hours of one H100" in said
    assert f"({hours['table1']['image_calls']:,} image calls at 12.9 ms in fp16)" in said
    assert f"Table 3 {hours['table3']['hours']:.1f} hours" in said
    assert f"Table 4 {hours['table4']['hours']:.0f} hours" in said
    speeds = [s for s in record["speeds"] if s["model"] == "adm_imagenet" and s["mode"] == "eager"]
    assert min(s["seconds"] for s in speeds if s["precision"] == "fp16") == 0.0129
