PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
IMAGE ?=
QUESTION ?=

.PHONY: demo test lint docs clean

# Everything `demo`, `test`, `lint` and `docs` need, once.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[test,eval,docs]"
	touch $@

demo: $(READY)
	$(BIN)/python demos/demo.py $(if $(IMAGE),--image "$(IMAGE)") $(if $(QUESTION),--question "$(QUESTION)")

test: $(READY)
	$(BIN)/python -m pytest -n auto

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(READY)
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv site
