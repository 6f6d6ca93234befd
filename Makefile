PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
IMAGE ?=
QUESTION ?=

.PHONY: demo test lint clean

# Everything `demo`, `test` and `lint` need, once.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[test,eval]"
	touch $@

demo: $(READY)
	$(BIN)/python demos/demo.py $(if $(IMAGE),--image "$(IMAGE)") $(if $(QUESTION),--question "$(QUESTION)")

test: $(READY)
	$(BIN)/python -m pytest -n auto

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv
