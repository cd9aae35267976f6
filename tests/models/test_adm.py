"""The ADM networks against the recorded layouts and forward passes of the original."""

from __future__ import annotations

import pytest
import torch
from conftest import golden_json, golden_network, recorded_options

from experiments.check.golden import adm_tolerance
from models.adm.cards import KINDS
from models.adm.networks import Classifier, timestep_embedding

MANIFEST = golden_json("state_dict_manifest")
# The up-samplers, which see a small image besides x_t, are not for sampling here.
RELEASED = [name for name, e in MANIFEST["models"].items() if e["kind"] != "upsampler"]
FORWARD = golden_json("unet_forward")
CASES = [(name, case) for name, model in FORWARD["models"].items() for case in model["cases"]]


def released(name: str):
    """A released checkpoint's network on the meta device (shapes without memory)."""
    entry = MANIFEST["models"][name]
    with torch.device("meta"):
        return KINDS[entry["kind"]](**recorded_options(entry))


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_fit_key_by_key_in_order(name):
    state = released(name).state_dict()
    ours = [[key, list(value.shape)] for key, value in state.items()]
    assert ours == MANIFEST["layouts"][MANIFEST["models"][name]["layout"]]
    assert sum(v.numel() for v in state.values()) == MANIFEST["models"][name]["num_params"]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_forward_equals_the_original(name, case, unet_forward):
    net = golden_network(name, unet_forward)
    x, t = unet_forward[f"{name}/{case}/x"], unet_forward[f"{name}/{case}/t"]
    labels = [unet_forward[f"{name}/{case}/y"]] if f"{name}/{case}/y" in unet_forward else []
    with torch.no_grad():
        out = net(x, t, *labels)
    torch.testing.assert_close(
        out, unet_forward[f"{name}/{case}/out"], rtol=0, atol=adm_tolerance(name, case)
    )


def test_the_embedding_is_cosine_first_with_divisor_half():
    emb = timestep_embedding(torch.tensor([0.0, 1.0]), 8)
    assert emb[0].tolist() == [1.0] * 4 + [0.0] * 4
    frequencies = 10000 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(emb[1], torch.cat([frequencies.cos(), frequencies.sin()]))


@pytest.mark.parametrize("mistake", ["norm eps", "head order", "scale and shift", "concat order"])
def test_typical_mistakes_would_be_noticed(mistake, unet_forward, monkeypatch):
    """The recorded outputs tell a wrong network from a right one by far more than 5e-4."""
    name, case = "t64", "b_small_x" if mistake == "norm eps" else "a"
    net = golden_network(name, unet_forward)
    for module in net.modules():
        if mistake == "norm eps" and isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6
        if mistake == "head order" and hasattr(module, "new_order"):
            module.new_order = not module.new_order
        if mistake == "scale and shift" and hasattr(module, "emb_layers"):
            linear = module.emb_layers[1]
            linear.weight.data = linear.weight.data.roll(len(linear.weight) // 2, 0)
            linear.bias.data = linear.bias.data.roll(len(linear.bias) // 2, 0)
    if mistake == "concat order":
        cat = torch.cat
        monkeypatch.setattr(torch, "cat", lambda ts, dim=0: cat(ts[::-1] if dim == 1 else ts, dim))
    golden = {k: unet_forward[f"{name}/{case}/{k}"] for k in ("x", "t", "y", "out")}
    with torch.no_grad():
        out = net(golden["x"], golden["t"], golden["y"])
    assert (out - golden["out"]).abs().max() > 0.01


def test_a_classifiers_heads_are_64_wide_unless_said():
    options = {"num_channels": 128, "num_res_blocks": 1, "channel_mult": [1], "attention_ds": [1]}
    net = Classifier(image_size=4, **options)
    assert {block.heads for block in net.modules() if hasattr(block, "heads")} == {128 // 64}


def test_labels_missing_or_superfluous_are_refused(unet_forward):
    x, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="pass labels"):
        golden_network("t64", unet_forward)(x, t)
    with pytest.raises(ValueError, match="takes no labels"):
        golden_network("t256u", unet_forward)(x, t, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-5), (torch.bfloat16, 0.1)])
def test_other_precisions_run_and_stay_close(dtype, tolerance, unet_forward):
    net = golden_network("t64", unet_forward).to(dtype)
    x, t, y, out = (unet_forward[f"t64/a/{key}"] for key in ("x", "t", "y", "out"))
    with torch.no_grad():
        ours = net(x.to(dtype), t, y)
    assert ours.dtype == dtype
    assert (ours.double() - out.double()).abs().max() < tolerance


@pytest.mark.parametrize("name", FORWARD["models"])
def test_half_torso_touches_what_the_original_converts(name, unet_forward):
    """Names where the original's are recorded (t64), their number for the others."""
    net, facts = golden_network(name, unet_forward), FORWARD["models"][name]["fp16_torso"]
    net.set_torso(torch.float16)
    half = [key for key, value in net.state_dict().items() if value.dtype == torch.float16]
    assert len(half) == facts["n_half_tensors"]
    if name == "t64":
        assert half == facts["half_keys"]
    others = {v.dtype for key, v in net.state_dict().items() if key not in half}
    assert others == {torch.float32}


@pytest.mark.parametrize("name", ["t64", "plain", "clf"])  # those that the sheet records
def test_half_torso_outputs_equal_the_originals(name, unet_forward):
    net = golden_network(name, unet_forward)
    net.set_torso(torch.float16)
    inputs = [unet_forward[f"{name}/a/{k}"] for k in "xty" if f"{name}/a/{k}" in unet_forward]
    with torch.no_grad():
        out = net(*inputs)
    golden = unet_forward[f"{name}/a/out_fp16_torso"]
    assert out.dtype == torch.float32
    # The sheet allows 0.1 and 1e-3 for other hardware; float32 differs by 0.007 to 0.014.
    tolerance = 2e-4 if name == "clf" else 0.02
    torch.testing.assert_close(out, golden, rtol=0, atol=tolerance)
    assert not torch.equal(out, unet_forward[f"{name}/a/out"])


@pytest.mark.parametrize("name", RELEASED)
def test_half_torso_of_the_released_networks(name):
    """Convolutions of the three torso parts and nothing else, told by the recorded layouts."""
    net = released(name)
    net.set_torso(torch.float16)
    layout = dict(MANIFEST["layouts"][MANIFEST["models"][name]["layout"]])
    torso = ("input_blocks.", "middle_block.", "output_blocks.")
    expected = [
        key
        for key in layout
        if key.startswith(torso)
        and len(layout[key.removesuffix("bias").removesuffix("weight") + "weight"]) >= 3
    ]
    half = [key for key, value in net.state_dict().items() if value.dtype == torch.float16]
    assert half == expected
