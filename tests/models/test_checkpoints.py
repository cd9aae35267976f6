"""Cards of the published checkpoints, and loading them: parity, memory, and every way to fail."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import golden_json, recorded_options, write_standin
from safetensors.torch import save_file

from files.whole import file_sha256
from models.adm.backbone import load, load_network
from models.adm.cards import card_names, layout_digest, read_card
from models.weights import read_weights
from sampling import SampleNoise, ddim, ddpm, mix, run, skipped, timesteps

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = golden_json("state_dict_manifest")["models"]
LAYOUTS = golden_json("state_dict_manifest")["layouts"]
CARDS = [read_card(name) for name in card_names()]
ENTRIES = {entry["url"]: entry for entry in MANIFEST.values()}


def test_the_cards_are_those_of_the_issue_and_their_classifiers():
    sizes = ("", "64", "128", "512")
    assert {card.name for card in CARDS} == {
        *(f"adm_imagenet{size}" for size in sizes),
        *(f"adm_imagenet{size}_classifier" for size in sizes),
        "adm_imagenet_uncond",
        *(f"adm_lsun_{name}" for name in ("bedroom", "cat", "horse")),
    }


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_is_its_released_checkpoint(card):
    """Against the recorded layouts and flags of the original, which know nothing of cards."""
    entry = ENTRIES[card.url]
    layout, config = LAYOUTS[entry["layout"]], entry["config"]
    assert [[key, shape] for key, shape in card.shapes.items()] == layout
    assert card.layout == layout_digest(dict(layout))
    assert (card.tensors, card.parameters) == (entry["num_tensors"], entry["num_params"])
    assert sum(p.numel() for p in card.build().parameters()) == card.parameters
    assert (card.kind, card.image_size) == (entry["kind"], config["image_size"])
    assert card.network == recorded_options(entry)  # heads change no shape, and every sample
    if card.kind == "unet":
        assert card.schedule == config["noise_schedule"]
        assert card.precision == ("fp16" if config["use_fp16"] else "fp32")
        assert (ROOT / "configs" / "reference" / f"{card.reference}.yaml").is_file()
        assert card.published
    assert all({"guidance", "fid", "source"} <= set(scores) for scores in card.published)
    classifier = card.classifier and read_card(card.classifier)
    assert classifier is None or classifier.image_size == card.image_size


@pytest.fixture
def standin(tmp_path, unet_forward) -> Path:
    """The card of a tiny stand-in checkpoint; a stand-in classifier lies beside it."""
    classifier = write_standin(tmp_path, "clf", unet_forward)
    return write_standin(tmp_path, "t64", unet_forward, classifier=str(classifier))


def load_standin(card: Path, **options):
    return load(str(card), str(options.pop("checkpoint", card.with_suffix(".pt"))), **options)


@pytest.mark.parametrize("suffix", [".pt", "old.pt", ".safetensors"])
def test_a_loaded_checkpoint_computes_what_the_original_does(standin, unet_forward, suffix):
    weights = read_weights(standin.with_suffix(".pt"))
    path = standin.with_name(f"t64{suffix}")
    if suffix == "old.pt":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    if suffix == ".safetensors":
        save_file(weights, path)
    model = load_standin(standin, checkpoint=path)
    x, t, y, out = (unet_forward[f"t64/a/{k}"] for k in ("x", "t", "y", "out"))
    for i, step in enumerate(t.tolist()):
        eps, v = model.network(x[i : i + 1], step, y[i : i + 1])
        torch.testing.assert_close(torch.cat([eps, v], 1), out[i : i + 1], rtol=0, atol=5e-4)
    assert (model.shape, model.num_classes, model.clip) == ((3, 16, 16), 10, True)
    assert model.sha256 == file_sha256(path)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_the_state_in_float32(standin, precision):
    model = load_standin(standin, precision=precision)
    dtypes = {p.dtype for p in model.network.net.parameters()}
    assert dtypes == {torch.float32, {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
    plan = mix(model.schedule, timesteps(1000, 4), cutoff=500)
    noise, y = SampleNoise(0, range(2), model.shape), torch.tensor([3, 7])
    x = run(model.given(y), plan, noise)
    assert x.dtype == torch.float32
    full = run(load_standin(standin).given(y), plan, noise)
    assert 0 < (x - full).abs().mean() < 0.05


def test_channels_last_and_compile_change_nothing_but_speed(standin, monkeypatch):
    """The eager backend traces the whole network without a break and needs no compiler."""
    real = torch.compile
    seen = []

    def compiled(net):
        seen.append(net)
        return real(net, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compiled)
    plain, fast = load_standin(standin), load_standin(standin, channels_last=True, compile=True)
    assert len(seen) == 1
    conv = seen[0].input_blocks[1][0].in_layers[2].weight
    assert conv.is_contiguous(memory_format=torch.channels_last)
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    for a, b in zip(plain.network(x, 7, y), fast.network(x, 7, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


MEMORY = """
import threading, time, sys, torch
from pathlib import Path
from models.adm.networks import UNet
from models.weights import load_weights

def anonymous():  # KiB of private memory: what the file's mapped pages are not
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

with torch.device("meta"):
    net = UNet(num_channels=192, num_res_blocks=2, channel_mult=(1, 2, 3), attention_ds=(4,))
net.set_torso(torch.float16)
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
load_weights(net, Path(sys.argv[1]))
done = True
thread.join()
size = sum(p.numel() * p.element_size() for p in net.parameters()) / 1024
print((peak - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_into_half_precision_needs_no_second_copy(tmp_path):
    """Peak private memory over the size of the half-precision network, in a fresh process."""
    from models.adm.networks import UNet

    net = UNet(num_channels=192, num_res_blocks=2, channel_mult=(1, 2, 3), attention_ds=(4,))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    del net
    args = [sys.executable, "-c", MEMORY, str(tmp_path / "net.pt")]
    ratio = float(subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < ratio < 1.25  # float32 as well would be 3; freed memory may serve again


def test_the_loop_never_waits_for_the_device(standin):
    """On the meta device, whose tensors hold no values, any look at one raises.

    What runs there never asks a GPU for a number, and so never waits for it.
    """
    guided = load_standin(standin, untrained=True, device="meta", guidance={"scale": 1.0})
    noise = SampleNoise(0, range(2), guided.shape, device="meta")
    y, grid = torch.zeros(2, dtype=torch.int64), timesteps(1000, 5)
    for model in (guided, replace(guided, guidance=None)):
        for plan in (ddpm, ddim, skipped, lambda s, g: mix(s, g, cutoff=400)):
            x = run(model.given(y), plan(model.schedule, grid), noise)
            assert x.device.type == "meta"

    def looks(x, t):
        if x.mean() > 0:  # what a careless denoiser would do
            x = x + 1
        return x, None

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run(looks, skipped(guided.schedule, grid), noise)


# --- failures ----------------------------------------------------------------------------------


def test_missing_checkpoint_names_how_to_get_it(standin):
    standin.with_suffix(".pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"t64.pt is missing: fetch it with `python -m scr"):
        load_standin(standin)
    with pytest.raises(FileNotFoundError, match=r"scripts.download adm_imagenet` or from https://"):
        load("adm_imagenet", "nowhere/256x256_diffusion.pt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_checkpoint_or_a_page_in_its_place(standin, keep):
    path = standin.with_suffix(".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else len(content) * keep)])
    with pytest.raises(ValueError, match=r"t64.pt is damaged or no checkpoint .*fetch it with"):
        load_standin(standin)
    path.write_text("<!doctype html><title>404</title>")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_standin(standin)


CHANGES = {
    "missing": (lambda w: w.pop("out.2.bias"), r"out.2.bias the network has shape \[6\], the fil"),
    "superfluous": (lambda w: w.update(extra=torch.ones(1)), "extra the network has no such key"),
    "shape": (
        lambda w: w.update({"label_emb.weight": torch.ones(1000, 128)}),
        r"at label_emb.weight the network has shape \[10, 128\], the file shape \[1000, 128\]",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_of_another_architecture_names_the_first_difference(standin, change):
    edit, message = CHANGES[change]
    path = standin.with_suffix(".pt")
    weights = {key: value.clone() for key, value in read_weights(path).items()}
    edit(weights)
    torch.save(weights, path)
    with pytest.raises(ValueError, match=message):
        load_standin(standin)


def test_a_file_that_would_run_code_is_refused(standin, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = standin.with_suffix(".pt")
    torch.save({"out.2.bias": Evil()}, path)
    for content in (path.read_bytes(), pickle.dumps({"out.2.bias": Evil()}, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            load_standin(standin)
    assert not (tmp_path / "ran").exists()


def test_other_contents_are_refused(standin):
    weights = {key: w.clone() for key, w in read_weights(standin.with_suffix(".pt")).items()}
    bias = weights["out.2.bias"]
    odd = [bias.to_sparse(), bias.to("meta"), bias * 1j]
    for content in ([torch.ones(1)], {"a": 1}, *({**weights, "out.2.bias": w} for w in odd)):
        torch.save(content, standin.with_suffix(".pt"))
        with pytest.raises(ValueError, match=r"(plain|more than) tensors.*: fetch"):
            load_standin(standin)


def test_the_hash_of_the_first_download_is_checked_from_then_on(standin):
    path = standin.with_suffix(".pt")
    record = path.with_name("t64.pt.sha256")
    record.write_text(f"{file_sha256(path)}  t64.pt\n")
    load_standin(standin)
    weights = {key: value + 1e-3 for key, value in read_weights(path).items()}
    torch.save(weights, path)  # the same layout, other numbers
    with pytest.raises(ValueError, match=r"not the file it should be.*written at its first down"):
        load_standin(standin)


def test_the_hash_of_the_card_is_checked(standin):
    card = yaml.safe_load(standin.read_text())
    standin.write_text(yaml.safe_dump({**card, "sha256": file_sha256(standin.with_suffix(".pt"))}))
    load_standin(standin)
    standin.write_text(yaml.safe_dump({**card, "sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"not the file it should be.*its card says 000000000000"):
        load_standin(standin)


def test_card_mistakes(standin, tmp_path):
    card = yaml.safe_load(standin.read_text())

    def refuses(match, **changes):
        path = tmp_path / "mine.yaml"
        entries = {key: v for key, v in {**card, **changes}.items() if v != "absent"}
        path.write_text(yaml.safe_dump(entries))
        with pytest.raises(ValueError, match=match):
            load(str(path), str(standin.with_suffix(".pt")))

    refuses("mine.yaml is not complete: .*url", url="absent")
    refuses("not complete: .*colour", colour="red")
    refuses("not complete: .*unet3d", kind="unet3d")
    refuses("not complete: .*chanels", network={**card["network"], "chanels": 3})
    refuses("contradicts itself", tensors=3)
    refuses("contradicts itself", network={**card["network"], "num_classes": 11})
    refuses("unknown schedule 'square'", schedule="square")
    (tmp_path / "mine.yaml").write_text("- just\n- a list\n")
    with pytest.raises(ValueError, match="not complete"):
        read_card(tmp_path / "mine.yaml")
    with pytest.raises(FileNotFoundError, match=r"no card .adm_imgnet.: choose .* adm_imagenet, "):
        read_card("adm_imgnet")
    with pytest.raises(ValueError, match="of a classifier, not of a diffusion model"):
        load(str(standin.with_name("clf.yaml")), str(standin.with_name("clf.pt")))
    with pytest.raises(ValueError, match="unknown precision 'fp8': choose one of fp32, fp16, bf16"):
        load_standin(standin, precision="fp8")


def test_classifier_of_other_classes_is_refused(standin, unet_forward):
    card = read_card(standin)
    other = replace(card, network={**card.network, "num_classes": 7})
    net, _ = load_network(other, None, "fp32", "cpu")
    torch.save(net.state_dict(), standin.with_name("seven.pt"))
    entries = yaml.safe_load(standin.read_text())
    entries["network"]["num_classes"] = 7
    entries["layout"] = layout_digest(other.shapes)
    path = standin.with_name("seven.yaml")
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match="classifier knows 10 classes, the model 7"):
        load(str(path), str(standin.with_name("seven.pt")), guidance={"scale": 1.0})
