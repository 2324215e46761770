# Each target sets up .venv by itself: with faiss-gpu and xformers if nvidia-smi runs, else with faiss-cpu.
#
#   make demo    train for a few minutes, sample, and print the path of a picture of the results
#   make test    run the tests
#   make lint    run ruff and mypy
#   make bench   run the benchmarks

PYTHON ?= python3
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PY := .venv/bin/python
STAMP := .venv/installed-$(EXTRA)
DEMO_MINUTES ?= 5

.PHONY: demo test lint bench install clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(PY) scripts/demo.py --minutes $(DEMO_MINUTES)

test: $(STAMP)
	$(PY) -m pytest

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: $(STAMP)
	$(PY) -m benchmarks

install: $(STAMP)

# faiss-cpu and faiss-gpu install into the same folder, so an environment for the other kind of machine is replaced.
$(STAMP): pyproject.toml
	@if ls .venv/installed-* 2>/dev/null | grep -qv "$(STAMP)"; then rm -rf .venv; fi
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -e ".[$(EXTRA),dev]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
