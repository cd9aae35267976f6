"""Pipelines of flow matching, tiny and with random weights; prompts are given as embeddings.

Each with the scheduler config that it ships with, and the arguments of a call.
"""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny_pipelines import vae

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def embeddings(**shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}


def image_vae(**more):
    return vae(sample_size=16, scaling_factor=1.5, shift_factor=0.06, **more)


def sd3() -> tuple[StableDiffusion3Pipeline, dict]:
    torch.manual_seed(0)
    options = {"sample_size": 8, "patch_size": 2, "num_layers": 1}
    options |= {"joint_attention_dim": 12, "caption_projection_dim": 16}
    options |= {"pooled_projection_dim": 10, "pos_embed_max_size": 16, **HEADS}
    net = SD3Transformer2DModel(**options).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    nothing = dict.fromkeys(
        f"{kind}{which}" for kind in ("text_encoder", "tokenizer") for which in ("", "_2", "_3")
    )
    pipe = StableDiffusion3Pipeline(net, scheduler, image_vae(latent_channels=16), **nothing)
    words = embeddings(
        prompt_embeds=(5, 12),
        negative_prompt_embeds=(5, 12),
        pooled_prompt_embeds=(10,),
        negative_pooled_prompt_embeds=(10,),
    )
    words = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in words.items()}
    return pipe, {**words, "height": 16, "width": 16}


def flux() -> tuple[FluxPipeline, dict]:
    """FLUX.1-dev: shifted by the number of tokens."""
    torch.manual_seed(0)
    options = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, **HEADS}
    options |= {"joint_attention_dim": 12, "pooled_projection_dim": 10, "guidance_embeds": True}
    net = FluxTransformer2DModel(**options, axes_dims_rope=(2, 2, 4)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler, image_vae(), None, None, None, None, net)
    words = embeddings(prompt_embeds=(5, 12), pooled_prompt_embeds=(10,))
    return pipe, {**words, "height": 16, "width": 16, "num_images_per_prompt": 2}


def wan() -> tuple[WanPipeline, dict]:
    """Wan 2.1: UniPC with flow sigmas, at whole timesteps."""
    torch.manual_seed(0)
    options = {"num_layers": 1, "in_channels": 4, "out_channels": 4, "ffn_dim": 16, "freq_dim": 16}
    net = WanTransformer3DModel(
        **options, text_dim=12, num_attention_heads=2, attention_head_dim=12
    )
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    pipe = WanPipeline(None, None, None, scheduler, net.eval())
    words = embeddings(prompt_embeds=(5, 12), negative_prompt_embeds=(5, 12))
    return pipe, {**words, "height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}


def ltx() -> tuple[LTXPipeline, dict]:
    """LTX-Video 0.9: shifted by the number of tokens, and stretched to end at 0.1."""
    torch.manual_seed(0)
    options = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "num_layers": 1}
    net = LTXVideoTransformer3DModel(**options, caption_channels=12, **HEADS).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        shift_terminal=0.1,
    )
    pipe = LTXPipeline(scheduler, None, None, None, net)
    words = embeddings(prompt_embeds=(5, 12), negative_prompt_embeds=(5, 12))
    ones = torch.ones(1, 5, dtype=torch.int64)
    words |= {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}
    return pipe, {**words, "height": 64, "width": 64, "num_frames": 9, "output_type": "latent"}


def mochi() -> tuple[MochiPipeline, dict]:
    """Mochi counts the other way: its sigmas rise from 0 to 1."""
    torch.manual_seed(0)
    options = {"num_layers": 2, "pooled_projection_dim": 8, "in_channels": 4, "out_channels": None}
    options |= {"text_embed_dim": 16, "time_embed_dim": 4, "max_sequence_length": 5}
    net = MochiTransformer3DModel(**options, qk_norm="rms_norm", **HEADS).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = MochiPipeline(scheduler, None, None, None, net)
    words = embeddings(prompt_embeds=(5, 16), negative_prompt_embeds=(5, 16))
    ones = torch.ones(1, 5, dtype=torch.bool)
    words |= {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}
    return pipe, {**words, "height": 16, "width": 16, "num_frames": 7, "output_type": "latent"}
