"""A smooth network, and noise in float64 that is the same for the same timestep."""

import torch


class SeededNoise:
    """Three samples of five numbers."""

    def draw(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(3, 5, generator=generator, dtype=torch.float64)

    def start(self):
        return self.draw(0)

    def at(self, t, s=-1.0, visit=0):
        return self.draw(int(t) + 1 + 5000 * visit)


def network(x, t, condition=None):
    return torch.tanh(1.3 * x) * (1 - t / 2000), None
