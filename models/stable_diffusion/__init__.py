"""Stable Diffusion 1.x, 2.x and XL."""

from models.stable_diffusion.backbone import load

__all__ = ["load"]
