# Everything runs in .venv, made on first use and made again when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# threads that wait for each other sleep: where something else wants the cores, spinning ones take two to six times as long
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help report test test-slow coverage lint lab format fuzz bench clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

report: $(INSTALLED)  ## run the whole workbook on the embedded default; prints where the report is
	@$(BIN)/python -m surgerylib run --config notebooks/configs/embedded.yaml --out reports/embedded

# processes that share the tests; a file's stay together
JOBS ?= 2

test: lint  ## lint, stripped notebooks, tests
	@$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

SLOW ?= slow

test-slow: $(INSTALLED)  ## tests that take minutes: kills over the whole workbook, more whole runs; SLOW="slow and ci" takes two kills
	@$(BIN)/python -m pytest -m "$(SLOW)" --durations=0

coverage: $(INSTALLED)  ## the tests once more, counting the lines of surgerylib that they reach: 95 % at least
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m coverage run -m pytest
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run make format"; exit 1; }
	@$(BIN)/nbstripout --keep-id --verify $(NOTEBOOKS) || { echo "a notebook holds outputs: run make format"; exit 1; }

# on this machine alone, with the token that JupyterLab makes; images of up to 100 MB can be uploaded (10 MB else)
LAB_OPTIONS = --ServerApp.ip=localhost --LabApp.default_url=/lab/tree/explore.ipynb \
	--ServerApp.tornado_settings='{"websocket_max_message_size": 104857600}'

lab: $(INSTALLED)  ## JupyterLab on the notebooks, the explorer first
	@cd notebooks && ../$(BIN)/jupyter lab $(LAB_OPTIONS)

format: $(INSTALLED)  ## bring code and notebooks into form
	@$(BIN)/nbstripout --keep-id $(NOTEBOOKS)
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

# how long, in seconds; what reaches new code stays in build/fuzz
FUZZ_SECONDS ?= 660
fuzz: $(INSTALLED)  ## coverage-guided fuzzing of the annotation reader (Linux)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	@mkdir -p build/fuzz
	@$(BIN)/python tests/fuzz/fuzz_annotations.py build/fuzz tests/fuzz/corpus -dict=tests/fuzz/voc.dict -max_len=2048 \
		-use_value_profile=1 -timeout=10 -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/

bench: $(INSTALLED)  ## every stage against what one would use instead, in under eight minutes; STAGES="explorer report": those two
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@$(BIN)/python benchmarks/bench.py $(STAGES)

clean:  ## remove the environment; data and reports stay
	rm -rf .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, \
	this is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	@echo "installing into .venv (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
