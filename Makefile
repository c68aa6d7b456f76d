# Every target does its own set-up. `make help` lists them; README.md says how long each takes.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python 3.11+ found; name another with: make PYTHON=/path/to/python
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
# An index to take torch from. Empty: a CPU build where there is no GPU. `default`: what pip finds.
TORCH_INDEX ?=
export TORCH_INDEX

BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/.ready
STRICT := -W -n --keep-going
# Shapes in these signatures are checked at run time in the tests. Compiled kernels cannot be wrapped.
TYPED := saecore.sources,saecore.saes,saecore.training,saecore.activations,saecore.metrics,saecore.report

.PHONY: help setup book html chapters test lint types unit nbval format checksums bench gpu peers clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## .venv with the pinned packages

$(READY): constraints.txt pyproject.toml tools/install.py
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setting up .venv (minutes, once)"
	@"$(PYTHON)" tools/install.py .venv --editable ".[book,dev,sweep,models]"
	@touch $@

$(PEERS): benchmarks/requirements-peers.txt constraints.txt pyproject.toml tools/install.py
	@echo "setting up .venv-peers (minutes, once)"
	@"$(PYTHON)" tools/install.py .venv-peers --requirements benchmarks/requirements-peers.txt --editable . --without torchvision
	@touch $@

book: $(READY)  ## run every chapter's live part, build the page from that, print where it is
	rm -rf build/book
	mkdir -p build
	cp -R book build/book
	rm -f build/book/chapters/*.ipynb
	$(BIN)/saecore chapters execute --out build/book/chapters
	$(BIN)/saecore chapters check --folder build/book/chapters
	$(BIN)/jupyter-book build build/book $(STRICT)
	@$(BIN)/python -c "import pathlib; print('open', pathlib.Path('build/book/_build/html/index.html').resolve())"

html: $(READY)  ## build the page from the committed outputs, run nothing
	$(BIN)/jupyter-book build book --path-output build/html $(STRICT)
	@$(BIN)/python -c "import pathlib; print('open', pathlib.Path('build/html/_build/html/index.html').resolve())"

chapters: $(READY)  ## run every chapter and store the outputs in it
	$(BIN)/saecore chapters execute --in-place

test: lint types unit nbval  ## everything below, in this order

lint: $(READY)  ## ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)  ## pyright
	$(BIN)/pyright

unit: $(READY)  ## unit tests, layering, the book's rules
	$(BIN)/pytest -q -n 2 --jaxtyping-packages=$(TYPED),beartype.beartype tests

nbval: $(READY)  ## run every chapter again and compare with its stored outputs
	$(BIN)/pytest -q -n 2 --dist loadscope --nbval --nbval-sanitize-with book/nbval.cfg --nbval-cell-timeout 120 book/chapters

format: $(READY)  ## ruff format, and the fixes ruff is sure of
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

checksums: $(READY)  ## put the right checksums into data/README.md
	$(BIN)/python tools/checksums.py --write

bench: $(PEERS)  ## training speed beside the peers; options: make bench ARGS="--shape small"
	.venv-peers/bin/python benchmarks/run.py $(ARGS)

# On a GPU machine, with the Python that holds its torch: no set-up, nothing fetched.
GPU_PYTHON ?= python3
GPU_MINUTES ?= 8.8
OUT ?= build/gpu
gpu:  ## on a GPU machine, GPU_MINUTES in all: tests, speeds, growth, crossover, headline runs; rows in OUT
	$(GPU_PYTHON) benchmarks/gpu.py --minutes $(GPU_MINUTES) --out "$(OUT)"

# For a GPU machine without a network: wheels for its Python, some 30 MB, which `make gpu` unpacks there.
WHEELS_PYTHON ?= 3.12
peers: $(READY)  ## the peers' wheels into build/peers, to take along to a GPU machine
	$(BIN)/python -m pip download --no-deps --only-binary=:all: --implementation cp --python-version $(WHEELS_PYTHON) \
	--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	--quiet --dest build/peers --requirement benchmarks/requirements-to-go.txt
	@du -sh build/peers

clean:  ## everything make has made, the environments included
	rm -rf build .venv .venv-peers .pytest_cache .ruff_cache .hypothesis saecore.egg-info
	find saecore tests tools book -name __pycache__ -type d -prune -exec rm -rf {} +
