# `make setup` makes .venv; every other target calls it first. A second set-up is a look at one stamp file; one that was
# interrupted, or whose pins changed, is done again.

.DELETE_ON_ERROR:
.PHONY: setup demo docs lint format test test-full bench clean

VENV := .venv
READY := $(VENV)/.ready
PY := $(VENV)/bin/python

# The first Python that is new enough and can make a virtual environment. Another one: make setup PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error no Python 3.11 or newer with venv and ensurepip was found; name one with PYTHON=))
	@if [ -e $@ ] && $(PY) -c ''; then rm $@; else $(PYTHON) -m venv --clear $(VENV); fi
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: setup
	@mkdir -p demo
	$(VENV)/bin/rnnc compile examples/mingru.rnn -o demo/mingru.py
	$(PY) examples/train_demo.py --cell demo/mingru.py --plot demo/loss.png --seconds 60

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(PY)

format: setup
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: setup
	$(PY) docs/make_codes.py
	$(PY) docs/make_cells.py

# One thread of torch in each of two processes. Interpreted and compiled Triton do not mix in one process, and neither
# mixes with the main run, whose closing lines are the last. `rnnc bench` on a GPU: see benchmarks/gpu.sh.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal
COMPILED := tests/test_triton_compile.py
INTERPRETED := $(filter-out $(COMPILED) tests/test_triton_gpu.py,$(wildcard tests/test_triton_*.py))

define tests
TRITON_INTERPRET=1 $(PYTEST) $(INTERPRETED) -m "triton and ($(1))"
$(PYTEST) $(COMPILED) -m "triton and ($(1))"
$(PYTEST) -m "not triton and ($(1))"
endef

test: lint
	$(call tests,not slow)

test-full: lint
	$(call tests,slow or not slow)

bench: setup
	@mkdir -p demo/bench && OUT=demo/bench PYTHON=$(abspath $(PY)) bash benchmarks/gpu.sh

clean:
	rm -rf $(VENV) demo dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
