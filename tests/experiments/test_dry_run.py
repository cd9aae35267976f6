"""The dry run counts what sampling really does."""

from __future__ import annotations

import pytest
from conftest import write_standin
from test_generate import CountingNetwork, backbone, cell, make

from experiments import dry_run
from experiments.cells import Column
from models.adm.backbone import load


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
