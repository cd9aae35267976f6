"""Prompts for Open-Sora: cleaned, encoded by T5 once, and kept on disk.

The encoder has 4.8 billion parameters (the whole T5 v1.1 XXL 11 billion); with the features on
disk it need not be in memory while videos are sampled.
"""

import gc
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import bs4  # noqa: F401  (without these two diffusers silently cleans nothing)
import ftfy  # noqa: F401
import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from files.whole import sealed, unsealed, write_atomic
from models.hub import check_filled, remedied
from models.weights import config_digest, state_digest

LENGTH = 200  # tokens
UNSEALED = ["encoder", "tokens", "sha256"]  # what a file says that was written without a checksum


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
    the hash of encoder and cleaned prompt; of a local one also of its files' sizes and times, so that
    another encoder in the same place encodes anew.  Besides the features a file says what encoder
    and tokens they are of, and their SHA-256; a checksum is of all that it says.
    """

    def __init__(self, folder: Path, encoder: str):
        self.folder, self.encoder = folder, encoder

    def path(self, prompt: str) -> Path:
        local = Path(self.encoder)
        name, stamps = self.encoder, ""
        if local.is_dir():
            name, stats = str(local.resolve()), ((p, p.stat()) for p in sorted(local.iterdir()))
            stamps = " ".join(f"{p.name} {s.st_size} {s.st_mtime_ns}" for p, s in stats)
        text = "\n".join([name, stamps, str(LENGTH), clean(prompt)])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def fill(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> None:
        """Encode what is missing; the encoder is loaded only if anything is.

        Raises ValueError for a prompt that cannot be encoded, FileNotFoundError without encoder.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if self._read(prompt) is None]
        if not missing:
            return
        tokenizer, encoder = load_t5(self.encoder)
        which = encoder_digest(encoder)
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
            ids = json.dumps(tokens.input_ids[0, :n].tolist())
            facts = {"encoder": which, "tokens": ids, "sha256": state_digest({"y": features})}
            facts = {
                "facts": json.dumps(sealed(facts))
            }  # in one: the order of several is at random
            write_atomic(self.path(prompt), partial(save_file, {"y": features}, metadata=facts))
        del encoder
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()

    def _read(self, prompt: str) -> tuple[Tensor, str] | None:
        """(features, what they are of) of a prompt, or None if its file is absent or damaged."""
        try:
            with safe_open(self.path(prompt), "pt") as file:
                facts, features = json.loads(file.metadata()["facts"]), file.get_tensor("y")
            if list(facts) != UNSEALED:
                facts = unsealed(facts)
            if facts["sha256"] != state_digest({"y": features}):
                return None
            return features, f"{facts['encoder']} {facts['tokens']}"
        except (OSError, KeyError, TypeError, ValueError, SafetensorError):
            return None

    def _known(self, prompt: str) -> tuple[Tensor, str]:
        known = self._read(prompt)
        if known is None:
            raise ValueError(
                f"the features of {prompt[:60]!r} in {self.folder} are lost or damaged: run the same "
                "command again, which encodes them anew"
            )
        return known

    def digest(self, prompts: Sequence[str]) -> str:
        """SHA-256 of the encoder and the tokens behind the features of prompts.

        Not of the features, whose last bits are another device's.
        """
        facts = (self._known(prompt)[1] for prompt in prompts)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(y float32 [B, 1, 200, C], mask int64 [B, 200]) of prompts that `fill` has encoded."""
        features = [self._known(prompt)[0] for prompt in prompts]
        y = torch.zeros(len(features), 1, LENGTH, features[0].shape[1])
        mask = torch.zeros(len(features), LENGTH, dtype=torch.int64)
        for row, words in enumerate(features):
            y[row, 0, : len(words)] = words
            mask[row, : len(words)] = 1
        return y, mask


def encoder_digest(encoder: Any) -> str:
    """SHA-256 of an encoder's config and weights, whatever its files."""
    both = config_digest(encoder.config.to_dict()) + state_digest(encoder.state_dict())
    return hashlib.sha256(both.encode()).hexdigest()


def load_t5(encoder: str) -> tuple[Any, torch.nn.Module]:
    """(tokenizer, encoder in float32, as the original keeps it).

    Raises FileNotFoundError, with the remedy, if they are not there and cannot be fetched.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    with remedied(encoder, "model.text_encoder", "the text encoder "):
        # Some repositories bring code, which is never run.
        tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        model, info = cast(Any, T5EncoderModel).from_pretrained(
            encoder, dtype=torch.float32, output_loading_info=True
        )
    check_filled(info["missing_keys"], encoder, "model.text_encoder", "the text encoder ")
    return tokenizer, model.eval()
