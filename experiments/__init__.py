"""Cells -> samples -> records: what the commands do, without their words and pictures.

- `config`: all of Hydra; a command's config becomes the objects below
- `cells`: `Cell` and `Column`, what is sampled and where it lies; `folder`: its shards and manifest
- `generate`: the loop that makes shards; `evaluate`: the protocol that turns a folder into a record
- `experiment`: an `Experiment` (columns x scorer x renderer), and one command's share of its work;
  `scorers`: images by a protocol, videos by `vbench`
- `tune` and `advise`: which sampler on a model; both hold a `contest` and a `race`; of Mix* `family` is what may
  vary and `search` how it is found
- `settings`: every setting and its type; `trust`: what a config may not say; `endings`: errors in one line
- `dry_run`: what it would cost; `progress`: how far it is; `tracking`: Weights & Biases
- `help`: `--help` from the comments of configs/, which `choices` reads; `answers`: this and the shell's completion
- `workers`: which of several processes this is; `devices`: what it computes on
- `check/`: whether a machine is right, and how fast it is
"""

from files.threads import settle_threads_and_memory

settle_threads_and_memory()
