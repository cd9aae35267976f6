"""Generation: shards, resuming, trees, and that sample i is a function of (seed, i) alone."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.cells import Job, Size
from experiments.folder import _read_shard, read_manifest
from experiments.generate import batch_labels, generate
from files.images import export_png, save_grid
from files.whole import remove_partial, write_atomic
from models.backbone import Backbone, to_uint8
from sampling import Schedule, ddim, ddpm, mix, skipped, timesteps

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = Schedule.linear()
GRID = timesteps(1000, 10)
PLANS = {
    "skipped": skipped(SCHEDULE, GRID),
    "mix": mix(SCHEDULE, GRID, cutoff=400),
    "ddim": ddim(SCHEDULE, GRID),
    "ddpm": ddpm(SCHEDULE, GRID),
}


class CountingDenoiser:
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


def backbone(denoiser=None) -> Backbone:
    return Backbone(
        denoiser=denoiser or CountingDenoiser(),
        schedule=SCHEDULE,
        shape=(1, 6, 5),
        num_classes=10,
        clip=True,
        sha256="0" * 64,
        decode=to_uint8,
    )


def job(folder, name="mix", **config) -> Job:
    return Job(PLANS[name], folder / name, {"sampler": name, "seed": 5, **config})


def samples(j: Job):
    with np.load(j.folder / "samples.npz") as file:
        return file["arr_0"], file["arr_1"]


def make(jobs, num_samples=50, denoiser=None, batch_size=7, shard_size=16, **options):
    options = {"seed": 5, **options}
    generate(jobs, backbone(denoiser), Size(num_samples, batch_size, shard_size), **options)


def test_outputs(tmp_path):
    j = job(tmp_path)
    make([j])
    images, labels = samples(j)
    assert images.shape == (50, 6, 5, 1)
    assert images.dtype == np.uint8
    assert labels.shape == (50,)
    manifest = read_manifest(j.folder)
    assert manifest["complete"]
    assert manifest["nfe"] == 10
    assert manifest["config"] == j.config
    assert manifest["seconds"] > 0
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert Image.open(j.folder / "grid.png").size == (8 * 7 + 2, 7 * 8 + 2)
    leftovers = [p for p in j.folder.rglob("*") if ".part" in p.name]
    assert not leftovers


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_pixels_do_not_depend_on_batch_or_shard_size(tmp_path, batch_size):
    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a], batch_size=3, shard_size=50)
    make([b], batch_size=batch_size, shard_size=16)
    difference = np.abs(samples(a)[0].astype(int) - samples(b)[0].astype(int))
    assert difference.max() <= 1  # the last bit of a float may cross a boundary of uint8
    assert (difference > 0).mean() < 0.01
    assert np.array_equal(samples(a)[1], samples(b)[1])


def test_interrupted_and_resumed_equals_undisturbed(tmp_path):
    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a])
    fail = CountingDenoiser(fail_at=77)  # within the third shard
    with pytest.raises(KeyboardInterrupt):
        make([b], denoiser=fail)
    assert len(list(b.folder.glob("shards/*.npz"))) == 2  # at most one shard is lost
    assert not (b.folder / "samples.npz").exists()
    assert read_manifest(b.folder)["complete"] is False
    rest = CountingDenoiser()
    make([b], denoiser=rest)
    assert rest.calls == 10 * 4  # two shards: 16 = 7+7+2 and 2 samples
    assert all(np.array_equal(x, y) for x, y in zip(samples(a), samples(b), strict=True))


def test_second_run_calls_no_network(tmp_path):
    j = job(tmp_path)
    make([j])
    written = (j.folder / "samples.npz").stat().st_mtime_ns
    again = CountingDenoiser()
    make([j], denoiser=again)
    assert again.calls == 0
    assert (j.folder / "samples.npz").stat().st_mtime_ns == written


def test_growing_keeps_the_first_samples_and_fewer_is_no_work(tmp_path):
    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a], num_samples=50)
    make([b], num_samples=20)
    make([b], num_samples=50)
    assert np.array_equal(samples(a)[0], samples(b)[0])
    fewer = CountingDenoiser()
    make([b], num_samples=20, denoiser=fewer)
    assert fewer.calls == 0
    assert len(samples(b)[0]) == 50  # nothing is thrown away


def test_tree_of_jobs_equals_jobs_alone_and_shares_calls(tmp_path):
    together = {name: job(tmp_path / "tree", name) for name in PLANS}
    counter = CountingDenoiser()
    make(list(together.values()), denoiser=counter, batch_size=16, num_samples=32)
    shared = sum(t >= 400 for t in GRID)
    assert counter.calls == 2 * (4 * 10 - shared)
    for name, j in together.items():
        alone = job(tmp_path / "alone", name)
        make([alone], batch_size=16, num_samples=32)
        assert np.array_equal(samples(j)[0], samples(alone)[0]), name


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_shards_and_give_the_same_samples(tmp_path, world):
    one, many = job(tmp_path / "one"), job(tmp_path / "many")
    make([one])
    calls = []
    for rank in reversed(range(world)):
        counter = CountingDenoiser()
        make([many], denoiser=counter, rank=rank, world=world)
        calls.append(counter.calls)
    assert min(calls) > 0
    assert np.array_equal(samples(one)[0], samples(many)[0])


def test_another_config_is_refused_by_its_first_difference(tmp_path):
    make([job(tmp_path, steps=10)])
    with pytest.raises(ValueError, match=r"another config \(steps is 10 there, 11 here\).*out=DIR"):
        make([job(tmp_path, steps=11)])
    with pytest.raises(ValueError, match="shard_size=16"):
        make([job(tmp_path, steps=10)], num_samples=60, shard_size=20)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other file"])
def test_damaged_shard_is_noticed_and_made_again(tmp_path, damage, capsys):
    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a])
    with pytest.raises(KeyboardInterrupt):
        make([b], denoiser=CountingDenoiser(fail_at=77))
    shard = b.shard(1)
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[300] ^= 0xFF
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"not a zip file")
    shard.write_bytes(content)
    make([b])
    assert "is damaged: sampling it again" in capsys.readouterr().out
    assert np.array_equal(samples(a)[0], samples(b)[0])


def test_any_altered_byte_is_noticed_or_harmless(tmp_path):
    """A zip file has bytes that say it is encrypted, or compressed in unheard-of ways."""
    j = job(tmp_path)
    make([j], num_samples=5)
    whole, size = j.shard(0).read_bytes(), Size(5, 7, 16)
    expected = _read_shard(j, 0, size)
    for place in range(len(whole)):
        for mask in (0xFF, 0x01):
            j.shard(0).write_bytes(
                whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
            )
            found = _read_shard(j, 0, size)
            if found is not None:
                assert sorted(found) == sorted(expected)
                assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_damaged_manifest_costs_no_sample(tmp_path, capsys):
    j = job(tmp_path)
    make([j])
    before = json.loads(j.manifest.read_text())
    j.manifest.write_text("{")
    counter = CountingDenoiser()
    make([j], denoiser=counter)
    assert counter.calls == 0
    assert "manifest.json is damaged: writing it anew" in capsys.readouterr().out
    assert json.loads(j.manifest.read_text()) == before
    j.manifest.write_text("{")
    with pytest.raises(ValueError, match="is of another config"):
        make([job(tmp_path, steps=11)])


def test_a_complete_folder_stays_so_without_its_shards(tmp_path):
    """Which may be deleted to save space: samples.npz holds the same."""
    j = job(tmp_path)
    make([j])
    shutil.rmtree(j.folder / "shards")
    counter = CountingDenoiser()
    make([j], denoiser=counter)
    assert counter.calls == 0
    with pytest.raises(ValueError, match="another config"):
        make([job(tmp_path, steps=11)])


def test_two_processes_that_make_the_same_shards_share_them(tmp_path, monkeypatch, capsys):
    """The second one starts in the middle of the first one's work, from the other end."""
    alone, shared = job(tmp_path / "alone"), job(tmp_path / "shared")
    make([alone])
    made = []

    def second(jobs, size, k):
        if not made:
            made.append(k)
            counter = CountingDenoiser(fail_at=2 * 16)
            with pytest.raises(KeyboardInterrupt):
                make([shared], denoiser=counter, watch=lambda jobs, size, k: made.append(k))

    counter = CountingDenoiser()
    make([shared], denoiser=counter, watch=second)
    assert made == [0, 3]
    assert counter.calls == 3 * 3 * 10  # the last shard, of two samples, was the second one's
    assert "is being sampled by another process: sharing the work" in capsys.readouterr().out
    assert same_files(alone, shared)
    assert leftovers(shared) == []


def same_files(a, b):
    """Shards and samples byte for byte."""
    names = [sorted(p.name for p in j.folder.rglob("*.npz")) for j in (a, b)]
    return names[0] == names[1] and all(
        path.read_bytes() == (b.folder / path.relative_to(a.folder)).read_bytes()
        for path in a.folder.rglob("*.npz")
    )


def leftovers(j):
    return [p for p in j.folder.rglob(".*") if p.is_file()]


def test_what_killed_processes_left_is_removed_when_the_folder_is_complete(tmp_path):
    j = job(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make([j], denoiser=CountingDenoiser(fail_at=77))
    (j.folder / "shards" / ".part-0123abcd-shard-00002.npz").write_bytes(b"half")
    (j.folder / ".lock-0-of-1").touch()
    make([j])
    assert leftovers(j) == []


def test_a_writer_whose_half_written_file_was_removed_writes_it_again(tmp_path):
    written = []

    def write(path):
        path.write_text("whole")
        if not written:
            written.append(path)
            remove_partial(tmp_path)

    write_atomic(tmp_path / "file.txt", write)
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "whole"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_in_the_middle_of_a_zip_file_stays_one(tmp_path, stop):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            handle = archive.open("a", "w")
            handle.write(b"half")
            raise stop

    with pytest.raises(type(stop)):
        write_atomic(tmp_path / "a.npz", write)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_holds_nothing_that_differs_from_run_to_run(tmp_path):
    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a])
    make([b], batch_size=5)
    assert same_files(a, b)
    facts = json.loads(a.facts(0).read_text())
    assert set(facts) == {"seconds", "samples", "worker", "device", "memory"}
    assert facts["samples"] == 16


def test_full_disk_leaves_nothing_half_written_and_resumes(tmp_path):
    """A file-size limit stands for the full disk: the write fails with OSError."""
    j, other = job(tmp_path / "a"), job(tmp_path / "b")
    make([other], num_samples=300, shard_size=300, batch_size=100)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            make([j], num_samples=300, shard_size=300, batch_size=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(j.folder.rglob("*.npz")) == []
    assert [p.name for p in j.folder.rglob(".part*")] == []
    make([j], num_samples=300, shard_size=300, batch_size=100)
    assert np.array_equal(samples(j)[0], samples(other)[0])


def test_samples_that_are_not_finite_are_reported_with_their_ids(tmp_path):
    j = job(tmp_path)
    labels = batch_labels(5, range(7), backbone(), None).tolist()
    bad = [i for i, label in enumerate(labels) if label == labels[4]]
    with pytest.raises(ValueError, match=re.escape(f"samples {bad} are not finite")):
        make([j], denoiser=CountingDenoiser(nan_label=labels[4]))
    assert not list(j.folder.glob("shards/*"))


def test_labels():
    ids = range(100, 400)
    model = backbone()
    labels = batch_labels(3, ids, model, None)
    assert torch.equal(labels[50:60], batch_labels(3, range(150, 160), model, None))
    assert set(labels.tolist()) == set(range(10))
    assert batch_labels(3, ids, model, 7).unique().tolist() == [7]
    assert batch_labels(3, range(8, 13), model, "balanced").tolist() == [8, 9, 0, 1, 2]
    unconditional = dataclasses.replace(model, num_classes=None)
    assert batch_labels(3, ids, unconditional, None) is None
    with pytest.raises(ValueError, match=r"0\.\.9"):
        batch_labels(3, ids, model, 10)
    with pytest.raises(ValueError, match="unconditional"):
        batch_labels(3, ids, unconditional, 1)


def test_labels_of_a_model_with_prompts_are_their_indices():
    model = dataclasses.replace(backbone(), prompts=tuple("abcdefghij"))
    assert batch_labels(3, range(4, 7), model, None).tolist() == [4, 5, 6]
    assert batch_labels(3, range(8, 13), model, "balanced").tolist() == [8, 9, 0, 1, 2]
    assert batch_labels(3, range(8, 13), model, 2).tolist() == [2] * 5
    with pytest.raises(ValueError, match="there are 10 prompts for 11 samples"):
        batch_labels(3, range(8, 11), model, None)


@pytest.mark.parametrize("field", ["num_samples", "batch_size", "shard_size"])
def test_sizes_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        Size(**{"num_samples": 4, field: 0})


def test_png_export_is_lossless_and_named_by_id(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    export_png(tmp_path, images)
    names = sorted(p.name for p in (tmp_path / "png").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / names[2])), images[2])


def test_grid_shows_every_image_in_order(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    save_grid(images, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert [sheet[4 + 6 * (i // 3), 4 + 6 * (i % 3)] for i in range(5)] == [0, 1, 2, 3, 4]


def test_manifest_is_plain_json(tmp_path):
    j = job(tmp_path)
    make([j], num_samples=3)
    assert json.loads(j.manifest.read_text())["num_samples"] == 3


def test_shards_of_another_config_are_never_adopted(tmp_path):
    j, other = job(tmp_path, steps=10), job(tmp_path, steps=11)
    make([j])
    j.manifest.unlink()  # now only the shards know what they are
    with pytest.raises(ValueError, match=r"shard-00000\.npz is of another config"):
        make([other])
    foreign = job(tmp_path / "b", "ddim")
    make([foreign])
    (foreign.folder / "samples.npz").unlink()
    job(tmp_path, steps=10).shard(1).replace(foreign.shard(1))
    with pytest.raises(ValueError, match=r"shard-00001\.npz is of another config"):
        make([foreign])


def test_damaged_samples_file_is_joined_again(tmp_path):
    j = job(tmp_path)
    make([j])
    before = (j.folder / "samples.npz").read_bytes()
    (j.folder / "samples.npz").write_bytes(before[:-100])
    again = CountingDenoiser()
    make([j], denoiser=again)
    assert again.calls == 0  # from the shards, without the network
    assert len(samples(j)[0]) == 50


def test_bad_settings_are_refused_before_the_folder_is_claimed(tmp_path):
    for options in ({"seed": -1}, {"seed": 1.5}, {"label": 10}, {"label": True}):
        with pytest.raises(ValueError, match=r"seed|label"):
            make([job(tmp_path)], **options)
    assert list(tmp_path.iterdir()) == []


def test_generate_says_whether_the_folder_is_complete(tmp_path):
    def part(rank: int, num_samples: int) -> bool:
        size = Size(num_samples, 7, 16)
        return generate([job(tmp_path)], backbone(), size, seed=5, rank=rank, world=2)

    assert part(0, 50) is False
    assert part(1, 50) is True
    assert part(0, 50) is True
    # Growing: the short last shard (48, 49) belongs to rank 1, new ones to both.
    assert part(0, 96) is False
    assert part(1, 96) is True
    alone = job(tmp_path / "alone")
    make([alone], num_samples=96)
    assert np.array_equal(samples(job(tmp_path))[0], samples(alone)[0])


# --- out of memory, guidance, memory ---------------------------------------------------------------


class SmallDevice(CountingDenoiser):
    """A network on a device whose memory holds `room` samples."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.sizes = room, []

    def __call__(self, x, t, y):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(len(x))
        return super().__call__(x, t, y)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(tmp_path, capsys):
    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a])
    small = SmallDevice(room=3)
    make([b], denoiser=small, batch_size=16)
    assert set(small.sizes) == {2}  # 16, 8, 4, 2: and not tried again in later shards
    said = capsys.readouterr().out
    assert said.count("out of memory") == 3
    assert "out of memory with batch_size=4: going on with 2" in said
    for ours, theirs in zip(samples(a), samples(b), strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_out_of_memory_in_the_middle_of_a_shard_keeps_its_first_batches(tmp_path):
    class Filling(SmallDevice):
        def __call__(self, x, t, y):
            if self.calls == 20:
                self.room = 2
            return super().__call__(x, t, y)

    a, b = job(tmp_path / "a"), job(tmp_path / "b")
    make([a], batch_size=4)
    filling = Filling(room=4)
    make([b], denoiser=filling, batch_size=4)
    assert filling.sizes[:20] == [4] * 20
    assert set(filling.sizes[20:]) == {2}
    assert np.abs(samples(a)[0].astype(int) - samples(b)[0].astype(int)).max() <= 1


def test_too_little_memory_for_one_sample_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="too little memory for a batch of one: use a lower"):
        make([job(tmp_path)], denoiser=SmallDevice(room=0))


class Pull:
    """Guidance that pulls every sample towards its label's brightness."""

    facts = MappingProxyType({"name": "pull", "scale": 2.0})

    def gradient(self, labels):
        return lambda x, t: 2.0 * ((labels[:, None, None, None] / 5 - 1) - x)


def test_guidance_steers_every_sample_by_its_own_label(tmp_path):
    guided, plain = job(tmp_path / "a"), job(tmp_path / "b")
    model = dataclasses.replace(backbone(), guidance=Pull())
    generate([guided], model, Size(50, 7, 16), seed=5)
    make([plain])
    images, labels = samples(guided)
    correlation = np.corrcoef(images.reshape(50, -1).mean(1), labels)[0, 1]
    assert correlation > np.corrcoef(samples(plain)[0].reshape(50, -1).mean(1), labels)[0, 1] + 0.2


MEMORY = """
import json, resource, sys, torch
from pathlib import Path
from models.backbone import Backbone, to_uint8
from sampling import Schedule, skipped, timesteps
from files.whole import remove_partial, write_atomic
from experiments.cells import Job, Size
from experiments.generate import generate
torch.set_num_threads(1)
conv = torch.nn.Conv2d(3, 3, 1)
model = Backbone(lambda x, t, y: (conv(x), None), Schedule.linear(), (3, 32, 32), 10, True, "", to_uint8)
job = Job(skipped(model.schedule, timesteps(1000, 2)), Path(sys.argv[1]), {"label": None})
generate([job], model, Size(int(sys.argv[2]), 64, 256), seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """Peak of a fresh process with a tiny network: 20,000 images (61 MB) against 512."""

    def peak(n: int) -> float:
        args = [sys.executable, "-c", MEMORY, str(tmp_path / str(n)), str(n)]
        done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True)
        return float(done.stdout)

    few, many = peak(512), peak(20_000)
    assert (tmp_path / "20000" / "samples.npz").stat().st_size > 61e6
    assert many - few < 15  # MiB
