"""DiT: guidance, learned variance and images as diffusers' own pipeline and schedulers, and mistakes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from conftest import ROOT, done
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers import scheduling_ddpm

import reproduce
import sample
from experiments.config import composed, load_backbone
from experiments.folder import read_manifest
from models.dit.backbone import PUBLISHED, ClassNetwork, load
from sampling import SampleNoise, ddim, ddpm, run, timesteps
from sampling.denoise import NetworkDenoiser
from sampling.schedulers import MixScheduler
from scripts import download


def lively(net: torch.nn.Module) -> None:
    """Random numbers also where DiT begins with zeros, so that labels and times matter."""
    torch.manual_seed(1)
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny DiT as published: the old name of its class, and DDIM's scheduler without clipping."""
    pipe = tiny.dit(num_embeds_ada_norm=1000)
    lively(pipe.transformer)
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    path = tmp_path_factory.mktemp("dit") / "pipeline"
    pipe.save_pretrained(path)
    for name, key in (
        ("model_index.json", "transformer"),
        ("transformer/config.json", "_class_name"),
    ):
        content = json.loads((path / name).read_text())
        old = "Transformer2DModel"
        content[key] = ["diffusers", old] if key == "transformer" else old
        (path / name).write_text(json.dumps(content))
    return path


LABELS = [3, 999]


# --- step by step in float64 -----------------------------------------------------------------------


def doubled(folder, guidance_scale: float, guided_channels: int | None):
    """(our denoiser, the original's guided output [B, 2 C, ...]) of the same network in float64."""
    model = load(str(folder), guidance_scale=guidance_scale, guided_channels=guided_channels)
    net = model.network.net.double()
    network = ClassNetwork(net, guidance_scale, guided_channels, 1000)
    y = torch.tensor(LABELS)

    def output(x, t):
        """As the original's forward_with_cfg, and DiTPipeline in all 4 channels."""
        times = torch.full((4,), t)
        both = torch.cat([y, torch.tensor([1000, 1000])])
        out = net(torch.cat([x, x]), timestep=times, class_labels=both).sample
        n = guided_channels or 4
        eps, rest = out[:, :n], out[:, n:]
        given, without = eps.chunk(2)
        return torch.cat([without + guidance_scale * (given - without), rest[:2]], dim=1)

    return NetworkDenoiser(network, model.schedule, condition=y), output, model.schedule


@pytest.mark.parametrize("guided_channels", [3, None])
@pytest.mark.parametrize("steps", [4, 25])
def test_learned_variance_is_diffusers_step_by_step(folder, monkeypatch, steps, guided_channels):
    """DDPMScheduler with variance_type learned_range, which reads both halves of the output."""
    denoiser, output, schedule = doubled(folder, 1.5, guided_channels)
    theirs = DDPMScheduler(variance_type="learned_range", clip_sample=False, beta_end=0.02)
    theirs.alphas_cumprod = torch.tensor(schedule.alpha_bar)
    theirs.betas = 1 - theirs.alphas_cumprod / torch.cat(
        [torch.ones(1, dtype=torch.float64), theirs.alphas_cumprod[:-1]]
    )
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    grid = theirs.timesteps.tolist()
    noise = SampleNoise(0, range(2), (4, 8, 8), dtype=torch.float64)
    want, ours = noise.start(), []
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **more: z)
    with torch.no_grad():
        x = want
        for t in grid:
            z = noise.at(t)
            out = output(x, t)
            x0, v = denoiser(x, float(t))[:2]
            torch.testing.assert_close(v, out[:, 4:], rtol=0, atol=1e-12)
            level = schedule.level(t)
            torch.testing.assert_close(
                x0, (x - level.sigma * out[:, :4]) / level.alpha, rtol=1e-12, atol=1e-10
            )
            x = theirs.step(out, t, x).prev_sample
            ours.append(x)
    got = run(denoiser, ddpm(schedule, grid, variance="learned"), noise)
    torch.testing.assert_close(got, ours[-1], rtol=1e-9, atol=1e-9)
    # The learned variance matters, and so does the fourth channel.
    fixed = run(denoiser, ddpm(schedule, grid, variance="fixed_small"), noise)
    assert (got - fixed).abs().max() > 1e-4
    other, _, _ = doubled(folder, 1.5, {3: None, None: 3}[guided_channels])
    assert (got - run(other, ddpm(schedule, grid), noise)).abs().max() > 1e-4


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5, 4])
def test_ddim_is_diffusers_step_by_step(folder, guidance_scale):
    denoiser, output, schedule = doubled(folder, guidance_scale, 3)
    theirs = DDIMScheduler(clip_sample=False, beta_end=0.02)
    theirs.alphas_cumprod = torch.tensor(schedule.alpha_bar)
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(10)
    noise = SampleNoise(0, range(2), (4, 8, 8), dtype=torch.float64)
    x = noise.start()
    with torch.no_grad():
        for t in theirs.timesteps.tolist():
            x = theirs.step(output(x, t)[:, :4], t, x).prev_sample
    got = run(denoiser, ddim(schedule, theirs.timesteps.tolist()), noise)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


# --- images of the pipeline --------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, 1])
def test_sample_py_gives_the_images_of_the_pipeline(command, folder, tmp_path, monkeypatch, scale):
    """To one grey level: with guidance in all channels, the pipeline's way, and without any."""
    words = ["model=dit_xl2_256", f"model.id={folder}", "model.guided_channels=null", "seed=5"]
    words += [f"model.guidance_scale={scale}", "label=7", "num_samples=3", "steps=10"]
    out = done(command(sample, *words, "spacing=leading", "out=here"))
    assert ("(two evaluations a call)" in out) == (scale != 1)
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = MixScheduler.from_config(pipe.scheduler.config, cutoff=291)
    pipe.scheduler.noise = SampleNoise(5, [*range(3)] * (1 + (scale != 1)), (4, 8, 8))
    start = SampleNoise(5, range(3), (4, 8, 8)).start()
    monkeypatch.setattr(
        "diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *args, **more: start
    )
    theirs = pipe([7] * 3, num_inference_steps=10, guidance_scale=scale, output_type="np").images
    theirs = (theirs * 255).round().astype(int)
    with np.load(tmp_path / "here/samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert labels.tolist() == [7, 7, 7] and images.shape == (3, 16, 16, 3) and images.std() > 5
    assert np.abs(images - theirs).max() <= 1
    config = read_manifest(tmp_path / "here")["config"]
    assert config.get("evaluations_per_call", 1) == 1 + (scale != 1)
    assert config["model"]["id"] == "pipeline" and config["model"]["guidance_scale"] == scale


def test_resumed_and_in_other_batches_the_same(command, folder, tmp_path):
    words = ["model=dit", f"model.id={folder}", "steps=4", "shard_size=2"]
    done(command(sample, *words, "num_samples=2", "out=a"))
    done(command(sample, *words, "num_samples=5", "batch_size=1", "out=a"))
    done(command(sample, *words, "num_samples=5", "batch_size=5", "out=b"))
    with np.load(tmp_path / "a/samples.npz") as a, np.load(tmp_path / "b/samples.npz") as b:
        assert np.array_equal(a["arr_1"], b["arr_1"])
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1


def test_what_the_backbone_says(folder):
    model = load(str(folder))
    assert (model.shape, model.num_classes, model.clip) == ((4, 8, 8), 1000, False)
    assert (model.schedule.name, model.schedule.T, model.schedule.final) == ("linear", 1000, 1.0)
    assert model.media.size == (16, 16, 3) and model.evaluations_per_call == 2
    assert load(str(folder), guidance_scale=1).evaluations_per_call == 1
    assert load(str(folder), guided_channels=None).sha256 == model.sha256
    x, y = torch.randn(1, 4, 8, 8), torch.tensor([5])
    half = load(str(folder), precision="bf16")
    eps, v = half.network(x, 7.0, y)
    assert eps.dtype == v.dtype == torch.float32
    assert 0 < (eps - model.network(x, 7.0, y)[0]).abs().mean() < 0.2
    with pytest.raises(ValueError, match="this network is class-conditional: pass labels"):
        model.given(None)(x, 5.0)


def test_a_clipping_scheduler_clips_and_a_network_without_variance_has_none(tmp_path):
    pipe = tiny.dit(out_channels=4)
    pipe.scheduler = DDPMScheduler()  # clips by default, as the pipeline would
    pipe.save_pretrained(tmp_path / "a")
    model = load(str(tmp_path / "a"))
    assert model.clip
    assert model.network(torch.randn(1, 4, 8, 8), 5.0, torch.tensor([1]))[1] is None


def test_a_table_against_a_folder_of_images_in_one_command(command, folder, tmp_path):
    """DDPM with the learned variance among the rows; the words of the table say what was sampled."""
    images = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=images)
    words = ["experiment=table1", "model=dit", f"model.id={folder}", "experiment.steps=[3]"]
    words += ["num_samples=32", "metrics=pixels", "experiment.metrics=[diagonal_fid]", "out=t"]
    out = done(command(reproduce, *words, "reference=custom", "reference.images.path=real.npz"))
    assert all(f"| {row} |" in out for row in ("DDPM", "DDIM", "Skipped-Step", "Mix"))
    assert "classifier-free guidance 1.5 (two network evaluations a call)" in out


# --- without weights, and mistakes ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers' own
def test_table1_is_counted_without_weights(command, monkeypatch):
    """The published sizes, without a layer: what the class makes of them is timed elsewhere."""
    asked = []

    def refuse(host, *args, **more):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    for stated in PUBLISHED.values():
        monkeypatch.setitem(stated, "num_layers", 1)
        monkeypatch.setitem(stated, "num_attention_heads", 1)
    words = ["experiment=table1", "model=dit_xl2_256", "dry=true", "batch_size=1"]
    out = done(command(reproduce, *words))
    assert "not yet: cannot load facebook/DiT-XL-2-256" in out
    assert "`python -m scripts.download model=dit model.id=facebook/DiT-XL-2-256`" in out
    assert "Stable Diffusion" not in out and "random weights" in out
    assert "20 cells, 335,000,000 image calls, 275,650,000 as trees" in out
    # Nothing is fetched in order to count; the hub's client looks up what it calls itself.
    assert len(asked) <= 1


def test_the_published_network_has_its_parameters():
    """675M, as DiT's paper says (table 4); diffusers gives each block embeddings of its own."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        net = DiTTransformer2DModel(**PUBLISHED["facebook/DiT-XL-2-256"])
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    copies = sum(n for name, n in sizes.items() if ".norm1.emb." in name) * 27 // 28
    assert round((sum(sizes.values()) - copies) / 1e6) == 675
    for name in ("dit_xl2_256", "dit_xl2_512"):
        assert composed("sample", f"model={name}").model.id in PUBLISHED
        assert PUBLISHED[composed("sample", f"model={name}").model.id]["sample_size"] * 8 == int(
            name[-3:]
        )


def test_a_folder_without_weights_is_counted_by_its_config(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    for path in bare.rglob("*.safetensors"):
        path.unlink()
    model = load(str(bare), untrained=True)
    assert (model.shape, model.sha256) == ((4, 8, 8), "untrained")
    model.given(torch.tensor([1]))(torch.randn(1, 4, 8, 8), 5.0)


def test_mistakes_are_one_line(command, folder, tmp_path):
    def broken(remove):
        path = shutil.copytree(folder, tmp_path / remove.replace("/", "-"))
        (shutil.rmtree if (path / remove).is_dir() else type(path).unlink)(path / remove)
        return path

    torch.manual_seed(0)
    DDPMPipeline(tiny.pixel_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    pipe = tiny.dit()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.save_pretrained(flow := tmp_path / "flow")
    tiny.dit(in_channels=3, out_channels=6).save_pretrained(tmp_path / "three")
    tiny.dit(out_channels=5).save_pretrained(tmp_path / "five")
    words = ["model=dit", f"model.id={folder}", "steps=2", "num_samples=1", "out=w"]
    for change, said in (
        ("label=1000", "label must be in 0..999, balanced or null, got 1000"),
        ("model.guidance_scale=-1", "must be a number of at least 0"),
        ("model.guided_channels=5", "must be in 1..4, or null for all of them, got 5"),
        ("model.precision=fp8", "unknown precision"),
        ("model.id=./nothing", "there is no folder ./nothing"),
        ("model.variant=fp16", "variant"),
        ("prompts=[a]", "takes no prompts"),
        ("guidance=classifier", "has no classifier: use guidance=none"),
        (f"model.id={tmp_path / 'ddpm'}", "is a DDPMPipeline: only DiTPipeline can"),
        (
            f"model.id={tmp_path / 'three'}",
            "takes 3 channels and gives 6, the VAE's latents have 4",
        ),
        (f"model.id={tmp_path / 'five'}", "takes 4 channels and gives 5, the VAE's latents have 4"),
        (f"model.id={flow}", "is of flow matching"),
        (f"model.id={broken('scheduler')}", "copy or download it again"),
        (f"model.id={broken('vae/diffusion_pytorch_model.safetensors')}", "is not complete"),
        (
            f"model.id={broken('transformer/diffusion_pytorch_model.safetensors')}",
            "is not complete",
        ),
        (f"model.id={broken('transformer/config.json')}", "is not complete"),
        (f"model.id={broken('model_index.json')}", "has no model_index.json"),
    ):
        status, _, err = command(sample, *words, change)
        last = err.splitlines()[-1]  # diffusers says more before
        assert status == 2 and last.startswith("error: ") and said in last, (change, err)


def test_what_is_fetched_for_it():
    names = [type(asset).__name__ for asset in download.named_assets("dit_xl2_512")]
    assert names == ["HubPipeline", "Asset", "Asset"]
    pipeline, batch, inception = download.named_assets("dit_xl2_512")
    assert (pipeline.id, pipeline.hint) == ("facebook/DiT-XL-2-512", "")
    assert "imagenet512" in batch.path.name and "inception" in inception.path.name
    for name in ("dit_xl2_256", "dit_xl2_512"):
        assert (
            composed("sample", f"model={name}").model.id
            in (ROOT / "models/dit/CARD.md").read_text()
        )


def test_the_grid_of_the_paper_samples_it(folder):
    cfg = composed("sample", "model=dit", f"model.id={folder}")
    model = load_backbone(cfg)
    plan = ddpm(model.schedule, timesteps(1000, 5))
    x = run(model.given(torch.tensor(LABELS)), plan, SampleNoise(0, range(2), model.shape))
    assert model.decode(x).shape == (2, 16, 16, 3)
