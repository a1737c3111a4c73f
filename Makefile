PYTHON ?= python3
PY := .venv/bin/python
OLDEST := .venv-oldest/bin/python
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
GALLERY := demo correlation landscape early decoupling layerwise guideline transfer search_costs

.DEFAULT_GOAL := help
.PHONY: help setup demo gallery findings lab bench test lint test-oldest minis mutants clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "PYTHON=python3.12 chooses the Python (3.11 or later) that the environments are made with."

setup: .venv/installed ## Make .venv with pinned versions (about 6 GB on Linux, minutes the first time)

demo: .venv/installed ## Train the lottery tickets of params/demo.yaml and show them in pages
	$(PY) -m lthlab run params/demo.yaml
	$(PY) -m lthlab publish params/demo.yaml --to reports/demo
	@echo "The pages: $(CURDIR)/reports/demo/index.html"

gallery: .venv/installed ## Make the pages kept in reports/gallery/ (about an hour on 2 cores; goes on where it stopped)
	set -e; for study in $(GALLERY); do \
		$(PY) -m lthlab run params/$$study.yaml; \
		$(PY) -m lthlab publish params/$$study.yaml --to reports/gallery/$$study; \
	done
	$(PY) -c 'from lthlab import pages; pages.gallery("reports/gallery")'

findings: .venv/installed ## Say claim by claim what the results in reports/data/ and the gallery's studies found
	set -e; for folder in reports/data/*; do $(PY) -m lthlab results import $$folder; done
	$(PY) -m papermill --no-progress-bar notebooks/findings.ipynb runs/notebooks/findings.ipynb
	$(PY) -c 'from lthlab import pages; pages.publish("runs/notebooks/findings.ipynb", "reports/findings.html")'

lab: .venv/installed ## Open JupyterLab on notebooks/
	$(PY) -m jupyterlab notebooks

bench: .venv/installed ## Measure speed and memory (NAME=… only some), write docs/performance.md
	$(PY) -m benchmarks $(NAME)

test: lint ## Check the code (make lint), then run all tests
	$(PY) -m pytest

lint: .venv/installed ## Check style, format and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

test-oldest: .venv-oldest/installed ## Run all tests with the lowest versions that pyproject.toml allows
	$(OLDEST) -m pytest

minis: .venv/installed ## Compute the small form of every study into build/minis, with pages of ten (at most 25 minutes)
	$(PY) tests/minis.py

mutants: .venv/installed ## Inject faults one at a time and check that a test notices each
	$(PY) tests/mutants.py

clean: ## Remove environments, caches and build/, but neither runs/ nor reports/
	rm -rf .venv .venv-oldest build lthlab.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lthlab tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	$(call environment,.venv)
	$(PY) $(PIP_INSTALL) -c constraints.txt -e '.[notebooks,test]'
	@touch $@

.venv-oldest/installed: pyproject.toml tests/oldest.py .venv/installed
	$(call environment,.venv-oldest)
	$(PY) tests/oldest.py pyproject.toml > .venv-oldest/constraints.txt
	$(OLDEST) $(PIP_INSTALL) -c .venv-oldest/constraints.txt -e '.[notebooks,test]'
	@touch $@

# An environment with a pip that runs is kept; one that was left half made, or whose Python is gone, is made anew.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lthlab needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0])'
@$(1)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
@echo "Installing into $(1), which takes minutes the first time."
endef
