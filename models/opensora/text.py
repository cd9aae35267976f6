"""Prompts for Open-Sora: cleaned, encoded by T5 once, and kept on disk.

The encoder has 4.8 billion parameters (the whole T5 v1.1 XXL 11 billion); with the features on
disk it need not be in memory while videos are sampled.
"""

import gc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import bs4  # noqa: F401  (without these two diffusers silently cleans nothing)
import ftfy  # noqa: F401
import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from files.whole import write_atomic
from models.hub import remedied

LENGTH = 200  # tokens


def clean(prompt: str) -> str:
    """The prompt as the encoder gets it: PixArt's cleaning, applied twice as in the original.

    Raises ValueError if nothing is left of it.
    """
    cleaned = prompt
    for _ in range(2):
        cleaned = PixArtAlphaPipeline._clean_caption(cast(Any, PixArtAlphaPipeline), cleaned)
    if not cleaned:
        raise ValueError(f"nothing is left of the prompt {prompt!r} after cleaning: reword it")
    return cleaned


class TextCache:
    """Features of prompts on disk, one file a prompt: float32 [n, C] of its n tokens.

    `encoder` is a hub id or local folder of a T5 encoder with its tokenizer.  A file's name is
    the hash of encoder and cleaned prompt.
    """

    def __init__(self, folder: Path, encoder: str):
        self.folder, self.encoder = folder, encoder

    def path(self, prompt: str) -> Path:
        local = Path(self.encoder)
        name = str(local.resolve()) if local.is_dir() else self.encoder
        text = "\n".join([name, "", str(LENGTH), clean(prompt)])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def fill(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> None:
        """Encode what is missing; the encoder is loaded only if anything is.

        Raises ValueError for a prompt that cannot be encoded, FileNotFoundError without encoder.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self._is_there(prompt)]
        if not missing:
            return
        tokenizer, encoder = load_t5(self.encoder)
        encoder.to(device)
        for prompt in tqdm(missing, desc="encoding prompts", unit="prompt"):
            tokens = tokenizer(
                [clean(prompt)],
                max_length=LENGTH,
                padding="max_length",
                truncation=True,
                return_attention_mask=True,
                add_special_tokens=True,
                return_tensors="pt",
            ).to(device)
            with torch.no_grad():
                seen = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
            n = int(tokens.attention_mask.sum())
            features = seen.last_hidden_state[0, :n].float().cpu().contiguous()
            write_atomic(self.path(prompt), lambda p, f=features: save_file({"y": f}, p))  # type: ignore[misc]
        del encoder
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()

    def _is_there(self, prompt: str) -> bool:
        try:
            load_file(self.path(prompt))["y"]
        except (OSError, KeyError, SafetensorError):
            return False
        return True

    def batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(y float32 [B, 1, 200, C], mask int64 [B, 200]) of prompts that `fill` has encoded."""
        features = [load_file(self.path(prompt))["y"] for prompt in prompts]
        y = torch.zeros(len(features), 1, LENGTH, features[0].shape[1])
        mask = torch.zeros(len(features), LENGTH, dtype=torch.int64)
        for row, words in enumerate(features):
            y[row, 0, : len(words)] = words
            mask[row, : len(words)] = 1
        return y, mask


def load_t5(encoder: str) -> tuple[Any, torch.nn.Module]:
    """(tokenizer, encoder in float32, as the original keeps it).

    Raises FileNotFoundError, with the remedy, if they are not there and cannot be fetched.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    with remedied(encoder, "model.text_encoder", "the text encoder "):
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = T5EncoderModel.from_pretrained(encoder, dtype=torch.float32)
    return tokenizer, model.eval()
