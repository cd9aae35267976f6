"""Records -> words and pictures.  Nothing here samples or scores.

- `render`: a table or figure of an experiment in all its forms: `formats` (Markdown, CSV, LaTeX),
  `plots`, `pictures` (samples side by side); `words` are the sentences in them
- `styles`: a sampler's colour, line and marker, wherever it is drawn; `axes`: the panels of figures
- `paper`: the numbers of results/paper, beside ours or below
- `page` and assets/: the web page of all results (`make report`), of `conclusion`, `charts` and `page_tables`
- `study`, its parts `study_*` and study.md: docs/study.md (`make study`)
- `tuning` and `advice`: what `make tune` and `make advise` found
- `escape`: names and prompts are text, never markup
- `study_front`: README's picture (`make front`); `website`: what `make site` asks of mkdocs
"""
