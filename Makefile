# make demo: set up, measure the smoke suite, write a report. make test: the whole test suite.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-harness test-kernels perf lint docs gpu clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"fusionbench needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "setting up $(VENV): pip downloads torch and the rest once, this takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/fusionbench run suites/smoke.toml --fresh --report

# Triton reads TRITON_INTERPRET when a kernel is decorated: the interpreter's tests need a process of their own.
test: test-harness test-kernels

test-harness: setup
	$(BIN)/python -m pytest $(TESTS)

test-kernels: setup
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels

perf: setup
	$(BIN)/python -m pytest tests/perf --benchmark-only

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site: build/docs/index.html. A warning is an error.
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d build/doctrees docs build/docs

# On a machine with a CUDA device, from whatever Python has torch there: make gpu PYTHON=python3 GPU_OUT=results/h200
GPU_OUT ?= results/h200

gpu:
	$(PYTHON) tests/gpu.py --out $(GPU_OUT) --bundle $(GPU_OUT).tar.gz

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
