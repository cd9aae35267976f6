"""guided-diffusion's flags: the published sets, what each decides, and what a wrong one is told."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import done, golden_json, refused, write_standin

import reproduce
import sample
from experiments.folder import read_manifest
from files.whole import file_sha256
from models.adm.backbone import load
from models.adm.cards import read_card
from models.adm.flags import CONSTANTS, DEFAULTS, HERE, TRAINING, read_flags
from models.adm.networks import Options, UNet
from sampling import Schedule

MANIFEST = golden_json("state_dict_manifest")["models"]
SHARED = (
    "--attention_resolutions 32,16,8 --class_cond {} --diffusion_steps 1000 {}--image_size {} "
    "--learn_sigma True --noise_schedule {} --num_channels {} {} --num_res_blocks {} "
    "--resblock_updown True {}--use_fp16 {} --use_scale_shift_norm True"
)
HEADS = "--num_head_channels 64"
LSUN = SHARED.format("False", "--dropout 0.1 ", 256, "linear", 256, HEADS, 2, "", "True")
# The model flags of guided-diffusion's README, word by word.
PUBLISHED = {
    "adm_imagenet64": SHARED.format(
        "True",
        "--dropout 0.1 ",
        64,
        "cosine",
        192,
        HEADS,
        3,
        "--use_new_attention_order True ",
        "True",
    ),
    "adm_imagenet128": SHARED.format(
        "True", "", 128, "linear", 256, "--num_heads 4", 2, "", "True"
    ),
    "adm_imagenet": SHARED.format("True", "", 256, "linear", 256, HEADS, 2, "", "True"),
    "adm_imagenet_uncond": SHARED.format("False", "", 256, "linear", 256, HEADS, 2, "", "True"),
    "adm_imagenet512": SHARED.format("True", "", 512, "linear", 256, HEADS, 2, "", "False"),
    **dict.fromkeys(("adm_lsun_bedroom", "adm_lsun_cat", "adm_lsun_horse"), LSUN),
}
SAMPLING = " --batch_size 4 --num_samples 100 --timestep_respacing 250"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_flags_are_the_cards(name):
    card, flags = read_card(name), read_flags(PUBLISHED[name] + SAMPLING)
    assert list(flags.shapes.items()) == list(card.shapes.items())  # key by key, in order
    options = [asdict(Options(**entry.network)) for entry in (flags, card)]
    assert options[0] == options[1]
    assert (flags.image_size, flags.schedule) == (card.image_size, card.schedule)
    assert (flags.betas.T, flags.prediction_type, flags.time_scale) == (1000, "epsilon", 1.0)
    assert flags.values["use_fp16"] == (card.precision == "fp16")
    # The file's shapes tell all of it back.
    assert "do not tell which flag is wrong" in flags.misfit(card.shapes)


def test_every_flag_of_the_original_is_understood_with_its_default():
    """As recorded from the original's own model_and_diffusion_defaults."""
    recorded = MANIFEST["64x64_diffusion"]["config"]
    assert set(DEFAULTS) == set(recorded)
    given = {"image_size", "num_channels", "num_res_blocks", "num_head_channels", "dropout"}
    given |= {"attention_resolutions", "class_cond", "resblock_updown", "use_fp16", "learn_sigma"}
    given |= {"use_new_attention_order", "noise_schedule"}
    assert {k: v for k, v in DEFAULTS.items() if k not in given} == {
        k: v for k, v in recorded.items() if k not in given
    }
    plain = read_flags("")
    assert (plain.image_size, plain.network["num_channels"]) == (64, 128)
    assert plain.network["attention_ds"] == [4, 8] and plain.network["num_classes"] is None
    assert not plain.network["learn_sigma"] and not plain.network["resblock_updown"]


def test_both_ways_of_writing_and_the_last_of_a_name():
    a = read_flags("--image_size=128 --class_cond yes --channel_mult 1,2 --channel_mult=1,2,3")
    b = read_flags("--image_size 128 --class_cond True --channel_mult '1,2,3'")
    assert a == b and a.facts == b.facts
    orders = [read_flags(f"--attention_resolutions {each}").facts for each in ("32,16", "16,32,32")]
    assert orders[0] == orders[1]
    assert a.network["channel_mult"] == [1, 2, 3]


# --- a tiny checkpoint of one's own ------------------------------------------------------------------

TINY = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    "--attention_resolutions 8 --num_heads 2 --class_cond True --num_classes 10 --learn_sigma True"
)


def network(flags: str) -> UNet:
    torch.manual_seed(0)
    net = UNet(**read_flags(flags).network)
    for value in net.state_dict().values():
        torch.nn.init.normal_(value, std=0.1)
    return net


@pytest.fixture
def tiny(tmp_path):
    """A checkpoint of the flags TINY in the original's format."""
    torch.save(dict(network(TINY).state_dict()), tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def load_flags(path, flags, **options):
    return load(None, str(path), flags=flags, **options)


def test_the_network_of_the_flags_computes_what_the_card_computes(tmp_path, unet_forward):
    card = write_standin(tmp_path, "t64", unet_forward)
    entry = read_card(card)
    o = Options(**entry.network)
    flags = (
        f"--image_size 16 --num_channels {o.num_channels} --num_res_blocks {o.num_res_blocks} "
        f"--channel_mult {','.join(map(str, o.channel_mult))} --learn_sigma {o.learn_sigma} "
        f"--attention_resolutions {','.join(str(16 // ds) for ds in o.attention_ds)} "
        f"--num_heads {o.num_heads} --num_head_channels {o.num_head_channels} --class_cond True "
        f"--num_classes {o.num_classes} --resblock_updown {o.resblock_updown} "
        f"--use_scale_shift_norm {o.use_scale_shift_norm} "
        f"--use_new_attention_order {o.use_new_attention_order} --noise_schedule {entry.schedule}"
    )
    ours, theirs = load_flags(tmp_path / "t64.pt", flags), load(str(card), str(tmp_path / "t64.pt"))
    x, t, y = (unet_forward[f"t64/a/{k}"] for k in ("x", "t", "y"))
    for a, b in zip(
        ours.network(x[:1], t[0].item(), y[:1]),
        theirs.network(x[:1], t[0].item(), y[:1]),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert (ours.shape, ours.num_classes, ours.sha256) == (theirs.shape, 10, theirs.sha256)


CHANGES = {
    "diffusion_steps 500": lambda m: m.schedule.T == 500,
    "noise_schedule cosine": lambda m: (
        m.schedule.alpha_bar.tolist() == Schedule.cosine().alpha_bar.tolist()
    ),
    "predict_xstart True": lambda m: m.prediction_type == "sample",
    "use_new_attention_order True": lambda m: m.network.net.middle_block[1].new_order,
    "num_heads 4": lambda m: m.network.net.middle_block[1].heads == 4,
    "num_head_channels 16": lambda m: m.network.net.middle_block[1].heads == 4,
    "num_heads_upsample 8": lambda m: (
        m.network.net.output_blocks[0][1].heads == 8 and m.network.net.middle_block[1].heads == 2
    ),
    "resblock_updown True": lambda m: (
        "input_blocks.2.0.out_layers.3.weight" in m.network.net.state_dict()
    ),
    "use_scale_shift_norm False": lambda m: not m.network.net.middle_block[0].scale_shift,
    "learn_sigma False": lambda m: (
        m.network(torch.zeros(1, 3, 16, 16), 5, torch.tensor([1]))[1] is None
    ),
    "class_cond False": lambda m: m.num_classes is None,
    "in_channels 1": lambda m: m.shape == (1, 16, 16) and m.media.size == (16, 16, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_flag_does_what_it_says(tmp_path, change):
    flags = f"{TINY} --{change}"
    torch.save(dict(network(flags).state_dict()), tmp_path / "mine.pt")
    changed, plain = load_flags(tmp_path / "mine.pt", flags), read_flags(TINY)
    assert CHANGES[change](changed)
    assert changed.facts != plain.facts
    same = {"dropout 0.3", "use_checkpoint True", "use_fp16 True", "use_kl True", "lr 1e-4"}
    assert all(read_flags(f"{TINY} --{each}").facts == plain.facts for each in same)


def test_rescaled_timesteps_are_told_in_thousandths(tmp_path):
    """SpacedDiffusion's wrapper: t.float() * (1000.0 / T)."""
    flags = f"{TINY} --diffusion_steps 4000 --rescale_timesteps True"
    torch.save(dict(network(flags).state_dict()), tmp_path / "mine.pt")
    model, net = load_flags(tmp_path / "mine.pt", flags), network(flags).eval()
    x, y = torch.randn(1, 3, 16, 16), torch.tensor([3])
    want = net(x, torch.tensor([3999]).float() * (1000.0 / 4000), y)
    assert torch.equal(torch.cat(model.network(x, 3999, y), 1), want)
    plain = load_flags(tmp_path / "mine.pt", f"{TINY} --diffusion_steps 4000")
    assert torch.equal(torch.cat(plain.network(x, 3999, y), 1), net(x, torch.tensor([3999.0]), y))


WRONG = {
    "num_channels": ("64", "num_channels 32"),
    "num_res_blocks": ("2", "num_res_blocks 1"),
    "channel_mult": ("1,2,2", "channel_mult 1,2"),
    "attention_resolutions": ("16,8", "attention_resolutions 8"),
    "class_cond": ("False", "class_cond True"),
    "num_classes": ("1000", "num_classes 10"),
    "learn_sigma": ("False", "learn_sigma True"),
    "use_scale_shift_norm": ("False", "use_scale_shift_norm True"),
    "resblock_updown": ("True", "resblock_updown False"),
    "in_channels": ("1", "in_channels 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_flag_is_told_with_its_right_value(tiny, name):
    value, told = WRONG[name]
    wrong = f"{TINY} --{name} {value}"
    with pytest.raises(
        ValueError, match=f"mine.pt does not fit the network: at .*--{told}"
    ) as error:
        load_flags(tiny, wrong)
    (said,) = [line.split(" it should be ")[1].split(": say so")[0] for line in [str(error.value)]]
    load_flags(tiny, f"{wrong} {said}")  # as typed


def test_several_wrong_flags_and_another_image_size(tmp_path, tiny):
    for wrong in (
        "",
        "--num_channels 64 --num_res_blocks 4 --image_size 64 --resblock_updown True",
    ):
        with pytest.raises(ValueError, match="it should be") as error:
            load_flags(tiny, wrong)
        said = str(error.value).split(" it should be ")[1].split(": say so")[0]
        load_flags(tiny, f"{wrong} {said}")
    flags = PUBLISHED["adm_imagenet"]
    advice = read_flags(flags.replace("image_size 256", "image_size 64")).misfit(
        read_flags(flags).shapes
    )
    assert "should be --image_size 256: say so" in advice
    with pytest.raises(
        ValueError, match=r"no channel_mult for --image_size 16: .*file's.*mult 1,2$"
    ):
        load_flags(tiny, TINY.replace("--channel_mult 1,2 ", ""))
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="its shapes do not tell which flag is wrong"):
        load_flags(tmp_path / "other.pt", TINY)


REFUSALS = {
    "--image_sise 64": "has no flag --image_sise: do you mean --image_size",
    "--fov 3": "has no flag --fov: leave it out",
    "--large_size 256 --small_size 64": "--large_size is of upsamplers",
    "--classifier_scale 1.0": "--classifier_scale is of classifier guidance",
    "--clip_denoised False": "--clip_denoised False is model.clip=false here: say that",
    "--clip_denoised maybe": "--clip_denoised must be True or False",
    "--classifier_path a.pt": "say --classifier_scale 0 to sample without it",
    "--num_heads 0": "--num_heads 0 does not divide",
    "--image_size": "the flag --image_size has no value",
    "image_size 64": "model.flags has 'image_size' where a flag should be",
    "--image_size big": "--image_size must be an integer, got 'big'",
    "--image_size 0": "--image_size must be at least 1, got 0",
    "--class_cond perhaps": "--class_cond must be True or False",
    "--noise_schedule sqrt": "--noise_schedule sqrt is not known to guided-diffusion: choose linear",
    "--attention_resolutions 8,x": "--attention_resolutions must be positive numbers",
    "--attention_resolutions 0": "--attention_resolutions must be positive numbers",
    "--channel_mult 1,-2": "--channel_mult must be positive numbers",
    "--image_size 32": "for instance --channel_mult 1,2,2,2",
    "--image_size 68": "no channel_mult for --image_size 68",
    "--image_size 18 --channel_mult 1,2,2": "cannot be halved 2 times: give a multiple of 4",
    "--num_channels 40": "cannot part in 32 groups",
    "--num_head_channels 48": "--num_head_channels 48 does not divide",
    "--num_heads 3": "--num_heads 3 does not divide",
    "--num_heads_upsample 3": "--num_heads_upsample 3 does not divide",
    "--num_head_channels 0": "--num_head_channels 0 does not divide",
    "--in_channels 4": "makes no images: write a loader for it, and take model=function",
    "--class_cond True --num_classes 0": "--num_classes must be at least 1",
    "--diffusion_steps 20": "--diffusion_steps must be at least 21",
    "--image_size '64": "cannot be read",
}


@pytest.mark.parametrize("flags", REFUSALS)
def test_what_is_refused_by_name(flags):
    with pytest.raises(ValueError, match=re.escape(REFUSALS[flags])) as error:
        load_flags("nowhere.pt", flags, untrained=True)
    assert "\n" not in str(error.value)


def test_an_upsampler_or_latents_are_refused_by_their_channels():
    flags = read_flags(TINY)
    for channels, said in ((6, "is of upsamplers"), (4, "a network of 4 channels makes no images")):
        options = {**flags.network, "in_channels": channels}
        shapes = {key: list(v.shape) for key, v in UNet(**options).state_dict().items()}
        assert said in flags.misfit(shapes)


def test_what_is_not_followed_is_told():
    words = " ".join(f"--{name} 1" for name in (*TRAINING, *HERE))
    (said, *_), quiet = read_flags(words).notes("fp32"), read_flags(TINY).notes("fp32")
    assert all(f"--{name}" in said for name in (*TRAINING, *HERE)) and quiet == []
    notes = "\n".join(read_flags("--use_fp16 True --timestep_respacing ddim25").notes("fp32"))
    assert "--timestep_respacing ddim25 is steps=25 spacing=ddim here" in notes
    assert "model.precision=fp16" in notes and "sampler.variance=fixed_large" in notes
    assert "steps=250 here" in read_flags("--timestep_respacing 250").notes("fp32")[0]
    assert set(CONSTANTS) == {"num_classes", "in_channels"}
    unguided = "--classifier_scale 0 --classifier_path a.pt --classifier_depth 4"
    (said,) = read_flags(f"{TINY} {unguided}").notes("fp32")
    assert "--classifier_path" in said
    assert read_flags(f"{TINY} {unguided}").facts == read_flags(TINY).facts
    read_flags("--diffusion_steps 21")


# --- from the command line ---------------------------------------------------------------------------


def test_sampled_as_typed_and_its_identity(command, tiny, tmp_path):
    """As a shell hands it over: no quotes that Hydra would want."""
    words = ["model=adm", "model.checkpoint=mine.pt", f"model.flags={TINY} --batch_size 4"]
    few = ["steps=3", "num_samples=4", "shard_size=2"]
    out = done(command(sample, *words, *few, "out=a"))
    assert "not followed, of the original's scripts: --batch_size (batch_size=)" in out
    model = read_manifest(tmp_path / "a")["config"]["model"]
    assert model["sha256"] == file_sha256(tiny)
    assert model["flags"]["num_heads"] == 2 and model["flags"]["channel_mult"] == [1, 2]
    # Other words for the same flags find the samples; other flags and other weights do not.
    again = [*words[:2], f"model.flags='--lr 3 {TINY}'"]
    done(command(sample, *again, *few, "out=a"))
    other = command(sample, *words[:2], f"model.flags={TINY} --num_heads 4", *few, "out=a")
    refused(other, "model.flags.num_heads is 2 there, 4 here")
    shutil.copy(tiny, tmp_path / "copy.pt")
    torch.save({k: v + 0.01 for k, v in torch.load(tiny).items()}, tiny)
    refused(command(sample, *words, *few, "out=a"), "model.sha256")


def test_wrong_uses_end_in_one_line(command, tiny):
    words = ["model=adm", "model.checkpoint=mine.pt", "num_samples=2", "steps=3", "out=w"]
    flags = f"model.flags={TINY}"
    refused(command(sample, *words), "takes a card or flags, got neither")
    refused(command(sample, *words, flags, "model.card=adm_imagenet"), "card or flags, got both")
    refused(command(sample, *words, flags, "label=10"), "label must be in 0..9")
    refused(command(sample, *words, flags, "guidance=classifier"), "has no classifier: use guid")
    missing = command(sample, *words, flags, "model.checkpoint=no.pt")
    refused(missing, "no.pt is missing: give the path of a guided-diffusion checkpoint")
    refused(command(sample, *words, f"{flags} --diffusion_steps 4000"), "say sampler.cutoff=1164")
    done(command(sample, *words, f"{flags} --diffusion_steps 4000", "sampler.cutoff=1164"))
    unlearned = TINY.replace("--learn_sigma True", "--learn_sigma False")
    refused(command(sample, *words, f"model.flags={unlearned}"), "should be --learn_sigma True")
    mixpp = [f"{flags} --diffusion_steps 500", "sampler=mixpp"]
    refused(command(sample, *words, *mixpp), "lo=291 is the paper's, a timestep of 1000")


def test_a_table_is_counted_without_the_checkpoint(command, tiny):
    tiny.unlink()
    words = ["experiment=table1", "dry=true", "num_samples=4", "model=adm", f"model.flags={TINY}"]
    out = done(command(reproduce, *words, "model.checkpoint=mine.pt", "experiment.steps=[3]"))
    assert "not yet: mine.pt is missing" in out and "4 cells" in out
