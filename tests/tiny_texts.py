"""Pipelines of text that are whole on disk, text encoders and all, tiny and with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny_pipelines import (
    TRANSFORMER,
    WIDTH,
    text_config,
    tokenizer,
    vae,
)
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def t5(folder: Path, width: int = 12) -> tuple[Any, T5EncoderModel]:
    """A tokenizer of 60 pieces, and an encoder."""
    folder.mkdir(parents=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over a lazy dog 0123456789, a red bus\n" * 20)
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        **{"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, **special},
    )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 16}
    settings |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    words = AutoTokenizer.from_pretrained(folder)
    config = T5Config(vocab_size=64, d_model=width, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return words, T5EncoderModel(config).eval()


def image_vae(**more):
    return vae(sample_size=16, scaling_factor=1.5, shift_factor=0.06, **more)


def sd3(folder: Path) -> Path:
    torch.manual_seed(0)
    options = {"sample_size": 8, "patch_size": 2, "num_layers": 1, "pos_embed_max_size": 16}
    options |= {"joint_attention_dim": 2 * WIDTH, "caption_projection_dim": 16, **HEADS}
    net = SD3Transformer2DModel(**options, pooled_projection_dim=2 * WIDTH).eval()
    config = text_config(projection_dim=WIDTH)
    pieces, encoder = t5(folder / "t5", 2 * WIDTH)
    words = tokenizer(folder / "tokenizer")
    pipe = StableDiffusion3Pipeline(
        net,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        image_vae(latent_channels=16),
        CLIPTextModelWithProjection(config).eval(),
        words,
        CLIPTextModelWithProjection(config).eval(),
        words,
        encoder,
        pieces,
    )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def flux(folder: Path) -> Path:
    """FLUX.1-dev: shifted by the number of tokens, guidance told to the network."""
    torch.manual_seed(0)
    options = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, **HEADS}
    options |= {"joint_attention_dim": 12, "pooled_projection_dim": WIDTH, "guidance_embeds": True}
    net = FluxTransformer2DModel(**options, axes_dims_rope=(2, 2, 4)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    words, encoder = t5(folder / "t5")
    pipe = FluxPipeline(
        scheduler,
        image_vae(),
        CLIPTextModel(text_config()).eval(),
        tokenizer(folder / "tokenizer"),
        encoder,
        words,
        net,
    )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def pixart(folder: Path) -> Path:
    torch.manual_seed(0)
    options = {**TRANSFORMER, "out_channels": 8, "norm_num_groups": 4, "sample_size": 8}
    options |= {"cross_attention_dim": 16, "caption_channels": 12}
    net = PixArtTransformer2DModel(**options, use_additional_conditions=False).eval()
    words, encoder = t5(folder / "t5")
    scheduler = DDPMScheduler(clip_sample=False)
    pipe = PixArtAlphaPipeline(words, encoder, vae(sample_size=16), net, scheduler)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def video(folder: Path) -> Path:
    """CogVideoX-2b: v-prediction, no signal at the first timestep."""
    torch.manual_seed(0)
    options = {**TRANSFORMER, "in_channels": 4, "out_channels": 4, "time_embed_dim": 4}
    options |= {"sample_width": 4, "sample_height": 4, "sample_frames": 9}
    net = CogVideoXTransformer3DModel(**options, text_embed_dim=12, max_text_seq_length=16).eval()
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=3.0,
    )
    decoder = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
    ).eval()
    words, encoder = t5(folder / "t5")
    pipe = CogVideoXPipeline(words, encoder, decoder, net, scheduler)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def wan(folder: Path) -> Path:
    """Wan 2.1: UniPC with flow sigmas, at whole timesteps."""
    torch.manual_seed(0)
    options = {"num_layers": 1, "in_channels": 4, "out_channels": 4, "ffn_dim": 16, "freq_dim": 16}
    options |= {"text_dim": 12, "num_attention_heads": 2, "attention_head_dim": 12}
    net = WanTransformer3DModel(**options).eval()
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    decoder = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    words, _ = t5(folder / "t5")
    config = UMT5Config(vocab_size=64, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    pipe = WanPipeline(words, UMT5EncoderModel(config).eval(), decoder, scheduler, net)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def ltx(folder: Path) -> Path:
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
    decoder = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()
    words, encoder = t5(folder / "t5")
    pipe = LTXPipeline(scheduler, decoder, encoder, words, net)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def mochi(folder: Path) -> Path:
    """Mochi counts the other way: its sigmas rise from 0 to 1."""
    torch.manual_seed(0)
    options = {"num_layers": 2, "pooled_projection_dim": 8, "in_channels": 12, "out_channels": None}
    options |= {"text_embed_dim": 16, "time_embed_dim": 4, "max_sequence_length": 16}
    net = MochiTransformer3DModel(**options, qk_norm="rms_norm", **HEADS).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    decoder = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        latent_channels=12,
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()
    words, encoder = t5(folder / "t5", 16)
    pipe = MochiPipeline(scheduler, decoder, encoder, words, net)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
