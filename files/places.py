"""Where the repository and its downloads lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def downloads() -> Path:
    """The folder of checkpoints and reference batches: $SKIPPED_STEP_DOWNLOADS, or downloads/."""
    return Path(os.environ.get("SKIPPED_STEP_DOWNLOADS", ROOT / "downloads"))
