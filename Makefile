# make demo: from data to a running microcontroller. make test: everything the tests need, and the tests.
# make check: the fast suite. Without root or apt, each goes on with what is there and says what it left out.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO_SEED ?= 0

.PHONY: demo test check lint setup tools constraints clean

demo: setup
	rm -rf runs/demo build/demo
	$(BIN)/fedtiny-train --seed $(DEMO_SEED) --out runs/demo
	$(BIN)/fedtiny-export runs/demo --target qemu-m4 --out build/demo/qemu-m4 > /dev/null
	$(BIN)/fedtiny-check build/demo/qemu-m4
	$(BIN)/fedtiny-export runs/demo --target esp32 --out build/demo/esp32
	@echo "look at: build/demo/esp32/report.html, build/demo/qemu-m4/report.html and runs/demo/report.html"
	@tail -n 6 build/demo/esp32/report.txt

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: tools $(VENV)/ready

tools:
	@sh .ci/tools

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,verify,dev]"
	touch $@

# Freeze an environment that holds every extra at once.
constraints:
	rm -rf .venv-all && $(PYTHON) -m venv .venv-all
	.venv-all/bin/pip install --quiet "torch==2.13.0" -e ".[train,verify,tensorflow,flower,dev]" hatchling
	.venv-all/bin/pip check
	( head -n 1 constraints.txt; .venv-all/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' ) > constraints.new
	mv constraints.new constraints.txt && rm -rf .venv-all

clean:
	rm -rf runs/demo build/demo .pytest_cache .mypy_cache .ruff_cache
