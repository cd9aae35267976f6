"""The embedded model: a small class-conditional ADM U-Net for 28x28 handwritten digits.

Everything it needs is in this folder: 10,000 MNIST images and their splits (data.py), the U-Net,
the exact denoiser and the classifier whose features the `digits` scores use (networks.py), trained
weights, and loading them as a `Backbone` (backbone.py).  CARD.md says how they were made.
"""

from models.digits.backbone import load
from models.digits.data import load_images, load_reference_images

__all__ = ["load", "load_images", "load_reference_images"]
