# Everything runs in .venv, which `make setup` creates, or in the virtual environment that is active.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
SHELL := bash
# portraits, shapes, or karlo: the miniature in the form that diffusers has classes for (docs/weights.md)
SIZE ?= portraits
PYTEST := $(BIN)/python -m pytest
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo train-demo test lint types check nightly parity mutants clean

help:  ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*##/  make \1 \t/p' Makefile

setup: $(VENV)/.unclip_jax  ## Create .venv and install the package with its tools.

$(VENV)/.unclip_jax: setup.py pyproject.toml unclip_jax/version.py
	@test -n '$(PYTHON)$(VIRTUAL_ENV)' || \
		{ echo 'make: no Python of version 3.11 or later; name one with make PYTHON=...'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing unclip_jax and what it needs into $(VENV) (some minutes the first time) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup  ## Generate images with the installed models, then watch a small CLIP train; PAGE=1 opens the page at the end.
	@. launch/env.sh && $(BIN)/python -m unclip_jax.tour --out=runs/demo
	@. launch/env.sh && $(BIN)/python -m unclip_jax.sample --models=shapes --out=runs/demo/shapes.png \
		--num=2 'three green stars' 'a large purple heart' 'two orange diamonds on a mint background'
	@PYTHON=$(BIN)/python launch/cascade tiny --run=runs/demo/tiny --until=clip
	@echo 'images: runs/demo/*.png; your own: $(BIN)/unclip sample "a person with green hair" --out=mine.png'
	$(if $(PAGE),@. launch/env.sh && $(BIN)/python -m unclip_jax.demo)

train-demo: setup  ## Train every stage in miniature, judge it, and generate images in runs/SIZE/tour.
	@PYTHON=$(BIN)/python launch/cascade $(SIZE)
	@. launch/env.sh && $(BIN)/python -m unclip_jax.evaluate --models=runs/$(SIZE) --data=runs/$(SIZE)/data --num=100
	@. launch/env.sh && $(BIN)/python -m unclip_jax.tour --models=runs/$(SIZE) --out=runs/$(SIZE)/tour

test: setup  ## Run the tests.
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m 'not nightly and not parity'

lint: setup  ## Look for mistakes and for unformatted code.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## Check types.
	@$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test  ## All of the above, as CI does.

nightly: $(VENV)/.unclip_jax_nightly  ## Run the tests that take minutes to hours.
	@UNCLIP_THOROUGH=1 $(PYTEST) -m nightly -o faulthandler_timeout=5400

$(VENV)/.unclip_jax_nightly: $(VENV)/.unclip_jax
	@echo 'Installing a published text encoder (90 MB) into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,nightly]'
	@touch $@

parity: $(VENV)/.unclip_jax_parity  ## Compare with the PyTorch originals; a test that is skipped fails.
	@UNCLIP_THOROUGH=1 UNCLIP_REQUIRE_PARITY=1 $(PYTEST) tests/parity

$(VENV)/.unclip_jax_parity: $(VENV)/.unclip_jax
	@echo 'Installing the PyTorch originals into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,parity]'
	@touch $@

# NUM mutants drawn with SEED; PACKAGES="stages data" mutates these alone, LISTED=1 takes the list.
NUM ?= 60
SEED ?= 0
mutants: setup  ## Change lines of the code and count the changes that no test notices.
	@$(BIN)/python -m tests.mutation --num=$(NUM) --seed=$(SEED) $(PACKAGES:%=--package=%) $(if $(LISTED),--listed)

clean:  ## Remove caches; keeps .venv and runs.
	@rm -rf .pytest_cache .ruff_cache build dist
	@find unclip_jax experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
