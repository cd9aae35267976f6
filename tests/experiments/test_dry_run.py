"""The dry run counts what sampling really does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import done, write_standin
from test_generate import CountingNetwork, backbone, cell, make

import reproduce
from experiments import dry_run
from experiments.cells import Column
from experiments.check.machine import Machine, Speed, parameters_of
from models.adm.backbone import load
from models.backbone import ImageNetwork
from models.opensora.stdit2 import STDiT2


def column(folder, *names, n=50) -> Column:
    cells = [cell(folder, name, n=n, batch_size=16) for name in names]
    return Column(10, cells[0].size, cells)


class Images(CountingNetwork):
    """A network that counts the images that it sees."""

    images = 0

    def __call__(self, x, t, y):
        self.images += len(x)
        return super().__call__(x, t, y)


def test_the_counts_are_those_of_sampling(tmp_path):
    """Image calls, alone, as a tree and still missing, against a counting network."""

    def count(n=50):
        return dry_run.count(column(tmp_path, "skipped", "mix", "ddim", n=n))

    cost = count()
    assert cost.alone == 3 * 10 * 50
    first, rest, more = Images(), Images(), Images()
    make(*column(tmp_path, "skipped", n=32).cells, network=first)  # two of four shards of a cell
    assert count().tree == cost.tree == cost.missing
    partly = count().missing
    make(*column(tmp_path, "skipped", "mix", "ddim").cells, network=rest)
    assert (first.images, rest.images) == (10 * 32, partly)
    assert count().missing == 0
    grown = count(60)  # the short last shard is made anew
    make(*column(tmp_path, "skipped", "mix", "ddim", n=60).cells, network=more)
    assert more.images == grown.missing == cost.tree // 50 * 12


def test_the_report_says_what_is_done_and_what_is_missing(tmp_path, monkeypatch):
    def report():
        return "\n".join(dry_run.report([both], backbone()))

    both = column(tmp_path, "skipped", "ddim")
    before = report()
    assert "none of 4 in any of 2" in before
    assert "2 cells, 1,000 image calls, 1,000 as trees" in before
    assert "bytes written: 6 KB, 6 KB of them still to come" in before  # 2 x 50 x 30 x 2
    make(both.cells[0])
    after = report()
    assert "skipped 4/4, ddim 0/4" in after
    assert "500 still to do" in after
    assert "6 KB, 3 KB of them still to come" in after
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda path: type("Use", (), {"free": 100}))
    assert "the disk is too small" in report()


@pytest.mark.parametrize(
    ("start", "call", "image", "batch", "seconds", "measured", "calls"),
    [
        (0, 0.03, 0.01, 16, 0.19 / 16, 16, None),
        (0, 30.0, 0.01, 16, 30.01, 1, 2),  # one image is enough to know, after the warm-up
        (60, 0.03, 0.005, 64, 0.03 / 64 + 0.005, 64, None),  # a GPU's start, a compilation
    ],
)
def test_calibration_measures_the_network_and_not_its_start(
    monkeypatch, start, call, image, batch, seconds, measured, calls
):
    """By a clock that the network itself advances, in seconds."""
    now = 0.0
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now)

    class Slow(CountingNetwork):
        def __call__(self, x, t, y):
            nonlocal now
            now += start * (self.calls == 0) + call + image * len(x)
            return super().__call__(x, t, y)

    net = Slow()
    assert dry_run.calibrate(backbone(net), batch) == (pytest.approx(seconds), measured)
    assert calls in (None, net.calls)


def test_an_untrained_network_can_be_timed_with_guidance(tmp_path, unet_forward):
    standin = write_standin(tmp_path, "clf", unet_forward)
    card = write_standin(tmp_path, "t64", unet_forward, classifier=str(standin))
    model = load(str(card), "nowhere.pt", untrained=True, guidance={"scale": 1.0})
    seconds, batch = dry_run.calibrate(model, 2)
    assert (seconds > 0, batch) == (True, 2)
    assert model.sha256 == "untrained"


# --- speeds that `python -m scripts.check` has measured --------------------------------------------


def test_all_is_counted_before_anything_is_timed(tmp_path):
    network = CountingNetwork()
    lines = dry_run.report([column(tmp_path, "skipped")], backbone(network))
    counted = [next(lines) for _ in range(4)]
    assert "image calls" in counted[2] and "bytes written" in counted[3]
    assert network.calls == 0
    assert "calibration: timing calls" in next(lines) and network.calls == 0
    assert "calibration" in next(lines) and network.calls > 0


class Net(torch.nn.Module):
    """Of one parameter, and counted."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(7))

    def forward(self, x, t, y):
        self.calls += 1
        return torch.cat([x, x], 1)


def timed(tmp_path, monkeypatch, text=None, **changes):
    """The last lines of a dry run beside a record of one speed, and the calls that it made."""
    net = Net()
    model = backbone(ImageNetwork(net))
    speed = Speed("x", parameters_of(net), model.shape, "fp32", "eager", 8, 3.6)
    machine = Machine(torch.device("cpu"), tmp_path / "machines")
    machine.speeds.append(speed._replace(**changes))
    machine.save()
    if text is not None:
        machine.path.write_text(text)
    monkeypatch.setattr(dry_run, "MACHINES", tmp_path / "machines")
    lines = list(dry_run.report([column(tmp_path, "skipped", n=100)], model))
    return lines[4:], net.calls, machine


def test_a_machines_record_takes_the_place_of_a_calibration(tmp_path, monkeypatch):
    (speed, hours), calls, machine = timed(tmp_path, monkeypatch)
    assert calls == 0
    assert f"3.6e+03 ms an image call on {machine.facts['device']}, batch 8" in speed
    assert f"by {machine.path} of {machine.facts['date']}" in speed
    assert "still to do: 1.0 hours" in hours  # 10 steps of 100 images, 3.6 s each


@pytest.mark.parametrize(
    "changes", [{"parameters": 8}, {"precision": "bf16"}, {"mode": "compiled"}, {"batch": 17}]
)
def test_another_network_precision_or_mode_is_calibrated(tmp_path, monkeypatch, changes):
    (announced, speed, _), calls, _ = timed(tmp_path, monkeypatch, **changes)
    assert announced.startswith("calibration: timing") and calls > 0
    assert speed.startswith("calibration: ")


def test_a_damaged_record_is_named_and_the_network_calibrated(tmp_path, monkeypatch):
    (damaged, _, speed, _), calls, machine = timed(tmp_path, monkeypatch, text='{"speeds": [')
    assert f"{machine.path} is damaged" in damaged and "python -m scripts.check" in damaged
    assert speed.startswith("calibration: ") and calls > 0


@pytest.mark.filterwarnings("ignore")  # of the hub's client
@pytest.mark.parametrize(
    ("experiment", "making", "counted"),
    [
        ("table3", "make them with `make coco`", "8 cells, 6,600,000 image calls"),
        ("table3_clip", "make them with `make coco`", "8 cells, 6,600,000 image calls"),
        ("figure5", "python -m scripts.download model=sd", "4 cells, 1,680 image calls"),
        ("table4", "make them with `python -m scripts.vbench prompts`", "4 cells, 1,888,000"),
        ("table4_flickering", "make them with `python -m scripts.vbench prompts`", "4 cells, 750,"),
        ("figure6", "cannot load hpcai-tech/OpenSora", "2 cells, 600 image calls"),
    ],
)
def test_what_is_missing_is_named_and_all_is_counted(
    command, monkeypatch, tmp_path, experiment, making, counted
):
    """Without prompts, weights, cache or network; a small network of videos stands for the large one."""
    asked = []

    def unreachable(host, *args, **more):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(dry_run, "calibrate", lambda backbone, batch_size: (1.0, 1))
    monkeypatch.setattr("models.opensora.backbone.STDiT2", partial(STDiT2, depth=1, hidden_size=48))
    out = done(command(reproduce, f"experiment={experiment}", "dry=true"))
    assert "not yet: " in out and making in out
    assert out.index(counted) < out.index("time" if "sd21" in out else "calibration:")
    assert len(asked) <= 1  # the hub's client looks up what it calls itself


@pytest.mark.parametrize("model", ["sd15", "sd21_768v", "sdxl"])
def test_every_text_model_is_counted_without_its_weights(command, monkeypatch, tmp_path, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ["experiment=compare", f"model={model}", "prompts=missing.txt", "num_samples=10"]
    out = done(command(reproduce, *words, "dry=true", "reference.images=none"))
    assert "no prompts at missing.txt: give prompts=FILE" in out
    assert "12 cells, 3,400 image calls" in out
    assert "time: not known before the model is there" in out
