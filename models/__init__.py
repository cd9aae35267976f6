"""Pretrained models, a family a folder; each has a `load` that returns a `Backbone` (backbone.py).

    adm/               ADM's U-Nets of ImageNet and LSUN, with classifier guidance
    digits/            the embedded model: a small ADM U-Net of handwritten digits
    dit/               DiT-XL/2 of ImageNet, with classifier-free guidance
    stable_diffusion/  Stable Diffusion 1.x, 2.x and XL, text to image
    opensora/          Open-Sora 1.1, text to video
    function.py        whatever a function of the user's own loads

Shared: patched.py (small U-Nets on patches of pixels), weights.py (files of weights, digests),
hub.py (the Hugging Face hub), pipelines.py (diffusers' pipelines), variance.py (how uncertain a network's x0 is), training.py (losses,
averages).  A `Backbone` bound to labels, `given(labels)`, is what `sampling` calls.
"""
