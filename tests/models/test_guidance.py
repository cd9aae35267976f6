"""Classifier guidance: the gradient, and what it does to samples through the plans."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import golden_network, write_standin

from models.adm.backbone import load
from models.adm.guidance import ClassifierGuidance
from sampling import SampleNoise, ddim, ddpm, mix, run, skipped, timesteps


@pytest.fixture(scope="module")
def classifier(unet_forward):
    return golden_network("clf", unet_forward)


def test_the_gradient_is_that_of_log_p_by_finite_differences(classifier):
    net = copy.deepcopy(classifier).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 8])
    slope = ClassifierGuidance(net, 2.5, "").gradient(labels)(x, 640.0)
    direction = torch.randn_like(x)

    def log_p(x):
        logits = net(x, torch.full((2,), 640.0))
        return logits.log_softmax(-1)[torch.arange(2), labels]

    h = 1e-5
    with torch.no_grad():
        change = (log_p(x + h * direction) - log_p(x - h * direction)) / (2 * h)
    got = (slope * direction).flatten(1).sum(1)
    torch.testing.assert_close(got, 2.5 * change, rtol=1e-6, atol=1e-9)
    assert not slope.requires_grad


def recomputed(model, plan_name, grid, noise, y, slope):
    """Guided sampling as guided-diffusion describes it, by scalars, step by step in float64.

    Ancestral: mean + variance * gradient.  DDIM: eps - sqrt(1 - abar) * gradient, and x0 again
    from the changed eps, without clipping.
    """
    abar = model.schedule.alpha_bar
    x = noise.start()
    for k, t in enumerate(grid.tolist()):
        a, b = abar[t], abar[grid[k + 1]] if k + 1 < len(grid) else 1.0
        eps, v = model.network(x, t, y)
        g = slope(x, t)
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        if plan_name == "ddim":
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a) - math.sqrt(1 - a) * g
            x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
            continue
        beta = 1 - a / b
        small = beta * (1 - b) / (1 - a)
        if k + 1 == len(grid):  # the original replaces the last log variance, which is infinite
            before = abar[grid[k - 1]]
            small = (1 - before / a) * (1 - a) / (1 - before)
        f = (v + 1) / 2
        variance = torch.exp(f * math.log(beta) + (1 - f) * math.log(small))
        mean = (math.sqrt(b) * beta * x0 + math.sqrt(a / b) * (1 - b) * x) / (1 - a)
        x = mean + variance * g
        if k + 1 < len(grid):
            x = x + variance.sqrt() * noise.at(t)
    return x


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_guided_sampling_is_guided_diffusions(name, classifier, unet_forward, tmp_path):
    card = write_standin(tmp_path, "t64", unet_forward)
    model = load(str(card), str(card.with_suffix(".pt")))
    model.network.net.double()
    noise = SampleNoise(1, range(3), model.shape, dtype=torch.float64)
    y = torch.tensor([0, 4, 9])
    guidance = ClassifierGuidance(copy.deepcopy(classifier).double(), 30.0, "")
    grid = timesteps(1000, 6)
    plan = {"ddpm": ddpm, "ddim": ddim}[name](model.schedule, grid)
    ours = run(replace(model, guidance=guidance).given(y), plan, noise)
    with torch.no_grad():
        expected = recomputed(model, name, grid, noise, y, guidance.gradient(y))
        unguided = run(model.given(y), plan, noise)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
    assert (ours - unguided).abs().max() > 1e-3  # guidance did something


@pytest.mark.parametrize("sampler", [ddpm, ddim, skipped, lambda s, g: mix(s, g, cutoff=400)])
def test_guidance_raises_the_classifiers_belief(sampler, classifier, unet_forward, tmp_path):
    standin = write_standin(tmp_path, "clf", unet_forward)
    card = write_standin(tmp_path, "t64", unet_forward, classifier=str(standin))
    y, grid = torch.tensor([0, 4, 9, 2]), timesteps(1000, 10)
    belief = []
    for scale in (0.0, 50.0, 500.0):
        model = load(str(card), str(card.with_suffix(".pt")), guidance={"scale": scale})
        noise = SampleNoise(1, range(4), model.shape)
        x = run(model.given(y), sampler(model.schedule, grid), noise)
        with torch.no_grad():
            logits = classifier(x.clamp(-1, 1), torch.zeros(4))
        belief.append(logits.log_softmax(-1)[range(4), y].mean().item())
    assert belief == sorted(belief)
    assert belief[2] > belief[0] + 0.01


def test_an_unconditional_model_gets_labels_from_its_classifier(unet_forward, tmp_path):
    standin = write_standin(tmp_path, "clf", unet_forward)
    card = write_standin(tmp_path, "t256u", unet_forward, classifier=str(standin))
    path = str(card.with_suffix(".pt"))
    assert load(str(card), path).num_classes is None
    model = load(str(card), path, guidance={"scale": 10.0, "checkpoint": None})
    assert model.num_classes == 10
    y = torch.tensor([1, 2])
    eps, _ = model.network(torch.zeros(2, 3, 16, 16), 5, y)  # the U-Net takes no labels
    assert eps.shape == (2, 3, 16, 16)
    facts = model.guidance.facts
    assert (facts["name"], facts["scale"]) == ("classifier", 10.0)
    assert facts["network"]["num_head_channels"] == 8  # changes the gradient and no shape
    assert len(facts["sha256"]) == 64


def test_mistakes(classifier, unet_forward, tmp_path):
    for scale in (-1, "strong", True, float("nan")):
        with pytest.raises(ValueError, match=r"guidance.scale must be a number of at least 0"):
            ClassifierGuidance(classifier, scale, "")
    standin = write_standin(tmp_path, "clf", unet_forward)
    plain = write_standin(tmp_path, "t64", unet_forward)
    with pytest.raises(ValueError, match="stand-in t64 has no classifier: use guidance=none"):
        load(str(plain), str(plain.with_suffix(".pt")), guidance={"scale": 1.0})
    card = write_standin(tmp_path, "t64", unet_forward, classifier=str(standin))
    (tmp_path / "clf.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"clf.pt is missing: fetch it with"):
        load(str(card), str(card.with_suffix(".pt")), guidance={"scale": 1.0})
