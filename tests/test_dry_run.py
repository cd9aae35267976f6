"""The dry run counts what sampling really does."""

from __future__ import annotations

import pytest
import torch
from test_generate import CountingDenoiser, backbone, job, make

from experiments import dry_run
from experiments.cells import Size
from models.adm.backbone import load

CPU = torch.device("cpu")


def test_the_counts_are_those_of_sampling(tmp_path):
    """Image calls, alone, as a tree and still missing, against a counting network."""
    size = Size(50, 16, 16)
    jobs = [job(tmp_path, name) for name in ("skipped", "mix", "ddim")]
    cost = dry_run.count(jobs, size)
    assert cost.alone == 3 * 10 * 50

    class Images(CountingDenoiser):
        images = 0

        def __call__(self, x, t, y):
            self.images += len(x)
            return super().__call__(x, t, y)

    first = Images()
    make([jobs[0]], num_samples=32, denoiser=first)  # two of the four shards of one job
    assert dry_run.count(jobs, size).tree == cost.tree == cost.missing
    partly = dry_run.count(jobs, size).missing
    rest = Images()
    make(jobs, denoiser=rest)
    assert (first.images, rest.images) == (10 * 32, partly)
    assert dry_run.count(jobs, size).missing == 0
    grown = dry_run.count(jobs, Size(60, 16, 16))  # the short last shard is made anew
    more = Images()
    make(jobs, num_samples=60, denoiser=more)
    assert more.images == grown.missing == cost.tree // 50 * 12


def test_the_report_says_what_is_done_and_what_is_missing(tmp_path, monkeypatch):
    jobs = {name: job(tmp_path, name) for name in ("skipped", "ddim")}
    size = Size(50, 16, 16)
    model = backbone(CountingDenoiser())
    before = dry_run.report([(10, size, jobs)], model, 16, CPU)
    assert "none of 4 in any of 2" in before
    assert "2 cells, 1,000 image calls, 1,000 as trees" in before
    assert "bytes written: 6 KB, 6 KB of them still to come" in before  # 2 x 50 x 30 x 2
    make([jobs["skipped"]])
    after = dry_run.report([(10, size, jobs)], model, 16, CPU)
    assert "skipped 4/4, ddim 0/4" in after
    assert "500 still to do" in after
    assert "6 KB, 3 KB of them still to come" in after
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda path: type("Use", (), {"free": 100}))
    assert "the disk is too small" in dry_run.report([(10, size, jobs)], model, 16, CPU)


def test_calibration_measures_the_network(monkeypatch):
    """By a clock that the network itself advances: 3 s a call and 0.01 s an image."""
    now = 0.0
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now)

    class Slow(CountingDenoiser):
        def __call__(self, x, t, y):
            nonlocal now
            now += self.a_call + 0.01 * len(x)
            return super().__call__(x, t, y)

    net = Slow()
    net.a_call = 0.03
    assert dry_run.calibrate(backbone(net), 16, CPU) == (pytest.approx(0.19 / 16), 16)
    net.a_call, net.calls = 30.0, 0  # one image is enough to know
    assert dry_run.calibrate(backbone(net), 16, CPU) == (pytest.approx(30.01), 1)
    assert net.calls == 2  # the warm-up and the measurement


def test_an_untrained_network_can_be_timed_with_guidance(tmp_path, unet_forward):
    from conftest import write_standin

    standin = write_standin(tmp_path, "clf", unet_forward)
    card = write_standin(tmp_path, "t64", unet_forward, classifier=str(standin))
    model = load(str(card), "nowhere.pt", untrained=True, guidance={"scale": 1.0})
    seconds, batch = dry_run.calibrate(model, 2, CPU)
    assert (seconds > 0, batch) == (True, 2)
    assert model.sha256 == "untrained"


def test_a_slow_start_is_no_part_of_the_calibration(monkeypatch):
    """60 s at the first call (a GPU's start, a compilation), then 30 ms and 5 ms an image."""
    now = 0.0
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now)

    class Compiled(CountingDenoiser):
        def __call__(self, x, t, y):
            nonlocal now
            now += 60.0 * (self.calls == 0) + 0.03 + 0.005 * len(x)
            return super().__call__(x, t, y)

    seconds, size = dry_run.calibrate(backbone(Compiled()), 64, CPU)
    assert (seconds, size) == (pytest.approx(0.03 / 64 + 0.005), 64)
