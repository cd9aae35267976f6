"""Open-Sora 1.1 from prompts to videos, on a tiny one with all its parts."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from conftest import GOLDEN, ROOT, bound, golden_json, interrupt
from diffusers import AutoencoderKL
from safetensors.torch import load_file

import sample
from experiments.folder import read_manifest
from files.images import load_samples
from files.videos import read_mp4, write_mp4
from models.opensora import text
from models.opensora.backbone import Video, VideoNetwork, load, peak_memory, to_uint8
from models.opensora.stdit2 import STDiT2
from models.opensora.text import TextCache, clean
from sampling import SampleNoise, Schedule, ddpm, iterate, timesteps

RUNS = golden_json("opensora_iddpm_trajectories")["runs"]
TRAJECTORIES = load_file(GOLDEN / "opensora_iddpm_trajectories.safetensors")
PROMPTS = ["A small cactus with a happy face in the Sahara desert.", "a red bus", "Waves at dusk"]
NETWORK = tiny.OPENSORA


# --- the sampler as shipped -------------------------------------------------------------------------


class Recorded:
    """x_T and the noise of each step, in order of use."""

    def __init__(self, run: str, grid):
        self.x_T = TRAJECTORIES[f"{run}/z"]
        self.by_t = dict(zip(map(float, grid), TRAJECTORIES[f"{run}/noise"], strict=True))

    def start(self):
        return self.x_T

    def at(self, t, s=-1.0, visit=0):
        return self.by_t[t]


def analytic(x, timestep, y, **more):
    channels = x.shape[1]
    k = (torch.arange(channels) + 1).view(1, -1, 1, 1, 1) / channels
    s = timestep.view(-1, 1, 1, 1, 1) / 1000
    c = y.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
    eps = 0.9 * x + 0.1 * torch.sin(2 * x) + 0.3 * k * torch.cos(3 * s) + 0.5 * c * torch.tanh(x)
    return torch.cat([eps, torch.tanh(0.4 * k * x - 0.5 * s + c)], dim=1)


def stdit2():
    recorded = load_file(GOLDEN / "opensora_stdit2_forward.safetensors")
    config = golden_json("opensora_stdit2_forward")["configs"]["A"]
    keys = ("hidden_size", "depth", "num_heads", "caption_channels", "model_max_length")
    net = STDiT2(**{key: config[key] for key in keys}).eval()
    net.load_state_dict({k[8:]: v for k, v in recorded.items() if k.startswith("A/param/")})

    def model(x, timestep, y, **more):
        out = net(x, timestep, y, **more)
        channels = x.shape[1]
        return torch.cat(
            [0.9 * x + 0.1 * out[:, :channels], torch.tanh(0.5 * out[:, channels:])], 1
        )

    return model


def recorded_model(name):
    """The recorded run's network with its guidance and condition, as a denoiser."""
    run = RUNS[name]
    net = analytic if run["model"] == "analytic" else stdit2()
    channels = run["cfg_channel"]
    told = {k[5:]: v for k, v in TRAJECTORIES.items() if k.startswith("cond/")}
    told["y"] = torch.cat([told["y"], told.pop("y_null")])
    return bound(VideoNetwork(net, run["cfg_scale"], channels), condition=told)


@pytest.mark.parametrize("name", [name for name in RUNS if "masked" not in name])
def test_recorded_trajectories(name):
    """100-step DDPM as shipped is `ddpm variance=learned` on the even grid, with this guidance."""
    grid = timesteps(1000, RUNS[name]["num_sampling_steps"], "even")
    assert grid.tolist() == RUNS[name]["t_model"]
    plan = ddpm(Schedule.linear(), grid, variance="learned")
    with torch.no_grad():
        for i, state in enumerate(iterate(recorded_model(name), plan, Recorded(name, grid))):
            assert_recorded(name, i, state.x, len(plan))


def assert_recorded(name, i, x, steps):
    # Its tables are float32: 5.1e-4 recorded against float64 tables, all in the last step.
    tolerance = 5e-5 if i < steps - 1 else 1e-3
    torch.testing.assert_close(x, TRAJECTORIES[f"{name}/x"][i], rtol=0, atol=tolerance)


def test_the_published_step_counts():
    maps = golden_json("opensora_iddpm_trajectories")["timestep_maps"]
    for n, grid in maps.items():
        assert timesteps(1000, int(n), "even")[::-1].tolist() == grid


# --- text and frames --------------------------------------------------------------------------------


def test_cleaning():
    for case in golden_json("opensora_text_cleaning")["cases"]:
        if case["output"]:
            assert clean(case["input"]) == case["output"]
        else:
            with pytest.raises(ValueError, match="nothing is left of the prompt"):
                clean(case["input"])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_frames_are_rounded_as_the_original_rounds_them(dtype):
    recorded = load_file(GOLDEN / "opensora_small_pieces.safetensors")
    frames = recorded["frames/in"].transpose(0, 1)
    cast = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert np.array_equal(to_uint8(frames.to(cast)), recorded[f"frames/uint8_{dtype}"].numpy())


def test_mp4_files(tmp_path):
    rows = np.linspace(0, 255, 48, dtype=np.uint8)
    frames = np.zeros((10, 32, 48, 3), np.uint8)
    frames[..., 0] = rows
    frames[..., 1] = (np.arange(10) * 20)[:, None, None]
    write_mp4(tmp_path / "a.mp4", frames, 8, 1_024_000)
    video = read_mp4(tmp_path / "a.mp4")
    assert video.frames.shape == frames.shape and video.fps == 8
    assert np.abs(video.frames.astype(int) - frames).mean() < 6
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        read_mp4(tmp_path / "b.mp4")


# --- end to end -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny.opensora(tmp_path_factory.mktemp("opensora"))


def words_of(parts, tmp_path, *more):
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    words = (
        "model=opensora11 model.precision=fp32 model.num_frames=5 model.height=40 model.width=56"
    )
    folders = {"id": parts / "net", "text_encoder": parts / "t5", "vae": parts / "vae"}
    folders["text_cache"] = tmp_path / "text"
    words = [*words.split(), *(f"model.{key}={path}" for key, path in folders.items())]
    return [*words, "prompts=prompts.txt", "steps=6", "sampler=mix", "out=here", *more]


def test_prompts_to_videos(command, parts, tmp_path):
    words = words_of(parts, tmp_path, "batch_size=2", "shard_size=2")
    status, out, err = command(sample, *words)
    assert status == 0, err
    assert "3 samples, 6 network calls each (two evaluations a call)" in out
    names = sorted(path.name for path in (tmp_path / "here/videos").iterdir())
    assert names == ["000000.mp4", "000001.mp4", "000002.mp4"]
    for name in names:
        video = read_mp4(tmp_path / "here/videos" / name)
        assert video.frames.shape == (5, 40, 56, 3) and video.fps == 8
        assert video.frames.std() > 3
    manifest = read_manifest(tmp_path / "here")
    assert manifest["complete"] and manifest["videos"]
    assert manifest["config"]["model"]["text_encoder"] == "t5"
    assert (tmp_path / "here/grid.png").is_file()
    with pytest.raises(FileNotFoundError, match=r"holds videos: score them with"):
        load_samples(tmp_path / "here")  # and not the sheet of frames
    # A video is of its prompt and id alone, whatever it is sampled beside.
    status, _, err = command(sample, *words, "batch_size=1", "shard_size=1", "out=there")
    assert status == 0, err
    for name in names:
        a, b = (
            read_mp4(tmp_path / f / "videos" / name).frames.astype(int) for f in ("here", "there")
        )
        assert np.abs(a - b).mean() < 0.5

    # Done is done; a damaged or lost video is made again, and nothing else.
    def stamps():
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "there/videos").iterdir()}

    before = stamps()
    assert command(sample, *words, "batch_size=1", "shard_size=1", "out=there")[0] == 0
    assert stamps() == before
    half = tmp_path / "there/videos/000001.mp4"
    half.write_bytes(half.read_bytes()[:200])
    status, out, err = command(sample, *words, "batch_size=1", "shard_size=1", "out=there")
    assert status == 0 and "is missing or damaged: sampling its shard again" in out + err
    after = stamps()
    assert [name for name in names if after[name] != before[name]] == ["000001.mp4"]
    assert read_mp4(half).frames.shape == (5, 40, 56, 3)


def test_the_text_encoder_is_loaded_only_for_new_prompts(command, parts, tmp_path, monkeypatch):
    words = words_of(parts, tmp_path, "steps=2")
    assert command(sample, *words)[0] == 0
    assert len(list((tmp_path / "text").iterdir())) == 3

    def forbidden(*args):
        raise AssertionError("loaded")

    monkeypatch.setattr(text, "load_t5", forbidden)
    assert command(sample, *words, "seed=1", "out=other")[0] == 0
    # What is kept is what the encoder says.
    cache = TextCache(tmp_path / "text", str(parts / "t5"))
    y, mask = cache.batch(PROMPTS[:2])
    assert y.shape == (2, 1, 200, 24) and mask.sum(1).tolist() == [
        (y[i, 0].abs().sum(1) > 0).sum() for i in (0, 1)
    ]
    monkeypatch.undo()
    tokenizer, encoder = text.load_t5(str(parts / "t5"))
    tokens = tokenizer([clean(PROMPTS[0])], return_tensors="pt")
    with torch.no_grad():
        want = encoder(**tokens).last_hidden_state
    n = want.shape[1]
    torch.testing.assert_close(y[0, 0, :n], want[0], rtol=1e-4, atol=1e-5)
    assert int(mask[0].sum()) == n


def test_interrupted_and_resumed(command, parts, tmp_path):
    words = words_of(parts, tmp_path, "steps=60", "shard_size=1", "batch_size=1")
    interrupt(
        [sys.executable, str(ROOT / "sample.py"), *words], tmp_path, "here/shards/shard-*.npz"
    )
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "here/videos").glob("[0-9]*.mp4")}
    assert 1 <= len(done) < 3
    status, _, err = command(sample, *words)
    assert status == 0, err
    videos = sorted((tmp_path / "here/videos").iterdir())
    assert [v.name for v in videos] == ["000000.mp4", "000001.mp4", "000002.mp4"]
    first = videos[0]
    assert first.stat().st_mtime_ns == done[first]


def test_names_as_vbench_reads_them(command, parts, tmp_path):
    words = words_of(parts, tmp_path, "steps=2", "names=prompt", "label=balanced", "num_samples=6")
    status, _, err = command(sample, *words)
    assert status == 0, err
    names = {path.name for path in (tmp_path / "here/videos").iterdir()}
    assert names == {f"{prompt}-{k}.mp4" for prompt in PROMPTS for k in (0, 1)}


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        (["a/b", "c"], ["names=prompt"], "prompt 1 cannot be a file name ('a/b'): use names=id"),
        (["a", "ü" * 111], ["names=prompt"], "prompt 2 cannot be a file name"),
        (["a", "b", "a"], ["names=prompt"], "the prompt 'a' is there twice"),
        (["a", "", "b"], [], "line 2 is blank"),
        (["@nobody"], [], "nothing is left of the prompt '@nobody' after cleaning"),
        (["a"], ["names=index"], "unknown names 'index': choose one of id, prompt"),
        (["a"], ["model.num_frames=0"], "model.num_frames must be an integer of at least 1"),
        (["a"], ["model.fps=25"], "model.fps must be a multiple of 3"),
        (
            ["a"],
            ["model.aspect_ratio=wide"],
            "model.aspect_ratio must be a number or null",
        ),
        (["a"], ["model.height=10"], "model.height must be an integer of at least 16"),
        (["a"], ["model.text_encoder=./absent"], "cannot load the text encoder ./absent"),
        (["a"], ["model.vae=./absent"], "cannot load the VAE ./absent"),
        (["a"], ["model.id=prompts.txt"], "there is no folder prompts.txt"),
    ],
)
def test_mistakes_are_one_line(command, parts, tmp_path, prompts, change, message):
    words = words_of(parts, tmp_path)
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    status, _, err = command(sample, *words, *change)
    last = err.splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and message in last, err
    assert not list((tmp_path).glob("here/videos/*"))


@pytest.fixture
def loaded(parts, tmp_path):
    """`load` of the tiny parts with some options changed."""
    folders = {"id": parts / "net", "text_encoder": parts / "t5", "vae": parts / "vae"}
    folders["text_cache"] = tmp_path
    options = {key: str(path) for key, path in folders.items()} | {"precision": "fp32"}
    return lambda **more: load(**{"prompts": PROMPTS, **options, **more})


def test_one_frame_and_odd_sizes(parts, loaded):
    model = loaded(num_frames=1, height=40, width=43)
    assert model.shape == (4, 1, 5, 5) and model.media.size == (1, 40, 40, 3)
    told = model.embed(torch.tensor([0, 1]))
    assert told["fps"].tolist() == [120] and told["y"].shape == (4, 1, 200, 24)
    assert told["ar"].tolist() == [pytest.approx(40 / 43)] and told["width"].tolist() == [43]
    # The empty caption is the network's own.
    empty = load_file(parts / "net/model.safetensors")["y_embedder.y_embedding"]
    assert torch.equal(told["y"][2, 0], empty)
    video = loaded()
    assert (video.shape, video.media.size) == ((4, 16, 30, 53), (16, 240, 424, 3))
    assert video.embed(torch.tensor([0]))["fps"].tolist() == [24] and video.media.fps == 8
    other = loaded(fps=12, aspect_ratio=0.75, height=240, width=320)
    told = other.embed(torch.tensor([0]))
    assert (told["fps"].tolist(), told["ar"].tolist(), other.media.fps) == ([12], [0.75], 4)
    plain = loaded(guidance_scale=1)
    assert plain.evaluations_per_call == 1 and plain.embed(torch.tensor([0]))["y"].shape[0] == 1


def test_what_is_said_of_the_video_is_rounded_to_the_networks_dtype(loaded):
    """As in the original: bfloat16 has 8 binary digits, and no width of 427."""
    model = loaded(num_frames=259, height=299, width=427, fps=303, precision="bf16")
    told = model.embed(torch.tensor([0]))
    rounded = {"num_frames": 260, "height": 300, "width": 428, "fps": 304, "ar": 0.69921875}
    assert {key: told[key].tolist() for key in rounded} == {k: [v] for k, v in rounded.items()}
    assert all(told[key].dtype == torch.bfloat16 for key in [*rounded, "y"])


def test_what_is_not_configured_is_that_of_the_original(loaded, monkeypatch):
    """Its schedule, no clipping, guidance 7 on 3 of 4 channels, and the VAE's factor."""
    model = loaded(num_frames=2, height=40, width=56)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert np.allclose(model.schedule.alpha_bar, abar, rtol=1e-12) and model.schedule.final == 1
    labels, a = torch.tensor([1, 2]), float(abar[700])
    x = 3 * SampleNoise(0, [0, 1], model.shape).start()
    with torch.no_grad():
        outputs = model.network.net(torch.cat([x, x]), torch.full((4,), 700), **model.embed(labels))
        prompted, empty = outputs.chunk(2)
        eps = torch.cat([7 * prompted[:, :3] - 6 * empty[:, :3], prompted[:, 3:4]], dim=1)
        x0, v, gradient = model.given(labels)(x, 700.0)
    torch.testing.assert_close(x0, (x - (1 - a) ** 0.5 * eps) / a**0.5, rtol=1e-4, atol=1e-4)
    assert x0.abs().max() > 10 and gradient is None
    torch.testing.assert_close(v, prompted[:, 4:])
    seen = []

    def watched(self, z, *args, **options):
        seen.append(z)
        return real(self, z, *args, **options)

    real = AutoencoderKL._decode
    monkeypatch.setattr(AutoencoderKL, "_decode", watched)
    assert model.decode(x).shape == (2, *model.media.size)
    frames = x.transpose(1, 2).flatten(0, 1) / 0.18215
    torch.testing.assert_close(torch.cat(seen), frames, rtol=1e-6, atol=0)


def test_the_network_is_copied_from_nowhere_but_its_file(parts, loaded, tmp_path):
    broken = shutil.copytree(parts / "net", tmp_path / "broken")

    def refuses(match):
        with pytest.raises(ValueError, match=match):
            loaded(id=str(broken))

    (broken / "model.safetensors").write_bytes(b"no weights")
    refuses(r"is damaged or no checkpoint .*: fetch .* again")
    (broken / "config.json").write_text(json.dumps({**NETWORK, "depth": 3}))
    shutil.copy(parts / "net/model.safetensors", broken)
    refuses(r"does not fit the network: at blocks\.2")
    (broken / "config.json").write_text("[")
    refuses("is no model config")
    model = loaded(untrained=True)
    assert (model.sha256, model.shape) == ("untrained", (4, 16, 30, 53))


def test_memory_is_planned():
    """Of the published network: its weights, and tokens that grow with the frames."""
    with torch.device("meta"):
        net = STDiT2().bfloat16()
    weights = 2 * (768_271_300 + 83_653_863)
    short = peak_memory(net, 2, Video(16, 240, 426)) - weights
    long = peak_memory(net, 2, Video(64, 240, 426)) - weights
    assert short == pytest.approx(2 * 4 * 4 * 256 * 240 * 426)  # four frames in the VAE
    assert long == pytest.approx(2 * 12 * 2 * 64 * 405 * 1152)
    assert peak_memory(net, 8, Video(64, 240, 426)) - weights == pytest.approx(4 * long)
