"""Command lines, run as `python -m scripts.NAME`; `--help` says what each does."""

from files.threads import settle_threads_and_memory

settle_threads_and_memory()
