"""DiT, "Scalable Diffusion Models with Transformers" (Peebles & Xie 2022), through diffusers.

backbone.py makes a `Backbone` of a published pipeline: guidance, learned variance, latents to images.
CARD.md is the card of DiT-XL/2.
"""

from models.dit.backbone import load

__all__ = ["load"]
