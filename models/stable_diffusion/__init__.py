"""Stable Diffusion 1.x, 2.x and XL, through diffusers.

pipeline.py loads a published pipeline and says what it holds (its digest); backbone.py makes a
`Backbone` of it: text to condition, guidance, latents to images.  The .md files are the cards of
the published models.
"""

from models.stable_diffusion.backbone import load

__all__ = ["load"]
