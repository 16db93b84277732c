PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quickstart
STEPS ?= 700
VIDEOS ?=
export OMP_NUM_THREADS ?= 2
# One word for the shell, whatever is in it
quoted = '$(subst ','\'',$(1))'

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(VENV)/.installed ## a virtual environment with the package and the developer tools

quickstart: $(VENV)/.installed ## clips (or VIDEOS="a.mp4 folder"), pairs, fit, validate, predict with the tiny build
	$(VENV)/bin/fp-lightning quickstart --out $(call quoted,$(value OUT)) --steps $(STEPS) $(if $(value VIDEOS),--videos $(call quoted,$(value VIDEOS)))

test: $(VENV)/.installed ## lint, types and the tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/.installed ## the tests that need a GPU; the one with DDP needs two
	$(VENV)/bin/python -m pytest -m gpu -rs tests/gpu

demo: $(VENV)/.installed ## the interactive editor with the tiny build, at http://127.0.0.1:7860
	$(VENV)/bin/fp-lightning demo

chromium: ## Debian's Chromium, for the tests of the editor's page; without it they are skipped
	command -v chromium > /dev/null || (apt-get update --quiet --quiet && apt-get install --yes --quiet --quiet chromium)

notebooks: $(VENV)/.installed ## execute the notebooks in full, in place; the ablations take hours, and resume
	$(VENV)/bin/python notebooks/execute.py

docs: $(VENV)/.installed ## a site of docs/ and of the docstrings, in site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: $(VENV)/.installed ## ruff and mypy, with fixes where they are safe
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/mypy

.PHONY: help install quickstart test test-gpu demo chromium notebooks docs lint
.DEFAULT_GOAL := help
