"""CIFAR-10 at 32x32: a small class-conditional ADM U-Net of natural images, trained here.

The images are not in this folder (data.py says where they come from); the U-Net's weights, the
classifier whose features the `cifar10` scores use, and the features of the real images are.
CARD.md says how they were made.
"""

from models.cifar10.backbone import load
from models.cifar10.data import load_images

__all__ = ["load", "load_images"]
