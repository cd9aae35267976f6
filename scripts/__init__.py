"""Command lines, run as `python -m scripts.NAME`; `--help` says what each does."""

import os

from files.threads import thread_defaults

os.environ.update(thread_defaults(os.environ))  # before torch is imported
