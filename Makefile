# `make setup` makes .venv; every other target calls it first. A second set-up is a look at one stamp file; one that was
# interrupted, or whose pins changed, is done again.

.DELETE_ON_ERROR:
.PHONY: setup demo docs lint format test test-full clean

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

# One thread of torch in each of two processes. A kind of test that needs a process of its own (interpreted Triton,
# compiled Triton, a GPU) gets a line of its own here, above the main one, whose closing lines are the run's.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

test: lint
	$(PYTEST)

test-full: lint
	$(PYTEST) -m "slow or not slow"

clean:
	rm -rf $(VENV) demo dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
