"""ADM (Dhariwal & Nichol 2021): networks, classifier guidance, and the published checkpoints."""

from models.adm.backbone import load

__all__ = ["load"]
