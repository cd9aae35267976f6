"""Small networks that stand for the published ones that score images."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from torch import nn

CLIP_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def tiny_clip(folder: Path) -> tuple[Path, Path]:
    """(JSON config, random weights) of a CLIP that open_clip does not know."""
    path = folder / "tiny-clip.json"
    path.write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "random.pt")
    return path, folder / "random.pt"


class Layers(nn.Module):
    """What stands for the TorchScript Inception: 2048 features of a 299 x 299 image in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2048, 23, stride=92)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean([2, 3])


class CleanInception(nn.Module):
    """clean-fid's TorchScript network in its form, with `Layers` for the real layers."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = nn.functional.interpolate(x, size=[299, 299], mode="bilinear")
        return self.layers((x - 128) / 128)
