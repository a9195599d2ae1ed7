# Every target does its own set-up: `make demo` and `make test` work on a fresh machine with Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# GB that the packages and their downloads take; most of it is CUDA's, which macOS has not. ROOM=0: do not look at the disk.
ROOM ?= $(if $(filter Darwin,$(shell uname -s)),4,10)

.PHONY: help setup links demo test check docs benchmarks gpu-check ray-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        train and test INP-Former and Dinomaly on the embedded data set (about three minutes)"
	@echo "make test        run the tests"
	@echo "make check       ruff and mypy"
	@echo "make docs        build the site into build/site"
	@echo "make benchmarks  print the speed ratios"
	@echo "make gpu-check   run the checks that need a GPU (any CUDA machine)"
	@echo "make ray-check   run the tests of bench run --ray on a real cluster of two nodes on this machine"
	@echo "make setup       create $(VENV) and install the package into it"

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	flags=$$($(BIN)/python scripts/room.py --venv $(VENV) --need $(ROOM)) && \
	$(BIN)/python -m pip install --quiet --upgrade pip && \
	$(BIN)/python -m pip install --quiet $$flags --editable ".[dev,export,fast]"
	touch $@

demo: setup
	$(BIN)/bench run --methods inp_former,dinomaly,raw_pixel --dataset synthetic --encoder builtin --preset demo --results results/runs

# A process a core with one thread each: the models of the tests are tiny, and threads that wait for each other are ten times slower.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist worksteal -m "not benchmarks and not gpu"

# Links in the shape of the package: mypy cannot see through an editable install, and gpu-check can do without one.
links:
	mkdir -p build/links/inpbench
	for name in harness methods datasets results; do ln -sfn ../../../$$name build/links/inpbench/$$name; done

check: setup links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=build/links $(BIN)/mypy -p inpbench.harness -p inpbench.methods -p inpbench.datasets

docs: setup
	$(BIN)/mkdocs build --quiet --strict

benchmarks: setup
	for script in training inference loading metrics; do $(BIN)/python benchmarks/$$script.py || exit 1; done

# On any CUDA machine, under 8 minutes: both engines side by side, then the tests that need a GPU; tables and a log in results/speed.
# Without a network: `make gpu-check SETUP=none PYTHON=python3` takes the packages that this python has (torch, timm, scikit-learn, ...).
SETUP ?= venv
BUDGET ?= 450
SPEED ?= results/speed
ifeq ($(SETUP),none)
GPU_PYTHON := PYTHONPATH=$(CURDIR)/build/links $(PYTHON)
gpu-check: links
else
GPU_PYTHON := $(BIN)/python
gpu-check: setup
endif
	$(GPU_PYTHON) benchmarks/gpu_check.py --budget $(BUDGET) --out $(SPEED)

# Ray takes 70 MB to download and its tests start some fifteen processes: not a part of `make test`, which skips them without ray.
ray-check: setup
	$(BIN)/python -m pip install --quiet --editable ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/test_scale.py tests/test_ray.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
