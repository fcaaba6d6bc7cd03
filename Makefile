# Two commands need nothing but Python >= 3.10 and pip: `make demo` and `make test`. The rest is for development.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint format wheel clean

demo: $(VENV)/.train  ## the main job on the embedded base and data
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev  ## every test, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests src

lint: $(VENV)/.dev  ## ruff, strict types, docstrings, size guards
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet src
	$(BIN)/python scripts/guards.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.dev
	$(BIN)/python -m build --no-isolation --wheel

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r constraints.txt
	touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) .cache dist build
