"""How OpenMP's threads wait for each other, which must be said before torch loads OpenMP."""

from collections.abc import Mapping


def short_spins(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment so that threads that wait soon go to sleep.

    GNU's OpenMP, which torch's builds for Linux use, lets a thread that has nothing to do spin for
    some milliseconds.  Where another program wants the core, the working threads then lose their
    turn to one that spins: `python -m scripts.bench busy` shows what that costs.  Elsewhere
    (macOS, Windows) nothing reads the variable.  Empty where the user has said how they wait.
    """
    if "GOMP_SPINCOUNT" in environment or "OMP_WAIT_POLICY" in environment:
        return {}
    return {"GOMP_SPINCOUNT": "1000"}
