"""Every sampler by its name in the commands, its options and mistakes, and plans that come from files."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, done, refused

import sample
from experiments.cells import Settings
from experiments.choices import options_of
from experiments.config import composed, load_backbone, settings_of
from experiments.folder import read_manifest
from experiments.generate import generate
from models.backbone import ImageNetwork
from models.opensora.backbone import VideoNetwork
from models.stable_diffusion.backbone import TextNetwork
from sampling import (
    Plan,
    SampleNoise,
    Schedule,
    churn,
    ddim,
    mixstar,
    restart,
    run,
    scale_eps,
    timesteps,
)

# diffusers hands torch's tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

LINEAR = Schedule.linear()
ONE = ["model.checkpoint=unet-1000", "num_samples=1"]
SOME = {"plan": ["sampler.path=p.json"]}  # what a sampler cannot be without


@pytest.fixture(scope="module")
def digits():
    return load_backbone(composed("sample", "model.checkpoint=unet-1000"))


def settings(digits, *words: str) -> Settings:
    cfg = composed("sample", "model.checkpoint=unet-1000", *words)
    return settings_of(cfg, digits, cfg.spacing, "id")


def cell(digits, *words: str, **sampler):
    return settings(digits, *words).cell("", sampler, 10, 4)


def pixels(folder) -> np.ndarray:
    with np.load(folder / "samples.npz") as file:
        return file["arr_0"]


# --- by name


@pytest.mark.parametrize("name", options_of("sampler"))
def test_every_sampler_shows_its_plan_and_samples(command, tmp_path, name):
    (tmp_path / "p.json").write_text(ddim(LINEAR, [999, 500, 0]).to_json())
    words = [*ONE, *SOME.get(name, []), f"sampler={name}", "steps=12", "show_plan=true", "out=a"]
    title, heads, *rest = done(command(sample, *words)).splitlines()
    calls = int(title.split(", ")[-1].removesuffix(" network calls"))
    assert heads.split()[:4] == ["t", "s", "x", "x0"]
    rows = [line for line in rest if "network calls" not in line]
    assert rows[-1].split()[1] == "clean" and len(rows) >= calls
    assert calls in ((3,) if name == "plan" else (11, 12))
    assert read_manifest(tmp_path / "a")["nfe"] == calls
    assert np.ptp(pixels(tmp_path / "a")) > 100


@pytest.mark.parametrize("method", ["heun", "euler"])
@pytest.mark.parametrize("clean", [True, False])
def test_calls_are_at_most_those_asked_for(digits, method, clean):
    """Also where the end is not clean, and Heun's method has one call more."""
    final = 1.0 if clean else float(LINEAR.alpha_bar[0])
    model = dataclasses.replace(digits, schedule=dataclasses.replace(LINEAR, final=final))
    ours = settings(model, "spacing=leading+1")
    for name, options in (
        ("churn", {"s_churn": 80, "s_range": [0.05, 50]}),
        ("restart", {"restarts": [[3, 2, 0.06, 0.3]]}),
    ):
        for steps in range(40, 70):
            plan = ours.cell("", {"name": name, "method": method, **options}, steps, 4).plan
            assert steps - (method == "heun") <= len(plan) <= steps
            assert plan.name.startswith(name) and (plan.s > plan.t).any()
    if method == "heun" and not clean:
        with pytest.raises(ValueError, match="takes 2 network calls at least: set steps=2 or more"):
            ours.cell("", {"name": "churn"}, 1, 4)


MISTAKES = {
    "sampler=churn sampler.s_churn=x": "sampler.s_churn must be a number",
    "sampler=churn sampler.s_churn=-1": "churn needs s_churn >= 0",
    "sampler=churn sampler.s_range=3": "sampler.s_range must be a list",
    "sampler=churn sampler.s_range=[1]": "s_range must be two levels",
    "sampler=churn sampler.s_range=[2,1]": "churn needs s_churn >= 0 and a range",
    "sampler=churn sampler.method=rk4": "unknown method 'rk4': choose one of euler, heun",
    "sampler=restart sampler.restarts=[3,2,0.06,0.3]": "sampler.restarts must be a list",
    "sampler=restart sampler.restarts=[[3,2,0.06]]": "each of restarts must be four numbers",
    "sampler=restart sampler.restarts=[[3,2,0.06,200]]": "a restart needs 2 nodes or more",
    "sampler=restart sampler.restarts=[[3,2,200,300]]": "is near sigma / alpha = 200, where a",
    "sampler=restart steps=10": "is near sigma / alpha = 0.06, where a restart begins: take more",
    "sampler=restart steps=12 spacing=trailing": "take more steps, or another spacing",
    "sampler=restart steps=0": "steps must be between 1 and T = 1000, got 0",
    "sampler=heun steps=many": "steps must be an integer",
    "sampler=pndm steps=0": "steps must be between 1 and T = 1000, got 0",
    "sampler=ipndm sampler.order=5": "order of ipndm must be one of [1, 2, 3, 4]",
    "sampler=ipndm sampler.order=two": "sampler.order must be an integer",
    "sampler=dpmpp sampler.order=true": "sampler.order must be an integer",
    "sampler=dpmpp sampler.lower_order_final=1": "lower_order_final must be true or false",
    "sampler=dpmpp sampler.solver_type=bh1": "unknown solver_type 'bh1'",
    "sampler=deis_ab sampler.variable=t": "unknown variable 't': choose one of rho, log_rho",
    "sampler=er_sde sampler.noise_scale=7": "sampler.noise_scale must be text",
    "sampler=er_sde sampler.noise_scale=sde7": "unknown noise_scale 'sde7': choose one of ode, sde",
    "sampler=mixpp sampler.lo=x": "sampler.lo must be a number",
    "sampler=mixstar sampler.knots=x": "sampler.knots must be a list",
    "sampler=mixstar sampler.knots=[0,1]": "sampler.knots must be a list",
    "sampler=mixstar sampler.knots=[[0,a]]": "sampler.knots must be a list",
    "sampler=mixstar sampler.knots=[]": "knots must be one or more of two numbers",
    "sampler=mixstar sampler.knots=[[0,1,1],[2]]": "as [[-4,1],[0,0.5],[4,0]], got [[0, 1, 1], [2]]",
    "sampler=mixstar sampler.knots=[[0,1.1]]": "a share of knots must be in 0..1, got 1.1",
    "sampler=mixstar sampler.knots=[[0,-1]]": "a share of knots must be in 0..1, got -1",
    "sampler=mixstar sampler.knots=[[291,1]]": "which is between -10.11 and 9.21 on this noise",
    "sampler=mixstar sampler.knots=[[2,1],[1,0]]": "put their log-SNRs in the order [1, 2]",
    "sampler=mixstar sampler.orders=[]": "orders of mixstar must be 1, 2 or 3, as [2], got []",
    "sampler=mixstar sampler.orders=[2,4] sampler.switches=[9]": "orders of mixstar must be 1, 2",
    "sampler=mixstar sampler.orders=2": "sampler.orders must be a list of integers",
    "sampler=mixstar sampler.orders=[2,1]": "there are 2 orders and 0 switches",
    "sampler=mixstar sampler.switches=[2]": "there are 1 orders and 1 switches",
    "sampler=mixstar sampler.orders=[2,1] sampler.switches=[400]": "switches are at a log-SNR",
    "sampler=mixstar sampler.leap=0": "leap must be above 0, got 0",
    "sampler=mixstar sampler.solver_type=bh1": "unknown solver_type 'bh1'",
    "sampler=mix sampler.skipped_steps=1.5": "sampler.skipped_steps must be an integer",
    "sampler=unipc sampler.solver_order=x": "sampler.solver_order must be an integer",
    "sampler=unipc sampler.solver_type=bh3": "solver_type must be bh1 or bh2",
    "sampler=deis sampler.solver_order=0": "sampler.solver_order must be at least 1, got 0",
    "sampler=lms sampler.order=x": "sampler.order must be an integer",
    "sampler=diffusers sampler.scheduler=null": "name a class: sampler.scheduler=",
    "sampler=diffusers sampler.scheduler=Heun": "unknown scheduler 'Heun': choose one of",
    "sampler=diffusers +sampler.solver_order=x": "sampler.solver_order must be an integer",
    "sampler=diffusers +sampler.order=2": "there is no setting sampler.order: choose among sampler.name",
    "sampler.eps_scale=x": "sampler.eps_scale must be a number or a list of numbers or null",
    "sampler.eps_scale=[1]": "sampler.eps_scale must be a number b or a list [k, b]",
    "sampler.eps_scale=true": "sampler.eps_scale must be a number or a list of numbers or null",
    "sampler.eps_scale=0": "eps_scale must be positive at every timestep",
    "sampler.eps_scale=[-0.01,1]": "eps_scale must be positive at every timestep",
    "sampler=plan": "sampler=plan needs sampler.path=FILE.json: `python sample.py",
    "sampler=plan sampler.path=gone.json": "there is no plan at gone.json: `python sample.py",
    "sampler=plan sampler.path=cut.json": "cut.json is no plan: this is no JSON",
    "sampler=plan sampler.path=bytes.json": "bytes.json is no plan: 'utf-8' codec",
    "sampler=plan sampler.path=other.json": "the plan is of another noise schedule: at t = 999",
    "sampler=plan sampler.path=longer.json": "begins at t = 1999, and the last timestep here is 999",
    "sampler=plan sampler.path=edm.json": "the plan is of another noise schedule: at t = 80",
    "sampler=plan sampler.path=p.json +sampler.order=2": "there is no setting sampler.order: choose among sampler.name, sampler.path",
    "show_plan=yes": "show_plan is true, false or a FILE.json to write, got 'yes'",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(command, mistake, tmp_path):
    edm = Schedule.edm([80.0, 10.0, 1.0])
    files = {
        "p": ddim(LINEAR, [999, 0]),
        "other": ddim(Schedule.cosine(), [999, 0]),
        "longer": ddim(Schedule.linear(2000), [1999, 0]),
        "edm": ddim(edm, [2, 1, 0]),
    }
    for name, plan in files.items():
        (tmp_path / f"{name}.json").write_text(plan.to_json())
    (tmp_path / "cut.json").write_text(files["p"].to_json()[:80])
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    refused(command(sample, *ONE, "out=here", *mistake.split()), MISTAKES[mistake])
    assert not list(tmp_path.glob("here/**/*.npz"))


# --- the scale of eps


def test_eps_scale_is_in_a_folder_s_identity_where_it_changes_anything(digits):
    plain = cell(digits, name="ddim", eta=0.0)
    for same in (None, 1, 1.0, [0, 1], [0.0, 1.0]):
        again = cell(digits, name="ddim", eta=0.0, eps_scale=same)
        assert (again.config, again.folder) == (plain.config, plain.folder)
        assert again.plan.to_json() == plain.plan.to_json()
    scaled, linear = (cell(digits, name="ddim", eps_scale=s) for s in (1.004, [1e-5, 1]))
    assert scaled.config["sampler"] == {"name": "ddim", "eps_scale": 1.004}
    assert linear.config["sampler"] == {"name": "ddim", "eps_scale": [1e-5, 1.0]}
    assert scaled.folder.name.startswith("ddim-eps_scale_1.004-10steps-")
    assert linear.folder.name.startswith("ddim-eps_scale_1e-05_1.0-10steps-")
    assert cell(digits, name="ddim", eps_scale=[0, 1.004]).digest == scaled.digest


def test_scaled_columns_are_sampled_as_one_tree_as_each_alone(digits, tmp_path, monkeypatch):
    """Of a network whose x0 is limited, and of one whose x0 is not."""
    scales = (None, 1.01, [2e-5, 1.0], 1.02)
    rows = {str(s): {"name": "mix", "cutoff": 291, "eps_scale": s} for s in scales}
    for clip in (True, False):
        model = dataclasses.replace(digits, clip=clip)
        monkeypatch.chdir(tmp_path)
        column = settings(model).column(rows, 4, 2)
        generate(column.cells, model)
        assert [c.plan.eps_scale.max() > 1 for c in column.cells] == [False, *[clip] * 3]
        images = [pixels(c.folder) for c in column.cells]
        for one, scale in enumerate(scales):
            (tmp_path / f"{clip}{one}").mkdir()
            monkeypatch.chdir(tmp_path / f"{clip}{one}")
            alone = settings(model).column({"": rows[str(scale)]}, 4, 2).cells[0]
            generate([alone], model)
            assert np.array_equal(pixels(alone.folder), images[one])
        assert len({image.tobytes() for image in images}) == 4


def test_eps_scale_of_the_command_is_that_of_the_plan(command, tmp_path, digits):
    words = [*ONE, "sampler=ddpm", "steps=3", "sampler.eps_scale=[1e-5,1.01]", "out=a"]
    out = done(command(sample, *words, "show_plan=true"))
    assert "eps / (1e-05 t + 1.01), 3 network calls" in out and "1.019990" in out
    a = cell(digits, name="ddpm", variance="learned", eps_scale=[1e-5, 1.01])
    assert a.plan.eps_scale[0] == 1.01 + 1e-5 * 999


# --- plans from files


def written(command, tmp_path, *words: str) -> np.ndarray:
    """Sample, write the plan, and sample from that: the same pixels, of a folder of its own."""
    done(command(sample, *ONE, *words, "show_plan=plans/p.json", "out=a"))
    out = done(
        command(
            *(sample, *ONE, "sampler=plan", "sampler.path=plans/p.json", "out=b", "steps=7"),
            *(word for word in words if word.startswith(("label=", "seed="))),
        )
    )
    ours, theirs = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert np.array_equal(ours, theirs), out
    ours, theirs = (read_manifest(tmp_path / name) for name in "ab")
    assert ours["nfe"] == theirs["nfe"] == ours["config"]["steps"] == theirs["config"]["steps"]
    assert theirs["config"]["spacing"] == "plan"
    assert set(theirs["config"]["sampler"]) == {"name", "sha256"}
    return pixels(tmp_path / "a")


@pytest.mark.parametrize(
    "words",
    [
        "sampler=mix",
        "sampler=ddpm sampler.eps_scale=1.01",
        "sampler=er_sde",
        "sampler=mixstar sampler.orders=[3,1] sampler.switches=[2] sampler.eps_scale=[1e-5,1.004]",
        "sampler=sde_dpmpp sampler.order=3",
        "sampler=deis",
        "sampler=restart steps=16",
        "sampler=churn noise=brownian",
    ],
)
def test_a_plan_that_was_written_samples_the_same(command, tmp_path, words):
    noise = [word for word in words.split() if word.startswith("noise")]
    if noise:
        done(command(sample, *ONE, *words.split(), "steps=9", "show_plan=p.json", "out=a"))
        again = [*ONE, *noise, "sampler=plan", "sampler.path=p.json", "out=b"]
        done(command(sample, *again))
        assert np.array_equal(pixels(tmp_path / "a"), pixels(tmp_path / "b"))
    else:
        written(command, tmp_path, *["steps=9"][: "steps" not in words], *words.split())


def test_one_table_gives_the_same_pictures_from_the_command_and_from_python(command, tmp_path):
    """By its options, by the file that the command wrote, and by the one that Python wrote."""
    knots = [[-5, 0.4], [-1, 1], [3, 0]]
    words = ["sampler=mixstar", f"sampler.knots={knots}".replace(" ", ""), "sampler.eps_scale=1.01"]
    of_command = written(command, tmp_path, *words, "steps=7", "label=3", "seed=5")
    plan = mixstar(LINEAR, timesteps(LINEAR, 7), knots=knots)
    plan = scale_eps(plan, 0, 1.01, limited=True)  # digits are clipped
    assert (tmp_path / "plans/p.json").read_text() == plan.to_json()
    backbone = load_backbone(composed("sample", "model.checkpoint=unet-1000"))
    noise = SampleNoise(5, [0], backbone.shape)
    x = run(backbone.given(torch.tensor([3])), Plan.from_json(plan.to_json()), noise)
    assert np.array_equal(backbone.decoded(x), of_command) and of_command.std() > 20


def test_a_plan_s_folder_is_known_by_its_content(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = restart(LINEAR, timesteps(1000, 8), [(3, 2, 0.06, 0.3)])
    for name, text in (("a", plan.to_json()), ("b", json.dumps(json.loads(plan.to_json())))):
        (tmp_path / f"{name}.json").write_text(text)
    one, other = (cell(digits, name="plan", path=f"{n}.json") for n in "ab")
    assert one.digest == other.digest and one.folder == other.folder
    assert one.folder.name.startswith(f"plan-{len(plan)}steps-")
    assert cell(digits, "spacing=log_snr", name="plan", path="a.json").digest == one.digest
    (tmp_path / "a.json").write_text(churn(LINEAR, timesteps(1000, 8)).to_json())
    assert cell(digits, name="plan", path="a.json").digest != one.digest
    scaled = cell(digits, name="plan", path="b.json", eps_scale=1.01)
    assert scaled.plan.to_json() == scale_eps(plan, 0, 1.01, limited=True).to_json()
    assert scaled.digest != one.digest


def test_a_plan_has_its_place_in_a_table(digits, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(ddim(LINEAR, timesteps(1000, 5)).to_json())
    rows = {"Mine": {"name": "plan", "path": str(path)}, "DDIM": {"name": "ddim"}}
    column = settings(digits).column(rows, 5, 4)
    assert column.cells[0].plan.to_json() == column.cells[1].plan.to_json()
    with pytest.raises(ValueError, match=r"the plan of Mine makes 5 network calls.* set steps=5"):
        settings(digits).column(rows, 4, 4)


# --- the page

PAGE = (ROOT / "docs/samplers.md").read_text()


def test_every_sampler_has_its_line():
    names = re.findall(r"^\| `(\w+)` \|", PAGE.split("\n## ")[0], re.M)
    assert sorted(names) == options_of("sampler")


# --- between timesteps


class Seen:
    """In a network's place: remembers what it is told of the time."""

    def __init__(self, answer):
        self.answer, self.times = answer, []

    def __call__(self, x, steps, *rest, **more):
        self.times.append((steps.dtype, set(steps.tolist())))
        return self.answer(x)


def test_every_network_is_told_the_time_between_timesteps():
    """And at timesteps as it is trained: Stable Diffusion and Open-Sora by integers."""
    x = torch.zeros(2, 4, 1, 2, 2)
    text = {"encoder_hidden_states": torch.zeros(4, 1)}
    image, unet, video = (
        Seen(lambda x: x),
        Seen(lambda x: (x,)),
        Seen(lambda x: torch.cat([x, x], 1)),
    )
    for t in (3.0, 3.25):
        ImageNetwork(image)(x[:, :, 0], t, None)
        TextNetwork(unet, 2.0)(x[:, :, 0], t, text)
        VideoNetwork(video, 2.0, 3)(x, t, {})
    assert image.times == [(torch.float32, {3.0}), (torch.float32, {3.25})]
    assert unet.times == video.times == [(torch.int64, {3}), (torch.float32, {3.25})]


def test_the_exact_denoiser_knows_the_noise_between_timesteps(digits):
    """Heun's method from levels between timesteps returns real images, as from timesteps."""
    exact = load_backbone(composed("sample", "model.checkpoint=exact"))
    denoiser, levels = exact.given(torch.tensor([3, 7])), LINEAR.noise_level
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for t in (37, 500):
        # The same image at another alpha: x / alpha alone counts, and the noise level.
        level = LINEAR.level(t + 0.5)
        assert levels[t] < level.sigma / level.alpha < levels[t + 1]
        images = exact.network.images[exact.network.labels == 3]
        flat = x[0].flatten().double() * level.sigma + level.alpha * images[5]
        far = ((flat - level.alpha * images) ** 2).sum(1) / (2 * level.sigma**2)
        expected = (-far).softmax(0) @ images
        given = flat.view(1, 1, 28, 28).expand(2, -1, -1, -1).float()
        ours = denoiser(given, t + 0.5)[0][0].flatten()
        assert (ours - expected).abs().max() < 1e-3
    plan = churn(LINEAR, timesteps(1000, 20), 80, (0.05, 50), 1.0)
    assert any(t != math.floor(t) for t in plan.t)
    x = run(denoiser, plan, SampleNoise(0, range(2), (1, 28, 28)))
    nearest = torch.cdist(x.flatten(1).double(), exact.network.images).min(1).values
    assert (nearest < 0.5).all()
