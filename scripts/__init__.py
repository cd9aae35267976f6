"""Command lines, run as `python -m scripts.NAME`; `--help` says what each does."""
