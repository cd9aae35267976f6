"""Our schedulers in real pipelines of flow matching, tiny ones: SD3, FLUX, Wan, LTX, Mochi."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import tiny_flows as tiny
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image

from sampling import SampleNoise
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NumPy, in diffusers
    pytest.mark.filterwarnings("ignore:.*CPU [aA]utocast:UserWarning"),  # Mochi's network
]
ALL = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler])
NAMES = ("sd3", "flux", "wan", "ltx", "mochi")
STEPS = 6


def opened(name):
    pipe, words = getattr(tiny, name)()
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"num_inference_steps": STEPS, "output_type": "np", **words}


def result(pipe, words, seed=3) -> np.ndarray:
    """These pipelines pass no generator to `step`: torch's own decides there."""
    torch.manual_seed(seed)
    out = pipe(**words, generator=torch.Generator().manual_seed(seed))
    out = out.images if hasattr(out, "images") else out.frames
    return np.asarray(out.float() if isinstance(out, torch.Tensor) else out)


@ALL
@pytest.mark.parametrize("name", NAMES)
def test_pipelines_of_flow_matching(cls, name, tmp_path):
    pipe, words = opened(name)
    theirs = pipe.scheduler
    pipe.scheduler = cls.from_config(theirs.config)
    ours = result(pipe, words)
    assert np.isfinite(ours).all() and ours.std() > 0.05
    assert pipe.scheduler.step_index == STEPS == len(pipe.scheduler.plan)
    assert (ours != result(pipe, words, seed=4)).any()
    # The levels and the timesteps of the pipeline's own scheduler.
    sigmas, timesteps = pipe.scheduler.sigmas, pipe.scheduler.timesteps
    pipe.scheduler = theirs
    result(pipe, words)
    assert torch.equal(sigmas, theirs.sigmas) and torch.equal(timesteps, theirs.timesteps)
    # Saved and loaded back.
    scheduler = cls.from_config(theirs.config)
    scheduler.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == cls.__name__
    )
    pipe.scheduler = cls.from_pretrained(tmp_path)
    assert np.array_equal(ours, result(pipe, words))
    # Noise of (seed, i) alone.
    seen = []
    step = pipe.scheduler.step

    def watched(output, t, x, **more):
        seen.append(x.shape)
        return step(output, t, x, **more)

    pipe.scheduler.step = watched
    result(pipe, words)
    pipe.scheduler.noise = SampleNoise(0, range(seen[0][0]), seen[0][1:])
    assert np.isfinite(result(pipe, words)).all()
    pipe.scheduler.noise = SampleNoise(0, range(seen[0][0] + 1), seen[0][1:])
    with pytest.raises(ValueError, match="the pipeline steps"):
        result(pipe, words)


@ALL
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_pipeline_that_was_saved_with_ours(cls, name, tmp_path):
    pipe, words = opened(name)
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["sampling.schedulers", cls.__name__]
    nothing = {key: None for key, part in pipe.components.items() if part is None}
    back = DiffusionPipeline.from_pretrained(tmp_path, **nothing)
    back.set_progress_bar_config(disable=True)
    assert type(back.scheduler) is cls
    np.testing.assert_allclose(result(pipe, words), result(back, words), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_ddim_alone_is_euler_in_the_same_pipeline(name):
    pipe, words = opened(name)
    theirs = pipe.scheduler
    pipe.scheduler = MixScheduler.from_config(theirs.config, cutoff=1000)
    ours = result(pipe, words)
    if name == "wan":  # of first order on the same levels
        first = {"solver_order": 1, "disable_corrector": [*range(STEPS)]}
        pipe.scheduler = type(theirs).from_config(theirs.config, **first)
    else:
        pipe.scheduler = theirs
    np.testing.assert_allclose(ours, result(pipe, words), rtol=2e-3, atol=2e-4)


def test_skipped_step_is_the_first_order_sde_in_the_same_pipeline():
    pipe, words = opened("wan")
    options = {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}
    theirs = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **options)
    pipe.scheduler = SkippedStepScheduler.from_config(theirs.config)
    ours = result(pipe, words)
    pipe.scheduler = theirs
    np.testing.assert_allclose(ours, result(pipe, words), rtol=2e-3, atol=2e-4)


def picture(seed=0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8))


def taken(kind, words):
    """The arguments that a pipeline of another kind takes, too."""
    known = inspect.signature(kind.__call__).parameters
    return {key: value for key, value in words.items() if key in known}


@ALL
@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize(
    ("name", "kind"), [("sd3", StableDiffusion3Img2ImgPipeline), ("flux", FluxImg2ImgPipeline)]
)
def test_image_to_image(cls, strength, name, kind):
    base, words = opened(name)
    pipe = kind(**base.components)
    pipe.set_progress_bar_config(disable=True)
    words = taken(kind, {**words, "image": picture(), "strength": strength})
    theirs = pipe.scheduler
    more = {"cutoff": 1000} if cls is MixScheduler else {}
    pipe.scheduler = cls.from_config(theirs.config, **more)
    ours = result(pipe, words)
    begin = round(STEPS * (1 - strength) - 0.1)
    assert pipe.scheduler.begin_index in (begin, begin + 1)
    assert pipe.scheduler.step_index == STEPS
    assert np.isfinite(ours).all() and ours.std() > 0.02
    if cls is MixScheduler:
        pipe.scheduler = theirs
        np.testing.assert_allclose(ours, result(pipe, words), rtol=2e-3, atol=2e-4)


@ALL
@pytest.mark.parametrize(
    ("name", "kind"), [("sd3", StableDiffusion3InpaintPipeline), ("flux", FluxInpaintPipeline)]
)
def test_inpainting(cls, name, kind):
    base, words = opened(name)
    pipe = kind(**base.components)
    pipe.set_progress_bar_config(disable=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    words = {**words, "image": picture(1), "mask_image": Image.fromarray(mask), "strength": 0.8}
    words = taken(kind, words)
    theirs = pipe.scheduler
    more = {"cutoff": 1000} if cls is MixScheduler else {}
    pipe.scheduler = cls.from_config(theirs.config, **more)
    ours = result(pipe, words)
    assert pipe.scheduler.step_index == STEPS
    assert np.isfinite(ours).all() and ours.std() > 0.02
    if cls is MixScheduler:
        pipe.scheduler = theirs
        np.testing.assert_allclose(ours, result(pipe, words), rtol=2e-3, atol=2e-4)


@ALL
def test_video_to_video(cls):
    """Wan's begins in the middle and asks for add_noise."""
    base, _ = opened("wan")
    kept = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe = WanVideoToVideoPipeline(**{key: base.components[key] for key in kept})
    scheduler = pipe.scheduler = cls.from_config(base.scheduler.config)
    scheduler.set_timesteps(STEPS)
    timesteps, _ = pipe.get_timesteps(STEPS, scheduler.timesteps, 0.5, "cpu")
    video, noise = torch.randn(2, 1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = scheduler.add_noise(video, noise, timesteps[:1])
    level = float(scheduler.sigmas[STEPS // 2])
    torch.testing.assert_close(x, (1 - level) * video + level * noise)
    for t in timesteps:
        x = scheduler.step(x.sin(), t, x, return_dict=False)[0]
    assert scheduler.step_index == STEPS and x.isfinite().all()


def test_distilled_models_are_refused():
    pipe, _ = opened("ltx")
    distilled = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    with pytest.raises(ValueError, match="pass stochastic_sampling=False if this one was not"):
        MixScheduler.from_config(distilled.config)
