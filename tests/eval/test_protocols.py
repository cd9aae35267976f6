"""The three Inception protocols: ADM's, torch-fidelity's and clean-fid's, each as its owner does.

Weights are random stand-ins of the real architecture: the numbers mean nothing, agreement does.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from cleanfid import fid as clean_fid
from conftest import standin_inception
from omegaconf import OmegaConf
from PIL import Image
from standin_scorers import CleanInception
from test_metrics import refused
from torch.utils.data import Subset

from eval import networks
from eval.classifiers import DigitsExtractor
from eval.extractors import (
    CLEAN_MODES,
    CleanExtractor,
    InceptionExtractor,
    TorchFidelityExtractor,
    extractor_named,
)
from eval.reference import build_reference
from eval.scoring import Options, evaluate
from experiments.config import composed
from files.images import load_samples
from files.whole import file_sha256
from models.weights import state_digest

# clean-fid's network is a TorchScript file, which torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def pictures(n: int, seed: int, size: int = 40):
    """Smooth random colour images, which differ between seeds."""
    small = np.random.default_rng(seed).integers(256, size=(n, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size))) for x in small])


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return standin_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture(scope="module")
def extractor(inception):
    return extractor_named("inception", weights=inception)


# --- ADM -----------------------------------------------------------------------------------------


def test_one_pass_gives_pool_spatial_and_logits(extractor):
    """The spatial features against Mixed_6d's whole output: its 1x1 branch comes first."""
    outputs = []
    hook = extractor.net.Mixed_6d.register_forward_hook(lambda *args: outputs.append(args[2]))
    x = pictures(3, 0)
    x[2] = x[2, :, :, :1]  # grey
    seen = extractor(x, batch_size=2)
    hook.remove()
    assert (seen.features.shape, seen.logits.shape) == ((3, 2048), (3, 1008))
    assert seen.spatial.shape == (3, 2023)  # 17 x 17 x 7
    whole = torch.cat(outputs).numpy()  # [3, 768, 17, 17]
    for i, row, column, channel in [(0, 0, 0, 0), (1, 3, 16, 6), (2, 16, 9, 2)]:
        place = (row * 17 + column) * 7 + channel
        assert seen.spatial[i, place] == whole[i, channel, row, column]
    assert (seen.spatial >= 0).all()  # after ReLU
    assert seen.spatial.std() > 0
    expected = seen.features @ extractor.net.fc.weight.numpy().T  # without the bias
    np.testing.assert_allclose(seen.logits, expected, rtol=1e-3, atol=1e-4)
    grey = extractor(x[2:, :, :, :1]).features
    np.testing.assert_allclose(grey, seen.features[2:], rtol=1e-3, atol=1e-5)


def test_batches_and_memory_maps_give_the_same_features(extractor, tmp_path):
    images = pictures(3, 1)
    np.savez(tmp_path / "stored.npz", arr_0=images)
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=images)
    stored = load_samples(tmp_path / "stored.npz").images
    assert isinstance(stored, np.memmap)
    assert not isinstance(load_samples(tmp_path / "compressed.npz").images, np.memmap)
    np.testing.assert_array_equal(stored, images)
    a, b = extractor(stored, batch_size=3), extractor(images, batch_size=2)
    for ours, theirs in zip(a[:3], b[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


# --- torch-fidelity --------------------------------------------------------------------------


@pytest.fixture
def slim_vgg16(monkeypatch, tmp_path):
    """torchvision's VGG16 with an eighth of the channels: its 138 million weights take seconds.

    Its weights as a file, which torch-fidelity itself would fetch.
    """
    torch.manual_seed(1)
    layers = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    vgg16 = torchvision.models.VGG(torchvision.models.vgg.make_layers(layers))
    vgg16.classifier[0] = torch.nn.Linear(64 * 7 * 7, 4096)
    torch.save(vgg16.state_dict(), tmp_path / "vgg16.pth")
    module = "torch_fidelity.feature_extractor_vgg16"
    for source in ("torchvision_load_pretrained_vgg16", "torchvision.models.vgg16"):
        monkeypatch.setattr(f"{module}.{source}", lambda **kwargs: copy.deepcopy(vgg16))
    return tmp_path / "vgg16.pth"


def test_torch_fidelity_protocol_equals_torch_fidelity(inception, slim_vgg16, monkeypatch):
    """All its metrics by its own defaults, against ours through the whole of our evaluation."""
    source = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    monkeypatch.setattr(source, lambda url, **kwargs: torch.load(inception, weights_only=True))
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 0)  # no processes to load images
    x, y = pictures(12, 1), pictures(8, 2)
    a, b = (Subset(torch.from_numpy(z).permute(0, 3, 1, 2), range(len(z))) for z in (x, y))
    wanted = dict.fromkeys(("isc", "fid", "kid", "prc"), True) | {"kid_subset_size": 6}
    quiet = dict.fromkeys(("cuda", "cache", "verbose"), False)
    theirs = torch_fidelity.calculate_metrics(input1=a, input2=b, **wanted, **quiet)
    extractor = extractor_named("torch_fidelity", weights=inception, vgg16_weights=slim_vgg16)
    options = OmegaConf.to_container(composed("evaluate", "metrics=torch_fidelity").metrics.options)
    stated = Options.of({**options, "kid_subset_size": 6, "allow_few": True})
    ours = evaluate(extractor(x), build_reference("y", y, extractor), options=stated)
    names = {"is": "inception_score_mean", "fid": "frechet_inception_distance"}
    names |= {"kid": "kernel_inception_distance_mean"}
    for metric in ("is", "fid", "kid", "precision", "recall"):
        key = names.get(metric, metric)
        assert ours[metric].value == pytest.approx(theirs[key], rel=1e-4, abs=1e-7), metric
    assert ours["is"].value > 1
    both = extractor.inception.digest + state_digest(extractor.vgg16.state_dict())
    assert extractor.digest == hashlib.sha256(both.encode()).hexdigest()


# --- clean-fid ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("clean") / "any-name.pt"
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        torch.jit.script(CleanInception()).save(str(path))
    return path


@pytest.fixture
def clean_inception(program, monkeypatch):
    """A stand-in that passes for the published file."""
    published = replace(networks.CLEAN_INCEPTION, sha256=file_sha256(program))
    monkeypatch.setattr(networks, "CLEAN_INCEPTION", published)
    return program


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow", "legacy_pytorch"])
def test_clean_fid_modes_equal_clean_fid(mode, clean_inception, inception, tmp_path, monkeypatch):
    """clean-fid itself over a folder of PNG files, with the same network."""
    extractor = extractor_named(
        mode, weights=inception if mode == "legacy_pytorch" else clean_inception
    )
    images = pictures(3, 5, size=64)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")

    def legacy(x):
        return extractor.net(x / 255)[0].squeeze(-1).squeeze(-1)

    net = legacy if mode == "legacy_pytorch" else extractor.net
    how = {"num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    theirs = clean_fid.get_folder_features(str(tmp_path), model=net, mode=mode, **how)
    ours = extractor(images, batch_size=2)
    np.testing.assert_allclose(ours.features, theirs, rtol=1e-4, atol=1e-5)
    assert ours.features.std() > 0 and ours.logits is None
    assert extractor.name == mode


def test_the_clean_modes_differ(clean_inception):
    # Noise to be shrunk: the antialiasing shows.
    images = np.random.default_rng(0).integers(256, size=(2, 512, 512, 3), dtype=np.uint8)
    modes = ("clean", "legacy_tensorflow")
    a, b = (CleanExtractor(mode, clean_inception)(images).features for mode in modes)
    assert np.abs(a - b).max() > 1e-3


def test_clean_fid_mistakes(tmp_path):
    refused("unknown clean-fid mode 'cleanest'", CleanExtractor, "cleanest")
    with pytest.raises(FileNotFoundError, match=r"`python -m scripts\.download clean_inception`"):
        CleanExtractor("clean", tmp_path / "other.pt")
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pt")
    message = "other.pt does not fit the network"
    refused(message, CleanExtractor, "legacy_pytorch", tmp_path / "other.pt")


# --- weights files ---------------------------------------------------------------------------


def test_weights_that_are_damaged_or_of_others_or_would_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "ran",))

    path = tmp_path / "w.pth"
    path.write_bytes(b"<html>not found</html>")
    refused("w.pth is damaged .*fetch https://github.com/toshas", InceptionExtractor, path)
    torch.save({"fc.weight": torch.ones(2)}, path)
    refused("w.pth does not fit the network", InceptionExtractor, path)
    torch.save({"fc.weight": Evil()}, path)
    refused("is damaged", InceptionExtractor, path)
    assert not (tmp_path / "ran").exists()


class Marking(torch.nn.Module):
    """What a planted TorchScript network may do: write a file, and make every FID 0."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target
        self.layers = CleanInception().layers

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        torch.save(x, self.target)
        return torch.zeros(x.shape[0], 2048)


class Marks:
    """What a planted pickle may do."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (type(self.target).touch, (self.target,))


@pytest.mark.parametrize("name", ["inception", "torch_fidelity", *CLEAN_MODES, "dinov2"])
@pytest.mark.parametrize("place", ["cache", "downloads", "given"])
def test_planted_weights_are_never_run(name, place, tmp_path, monkeypatch):
    """In torch.hub's cache and /tmp nobody looks; elsewhere the published hash decides.

    None of the hosts can be reached, so that what is in no trusted place cannot be had at all.
    """
    mark, files = tmp_path / "ran", (networks.INCEPTION, networks.VGG16, networks.CLEAN_INCEPTION)
    files += (networks.DINOV2,)
    for published in files:
        closed = replace(published, url=f"http://[::1]:9/{published.place.name}")
        monkeypatch.setattr(networks, published.name.upper(), closed)
    folders = {place: tmp_path / place for place in ("cache", "downloads", "given")}
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(folders["downloads"]))
    monkeypatch.setenv("TORCH_HOME", str(folders["cache"]))
    hub = tmp_path / "cache/hub/checkpoints"
    folder = hub if place == "cache" else folders[place]
    folder.mkdir(parents=True)
    for published in (*files[:2], networks.DINOV2):
        torch.save({"a": Marks(mark)}, folder / published.place.name)
    shutil.copy(folder / files[0].place.name, folder / "pt_inception-2015-12-05-6726825d.pth")
    script = torch.jit.script(Marking(str(mark)))
    script.save(str(folder / files[2].place.name))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("cleanfid.inception_torchscript.check_download_inception", folder.joinpath)
    file = FILE_OF.get(name, files[0])
    options = {"weights": folder / file.place.name} if place == "given" else {}
    message = "cannot fetch" if place == "cache" else "damaged"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        extractor_named(name, **options)(pictures(2, 0))
    assert not mark.exists()


FILE_OF = dict.fromkeys(("clean", "legacy_tensorflow"), networks.CLEAN_INCEPTION)
FILE_OF["dinov2"] = networks.DINOV2


def test_weights_that_change_after_the_check_are_not_seen(inception, tmp_path, monkeypatch):
    """The bytes that were looked at are those that are used: the file is read once."""
    path, mark = tmp_path / "w.pth", tmp_path / "ran"
    shutil.copy(inception, path)
    real = Path.read_bytes

    def swapped(self):
        content = real(self)
        if self == path:
            torch.save({"a": Marks(mark)}, path)
        return content

    monkeypatch.setattr(Path, "read_bytes", swapped)
    same = InceptionExtractor(path).digest
    monkeypatch.undo()
    assert same == InceptionExtractor(inception).digest and not mark.exists()


def test_inception_classes_are_no_labels():
    others = (InceptionExtractor, TorchFidelityExtractor, CleanExtractor)
    assert not any(extractor.knows_labels for extractor in others)
    assert DigitsExtractor.knows_labels
