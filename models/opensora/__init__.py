"""Open-Sora 1.1: the network, its text and video ends, and loading it as a `Backbone`."""
