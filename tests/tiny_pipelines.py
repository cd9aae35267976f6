"""Diffusers pipelines with every real component, tiny and with random weights.

The tokenizer is CLIP's own: open-clip-torch carries its merges.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import open_clip
import sentencepiece
import torch
from diffusers import (
    AutoencoderKL,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from open_clip.tokenizer import bytes_to_unicode
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from models.opensora.stdit2 import STDiT2

SIZE = 32  # pixels; 16 in latent space
WIDTH = 32

# As in Stable Diffusion 2.1-base's scheduler_config.json.
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer, 49,408 tokens."""
    file = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizer.from_pretrained(folder, pad_token="!", model_max_length=77)


def text_config(**more) -> CLIPTextConfig:
    options = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 4, "vocab_size": 49408, "max_position_embeddings": 77}
    options |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    return CLIPTextConfig(**options, **more)


def unet(**more) -> UNet2DConditionModel:
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    options |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    options |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    options |= {"sample_size": SIZE // 2, "in_channels": 4, "out_channels": 4}
    options |= {"cross_attention_dim": WIDTH, "attention_head_dim": (2, 4)}
    return UNet2DConditionModel(**{**options, "use_linear_projection": True, **more}).eval()


def pixel_unet(second: str = "") -> UNet2DModel:
    """The network of an unconditional pixel pipeline; `second` level with attention ("Attn")."""
    down, up = ("DownBlock2D", f"{second}DownBlock2D"), (f"{second}UpBlock2D", "UpBlock2D")
    return UNet2DModel(
        8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
    )


def vae(**more) -> AutoencoderKL:
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
    options |= {"down_block_types": ["DownEncoderBlock2D"] * 2}
    options |= {"up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": SIZE}
    return AutoencoderKL(**{**options, "scaling_factor": 0.18215, **more}).eval()


def stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A `StableDiffusionPipeline` in the published layout at `folder`/pipeline."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        unet=unet(),
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokenizer(folder / "tokenizer"),
        scheduler=PNDMScheduler(**SCHEDULER, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def stable_diffusion_xl(folder: Path) -> Path:
    """A `StableDiffusionXLPipeline`: two text encoders, and the image size as a condition."""
    torch.manual_seed(1)
    second = text_config(projection_dim=WIDTH, hidden_act="gelu")
    words = tokenizer(folder / "tokenizer")
    pipe = StableDiffusionXLPipeline(
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
        vae=vae(force_upcast=True, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=words,
        tokenizer_2=words,
        scheduler=PNDMScheduler(**SCHEDULER),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}


def dit(**more) -> DiTPipeline:
    """Class-conditional; the network predicts a variance, too, and the batch is doubled."""
    torch.manual_seed(0)
    options = {**TRANSFORMER, "in_channels": 4, "out_channels": 8, "norm_num_groups": 4, **more}
    net = DiTTransformer2DModel(**options, sample_size=8).eval()
    return DiTPipeline(net, vae(sample_size=16), DDPMScheduler(clip_sample=False))


def pixart() -> PixArtAlphaPipeline:
    """Without its text encoder: prompts are given as embeddings of width 12."""
    torch.manual_seed(0)
    options = {**TRANSFORMER, "out_channels": 8, "norm_num_groups": 4, "sample_size": 8}
    options |= {"cross_attention_dim": 16, "caption_channels": 12}
    net = PixArtTransformer2DModel(**options, use_additional_conditions=False).eval()
    scheduler = DDPMScheduler(clip_sample=False)
    return PixArtAlphaPipeline(None, None, vae(sample_size=16), net, scheduler)


def cogvideox() -> CogVideoXPipeline:
    """Without text encoder and VAE: embeddings of width 12 to latents of 3 frames."""
    torch.manual_seed(0)
    options = {**TRANSFORMER, "in_channels": 4, "out_channels": 4, "time_embed_dim": 4}
    options |= {"sample_width": 4, "sample_height": 4, "sample_frames": 9}
    net = CogVideoXTransformer3DModel(**options, text_embed_dim=12, max_text_seq_length=5).eval()
    # As in CogVideoX-2b's scheduler_config.json.
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=3.0,
    )
    return CogVideoXPipeline(None, None, None, net, scheduler)


OPENSORA = {"hidden_size": 48, "depth": 2, "num_heads": 4, "caption_channels": 24}


def opensora(folder: Path) -> Path:
    """Open-Sora's parts in the published layouts: net, t5 with a trained tokenizer, vae."""
    torch.manual_seed(0)
    (folder / "net").mkdir()
    net = STDiT2(**OPENSORA)
    for value in net.state_dict().values():
        torch.nn.init.normal_(value, std=0.1)
    save_file(net.state_dict(), folder / "net/model.safetensors")
    config = {**OPENSORA, "patch_size": [1, 2, 2], "model_type": "STDiT2", "qk_norm_legacy": True}
    (folder / "net/config.json").write_text(json.dumps(config))
    corpus = folder / "corpus.txt"
    texts = [
        "A small cactus with a happy face in the Sahara desert, a red bus.",
        "the quick brown fox jumps over a lazy dog 0123456789",
    ]
    corpus.write_text("\n".join(texts * 20))
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, **special}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), **options
    )
    (folder / "t5").mkdir()  # files as in DeepFloyd/t5-v1_1-xxl
    shutil.copy(folder / "spiece.model", folder / "t5")
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    settings |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "t5/tokenizer_config.json").write_text(json.dumps(settings))
    config = T5Config(vocab_size=64, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).eval().save_pretrained(folder / "t5")
    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    small = vae(block_out_channels=(8, 8, 8, 16), down_block_types=down, up_block_types=up)
    small.save_pretrained(folder / "vae")
    return folder
