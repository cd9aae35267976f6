"""DINOv2 as dgm-eval has it: what the network is shown, the network, and where its weights come from.

Weights are random, and the layers fewer and narrower than ViT-L/14's.
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import GOLDEN, done, golden_json
from conftest import refused as command_refused
from PIL import Image
from safetensors.torch import save_file
from test_metrics import refused
from torch.nn import functional as F
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

import evaluate
from eval import networks
from eval.extractors import DinoExtractor, extractor_named
from eval.features import pictures
from eval.preprocessing import IMAGENET_MEAN, IMAGENET_STD, NetworkInput
from eval.records import load_records
from files.whole import file_sha256
from models.weights import state_digest
from scripts import download

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 4}


def dinov2_weights(width: int = 32, depth: int = 3) -> dict[str, torch.Tensor]:
    """Random tensors of the published file's names and shapes; sizes so that every part matters."""
    g = torch.Generator().manual_seed(0)
    linear = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 37 * 37 + 1, width)}
    shapes |= {"mask_token": (1, width), "patch_embed.proj.weight": (width, 3, 14, 14)}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    for i in range(depth):
        for name, shape in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.ls{j}.gamma": (width,) for j in (1, 2)}
    drawn = {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}
    return {k: v / math.sqrt(v[0].numel()) if v.ndim in (2, 4) else v for k, v in drawn.items()}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A file of weights for the network, which is small meanwhile."""
    monkeypatch.setattr(networks, "DINOV2_LAYOUT", TINY)
    torch.save(dinov2_weights(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def images(n=3, height=50, width=70, channels=3):
    shape = (n, height, width, channels)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


# --- what the network is shown -------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "network_input.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", golden_json("network_input")["images"])
def test_pixels_are_dgm_evals(recorded, name):
    facts = golden_json("network_input")["images"][name]
    image = recorded[f"{name}__image"][None]
    seen = NetworkInput(224)(image)
    assert seen.shape == (1, 3, 224, 224) and seen.dtype == torch.float32
    theirs = recorded[f"{name}__dgm_eval_default"]
    np.testing.assert_allclose(seen[0, :, ::9, ::9].numpy(), theirs, atol=1e-6)
    stated = facts["dgm_eval_default"]
    np.testing.assert_allclose(seen[0].double().mean((1, 2)).numpy(), stated["mean"], atol=1e-6)
    np.testing.assert_allclose(
        seen[0].double().std((1, 2), correction=0).numpy(), stated["std"], atol=1e-4
    )
    # What torch-fidelity's DINOv2 is shown is something else, as far as it was recorded to be.
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float()
    other = interpolate_bilinear_2d_like_tensorflow1x(x, size=(224, 224), align_corners=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    other = (other / 255 - mean) / std
    theirs = recorded[f"{name}__torch_fidelity_dinov2"]
    np.testing.assert_allclose(other[0, :, ::9, ::9].numpy(), theirs, atol=1e-5)
    apart = facts["torch_fidelity_dinov2"]["max_abs_diff_to_dgm_default"]
    assert (other - seen).abs().max().item() == pytest.approx(apart, abs=1e-4)


def test_grey_images_are_grey_in_colour():
    x = torch.from_numpy(images(channels=1)).permute(0, 3, 1, 2)
    seen = NetworkInput(224)(pictures(x))
    want = Image.fromarray(images(channels=1)[0, ..., 0]).convert("RGB").resize((224, 224), 3)
    got = (seen[0] * torch.tensor(IMAGENET_STD).view(3, 1, 1)) + torch.tensor(IMAGENET_MEAN).view(
        3, 1, 1
    )
    np.testing.assert_allclose(got.permute(1, 2, 0) * 255, np.asarray(want), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "metrics.size must be a positive number of pixels, got 0"),
        ({"size": 8.0}, "metrics.size must be"),
        ({"size": 8, "interpolation": "cubic"}, "unknown metrics.interpolation 'cubic': choose bi"),
        ({"size": 8, "mean": [0.5]}, r"metrics.mean must be three numbers, .*=\[0.5,0.5,0.5\]"),
        ({"size": 8, "std": [0.5, 0, 1]}, "metrics.std must be three positive numbers"),
        ({"size": 8, "std": [0.5, math.nan, 1]}, "metrics.std must be three positive numbers"),
    ],
)
def test_inputs_that_are_none(options, message):
    refused(message, NetworkInput, **options)


# --- the network ---------------------------------------------------------------------------------


def cubic(x: float) -> float:
    """The cubic convolution kernel with a = -0.75, torch's."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def interpolation_matrix(grid: int, side: int) -> np.ndarray:
    """[grid, side]: bicubic, not antialiased, by the factor (grid + 0.1) / side; edges repeated."""
    matrix = np.zeros((grid, side))
    for i in range(grid):
        place = (i + 0.5) * side / (grid + 0.1) - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), side - 1)] += cubic(place - j)
    return matrix


def positions_by_hand(positions: torch.Tensor) -> torch.Tensor:
    matrix = interpolation_matrix(16, 37)
    patches = positions[0, 1:].reshape(37, 37, -1).double().numpy()
    patches = np.einsum("ai,bj,ijd->abd", matrix, matrix, patches).reshape(256, -1)
    return torch.cat([positions[0, :1].double(), torch.from_numpy(patches)])


def test_positions_are_interpolated_as_the_hub_does():
    """By its factor, not to a size: that would be another one by up to 0.02 here."""
    positions = dinov2_weights()["pos_embed"]
    got = networks.dinov2_positions(positions, 16)
    np.testing.assert_allclose(got[0], positions_by_hand(positions), atol=2e-5)
    patches = positions[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    for antialias in (False, True):
        sized = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=antialias)
        assert (sized.flatten(2).transpose(1, 2) - got[:, 1:]).abs().max() > 0.02


def forward_by_hand(w: dict[str, torch.Tensor], x: torch.Tensor, heads: int) -> torch.Tensor:
    """The whole network in float64, from its definition: x [B, 3, 224, 224] -> class token [B, D]."""
    w, x = {key: value.double() for key, value in w.items()}, x.double()
    width = w["cls_token"].shape[-1]

    def norm(name, y):
        y = y - y.mean(-1, keepdim=True)
        y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return y * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, y):
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    blocks = x.unfold(2, 14, 14).unfold(3, 14, 14)  # [B, 3, 16, 16, 14, 14]
    blocks = blocks.permute(0, 2, 3, 1, 4, 5).reshape(len(x), 256, -1)
    y = blocks @ w["patch_embed.proj.weight"].reshape(width, -1).T + w["patch_embed.proj.bias"]
    y = torch.cat([w["cls_token"].expand(len(x), 1, width), y], dim=1)
    y = y + positions_by_hand(w["pos_embed"])
    for i in range(sum(key.endswith("ls1.gamma") for key in w)):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", y))
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        seen = ((q @ k.transpose(2, 3)) / math.sqrt(width // heads)).softmax(-1) @ v
        seen = linear(f"blocks.{i}.attn.proj", seen.transpose(1, 2).flatten(2))
        y = y + w[f"blocks.{i}.ls1.gamma"] * seen
        hidden = linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", y))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        y = y + w[f"blocks.{i}.ls2.gamma"] * linear(f"blocks.{i}.mlp.fc2", hidden)
    return norm("norm", y)[:, 0]


def test_features_are_the_networks_by_its_definition(tiny):
    extractor = DinoExtractor(tiny)
    x = images()
    x[1] //= 3
    seen = extractor(x, batch_size=2)
    want = forward_by_hand(dinov2_weights(), NetworkInput(224)(x), heads=4)
    np.testing.assert_allclose(seen.features, want, atol=2e-5)
    assert seen.features.shape == (3, 32) == (3, extractor.num_features)
    assert seen.features.dtype == np.float32 and seen.logits is None
    assert np.abs(np.linalg.norm(seen.features, axis=1) - 1).min() > 0.1  # not of length 1
    assert np.abs(seen.features[0] - seen.features[1]).max() > 0.05
    assert (extractor.name, extractor.knows_labels) == ("dinov2", False)


def test_timms_own_positions_would_give_other_features(tiny):
    extractor = DinoExtractor(tiny)
    net = networks.timm_library().create_model("vit_large_patch14_dinov2", img_size=518, **TINY)
    w = {key: value for key, value in dinov2_weights().items() if key != "mask_token"}
    net.load_state_dict(w)
    net.eval().set_input_size((224, 224))
    with torch.no_grad():
        other = net(NetworkInput(224)(images()))
    assert np.abs(other.numpy() - extractor(images()).features).max() > 1e-3


def test_the_real_layout_is_vit_l_14():
    """The published file has 1,217,586,395 bytes: 304,368,640 float32, 1024 of them a mask, and names."""
    assert networks.DINOV2_LAYOUT == {"embed_dim": 1024, "depth": 24, "num_heads": 16}
    width, depth = 1024, 24
    with torch.device("meta"):
        net = networks.timm_library().create_model("vit_large_patch14_dinov2", num_classes=0)
    theirs = {key: list(value.shape) for key, value in net.state_dict().items()}
    with torch.device("meta"):
        ours = {k: v.shape for k, v in dinov2_shapes(width, depth).items() if k != "mask_token"}
    assert theirs == {key: list(shape) for key, shape in ours.items()}
    assert sum(math.prod(shape) for shape in theirs.values()) == 304_368_640 - 1024


def dinov2_shapes(width: int, depth: int) -> dict[str, torch.Tensor]:
    small = dinov2_weights(width=4, depth=depth)
    grown = {
        k: [n // 4 * width if n in (4, 12, 16) else n for n in v.shape] for k, v in small.items()
    }
    return {key: torch.empty(shape) for key, shape in grown.items()}


def test_what_identifies_it(tiny, tmp_path):
    """The file's tensors, whatever their format, and with or without that of the training."""
    w = dinov2_weights()
    extractor = DinoExtractor(tiny)
    del w["mask_token"]
    save_file(w, tmp_path / "other.safetensors")
    assert extractor.digest == DinoExtractor(tmp_path / "other.safetensors").digest
    assert extractor.digest == state_digest(w)
    w["pos_embed"][0, 700, 3] += 1e-3
    save_file(w, tmp_path / "changed.safetensors")
    assert extractor.digest != DinoExtractor(tmp_path / "changed.safetensors").digest


# --- its weights ---------------------------------------------------------------------------------


@pytest.fixture
def published(tiny, monkeypatch, tmp_path):
    """The file for the small network passes for the published one, on a server of its own."""
    (tmp_path / "site").mkdir()
    place = tiny.replace(tmp_path / "site/dinov2_vitl14_pretrain.pth")
    handler = partial(SimpleHTTPRequestHandler, directory=str(place.parent))
    handler.log_message = lambda *args: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{place.name}"
    file = replace(networks.DINOV2, url=url, sha256=file_sha256(place))
    monkeypatch.setattr(networks, "DINOV2", file)
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    yield place
    server.shutdown()
    server.server_close()


def test_fetched_once_and_verified(published, tmp_path):
    digest = DinoExtractor().digest
    assert (tmp_path / "downloads" / published.name).is_file()
    published.unlink()
    assert extractor_named("dinov2").digest == digest
    place = tmp_path / "downloads" / published.name
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    refused("is damaged or another file than the published one", DinoExtractor)


def test_download_and_evaluate(published, script, command, tmp_path):
    out = done(script(download.main, "dinov2"))
    assert published.name in out and "no published one is known" not in out
    for name, seed in (("real", 0), ("fake", 1)):
        x = np.random.default_rng(seed).integers(256, size=(50, 20, 30, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", arr_0=x)
    few = "metrics.scores=[fid,precision,recall,density,coverage]"  # the others need more samples
    words = ["metrics=dinov2", few, "reference=custom", "reference.images.path=real.npz"]
    done(command(evaluate, "samples=fake.npz", *words, "metrics.options.k=2"))
    record = load_records(tmp_path / "fake.evaluation-dinov2.json")
    assert (record["protocol"], record["extractor"]) == ("dinov2", "dinov2")
    assert record["extractor_weights"] == DinoExtractor().digest[:12]
    assert record["network"] == {
        **{"model": "dinov2_vitl14", "size": 224, "interpolation": "bicubic"},
        **{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    assert record["scores"]["fid"]["value"] > 0
    few = command(evaluate, "samples=fake.npz", *words, "num_samples=20")
    command_refused(few, "FID with 32 features needs more than 32 samples, got 20")


def test_files_that_do_not_fit(tiny, tmp_path):
    w = dinov2_weights()
    registers = {**w, "register_tokens": torch.zeros(1, 4, 32)}
    small = {**w, "pos_embed": w["pos_embed"][:, :257]}
    short = {key: value for key, value in w.items() if key != "blocks.2.ls2.gamma"}
    for tensors, said in (
        (registers, "at register_tokens the network has no such key"),
        (
            small,
            r"at pos_embed the network has shape \[1, 1370, 32\], the file shape \[1, 257, 32\]",
        ),
        (short, "at blocks.2.ls2.gamma .* the file no such key"),
    ):
        torch.save(tensors, tmp_path / "other.pth")
        refused(
            rf"other.pth does not fit the network: {said}.*: use https",
            DinoExtractor,
            tmp_path / "other.pth",
        )


def test_without_timm(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("needs timm: pip install timm", DinoExtractor, tiny)
