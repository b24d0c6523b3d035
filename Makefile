# Every target sets up .venv with pinned versions first, so any of them may be the first thing run in a checkout.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
PINNED := $(shell cat pyproject.toml $(LOCK) | cksum | cut -d' ' -f1)
# RUN: the package and what it needs. DEV: the tools as well. Both carry a checksum of what is pinned, so that a
# change of either file installs again and nothing else does.
RUN := $(VENV)/.installed-run-$(PINNED)
DEV := $(VENV)/.installed-dev-$(PINNED)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile --constraint $(LOCK)

# One thread per process: the tests run two processes, and tiny models gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
WORKERS ?= 2

# Whatever is first imported leaves its bytecode behind: without it a process takes three times as long to start, and
# tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

# The serving engine wants its own versions, so it has an environment of its own.
SERVING ?= .venv-serving
SERVED := $(SERVING)/.installed-$(shell cat pyproject.toml requirements/serving.txt | cksum | cut -d' ' -f1)
SERVING_PIP := $(SERVING)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: help setup demo test test-gpu test-serving lint types unit bench docs wheel-check lock format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         prepare real text, train baseline, ReToken and MoRT, write $(OUT)/demo/report.html"
	@echo "make test         lint, types, import contracts, all tests, the examples (what CI runs)"
	@echo "make test-serving the vLLM plugin inside vLLM on a CPU, in an environment of its own (2.5 GB)"
	@echo "make test-gpu     what needs a GPU, by GPU_PYTHON"
	@echo "make bench        timings of attached over plain backbone"
	@echo "make docs         build the documentation into build/docs"
	@echo "make wheel-check  build the wheel, install it in a fresh venv, use it outside the checkout"
	@echo "make lint, types, unit, format, lock, clean"

setup: $(DEV)

# torch first and alone: its build for this machine is then settled before anything can ask for another.
$(RUN): pyproject.toml $(LOCK)
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@$(PIP) torch
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

$(DEV): $(RUN)
	@echo "installing the development tools"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

test: lint types docs unit

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache

types: $(DEV)
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(DEV)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 15

# With a Python whose PyTorch finds a GPU, and which has what the package and its tests need. GPU_WORKERS: processes
# that share the GPU, by pytest-xdist; empty: one.
GPU_PYTHON ?= $(PYTHON)
GPU_WORKERS ?=
GPU_PYTEST := $(GPU_PYTHON) -m pytest $(if $(GPU_WORKERS),-n $(GPU_WORKERS))
test-gpu:
	PYTHONPATH=src $(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "PyTorch finds no GPU")'
	PYTHONPATH=src $(GPU_PYTEST) --noconftest tests/ops/kernels_run.py tests/ops/route_run.py \
		tests/nn/models_run.py
	PYTHONPATH=src $(GPU_PYTEST) tests/serving/test_gpu.py tests/bench/test_gpu.py tests/train/test_gpu.py \
		tests/optim/test_gpu.py

# torch alone first, as above; what vLLM's package brings for other devices breaks its imports on a CPU.
$(SERVED): pyproject.toml requirements/serving.txt
	@echo "setting up $(SERVING) with $(PYTHON)"
	@$(PYTHON) -m venv $(SERVING)
	@$(SERVING_PIP) install --requirement requirements/serving.txt
	@$(SERVING_PIP) uninstall --yes torchvision torchaudio torchcodec triton
	@$(SERVING_PIP) install --constraint requirements/serving.txt --editable . pytest hypothesis
	@rm -f $(SERVING)/.installed-*
	@touch $@

test-serving: $(SERVED)
	HF_HUB_OFFLINE=1 $(SERVING)/bin/python -m pytest tests/engines tests/cli/test_serve.py

format: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(RUN)
	$(BIN)/retoken prepare --corpus default --vocab-size 2048 --out $(OUT)/corpus
	$(BIN)/retoken compare demo --data $(OUT)/corpus --out $(OUT)/demo \
		--variants baseline retoken mort --seeds 0 1 --jobs 2

bench: $(RUN)
	$(BIN)/retoken bench train

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/docs

wheel-check: $(DEV)
	$(BIN)/python tests/wheel_check.py --constraint $(LOCK)

# Newest versions that pyproject allows, installed into a fresh venv and written down.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/pip install --quiet 'torch==2.13.0' hatchling editables
	@build/lock/bin/pip install --quiet --no-build-isolation '.[dev]'
	@{ echo "# Exact versions of everything '.[dev]' needs; written by \`make lock\`."; \
		build/lock/bin/pip freeze --exclude retoken --exclude pip | sed 's/+cpu//'; } > $(LOCK)
	@rm -rf build/lock

clean:
	rm -rf build dist .pytest_cache .ruff_cache
