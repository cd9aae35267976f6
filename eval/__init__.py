"""Images -> features -> scores with errors -> records that compare.

- `features`: what an extractor is; `extractors`: the networks that see the images, by name; `networks`:
  how these are made of files; `own`: of timm and of a user's functions; `classifiers`: those of the
  models here; `preprocessing`: to which size images are brought, and to which numbers
- `frechet`, `inception`, `kernel`, `manifold`, `agreement`: FID, IS, KID, precision, recall... of features, each with its error;
  `enough`: of how many samples at least
- `score`: a score with its error, and how it moves with its samples: differences are paired
- `scoring`: `METRICS`, all of them by name; `evaluate` computes those that a protocol asks for
- `reference`: the real images that samples are compared with
- `records`: a score with its protocol as JSON, and the rule which records compare
- `table`: records by sampler and step count; `sheets`: pictures kept with them
- `evaluation`: one protocol against one reference; `protocols`: what configs/ says of both
- `library`: `evaluate`, for use from Python, and `command`: both are the wheel's skipped_step.evaluation
- `gate`: do we score a published batch as its authors do?  `vbench`: VBench's scores of videos
"""

from typing import TYPE_CHECKING, Any

from files.threads import settle_threads_and_memory

if TYPE_CHECKING:
    from eval.library import evaluate

__all__ = ["evaluate"]

if __name__ == "eval":  # as skipped_step.evaluation it is a library in other people's processes
    settle_threads_and_memory()


def __getattr__(name: str) -> Any:
    """`evaluate` is imported when it is asked for: it needs torch and takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eval import library

    return getattr(library, name)
