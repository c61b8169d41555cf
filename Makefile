# Two commands do all the set-up: `make demo` and `make test`. Everything goes into .venv; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
READY := $(VENV)/.ready

.PHONY: demo test unit lint docs reference benchmarks clean

## Train two small networks, build them for a Coral Edge TPU and a Raspberry Pi 4, check them, print the report.
demo: $(READY)
	$(BIN)/edgekit demo --output demo-out

## All checks of the project: linters, types, layers, and every test, on at most four cores.
test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder

## The tests that need neither a framework nor a whole build, a board or a compiler, in about a minute.
unit: $(READY)
	$(BIN)/python -m pytest -m "not frameworks and not slow"

lint: $(READY)
	$(BIN)/ruff check edge targets calibration tests benchmarks tools
	$(BIN)/ruff format --check edge targets calibration tests benchmarks tools
	$(BIN)/mypy
	$(BIN)/lint-imports

## The documentation as a site in site/, its generated parts up to date and every link checked.
docs: $(READY)
	$(BIN)/python -m tools.reference --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

## Writes the generated parts of docs/ anew.
reference: $(READY)
	$(BIN)/python -m tools.reference

## Figures of the documentation, beside the raw tools, in one run each.
benchmarks: $(READY)
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python's venv module is missing; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install -c constraints.txt -e '.[all,demo,test]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
