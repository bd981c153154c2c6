# make demo   audit the two phantom models: one decides by a ruler, its twin does not
# make test   lint, unit tests, end-to-end tests
# Both create .venv and install into it what constraints.txt names.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# one thread a process: two test workers then share two cores without thrashing
WORKERS ?= 2
SECONDS_EACH ?= 150
export OMP_WAIT_POLICY ?= PASSIVE
APT := libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz0b libharfbuzz-subset0 fonts-dejavu-core

.PHONY: help install system pango demo test coverage unit lint fuzz kills bench versus wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     audit the two phantom models and write their reports to reports/"
	@echo "make test     lint and test"
	@echo "make coverage test, and say which lines no test reaches"
	@echo "make lint     ruff, mypy, import contracts"
	@echo "make fuzz     coverage-guided fuzzing of what reads specs and of verify, $(SECONDS_EACH) seconds each"
	@echo "make kills    kill the index $(KILLS) times at random moments, and compare what is in the store in the end"
	@echo "make bench    what each stage costs, as a table"
	@echo "make versus   cost and agreement against semanticlens, zennit-crp and the networks alone; growth; writes the tables"
	@echo "make wheel    build the wheel into dist/"
	@echo "make system   install the system libraries of the PDF report (Debian, as root)"
	@echo "make clean    remove .venv, caches and stores; reports stay"

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "No virtual environment could be made with '$(PYTHON)': Python >= 3.11 with venv is needed (Debian: apt-get install python3-venv)."; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python >= 3.11 is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@

install: $(VENV)/installed

system:
	apt-get update -qq && apt-get install -y --no-install-recommends $(APT)

pango: $(VENV)/installed
	@$(BIN)/python -c 'import weasyprint' >/dev/null 2>&1 || { \
	  echo "Pango is missing: reports are written as HTML, not as PDF."; \
	  echo "On Debian or Ubuntu: apt-get install -y $(APT)"; }

demo: $(VENV)/installed pango
	$(BIN)/semlens-audit demo --out .

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -q

# bytecode is kept even where the machine says otherwise: the command line is started some hundred times
test: $(VENV)/installed pango lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

coverage: $(VENV)/installed pango
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --cov --cov-report=term

fuzz: $(VENV)/installed pango
	$(BIN)/python -m tests.fuzz.fuzz_spec -max_total_time=$(SECONDS_EACH)
	$(BIN)/python -m tests.fuzz.fuzz_verify -max_total_time=$(SECONDS_EACH)

KILLS ?= 50
kills: $(VENV)/installed
	SEMLENS_AUDIT_KILLS=$(KILLS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/e2e/test_kill_resume.py -k random_moments -q -s

bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks.bench

# semanticlens stays out of the environment, which it would change: PEERS is a folder of its own
PEERS ?= $(VENV)/peers
versus: $(VENV)/installed
	@test -d $(PEERS)/semanticlens || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(PEERS) semanticlens==0.2.1 einops
	PYTHONPATH=$(PEERS) $(BIN)/python -m tests.benchmarks.versus --write

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .semlens build dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
