# `make help` lists the targets.  Every target that needs Python first makes .venv, once.
MODEL ?=
PYTHON ?= python3
# The versions of requirements.lock; make setup INSTALL='-e .[all]' takes the newest that fit.
INSTALL ?= -r requirements.txt
ARGS ?=
PY := .venv/bin/python
# MODEL is the experiment's own unless given.  The models in the repository pick those of a laptop's
# size, where there are any.
OF_MODEL = $(if $(MODEL),model=$(MODEL))
SMALL = $(if $(filter digits cifar10,$(MODEL)),_small)
OWN = $(if $(filter cifar10,$(MODEL)),_cifar10,$(SMALL))
SMALL_UNLESS_OTHER = $(if $(filter-out digits cifar10,$(MODEL)),,_small)

.PHONY: help setup lint format test drill smoke download coco reference table1 table1_full table2 table3 table4 figure2 figure3 figure4 figure5 figure6 figure7 advise tune slurm-table1 slurm-table2 slurm-table3 slurm-table4 slurm-figure4 status study study-natural report render front site play notebooks train-digits bench check clean
.DEFAULT_GOAL := help

# A line that begins with ## names a group in `make help`: the targets down to the next such line.
help: ## list the targets
	@awk '/^## / { printf "\n%s\n", substr($$0, 4) } \
	    /^[a-z0-9_-]+:.*## / { name = $$0; sub(/:.*/, "", name); sub(/.*## /, ""); printf "  %-16s%s\n", name, $$0 }' \
	    $(MAKEFILE_LIST)
	@echo
	@echo "MODEL=digits or cifar10 picks a model that needs no download; without it tables and figures are of"
	@echo "the paper's own models.  ARGS='seed=1 out=runs/seed1' overrides any setting, and"
	@echo "ARGS=dry=true prints what would be done and what it would cost."

## The first hour, with table1 MODEL=digits: no GPU, no account, no download but packages

setup: .venv/installed ## make .venv and install everything into it (once)

# As pyproject.toml says, but before anything is fetched.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
NEEDED = error: Python 3.11, 3.12 or 3.13 is needed (Hydra does not start on 3.14), and $(PYTHON) is none

.venv/installed: requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c '$(FITS)' || { \
	    for other in python3.13 python3.12 python3.11; do \
	        $$other -c '$(FITS)' 2>/dev/null || continue; \
	        echo "$(NEEDED): try make setup PYTHON=$$other"; exit 2; \
	    done; \
	    echo "$(NEEDED): install Python 3.13, then make setup PYTHON=python3.13"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --upgrade pip
	$(PY) -m pip install $(INSTALL)
	@touch $@

smoke: .venv/installed ## a tiny table and figures end to end, into runs/smoke
	$(PY) reproduce.py experiment=table1_small $(OF_MODEL) num_samples=80 'experiment.steps=[10]' \
	    metrics.options.kid_subset_size=50 out=runs/smoke/table1
	$(PY) reproduce.py experiment=figure4_small $(OF_MODEL) num_samples=80 'experiment.steps=[10]' \
	    metrics.options.kid_subset_size=50 out=runs/smoke/figure4
	$(PY) reproduce.py experiment=figure2_small $(OF_MODEL) num_samples=10 'experiment.steps=[10]' \
	    out=runs/smoke/figure2
	$(PY) reproduce.py experiment=table1_small $(OF_MODEL) dry=true

check: .venv/installed ## is this machine right, and how fast? 3 minutes, on a GPU 8, into results/machines
	$(PY) -m scripts.check $(ARGS)

report: .venv/installed ## one web page of all results, without server or network: results/report.html
	$(PY) -m scripts.report

## The paper's tables and figures, and the study of them

download: .venv/installed ## fetch MODEL's checkpoint, reference batch and Inception's weights
	@[ -n "$(MODEL)" ] || { echo "error: name what to fetch, as in make download MODEL=adm_imagenet"; exit 2; }
	$(PY) -m scripts.download $(MODEL) $(ARGS)

coco: .venv/installed ## MS-COCO's 30,000 captions and reference images for Table 3 (7 GB to fetch)
	$(PY) -m scripts.prepare_coco captions
	$(PY) -m scripts.prepare_coco images

table1: .venv/installed ## the paper's Table 1: ADM on ImageNet, or MODEL=digits (2 minutes on two cores)
	$(PY) reproduce.py experiment=table1$(OWN) $(OF_MODEL) $(ARGS)

table1_full: .venv/installed ## Table 1 on digits with all five step counts of the paper (about an hour)
	$(PY) reproduce.py experiment=table1_full $(OF_MODEL) $(ARGS)

table2: .venv/installed ## the paper's Table 2: ADM on LSUN bedroom
	$(PY) reproduce.py experiment=table2 $(OF_MODEL) $(ARGS)

table3: .venv/installed ## the paper's Table 3: Stable Diffusion 2.1 on MS-COCO; also clean-fid and CLIP
	$(PY) reproduce.py -m experiment=table3,table3_clean,table3_clip $(OF_MODEL) $(ARGS)

table4: .venv/installed ## the paper's Table 4: Open-Sora 1.1 on VBench
	$(PY) reproduce.py experiment=table4 $(OF_MODEL) $(ARGS)

figure2: .venv/installed ## samples of Mix and DDIM side by side at several step counts
	$(PY) reproduce.py experiment=figure2$(SMALL) $(OF_MODEL) $(ARGS)

figure3: .venv/installed ## more samples of Mix and DDIM side by side, at 100 steps
	$(PY) reproduce.py experiment=figure3$(SMALL) $(OF_MODEL) $(ARGS)

figure4: .venv/installed ## the cutoff ablation of figure 4
	$(PY) reproduce.py experiment=figure4$(OWN) $(OF_MODEL) $(ARGS)

figure5: .venv/installed ## samples of Mix and DDIM on Stable Diffusion, prompt by prompt
	$(PY) reproduce.py experiment=figure5 $(OF_MODEL) $(ARGS)

figure6: .venv/installed ## frames of Open-Sora as shipped and of Mix, prompt by prompt
	$(PY) reproduce.py experiment=figure6 $(OF_MODEL) $(ARGS)

figure7: .venv/installed ## as figure6, with the cactus
	$(PY) reproduce.py experiment=figure7 $(OF_MODEL) $(ARGS)

STUDY = $(PY) reproduce.py -m experiment=study,study_pixels,study_log_snr,study_exact
DIAL = $(PY) reproduce.py -m experiment=study_dial \
    model.checkpoint=unet-1000,unet-3000,unet-6500,exact
PAIRS = $(PY) reproduce.py experiment=compare model=digits 'samplers=[mix,ddim,skipped]' \
    'steps=[10,25,50]' num_samples=1000 seed=2 out=results/digits/pairs
TUNED = $(PY) -m scripts.tune experiment=tune_star_small
# On networks of other error, with fewer rivals and a smaller budget.
OTHER = model.precision=fp32 steps=10 budget=1000000 'samplers=[ddim,skipped,dpmpp,sde_dpmpp]'
SCALE = $(PY) reproduce.py experiment=study_scale
NATURAL = $(PY) reproduce.py -m experiment=table1_cifar10,figure4_cifar10,study_cifar10

study: .venv/installed ## all samplers on digits from 5 to 100 calls, and why: docs/study.md (six hours)
	$(STUDY)
	$(DIAL)
	$(PAIRS)
	$(TUNED)
	$(TUNED) model.checkpoint=exact $(OTHER) out=results/digits/tune_star-exact
	$(TUNED) model.checkpoint=unet-1000 $(OTHER) out=results/digits/tune_star-unet-1000
	$(SCALE)
	$(PY) -m scripts.study

study-natural: .venv/installed ## the study's tables on natural images: hours on two cores, minutes on a GPU
	$(NATURAL)
	$(PY) -m scripts.study

render: .venv/installed ## rebuild tables and figures from the stored records; pictures of digits are sampled: minutes
	$(PY) reproduce.py -m experiment=table1$(SMALL_UNLESS_OTHER) $(OF_MODEL) model.precision=bf16 render_only=true $(ARGS)
	$(PY) reproduce.py -m experiment=table1_full,figure4$(SMALL_UNLESS_OTHER) $(OF_MODEL) render_only=true $(ARGS)
	$(STUDY) render_only=true
	$(DIAL) render_only=true
	$(PAIRS) render_only=true
	$(SCALE) render_only=true
	$(NATURAL) render_only=true
	$(PY) reproduce.py -m experiment=figure2_small,figure3_small
	$(PY) -m scripts.study
	$(PY) -m scripts.front

front: .venv/installed ## draw README's picture anew: docs/front.png
	$(PY) -m scripts.front

## Your model and your images

advise: .venv/installed ## which sampler at how many calls, on MODEL or digits: ARGS='budget=200000' (20 minutes)
	$(PY) -m scripts.advise $(OF_MODEL) $(ARGS)

tune: .venv/installed ## find the numbers of Mix* for MODEL or digits, and confirm them (hours)
	$(PY) -m scripts.tune experiment=tune_star$(SMALL_UNLESS_OTHER) $(OF_MODEL) $(ARGS)

reference: .venv/installed ## a reference of your real images: ARGS='DIR --out mine.npz metrics=dinov2'
	$(PY) -m scripts.reference $(ARGS)

## Scaling: SLURM and speed

slurm-table1: .venv/installed ## submit table1 to SLURM (docs/scaling.md): ARGS='parts=16', ARGS=--dry
	$(PY) -m scripts.slurm experiment=table1$(OWN) $(OF_MODEL) $(ARGS)

slurm-table2: .venv/installed ## submit table2 to SLURM
	$(PY) -m scripts.slurm experiment=table2 $(OF_MODEL) $(ARGS)

slurm-table3: .venv/installed ## submit table3 to SLURM
	$(PY) -m scripts.slurm experiment=table3,table3_clean,table3_clip $(OF_MODEL) $(ARGS)

slurm-table4: .venv/installed ## submit table4 to SLURM, VBench included
	$(PY) -m scripts.slurm experiment=table4 $(OF_MODEL) $(ARGS)

slurm-figure4: .venv/installed ## submit figure4 to SLURM
	$(PY) -m scripts.slurm experiment=figure4$(OWN) $(OF_MODEL) $(ARGS)

status: .venv/installed ## how far the tables are: cells done, running, missing, and the time left
	$(PY) -m scripts.status

bench: .venv/installed ## beside a busy process; overheads of loop, noise and shards; evaluation at full size
	$(PY) -m scripts.bench

## Development

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/installed ## let ruff format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: .venv/installed ## the test suite (about 12 minutes on two cores); one part: ARGS=tests/sampling
	@echo "The whole suite takes about 12 minutes on two cores; a part of it: make test ARGS=tests/sampling"
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

drill: .venv/installed ## kill runs and flip bits, thousands of times: all is whole in the end (two hours)
	OMP_NUM_THREADS=1 $(PY) tests/fault_drill.py --kills 4000 --tables 1000 --alterations 20000 $(ARGS)

notebooks: .venv/installed ## execute notebooks/ in place (two minutes)
	$(PY) -m scripts.notebooks $(ARGS)

play: .venv/installed ## the page where digits run in a browser, into build/play (npm fetches its runtime, 33 MB)
	$(PY) -m scripts.play $(ARGS)

# Without npm, or a network for its first call, the page in the browser is left as it is; what is silenced
# below is an advertisement of mkdocs-material for its successor.
site: .venv/installed ## README, docs/ and what play builds as a web site, into site/; a dead link is an error
	@$(PY) -m scripts.play || echo "the site has the page in the browser only if build/play was built before"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

train-digits: .venv/installed ## train the embedded model and its classifier anew, into runs/train/digits
	$(PY) -m scripts.train model=digits what=classifier
	$(PY) -m scripts.train model=digits

clean: ## remove .venv and caches; keeps runs/ and results/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
