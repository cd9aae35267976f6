"""Where the repository, or what is installed of it, and its downloads lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the repository, or the installed skipped_step/
IS_CLONE = (ROOT / "sample.py").is_file()


def downloads() -> Path:
    """The folder of checkpoints, weights and reference batches: $SKIPPED_STEP_DOWNLOADS.

    By default downloads/ of a clone, or where the wheel is installed ~/.cache/skipped-step (in
    $XDG_CACHE_HOME, if that is set).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    default = ROOT / "downloads" if IS_CLONE else cache / "skipped-step"
    return Path(os.environ.get("SKIPPED_STEP_DOWNLOADS", default))
