"""How many samples and real images a score needs at least."""


def check_fid_size(n: int, size: int, what: str = "samples") -> None:
    """Raise ValueError if n samples, or `what`, are too few for the FID of `size` features."""
    if n <= size:
        raise ValueError(
            f"FID with {size} features needs more than {size} {what}, got {n}: {_more(what)}, "
            "or, for a trial run, set metrics.options.allow_few=true"
        )


def check_kid_size(n: int, subset_size: int, what: str = "samples") -> None:
    """Raise ValueError if KID cannot draw its subsets from n samples or reference images."""
    if subset_size < 2:
        raise ValueError(f"KID draws subsets of at least 2, got subset_size={subset_size}")
    if n < subset_size:
        raise ValueError(
            f"KID draws subsets of {subset_size}, got {n} {what}: {_more(what)}, or "
            f"set metrics.options.kid_subset_size={max(n, 2)}"
        )


def check_neighbours(n: int, k: int, what: str = "samples") -> None:
    """Raise ValueError if n samples, or `what`, have no k-th neighbour each."""
    if type(k) is not int or k < 1:
        raise ValueError(
            f"precision and recall need an integer k of at least 1, got {k!r}: set metrics.options.k=3"
        )
    if n <= k:
        raise ValueError(
            f"precision, recall, density and coverage with k={k} need more than {k} {what}, got {n}: {_more(what)}, or "
            "lower metrics.options.k"
        )


def check_splits(n: int, splits: int, chunk_size: int | None) -> None:
    """Raise ValueError unless n samples can be divided so for the inception score."""
    if chunk_size is not None and splits != 1:
        raise ValueError(
            "the inception score takes either splits or chunk_size, not both: set "
            "metrics.options.is_splits=1 or metrics.options.is_chunk_size=null"
        )
    if not 1 <= splits <= n or (chunk_size is not None and chunk_size < 1):
        raise ValueError(
            f"cannot divide {n} samples into splits={splits}, chunk_size={chunk_size}: lower "
            "metrics.options.is_splits"
        )


def _more(what: str) -> str:
    return "sample more" if what == "samples" else "give more"
