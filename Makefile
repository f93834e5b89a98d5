# fx_d2: every target does the set-up it needs by itself.
#
# Set-up makes .venv and leaves one stamp per finished step in it. A step runs again when a file it
# depends on is newer than its stamp; an interrupted step leaves none. "make clean" starts afresh.

PYTHON ?= python3
EXTRAS ?= dicom,explain,seg-zoo,dev
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_DIR ?= output/demo
DEMO_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
CONSTRAINTS := requirements/constraints.txt
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)

# OpenMP threads that spin while they wait make torch many times slower on a shared machine.
export OMP_WAIT_POLICY ?= PASSIVE
# Nothing here loads from a model hub; without this an attempt would hang in retries when offline.
export HF_HUB_OFFLINE ?= 1
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test acc-test lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMPS)/detectron2 ## build .venv with torch, Detectron2 and fx_d2; a second call does nothing

demo: $(STAMPS)/detectron2 ## pretrain on a synthetic world and show the outcome in output/demo/index.html (12 minutes)
	$(PY) tools/make_demo.py --out $(DEMO_DIR) $(DEMO_ARGS)

# Two test processes on two cores: one thread each, or they fight for the cores.
test: export OMP_NUM_THREADS ?= 1
test: $(STAMPS)/detectron2 ## run all tests; PYTEST_ARGS="-k name" for some of them
	$(PY) -m pytest -n $(TEST_WORKERS) --dist loadscope $(PYTEST_ARGS)

acc-test: $(STAMPS)/detectron2 ## train the *_acc_test configs and compare with their expected results (hours)
	$(PY) -m pytest -m long -s tests/long $(PYTEST_ARGS)

lint: $(STAMPS)/detectron2 ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean: ## remove .venv, output and caches
	rm -rf $(VENV) output build dist fx_d2.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find fx_d2 tools tests -type d -name __pycache__ -prune -exec rm -rf {} +

# --- set-up ---------------------------------------------------------------------------------------

$(STAMPS)/venv: requirements/build.in
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) was not found. Install Python 3.10 to 3.13, or say: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); fx_d2 is tested on Python 3.10 to 3.13."; \
	  echo "Say which one to use: make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)."; exit 1; }
	$(PIP_INSTALL) --quiet --requirement requirements/build.in
	@mkdir -p $(@D) && touch $@

# Two of the requirements exist as source only: they are built with the setuptools installed above,
# not with whichever is newest.
$(STAMPS)/requirements: $(STAMPS)/venv setup.py $(CONSTRAINTS)
	@echo "installing torch, fx_d2 and what they need: about 3 GB to download the first time"
	$(PIP_INSTALL) --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

$(STAMPS)/detectron2: $(STAMPS)/requirements tools/install_detectron2.py tools/detectron2_patches.py tools/detectron2_check.py
	$(PY) tools/install_detectron2.py
	@touch $@
