"""Stable Diffusion 1.x, 2.x and XL, through diffusers.

backbone.py makes a `Backbone` of a published pipeline: text to condition, and guidance.  The .md files are the cards of
the published models.
"""

from models.stable_diffusion.backbone import load

__all__ = ["load"]
