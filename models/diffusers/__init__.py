"""Any pipeline of diffusers: `model=diffusers model.id=FOLDER-OR-HUB-ID`.

loading.py looks at the class of a pipeline and goes one of two ways.  Where there is a faithful denoiser it
is a `Backbone` as any other: pixels.py for U-Nets of pixels, models/stable_diffusion, models/dit.  Every
other pipeline runs as it is, with a plan as its scheduler: running.py.
"""

from models.diffusers.loading import load

__all__ = ["load"]
