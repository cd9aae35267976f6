"""Open-Sora 1.1, text to video.

stdit2.py is the network, text.py turns prompts into features and keeps them on disk, backbone.py
makes a `Backbone` of both and Stable Diffusion's VAE: what the network is told, its guidance,
latents to videos.  CARD.md is the card of the published model.
"""
