"""Images -> features -> scores with errors -> records that compare.

- `features`: what an extractor is; `extractors`: the networks that see the images, by name; `networks`:
  how these are made of files; `classifiers`: those of the models here; `preprocessing`: sizes
- `metrics`: FID, IS, KID, precision, recall... of features, each with its standard error
- `scoring`: `METRICS`, all of them by name; `evaluate` computes those that a protocol asks for
- `reference`: the real images that samples are compared with
- `records`: a score with its protocol as JSON, and the rule which records compare
- `table`: records by sampler and step count; `sheets`: pictures kept with them
- `gate`: do we score a published batch as its authors do?  `vbench`: VBench's scores of videos
"""

from files.threads import settle_threads_and_memory

settle_threads_and_memory()
