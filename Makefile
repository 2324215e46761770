# Each target sets up .venv by itself: with faiss-gpu and xformers if nvidia-smi runs, else with faiss-cpu.
#
#   make demo    sample, adapt the shipped model to another style, and print the path of a picture of the results
#   make web     serve the page of the shipped model in the browser, until Ctrl-C
#   make check   run a quick subset of the tests, in less than a minute
#   make test    run the tests, on all cores
#   make lint    run ruff and mypy
#   make docs    build the documentation site in build/site; any warning is an error
#   make serve   the same, served at http://127.0.0.1:8000 until Ctrl-C, and built again when a page changes
#   make wheel   build dist/, install the wheel into a fresh environment, and run it from empty folders
#   make bench   run the benchmarks
#   make audit   say which installed packages have known vulnerabilities
#   make lock    write requirements.lock: the versions that are installed now
#   make lowest  run the quick tests with the lowest versions that pyproject.toml admits

PYTHON ?= python3
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PY := .venv/bin/python
STAMP := .venv/installed-$(EXTRA)
DEMO_MINUTES ?= 5
# Options of scripts/web.py, such as WEB="--port 8000".
WEB ?=
# Options of pip-audit, such as AUDIT="--vulnerability-service osv".
AUDIT ?=
# The environment of `make lowest`, several gigabytes.
LOWEST ?= build/lowest
# A worker for each core, which takes tests from the others when it has none left. WORKERS=0: all in one process.
WORKERS ?= auto
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal
# Closed forms, checkpoint names, architecture, and pages.
CHECK := tests/test_architecture.py tests/test_checkpoint_names.py tests/test_docs.py tests/test_golden_cases.py \
	tests/ldm/test_lr_scheduler.py tests/ldm/test_metrics.py tests/ldm/models/diffusion/test_editing.py \
	tests/ldm/models/diffusion/test_guidance.py tests/ldm/models/diffusion/test_samplers.py \
	tests/ldm/models/diffusion/test_schedule.py tests/ldm/modules/test_distributions.py \
	tests/ldm/modules/test_ema.py tests/ldm/modules/test_quantize.py tests/rdm/evaluate/test_metrics_agreement.py \
	tests/rdm/modules tests/rdm/retrieval/index/test_exact.py tests/rdm/retrieval/index/test_index.py

.PHONY: demo web check test lint docs serve wheel bench audit lock lowest install clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(PY) scripts/demo.py --minutes $(DEMO_MINUTES)

web: $(STAMP)
	$(PY) scripts/web.py $(WEB)

check: $(STAMP)
	$(PYTEST) $(CHECK)

test: $(STAMP)
	$(PYTEST) --durations=25

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: $(STAMP)
	$(PY) -m mkdocs build --strict

serve: $(STAMP)
	$(PY) -m mkdocs serve

wheel: $(STAMP)
	rm -rf dist
	$(PY) -m build
	PYTHON=$(PYTHON) .ci/wheel

bench: $(STAMP)
	$(PY) -m benchmarks

# pip-audit has an environment of its own, and looks at the packages of this one.
audit: $(STAMP)
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install -q pip-audit; }
	@$(PY) .ci/audit.py build/audit/bin/pip-audit $(AUDIT) --path $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# After all checks have passed.
lock: $(STAMP)
	$(PY) -m pip freeze --exclude-editable > requirements.lock.tmp
	mv requirements.lock.tmp requirements.lock

# uv takes the lowest version of what pyproject.toml names and the newest of all else.
lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -e ".[cpu,dev]"
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) $(CHECK)

install: $(STAMP)

# faiss-cpu and faiss-gpu install into the same folder, so an environment for the other kind of machine is replaced.
$(STAMP): pyproject.toml
	@if ls .venv/installed-* 2>/dev/null | grep -qv "$(STAMP)"; then rm -rf .venv; fi
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -e ".[$(EXTRA),dev]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
