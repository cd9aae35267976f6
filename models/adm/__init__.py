"""ADM, "Diffusion Models Beat GANs" (Dhariwal & Nichol 2021).

networks.py holds the U-Net and the noise-aware classifier, guidance.py the classifier's gradient,
cards.yaml and cards.py what is known of the published checkpoints, flags.py (with shapes.py) what
guided-diffusion's flags say of one of your own; backbone.py loads either as a `Backbone`.
"""

from models.adm.backbone import load

__all__ = ["load"]
