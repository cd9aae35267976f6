# syntax=docker/dockerfile:1
# What requirements.lock pins, and this repository, for machines with NVIDIA GPUs: docs/containers.md.
#     docker build -t skipped-step .
# The wheels of torch bring CUDA with them: all that the host adds is its driver.
FROM python:3.11-slim-bookworm

# gcc is for model.compile=true.  Debian drops old versions of these, so that none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /app

USER 1000:1000
WORKDIR /app

# The gigabytes come first, in a layer that changes with the lock file alone.
COPY --chown=1000:1000 requirements.lock .
RUN --mount=type=cache,target=/home/user/.cache/pip,uid=1000,gid=1000 \
    python3 -m venv .venv \
    && .venv/bin/python -m pip install -r requirements.lock

# All that make setup still installs is the repository itself.  The folders are to be mounted over.
COPY --chown=1000:1000 . .
RUN --mount=type=cache,target=/home/user/.cache/pip,uid=1000,gid=1000 \
    make setup \
    && mkdir -p runs downloads

# Also for a user of --user, who has no home and no name: caches want the one, torch asks for the other.
ENV PATH=/app/.venv/bin:$PATH \
    HOME=/tmp \
    USER=user
CMD ["make", "help"]
