"""What pixels depend on is in a folder's identity: another model never continues an old folder."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from conftest import ROOT, done, refused
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

import sample
from experiments.cells import _identity as identity
from experiments.config import composed, plain
from models.backbone import Backbone
from models.opensora import text
from models.pipelines import schedule_facts
from models.stable_diffusion import load


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    tiny.stable_diffusion(folder / "sd")
    tiny.stable_diffusion_xl(folder / "xl")
    (folder / "opensora").mkdir()
    return {
        "sd": folder / "sd/pipeline",
        "xl": folder / "xl/pipeline",
        "opensora": tiny.opensora(folder / "opensora"),
    }


@pytest.fixture
def mine(published, tmp_path):
    """A copy to be changed."""
    return lambda name: shutil.copytree(published[name], tmp_path / name)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(path, key):
    weights = load_file(path)
    del weights[key]
    save_file(weights, path, {"format": "pt"})


def of_sd(folder, out="here"):
    words = [f"model.id={folder}", "model.precision=fp32", "prompts=[a cat,a dog]", f"out={out}"]
    return ["model=sd", *words, "steps=2", "label=balanced", "num_samples=2"]


def test_what_is_committed_is_found():
    """The configs of committed folders are what they were."""
    for path in sorted((ROOT / "results").glob("*/table1*/records.json")):
        for entry in json.loads(path.read_text())[:3]:
            config = entry["cell"]["config"]
            cfg = composed("sample", f"model={config['model']['name']}")
            model = plain(cfg.model) | {"checkpoint": config["model"]["checkpoint"]}
            model["precision"] = config["model"].get("precision", "fp32")
            backbone = Backbone(
                *[None] * 4, config["model"]["clip"], config["model"]["sha256"], None, None
            )
            assert identity(model, backbone) == config["model"]


# --- Stable Diffusion -------------------------------------------------------------------------------


def test_another_schedule_is_another_config(command, mine):
    folder = mine("sd")
    done(command(sample, *of_sd(folder)))
    file = folder / "scheduler/scheduler_config.json"
    # What another solver would do with it is of no effect here, nor are other versions.
    edit(file, skip_prk_steps=False, _diffusers_version="0.99")
    done(command(sample, *of_sd(folder)))
    for change in ({"beta_end": 0.02}, {"prediction_type": "v_prediction"}):
        before = file.read_text()
        edit(file, **change)
        refused(command(sample, *of_sd(folder)), f"model.scheduler.{next(iter(change))} is")
        file.write_text(before)
    betas = np.linspace(1e-4, 0.02, 1000).tolist()
    edit(file, trained_betas=betas)
    refused(command(sample, *of_sd(folder)), "model.scheduler.trained_betas is None there")
    assert len(schedule_facts({"trained_betas": betas})["trained_betas"]) == 12


def test_another_tokenizer_is_another_config(command, mine):
    folder = mine("sd")
    done(command(sample, *of_sd(folder)))
    edit(folder / "tokenizer/tokenizer_config.json", added_later=True)  # the same tokens
    done(command(sample, *of_sd(folder)))
    path = folder / "tokenizer/tokenizer.json"
    words = json.loads(path.read_text())
    words["model"]["merges"] = []
    path.write_text(json.dumps(words))
    refused(command(sample, *of_sd(folder)), "prompts.tokens is")
    path.unlink()  # of which transformers makes a tokenizer without words
    refused(command(sample, *of_sd(folder)), "the tokenizer of")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_weight_that_is_missing_is_not_made_up(mine, part):
    folder = mine("xl")
    (file,) = (folder / part).glob("*.safetensors")
    key = sorted(load_file(file))[3]
    drop(file, key)
    with pytest.raises(FileNotFoundError, match=rf"the {part} of .* is not complete \(it lacks .*"):
        load(str(folder), ["a cat"])


@pytest.mark.parametrize("stated", [["os", "system"], ["evil", "UNet"], [None, None], "x", [1, 2]])
def test_only_the_networks_of_such_pipelines_are_loaded(mine, stated, tmp_path):
    folder, mark = mine("sd"), tmp_path / "ran"
    for place in (folder, folder / "unet"):
        (place / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass UNet: pass\n")
    edit(folder / "model_index.json", unet=stated)
    with pytest.raises(ValueError, match=r"'s unet is (a|of) "):
        load(str(folder), ["a cat"])
    assert not mark.exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pickle_in_place_of_weights_is_not_run(mine, part, tmp_path):
    class Marks:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = mine("sd")
    (file,) = (folder / part).glob("*.safetensors")
    name = "pytorch_model.bin" if file.stem == "model" else "diffusion_pytorch_model.bin"
    file.unlink()
    torch.save({"a": Marks()}, folder / part / name)
    with pytest.raises(FileNotFoundError, match="is not complete"):
        load(str(folder), ["a cat"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "feature_extractor"])
@pytest.mark.parametrize("library", ["evil", "os", "antigravity", "builtins", ["x"], 7])
def test_no_module_is_imported_because_a_file_names_it(mine, tmp_path, monkeypatch, part, library):
    folder, mark = mine("sd"), tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass S: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder / "model_index.json", **{part: [library, "S"]})
    with pytest.raises(ValueError, match="which is not imported: only parts of diffusers"):
        load(str(folder), ["a cat"])
    assert not mark.exists()


def test_whether_no_prompt_is_zeros_is_in_the_config(mine):
    folder = mine("xl")
    a = load(str(folder), ["a cat"])
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    assert load(str(folder), ["a cat"]).facts != a.facts


def test_zero_snr_with_epsilon_is_one_line(command, mine):
    folder = mine("sd")
    file = folder / "scheduler/scheduler_config.json"
    for name in ("PNDMScheduler", "DDIMScheduler"):
        edit(folder / "model_index.json", scheduler=["diffusers", name])
        edit(file, _class_name=name, rescale_betas_zero_snr=True, clip_sample=False)
        refused(command(sample, *of_sd(folder)), "where epsilon says nothing of the image")


def test_a_network_for_images_that_are_no_squares(command, mine, tmp_path):
    folder, pair = mine("sd"), [16, 24]
    edit(folder / "unet/config.json", sample_size=pair)
    done(command(sample, *of_sd(folder)))
    with np.load(tmp_path / "here/samples.npz") as file:
        assert file["arr_0"].shape == (2, 2 * pair[0], 2 * pair[1], 3)
    for bad in ([16], [16, 24, 8], "16", [16.5, 8]):
        edit(folder / "unet/config.json", sample_size=bad)
        with pytest.raises((ValueError, FileNotFoundError)):
            load(str(folder), ["a cat"])


@pytest.mark.parametrize(("negative", "pair"), [(None, 16), ("", [16, 24]), ("blurry", 16)])
def test_xl_is_told_what_its_pipeline_tells_it(mine, negative, pair):
    """No negative prompt is zeros in XL, an empty one is the encoded empty text."""
    folder = mine("xl")
    edit(folder / "unet/config.json", sample_size=pair)
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    ours = load(str(folder), ["a cat"], negative_prompt=negative).embed(torch.tensor([0]))
    seen = {}
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        height, width = (2 * side for side in (pair if isinstance(pair, list) else (pair, pair)))
        size = {"height": height, "width": width, "output_type": "latent"}
        pipe("a cat", negative_prompt=negative, num_inference_steps=1, **size)
    theirs = {"encoder_hidden_states": seen["encoder_hidden_states"], **seen["added_cond_kwargs"]}
    mine_ = {"encoder_hidden_states": ours["encoder_hidden_states"], **ours["added_cond_kwargs"]}
    for key, want in theirs.items():
        torch.testing.assert_close(mine_[key], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_latents_have_the_vaes_mean_where_the_pipeline_says_so(mine, name, monkeypatch):
    """What reaches the VAE in the pipeline itself: XL adds mean and deviation, the others do not."""
    folder = mine(name)
    edit(folder / "vae/config.json", latents_mean=[1, 2, 3, 4], latents_std=[2, 3, 2, 1])
    model, x = load(str(folder), ["a cat"]), torch.randn(1, 4, 16, 16)
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(type(pipe.scheduler), "step", lambda *args, **kwargs: (x,))
    want = pipe("a cat", num_inference_steps=1, output_type="np").images
    assert np.abs(model.decode(x) - (want * 255).round()).max() <= 1


# --- Open-Sora --------------------------------------------------------------------------------------


def of_opensora(parts, cache, **more):
    folders = {"id": parts / "net", "text_encoder": parts / "t5", "vae": parts / "vae"}
    folders |= {"text_cache": cache, **more}
    words = ["model.precision=fp32", "model.num_frames=1", "model.height=16", "model.width=16"]
    words += [f"model.{key}={path}" for key, path in folders.items()]
    return ["model=opensora11", *words, "prompts=[a cat]", "steps=2", "sampler=ddim", "out=here"]


def other_t5(folder):
    """Another encoder in the place of the old one."""
    torch.manual_seed(5)
    config = T5Config(vocab_size=64, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).eval().save_pretrained(folder)


def test_another_text_encoder_of_the_same_name_is_another_config(command, mine, tmp_path):
    parts = mine("opensora")
    done(command(sample, *of_opensora(parts, tmp_path / "text")))
    # Elsewhere, encoded again, by files with other times: the same model.
    moved = shutil.copytree(parts / "t5", tmp_path / "moved/t5")
    done(command(sample, *of_opensora(parts, tmp_path / "text2", text_encoder=moved)))
    other_t5(parts / "t5")
    refused(command(sample, *of_opensora(parts, tmp_path / "text")), "prompts.tokens is")


@pytest.mark.parametrize("part", ["net", "vae"])
def test_another_config_of_the_same_weights_is_another_config(command, mine, tmp_path, part):
    parts = mine("opensora")
    done(command(sample, *of_opensora(parts, tmp_path / "text")))
    if part == "net":  # it changes pixels, but no key and no shape
        edit(parts / "net/config.json", input_sq_size=256)
    else:
        edit(parts / "vae/config.json", norm_num_groups=2)
    refused(command(sample, *of_opensora(parts, tmp_path / "text")), "_config is")


def test_a_cache_of_another_encoder_is_another_config(command, mine, tmp_path):
    parts = mine("opensora")
    done(command(sample, *of_opensora(parts, tmp_path / "text")))
    (right,) = (tmp_path / "text").iterdir()
    other = shutil.copytree(parts / "t5", tmp_path / "other/t5")
    other_t5(other)
    words = of_opensora(parts, tmp_path / "text2", text_encoder=other, steps=1)[:-1]
    done(command(sample, *[w for w in words if "model.steps" not in w], "out=there"))
    (wrong,) = (tmp_path / "text2").iterdir()
    shutil.copy(wrong, right)
    refused(command(sample, *of_opensora(parts, tmp_path / "text")), "prompts.tokens is")


@pytest.mark.parametrize("damage", ["flipped", "cut", "without facts"])
def test_damaged_features_are_made_again(command, mine, tmp_path, damage):
    parts = mine("opensora")
    done(command(sample, *of_opensora(parts, tmp_path / "text")))
    (file,) = (tmp_path / "text").iterdir()
    whole = file.read_bytes()
    if damage == "without facts":  # as written before
        save_file(load_file(file), file)
    else:
        content = bytearray(whole)
        content[-7] ^= 64
        file.write_bytes(content if damage == "flipped" else whole[:-9])
    done(command(sample, *of_opensora(parts, tmp_path / "text")))
    assert file.read_bytes() == whole


def test_every_bit_of_what_features_say_of_themselves_is_checked(tmp_path, monkeypatch):
    """Another encoder's hash or other tokens would be another folder, or let an old one go on."""
    cache = text.TextCache(tmp_path, "t5")
    tokens = SimpleNamespace(
        input_ids=torch.tensor([[3, 14, 1, 0]]), attention_mask=torch.tensor([[1, 1, 1, 0]])
    )
    tokens.to = lambda device: tokens
    features = torch.linspace(-1, 1, 12).reshape(1, 4, 3)
    encoder = Mock(return_value=SimpleNamespace(last_hidden_state=features))
    monkeypatch.setattr(text, "load_t5", lambda name: (lambda *_, **__: tokens, encoder))
    monkeypatch.setattr(text, "encoder_digest", lambda encoder: "0f" * 32)
    cache.fill(["a cat"])
    path, right = cache.path("a cat"), cache.digest(["a cat"])
    whole = path.read_bytes()
    noticed = 0
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert cache.digest(["a cat"]) == right
            y, mask = cache.batch(["a cat"])
            assert torch.equal(y[0, 0, :3], features[0, :3]) and mask.sum() == 3
        except ValueError as error:
            noticed += "lost or damaged" in str(error)
    assert noticed > 7 * len(whole)
    # As written before there was a checksum: read, and not encoded again.
    facts = {"encoder": "0f" * 32, "tokens": "[3, 14, 1]"}
    facts["sha256"] = text.state_digest({"y": features[0, :3].contiguous()})
    save_file({"y": features[0, :3].contiguous()}, path, {"facts": json.dumps(facts)})
    assert cache.digest(["a cat"]) == right


def test_parts_with_a_weight_missing_are_refused(command, mine, tmp_path):
    parts = mine("opensora")
    (vae,) = (parts / "vae").glob("*.safetensors")
    drop(vae, "decoder.conv_in.weight")
    words = of_opensora(parts, tmp_path / "text")
    refused(command(sample, *words), "the VAE ")
    (t5,) = (parts / "t5").glob("*.safetensors")
    drop(t5, "encoder.block.0.layer.0.SelfAttention.q.weight")
    with pytest.raises(FileNotFoundError, match=r"the text encoder .* is not complete \(it lacks"):
        text.load_t5(str(parts / "t5"))
