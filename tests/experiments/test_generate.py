"""Generation: shards, resuming, trees, and that sample i is a function of (seed, i) alone."""

from __future__ import annotations

import dataclasses
import re
import resource
import shutil
import signal
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from experiments.cells import Cell, Size, labels_of
from experiments.folder import read_facts, read_manifest, read_shard
from experiments.generate import generate
from files.media import Images
from models.backbone import Backbone, to_uint8
from sampling import Schedule, ddim, ddpm, mix, skipped, timesteps

SCHEDULE = Schedule.linear()
GRID = timesteps(1000, 10)
PLANS = {
    "skipped": skipped(SCHEDULE, GRID),
    "mix": mix(SCHEDULE, GRID, cutoff=400),
    "ddim": ddim(SCHEDULE, GRID),
    "ddpm": ddpm(SCHEDULE, GRID),
}


class CountingNetwork:
    """A smooth made-up network that counts its calls and can fail at one of them."""

    def __init__(self, fail_at: int | None = None, nan_label: int | None = None):
        self.calls, self.fail_at, self.nan_label = 0, fail_at, nan_label

    def __call__(self, x, t, y):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        eps = torch.tanh(x + 0.1 * y[:, None, None, None]) * (1 - t / 2000)
        if self.nan_label is not None:
            eps = torch.where(y[:, None, None, None] == self.nan_label, torch.nan, eps)
        return eps, torch.sin(x)


def backbone(network=None, **changes) -> Backbone:
    network = network or CountingNetwork()
    shape, media = (1, 6, 5), Images((6, 5, 1))
    model = Backbone(network, SCHEDULE, shape, 10, True, "0" * 64, to_uint8, media)
    return dataclasses.replace(model, **changes)


def cell(folder, name="mix", n=50, batch_size=7, shard_size=16, **config) -> Cell:
    config = {"sampler": name, "seed": 5, "label": None, **config}
    size = Size(n, batch_size, shard_size)
    return Cell(PLANS[name], folder / name, config, size, row=name)


def make(*cells, network=None, **options) -> bool:
    return generate(cells, backbone(network), **options)


def interrupted(c: Cell) -> None:
    """Sample until an interruption within the third of four shards."""
    with pytest.raises(KeyboardInterrupt):
        make(c, network=CountingNetwork(fail_at=77))


def pair(folder, **options) -> tuple[Cell, Cell]:
    """A cell that is made, and the same that is not, sampled in other batches perhaps."""
    a, b = cell(folder / "a"), cell(folder / "b", **options)
    make(a)
    return a, b


def samples(c: Cell):
    with np.load(c.folder / "samples.npz") as file:
        return file["arr_0"], file["arr_1"]


def same_files(a: Cell, b: Cell) -> bool:
    """Shards and samples byte for byte."""
    ours, theirs = (
        {p.relative_to(c.folder): p.read_bytes() for p in c.folder.rglob("*.npz")} for c in (a, b)
    )
    return ours == theirs


def leftovers(c: Cell):
    return [p for p in c.folder.rglob("*") if p.is_file() and p.name.startswith(".")]


def difference(a: Cell, b: Cell):
    """Of pixels: the last bit of a float may cross a boundary of uint8."""
    return np.abs(samples(a)[0].astype(int) - samples(b)[0])


def test_outputs(tmp_path):
    c = cell(tmp_path)
    make(c)
    images, labels = samples(c)
    assert (images.shape, images.dtype, labels.shape) == ((50, 6, 5, 1), np.uint8, (50,))
    manifest = read_manifest(c.folder)
    assert manifest["complete"] and manifest["seconds"] > 0
    assert (manifest["nfe"], manifest["num_samples"]) == (10, 50)
    assert manifest["config"] == c.config
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert Image.open(c.folder / "grid.png").size == (8 * 7 + 2, 7 * 8 + 2)
    assert leftovers(c) == []


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_pixels_do_not_depend_on_batch_or_shard_size(tmp_path, batch_size):
    a, b = pair(tmp_path, batch_size=batch_size, shard_size=50)
    make(b)
    assert difference(a, b).max() <= 1
    assert (difference(a, b) > 0).mean() < 0.01
    assert np.array_equal(samples(a)[1], samples(b)[1])


def test_a_shard_holds_nothing_that_differs_from_run_to_run(tmp_path):
    a, b = pair(tmp_path, batch_size=5)
    make(b)
    assert same_files(a, b)
    facts = read_facts(a, 0)
    assert set(facts) == {"seconds", "samples", "worker", "device", "memory"}
    assert facts["samples"] == 16


def test_interrupted_and_resumed_equals_undisturbed(tmp_path):
    a, b = pair(tmp_path)
    interrupted(b)
    assert len(list(b.folder.glob("shards/*.npz"))) == 2  # at most one shard is lost
    assert not (b.folder / "samples.npz").exists()
    assert read_manifest(b.folder)["complete"] is False
    # What killed processes leave is removed when the folder is complete.
    (b.folder / "shards" / ".part-0123abcd-shard-00002.npz").write_bytes(b"half")
    rest = CountingNetwork()
    make(b, network=rest)
    assert rest.calls == 10 * 4  # two shards: 16 = 7+7+2 and 2 samples
    assert same_files(a, b) and leftovers(b) == []


@pytest.mark.parametrize("lost", ["nothing", "shards", "samples.npz", "manifest.json"])
def test_what_is_complete_calls_no_network_again(tmp_path, lost, capsys):
    """Shards may be deleted to save space; a damaged file is made again from the shards."""
    c = cell(tmp_path)
    make(c)
    before = {p.name: p.read_bytes() for p in c.folder.iterdir() if p.is_file()}
    written = (c.folder / "samples.npz").stat().st_mtime_ns
    if lost == "shards":
        shutil.rmtree(c.folder / "shards")
    elif lost != "nothing":
        (c.folder / lost).write_bytes(before[lost][:-100] if lost == "samples.npz" else b"{")
    again = CountingNetwork()
    assert make(c, network=again) is True
    assert again.calls == 0
    assert {p.name: p.read_bytes() for p in c.folder.iterdir() if p.is_file()} == before
    if lost in ("nothing", "shards"):
        assert (c.folder / "samples.npz").stat().st_mtime_ns == written
        with pytest.raises(ValueError, match="another config"):
            make(cell(tmp_path, steps=11))
    said = capsys.readouterr().out
    assert ("manifest.json is damaged: writing it anew" in said) == (lost == "manifest.json")


def test_growing_keeps_the_first_samples_and_fewer_is_no_work(tmp_path):
    a = cell(tmp_path / "a")
    make(a)
    for n in (20, 50):
        make(cell(tmp_path / "b", n=n))
    b, fewer = cell(tmp_path / "b", n=20), CountingNetwork()
    assert np.array_equal(samples(a)[0], samples(b)[0])
    make(b, network=fewer)
    assert fewer.calls == 0
    assert len(samples(b)[0]) == 50  # nothing is thrown away


def test_a_tree_of_cells_equals_cells_alone_and_shares_calls(tmp_path):
    together = [cell(tmp_path / "tree", name, n=32, batch_size=16) for name in PLANS]
    counter = CountingNetwork()
    make(*together, network=counter)
    assert counter.calls == 2 * (4 * 10 - sum(t >= 400 for t in GRID))
    for name, c in zip(PLANS, together, strict=True):
        alone = cell(tmp_path / "alone", name, n=32, batch_size=16)
        make(alone)
        assert same_files(c, alone), name


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_shards_and_give_the_same_samples(tmp_path, world):
    one, many = pair(tmp_path)
    calls = []
    for rank in reversed(range(world)):
        counter = CountingNetwork()
        make(many, network=counter, rank=rank, world=world)
        calls.append(counter.calls)
    assert min(calls) > 0
    assert same_files(one, many)


def test_generate_says_whether_the_folder_is_complete(tmp_path):
    def parts(n: int) -> list[bool]:
        return [make(cell(tmp_path, n=n), rank=rank, world=2) for rank in (0, 1, 0)]

    assert parts(50) == [False, True, True]
    # Growing: the short last shard (48, 49) belongs to rank 1, new ones to both.
    assert parts(96) == [False, True, True]
    alone = cell(tmp_path / "alone", n=96)
    make(alone)
    assert same_files(cell(tmp_path), alone)


def test_shards_that_another_process_made_since_are_not_made_again(tmp_path):
    alone, shared = cell(tmp_path / "alone"), cell(tmp_path / "shared")
    make(alone)
    shards = []

    def second(cells, k):
        shards.append(k)
        if len(shards) == 1:
            failing = CountingNetwork(fail_at=2 * 16)
            with pytest.raises(KeyboardInterrupt):
                make(shared, network=failing, watch=lambda cells, k: shards.append(k))

    counter = CountingNetwork()
    make(shared, network=counter, watch=second)
    assert shards == [0, 1, 2, 3]
    assert counter.calls < 4 * 3 * 10
    assert same_files(alone, shared) and leftovers(shared) == []


# --- refusals and damages ------------------------------------------------------------------------


def test_another_config_is_refused_by_its_first_difference(tmp_path):
    make(cell(tmp_path, steps=10))
    with pytest.raises(ValueError, match=r"another config \(steps is 10 there, 11 here\).*out=DIR"):
        make(cell(tmp_path, steps=11))
    with pytest.raises(ValueError, match="shard_size=16"):
        make(cell(tmp_path, n=60, shard_size=20, steps=10))


def test_shards_of_another_config_are_never_adopted(tmp_path):
    c, other, foreign = cell(tmp_path), cell(tmp_path, steps=11), cell(tmp_path / "b", "ddim")
    make(c)
    for spoil in (lambda: c.manifest.write_text("{"), c.manifest.unlink):
        spoil()  # now only the shards know what they are
        with pytest.raises(ValueError, match=r"shard-00000\.npz is of another config"):
            make(other)
    make(foreign)
    (foreign.folder / "samples.npz").unlink()
    c.shard(1).replace(foreign.shard(1))
    with pytest.raises(ValueError, match=r"shard-00001\.npz is of another config"):
        make(foreign)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other file"])
def test_damaged_shard_is_noticed_and_made_again(tmp_path, damage, capsys):
    a, b = pair(tmp_path)
    interrupted(b)
    whole = b.shard(1).read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 0xFF]) + whole[301:]
    damages = {"cut": whole[: len(whole) // 2], "flip": flipped, "empty": b""}
    b.shard(1).write_bytes(damages.get(damage, b"not a zip file"))
    make(b)
    assert re.search(r"00001\.npz is damaged \(.+\): sampling it again", capsys.readouterr().out)
    assert same_files(a, b)


def test_any_altered_byte_is_noticed_or_harmless(tmp_path):
    """A zip file has bytes that say it is encrypted, or compressed in unheard-of ways."""
    c = cell(tmp_path, n=5)
    make(c)
    whole, expected = c.shard(0).read_bytes(), read_shard(c, 0)
    for place in range(len(whole)):
        for mask in (0xFF, 0x01):
            altered = bytes([whole[place] ^ mask])
            c.shard(0).write_bytes(whole[:place] + altered + whole[place + 1 :])
            shard = read_shard(c, 0)
            if shard is not None:
                assert sorted(shard) == sorted(expected)
                assert all(np.array_equal(shard[name], expected[name]) for name in expected)


def test_full_disk_leaves_nothing_half_written_and_resumes(tmp_path):
    """A file-size limit stands for the full disk: the write fails with OSError."""
    c, other = (cell(tmp_path / x, n=300, shard_size=300, batch_size=100) for x in "ab")
    make(other)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            make(c)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(c.folder.rglob("*.npz")) == [] and leftovers(c) == []
    make(c)
    assert same_files(c, other)


def test_samples_that_are_not_finite_are_reported_with_their_ids(tmp_path):
    c = cell(tmp_path)
    labels = labels_of(c, backbone(), range(7)).tolist()
    bad = [i for i, label in enumerate(labels) if label == labels[4]]
    with pytest.raises(ValueError, match=re.escape(f"samples {bad} are not finite")):
        make(c, network=CountingNetwork(nan_label=labels[4]))
    assert not list(c.folder.glob("shards/*"))


@pytest.mark.parametrize("config", [{"seed": -1}, {"seed": 1.5}, {"label": 10}, {"label": True}])
def test_bad_settings_are_refused_before_the_folder_is_claimed(tmp_path, config):
    with pytest.raises(ValueError, match=r"seed|label"):
        make(cell(tmp_path, **config))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["num_samples", "batch_size", "shard_size"])
def test_sizes_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        Size(**{"num_samples": 4, field: 0})


# --- labels and guidance -------------------------------------------------------------------------


def labels(ids, label=None, **model):
    return labels_of(cell(ROOT, seed=3, label=label), backbone(**model), ids)


def test_labels_are_a_function_of_seed_and_id():
    ids = range(100, 400)
    assert torch.equal(labels(ids)[50:60], labels(range(150, 160)))
    assert set(labels(ids).tolist()) == set(range(10))
    assert labels(ids, 7).unique().tolist() == [7]
    assert labels(range(8, 13), "balanced").tolist() == [8, 9, 0, 1, 2]
    assert labels(ids, num_classes=None) is None
    with pytest.raises(ValueError, match=r"0\.\.9"):
        labels(ids, 10)
    with pytest.raises(ValueError, match="unconditional"):
        labels(ids, 1, num_classes=None)


def test_labels_of_a_model_with_prompts_are_their_indices():
    prompts = tuple("abcdefghij")
    assert labels(range(4, 7), prompts=prompts).tolist() == [4, 5, 6]
    assert labels(range(8, 13), "balanced", prompts=prompts).tolist() == [8, 9, 0, 1, 2]
    assert labels(range(8, 13), 2, prompts=prompts).tolist() == [2] * 5
    with pytest.raises(ValueError, match="there are 10 prompts for 11 samples"):
        labels(range(8, 11), prompts=prompts)


class Pull:
    """Guidance that pulls every sample towards its label's brightness."""

    facts = MappingProxyType({"name": "pull", "scale": 2.0})

    def gradient(self, labels):
        return lambda x, t: 2.0 * ((labels[:, None, None, None] / 5 - 1) - x)


def test_guidance_steers_every_sample_by_its_own_label(tmp_path):
    correlations = []
    for folder, guidance in (("a", Pull()), ("b", None)):
        c = cell(tmp_path / folder)
        generate([c], backbone(guidance=guidance))
        images, y = samples(c)
        correlations.append(np.corrcoef(images.reshape(50, -1).mean(1), y)[0, 1])
    assert correlations[0] > correlations[1] + 0.2


# --- memory --------------------------------------------------------------------------------------


class SmallDevice(CountingNetwork):
    """A network on a device whose memory holds `room` samples, and only two from some call on."""

    def __init__(self, room: int, shrinks_at: int = -1):
        super().__init__()
        self.room, self.shrinks_at, self.sizes = room, shrinks_at, []

    def __call__(self, x, t, y):
        if self.calls == self.shrinks_at:
            self.room = 2
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(len(x))
        return super().__call__(x, t, y)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(tmp_path, capsys):
    (a, b), small = pair(tmp_path, batch_size=16), SmallDevice(room=3)
    make(b, network=small)
    assert set(small.sizes) == {2}  # 16, 8, 4, 2: and not tried again in later shards
    said = capsys.readouterr().out
    assert said.count("out of memory") == 3
    assert "out of memory with batch_size=4: going on with 2" in said
    assert difference(a, b).max() <= 1


def test_out_of_memory_in_the_middle_of_a_shard_keeps_its_first_batches(tmp_path):
    (a, b), filling = pair(tmp_path, batch_size=4), SmallDevice(room=4, shrinks_at=20)
    make(b, network=filling)
    assert filling.sizes[:20] == [4] * 20
    assert set(filling.sizes[20:]) == {2}
    assert difference(a, b).max() <= 1


def test_too_little_memory_for_one_sample_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="too little memory for a batch of one: use a lower"):
        make(cell(tmp_path), network=SmallDevice(room=0))


MEMORY = """
import resource, sys, torch
from pathlib import Path
from experiments.cells import Cell, Size
from experiments.generate import generate
from files.media import Images
from models.backbone import Backbone, to_uint8
from sampling import Schedule, skipped, timesteps
torch.set_num_threads(1)
conv = torch.nn.Conv2d(3, 3, 1)
model = Backbone(lambda x, t, y: (conv(x), None), Schedule.linear(), (3, 64, 64), 10, True, "", to_uint8, Images())
plan = skipped(model.schedule, timesteps(1000, 2))
for n in (512, 5000):
    size = Size(n, 64, 256)
    generate([Cell(plan, Path(sys.argv[1], str(n)), {"seed": 0, "label": None}, size)], model)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """Peak of a fresh process with a tiny network: after 512 images, and after 5,000 (61 MB)."""
    args = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert (tmp_path / "5000" / "samples.npz").stat().st_size > 60e6
    assert many - few < 25  # MiB, of 59 that samples.npz has
