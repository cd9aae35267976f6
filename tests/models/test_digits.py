"""The embedded model: data, network wrapper, loading."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

from models.backbone import ImageNetwork, to_uint8
from models.digits.backbone import load
from models.digits.data import HERE, load_images, to_model_range
from models.digits.networks import UNET, ExactNetwork
from models.patched import SLICE, InThreads, PatchUNet
from models.weights import has_bf16, load_weights
from sampling import SampleNoise, Schedule, ddim, run, skipped, timesteps


def test_splits_are_what_they_say():
    images, labels = load_images("all")
    assert images.shape == (10000, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).min() > 800
    train, held_out = load_images("train")[0], load_images("held_out")[0]
    reference, floor = load_images("reference")[0], load_images("floor")[0]
    assert (len(train), len(held_out), len(reference), len(floor)) == (9000, 1000, 4300, 4300)

    def rows(x):
        return {image.tobytes() for image in x}

    assert rows(train) | rows(held_out) == rows(images)
    assert not rows(train) & rows(held_out)
    assert not rows(reference) & rows(floor)
    for split in ("reference", "floor"):
        assert np.bincount(load_images(split)[1]).tolist() == [430] * 10
    with pytest.raises(ValueError, match="choose one of all, train"):
        load_images("test")


def test_patches_only_permute_pixels():
    """With a network that returns its input, the wrapper must return the image unmoved."""
    net = PatchUNet(**UNET)

    class Echo(torch.nn.Module):
        def forward(self, x, t, y):
            return torch.cat([x, 2 * x], dim=1)

    net.unet = Echo()
    for shape in ((2, 1, 28, 28), (2, 1, 26, 30)):  # the second needs padding
        x = torch.randn(shape)
        out = net(x, torch.zeros(2))
        torch.testing.assert_close(out[:, :1], x)
        torch.testing.assert_close(out[:, 1:], 2 * x)


def test_to_uint8_truncates_as_the_original():
    golden = np.load(GOLDEN / "to_uint8.npz")
    x = torch.from_numpy(golden["float_in"]).view(1, 1, 1, -1)
    assert np.array_equal(to_uint8(x).ravel(), golden["uint8_out"])


def test_pixels_survive_a_round_trip():
    images = load_images("held_out")[0][:50]
    assert np.abs(to_uint8(to_model_range(images))[..., 0].astype(int) - images).max() <= 1


def test_the_network_denoises_real_digits():
    """At t = 300 the trained network finds the noise far better than chance (1.0).

    With 2 or 8 heads, or attention in the new order, the same weights err by 0.030.
    """
    backbone = load()
    images, labels = load_images("held_out")
    x0, y = to_model_range(images[::10]), torch.from_numpy(labels[::10])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    a = backbone.schedule.abar(300)
    with torch.no_grad():
        eps, v = backbone.network(a**0.5 * x0 + (1 - a) ** 0.5 * noise, 300.0, y)
    assert (eps - noise).square().mean() < 0.028
    assert v is not None
    assert v.shape == x0.shape


def test_a_network_without_variance_gives_none():
    network = ImageNetwork(lambda x, t, y: x)
    assert network(torch.zeros(2, 1, 4, 4), 3.0, None)[1] is None


@pytest.mark.parametrize("t", [0, 1, 100, 500, 999])
def test_the_exact_denoiser_is_the_posterior_mean(t):
    """Bayes' rule image by image, in logarithms of densities, for the images of the label alone."""
    schedule = Schedule.linear()
    images, labels = load_images("floor")
    images, labels = images[::40], labels[::40]
    a = schedule.alpha_bar[t]
    y = torch.tensor([3, 7])
    x = torch.from_numpy(np.random.default_rng(t).normal(size=(2, 1, 28, 28)))
    x = (
        a**0.5 * to_model_range(images)[[np.flatnonzero(labels == k)[0] for k in y]]
        + (1 - a) ** 0.5 * x
    )
    eps, v = ExactNetwork(images, labels, schedule, "cpu")(x, float(t), y)
    assert v is None and eps.dtype == x.dtype
    for i in range(2):
        mine = to_model_range(images[labels == int(y[i])]).double()
        log = -(x[i] - a**0.5 * mine).square().sum((1, 2, 3)) / (2 * (1 - a))
        weights = (log - log.logsumexp(0)).exp()
        x_0 = (weights[:, None, None, None] * mine).sum(0)
        torch.testing.assert_close(
            eps[i], (x[i] - a**0.5 * x_0) / (1 - a) ** 0.5, rtol=1e-6, atol=1e-6
        )


def test_bf16_samples_are_near_those_of_fp32():
    """Ten ancestral steps: 99 of 100 pixels within 8 of 255 grey levels, the mean within 1."""
    images = {}
    for precision in ("fp32", "bf16"):
        model = load(precision=precision, channels_last=True)
        plan = skipped(model.schedule, timesteps(1000, 10))
        x = run(model.given(torch.arange(10)), plan, SampleNoise(0, range(10), model.shape))
        assert x.dtype == torch.float32
        images[precision] = model.decode(x).astype(int)
    off = np.abs(images["bf16"] - images["fp32"])
    assert 0 < off.mean() < 1 and np.quantile(off, 0.99) <= 8


def test_slices_in_threads_are_the_whole():
    """Two slices of which the last is shorter, and one, which all threads share."""
    before = torch.get_num_threads()
    net = load().network.net
    threads = InThreads(net, 2)
    for count in (SLICE + 3, 1):
        x, t, y = (
            torch.randn(count, 1, 28, 28),
            torch.full((count,), 300.0),
            torch.arange(count) % 10,
        )
        torch.testing.assert_close(threads(x, t, y), net(x, t, y))
    assert set(threads.pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    later = []  # a thread that begins afterwards has what it would have had
    thread = Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("capability", "said", "expected"),
    [
        ("AVX512", {"avx512_bf16": True}, True),
        ("AVX512", {"avx512_bf16": False}, False),
        ("AVX512", {}, False),
        ("AVX2", {"avx512_bf16": True}, False),
    ],
)
def test_bf16_is_for_cpus_that_multiply_it(monkeypatch, capability, said, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said, raising=False)
    assert has_bf16(torch.device("cpu")) is expected
    assert not has_bf16(torch.device("meta"))


def test_samples_of_the_exact_denoiser_are_its_images():
    backbone = load("exact")
    images, labels = load_images("floor")
    y = torch.arange(10)
    for builder in (ddim, skipped):
        plan = builder(backbone.schedule, timesteps(1000, 50))
        noise = SampleNoise(0, range(10), backbone.shape)
        samples = backbone.decode(run(backbone.given(y), plan, noise))
        for sample, label in zip(samples[..., 0], y, strict=True):
            far = np.abs(images[labels == int(label)].astype(int) - sample).max((1, 2))
            assert far.min() <= 1  # of 255 grey levels


def test_loading_errors_name_the_first_difference(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nope': use unet-1000"):
        load("nope")
    with pytest.raises(ValueError, match=r"unknown precision 'fp8': choose .*fp32.*bf16"):
        load(precision="fp8")
    with pytest.raises(ValueError, match=r"exact is no network: set model.precision=fp32"):
        load("exact", precision="bf16")
    weights = load_file(HERE / "unet-1000.safetensors")
    broken = dict(weights)
    broken["unet.input_blocks.0.0.bias"] = torch.zeros(7)
    save_file(broken, tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match=r"input_blocks.0.0.bias.*shape \[32\].*shape \[7\]"):
        load(str(tmp_path / "shape.safetensors"))
    del broken["unet.input_blocks.0.0.bias"]
    save_file(broken, tmp_path / "key.safetensors")
    with pytest.raises(ValueError, match=r"input_blocks.0.0.bias.*no such key"):
        load(str(tmp_path / "key.safetensors"))
    whole = (HERE / "unet-1000.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(PatchUNet(**UNET), tmp_path / "cut.safetensors")
