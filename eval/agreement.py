"""How well samples fit what they were made for: their labels, or their prompts."""

import numpy as np
from numpy.typing import NDArray

from eval.score import Floats, Score, Spread, influences, proportion, spread_score


def label_agreement(logits: Floats, labels: NDArray[np.int64]) -> Score:
    """Share of samples that the classifier sees as the class they were made for; binomial se.

    logits [N, K], labels [N] in 0..K-1.  Raises ValueError when their lengths differ.
    """
    if labels.shape != (len(logits),):
        raise ValueError(f"{len(logits)} samples but labels of shape {labels.shape}")
    if labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels go up to {labels.max()}, and the classifier knows {logits.shape[1]} classes: these "
            "are labels of something else, evaluate with labels=off"
        )
    return proportion(logits.argmax(axis=1) == labels)


def clip_score(images: Floats, texts: Floats) -> Score:
    """Mean of max(100 cos(image, its text), 0) (Hessel et al. 2021, there with 2.5 for 100).

    Features [N, F] of N images and of their prompts, each of length 1.  se: the spread of the
    samples over the square root of N.  Raises ValueError unless there are as many of both.
    """
    if images.shape != texts.shape:
        raise ValueError(f"{len(images)} images but {len(texts)} prompts")
    cosines = (images.astype(np.float64) * texts).sum(axis=1)
    values = np.maximum(100 * cosines, 0)
    return spread_score(values.mean(), Spread(influences(values)))
