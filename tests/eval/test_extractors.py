"""Extractors: what they accept, what they return, and what they say when they cannot work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_metrics import refused

from eval import networks
from eval.classifiers import DigitsExtractor
from eval.extractors import InceptionExtractor, extractor_named
from models.digits.networks import DigitsClassifier


@pytest.fixture
def weights(tmp_path):
    """An untrained classifier whose batch-norm statistics differ from the initial ones."""
    torch.manual_seed(0)
    net = DigitsClassifier()
    net(torch.randn(64, 1, 28, 28))
    save_file(net.state_dict(), tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


def digits(n: int):
    return np.random.default_rng(0).integers(256, size=(n, 28, 28, 1), dtype=np.uint8)


def test_classifier_shapes_and_head():
    net = DigitsClassifier().eval()
    features, logits = net(torch.randn(5, 1, 28, 28))
    assert features.shape == (5, 64) and logits.shape == (5, 10)
    torch.testing.assert_close(net.head(features), logits)
    assert features.min() > -0.279  # SiLU's minimum: the features are those after it
    net.train()
    assert not torch.equal(net(torch.zeros(5, 1, 28, 28))[1], logits)
    assert sum(p.numel() for p in net.parameters()) < 100_000


def test_digits_extractor_is_the_classifier_on_scaled_images(weights):
    extractor = DigitsExtractor(weights)
    images = digits(7)
    got = extractor(images, batch_size=3)
    net = DigitsClassifier()
    net.load_state_dict(load_file(weights))
    x = torch.from_numpy(images[..., 0].astype(np.float32) / 127.5 - 1)[:, None]
    with torch.no_grad():
        features, logits = net.eval()(x)
    np.testing.assert_allclose(got.features, features.numpy(), atol=1e-5)
    np.testing.assert_allclose(got.logits, logits.numpy(), atol=1e-5)
    assert got.features.dtype == got.logits.dtype == np.float32
    assert got.features.shape == (7, extractor.num_features)
    assert got.logits.shape == (7, extractor.num_logits)


def test_grey_images_in_three_channels(weights):
    extractor = DigitsExtractor(weights)
    images = digits(4)
    coloured = np.repeat(images, 3, axis=3)
    np.testing.assert_array_equal(extractor(images).features, extractor(coloured).features)
    coloured[2, 5, 5, 1] ^= 1
    refused("need grey images, got colours", extractor, coloured)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 1), np.uint8), r"need 28 x 28 images, got \(32, 32, 1\)"),
        (np.zeros((2, 28, 28, 2), np.uint8), r"1 or 3 channels, got uint8 \[2, 28, 28, 2\]"),
        (np.zeros((2, 28, 28), np.uint8), r"got uint8 \[2, 28, 28\]"),
        (np.zeros((2, 28, 28, 1), np.float32), "must be uint8"),
        (np.zeros((0, 28, 28, 1), np.uint8), "no images"),
    ],
)
def test_wrong_images(weights, images, message):
    refused(message, DigitsExtractor(weights), images)


def test_missing_weights_name_the_remedy(tmp_path):
    remedy = (
        "none.safetensors is missing: make it with "
        "`python -m scripts.train model=digits what=classifier`"
    )
    with pytest.raises(FileNotFoundError, match=remedy):
        DigitsExtractor(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none.pth is missing: .* fetches https://"):
        InceptionExtractor(tmp_path / "none.pth")


def test_inception_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    monkeypatch.setattr(
        networks, "INCEPTION", replace(networks.INCEPTION, url="http://[::1]:9/i.pth")
    )
    with pytest.raises(FileNotFoundError, match=r"cannot fetch http:.*put it there as") as info:
        InceptionExtractor()
    assert "\n" not in str(info.value) and str(tmp_path / "i.pth") in str(info.value)


def test_pixels_are_the_pixels():
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    seen = extractor_named("pixels")(images)
    np.testing.assert_allclose(seen.features, images.reshape(2, -1) / 127.5 - 1, atol=1e-6)
    assert seen.logits is None


def test_extractors_by_name(weights):
    mine = extractor_named("digits", weights=weights)
    assert mine.name == "digits" and mine.digest == DigitsExtractor(weights).digest
    assert extractor_named("digits", weights=None).digest != mine.digest  # other weights: ours
    assert extractor_named("pixels", weights=weights).name == "pixels"  # takes none
    refused("unknown extractor 'vgg': choose one of digits, cifar10, ", extractor_named, "vgg")
    refused("no extractor takes metrics.wieghts", extractor_named, "digits", wieghts=weights)


def test_extractors_need_no_part_of_the_commands_or_models():
    """They go where there is no Hydra, diffusers or embedded model."""
    code = "import sys, eval.extractors, eval.reference; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    heavy = {"hydra", "omegaconf", "diffusers", "matplotlib", "timm", "transformers", "open_clip"}
    assert not loaded & heavy
    assert not {"models.digits", "models.cifar10", "eval.classifiers"} & set(ran.stdout.split())
