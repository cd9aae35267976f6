"""What the shapes of a checkpoint tell of the flags that it was trained with."""

import re
from collections.abc import Iterable
from typing import Any

from models.weights import Shapes


def read_shapes(shapes: Shapes, image_size: int) -> dict[str, Any]:
    """Flag -> value, for all flags that the keys and shapes of an ADM U-Net decide.

    Heads, the order of attention and the diffusion change no shape.  Resolutions of attention are
    those of images of `image_size`.  Empty for a file that is no such network, and of a strange one
    what can be told.
    """
    told: dict[str, Any] = {}
    first, last = shapes.get("input_blocks.0.0.weight"), shapes.get("out.2.weight")
    embedding = shapes.get("time_embed.0.weight")
    if first is None or last is None or embedding is None:
        return told
    told["num_channels"] = width = embedding[1]
    told["in_channels"] = first[1]
    told["learn_sigma"] = last[0] == 2 * first[1]
    classes = shapes.get("label_emb.weight")
    told["class_cond"] = classes is not None
    told["num_classes"] = classes[0] if classes else None
    return told | _levels(shapes, width, image_size)


def _levels(shapes: Shapes, width: int, image_size: int) -> dict[str, Any]:
    """What the upward path tells: its last block of a resolution also goes up to the next."""
    levels: list[tuple[int, int, bool]] = []  # blocks, channels, attention; deepest first
    blocks = 0
    for k in range(_count(shapes, r"output_blocks\.(\d+)\.")):
        parts = f"output_blocks.{k}."
        out = shapes.get(f"{parts}0.out_layers.3.weight")
        if out is None:
            return {}
        blocks += 1
        goes_up = any(f"{parts}{j}.{at}" in shapes for j in (1, 2) for at in UPWARD)
        if goes_up or k + 1 == _count(shapes, r"output_blocks\.(\d+)\."):
            levels.append((blocks, out[0], f"{parts}1.qkv.weight" in shapes))
            blocks = 0
    if not levels:
        return {}
    shift = shapes.get("middle_block.0.emb_layers.1.weight", [0])[0]
    told = {
        "num_res_blocks": levels[0][0] - 1,
        "channel_mult": [_whole(channels / width) for _, channels, _ in reversed(levels)],
        "use_scale_shift_norm": shift == 2 * levels[0][1],
    }
    if len(levels) > 1:  # else nothing is resampled
        told["resblock_updown"] = not any(
            re.search(r"input_blocks\.\d+\.0\.op\.", k) for k in shapes
        )
    seen = [level for level, (_, _, attends) in enumerate(reversed(levels)) if attends]
    # Beyond the image's own resolution there is no level, and so no attention.
    told["attention_resolutions"] = [image_size // 2**k for k in seen] or [2 * image_size]
    return told


UPWARD = ("conv.weight", "in_layers.2.weight")  # an Upsample, a residual block


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the largest index of the keys that fit."""
    found = (re.match(pattern, key) for key in keys)
    return max((int(match[1]) for match in found if match), default=-1) + 1


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
