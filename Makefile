# Each target sets up what it needs in .venv on the first call; stamps make the next call quick.
#
#   make demo    read the text off a photo with engines built here
#   make test    the tests CI runs (SLOW=1: all of them, K=expr: some of them)
#   make lint    ruff and mypy
#   make bench   compare with ONNX Runtime and OpenVINO (ARGS=... go to `python -m bench`)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export ENGINESMITH_CACHE ?= $(CURDIR)/.cache/enginesmith
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench format clean

demo: $(VENV)/.examples
	$(BIN)/python examples/ocr/demo.py

test: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) -m "not cuda" $(if $(SLOW),--slow) $(if $(K),-k "$(K)")

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m bench $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache build dist

# One environment serves every target; each stamp adds the packages of its extra.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml requirements-models.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-models.txt
	touch $@
