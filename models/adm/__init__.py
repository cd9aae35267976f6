"""ADM, "Diffusion Models Beat GANs" (Dhariwal & Nichol 2021).

networks.py holds the U-Net and the noise-aware classifier, guidance.py the classifier's gradient,
cards.yaml and cards.py what is known of the published checkpoints; backbone.py loads one of them,
or one of your own, as a `Backbone`.
"""

from models.adm.backbone import load

__all__ = ["load"]
