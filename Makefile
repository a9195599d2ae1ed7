# Every target does its own set-up: `make demo` and `make test` work on a fresh machine with Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test check benchmarks gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        train and test INP-Former and Dinomaly on the embedded data set (about three minutes)"
	@echo "make test        run the tests"
	@echo "make check       ruff and mypy"
	@echo "make benchmarks  print the speed ratios"
	@echo "make gpu-check   run the checks that need a GPU (any CUDA machine)"
	@echo "make setup       create $(VENV) and install the package into it"

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/bench run --methods inp_former,dinomaly,raw_pixel --dataset synthetic --encoder builtin --preset demo --results results/runs

# One thread: the models of the tests are tiny, and threads that wait for each other on a busy machine are ten times slower.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not benchmarks and not gpu"

# mypy follows the mapping of pyproject.toml through a folder of links (an editable install is opaque to it).
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p build/typing/inpbench
	for name in harness methods datasets; do ln -sfn ../../../$$name build/typing/inpbench/$$name; done
	MYPYPATH=build/typing $(BIN)/mypy -p inpbench.harness -p inpbench.methods -p inpbench.datasets

benchmarks: setup
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

gpu-check: setup
	$(BIN)/pytest -q -m gpu

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
