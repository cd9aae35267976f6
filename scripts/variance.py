"""Measure a network's uncertainty about x0, which `variance=analytic` of mixpp needs, once a model.

    python -m scripts.variance model=digits
    python -m scripts.variance model=adm_imagenet --images 2000 --every 10

Takes model and reference of reproduce.py: real images are the reference's own, for digits the 1,000
that the network was not trained on.
"""

import numpy as np
import torch

from eval.endings import parser
from experiments.cells import network_of
from experiments.config import composed, images_of, load_backbone
from experiments.endings import reported
from models.variance import measure_x0_variance, save_x0_variance


def main() -> None:
    command = parser(__doc__)
    command.add_argument("overrides", nargs="*", help="settings, model=..., as of reproduce.py")
    command.add_argument("--images", type=int, default=1000, help="how many real images (1000)")
    command.add_argument(
        "--every", type=int, default=5, help="timesteps from a measured one to the next (5)"
    )
    args = command.parse_args()
    cfg = composed("reproduce", *args.overrides)
    backbone = network_of(load_backbone(cfg))
    images = cfg.reference.get("held_out") or cfg.reference.get("images")
    if images is None:
        raise ValueError(
            f"reference={cfg.reference.name} has no images: give them as reference=custom "
            "reference.images.path=..."
        )
    real = images_of(images, cfg.trusted)
    channels, height, width = backbone.shape
    if real.images.shape[1:] != (height, width, channels):
        raise ValueError(
            f"the reference has images of {real.images.shape[1:]}, the model works on "
            f"{(height, width, channels)}: a latent model cannot be measured so"
        )
    labels = None
    if backbone.num_classes is not None:
        if real.labels is None:
            raise ValueError(
                "the model is conditional and the reference's images have no labels: give "
                "reference=custom with an .npz that has arr_1"
            )
        labels = torch.from_numpy(real.labels[: args.images])
    pixels = np.array(real.images[: args.images])
    x_0 = torch.from_numpy(pixels).float().permute(0, 3, 1, 2) / 127.5 - 1
    T = backbone.schedule.T
    timesteps = sorted({*range(0, T, args.every), T - 1})
    errors = measure_x0_variance(backbone, x_0, labels, timesteps, batch_size=cfg.batch_size)
    print(f"written: {save_x0_variance(backbone, timesteps, list(errors), len(pixels))}")


if __name__ == "__main__":
    reported(main)
