"""Images -> features -> scores with errors -> records that compare.

- `extractors`: the networks that see the images; `preprocessing`: to which size they are brought
- `metrics`: FID, IS, KID, precision, recall... of features, each with its standard error;
  `enough`: of how many samples at least
- `scoring`: `METRICS`, all of them by name; `evaluate` computes those that a protocol asks for
- `reference`: the real images that samples are compared with
- `records`: a score with its protocol as JSON, and the rule which records compare
- `table`: records by sampler and step count; `sheets`: pictures kept with them
- `gate`: do we score a published batch as its authors do?  `vbench`: VBench's scores of videos
"""

from files.threads import settle_threads_and_memory

settle_threads_and_memory()
