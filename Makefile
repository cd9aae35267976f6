# `make help` lists the targets.  Every target that needs Python first makes .venv, once.
MODEL ?= digits
PYTHON ?= python3
ARGS ?=
PY := .venv/bin/python

.PHONY: help setup lint format test smoke table1 table1_full figure4 render train-digits bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16
	@echo
	@echo "MODEL=digits picks the model; ARGS='num_samples=1000 seed=1' overrides any setting."

setup: .venv/installed ## make .venv and install everything into it (once)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; try make setup PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --upgrade pip
	$(PY) -m pip install -r requirements.txt
	@touch $@

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/installed ## let ruff format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: .venv/installed ## the test suite
	$(PY) -m pytest $(ARGS)

smoke: .venv/installed ## a tiny table and figure end to end, into runs/smoke
	$(PY) reproduce.py experiment=table1 model=$(MODEL) num_samples=80 'experiment.steps=[10]' \
	    metrics.options.kid_subset_size=50 out=runs/smoke/table1
	$(PY) reproduce.py experiment=figure4 model=$(MODEL) num_samples=80 'experiment.steps=[10]' \
	    metrics.options.kid_subset_size=50 out=runs/smoke/figure4

table1: .venv/installed ## the paper's Table 1 for MODEL (digits: 6 minutes on two cores)
	$(PY) reproduce.py experiment=table1 model=$(MODEL) $(ARGS)

table1_full: .venv/installed ## Table 1 with all five step counts of the paper (digits: about an hour)
	$(PY) reproduce.py experiment=table1_full model=$(MODEL) $(ARGS)

figure4: .venv/installed ## the cutoff ablation of figure 4 for MODEL
	$(PY) reproduce.py experiment=figure4 model=$(MODEL) $(ARGS)

render: .venv/installed ## rebuild tables and figures from the stored records, sampling nothing
	$(PY) reproduce.py -m experiment=table1_full,figure4 model=$(MODEL) render_only=true $(ARGS)

train-digits: .venv/installed ## train the embedded model and its classifier anew, into runs/train_digits
	$(PY) scripts/train_digits.py classifier
	$(PY) scripts/train_digits.py unet

bench: .venv/installed ## overheads of the loop and of the noise; interleaved medians
	$(PY) scripts/bench.py

clean: ## remove .venv and caches; keeps runs/ and results/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
