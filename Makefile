PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
IMAGE ?=
QUESTION ?=

.PHONY: demo app test lint docs clean

# Everything the targets below need, once.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[test,eval,demo,docs]"
	touch $@

demo: $(READY)
	$(BIN)/python demos/demo.py $(if $(IMAGE),--image "$(IMAGE)") $(if $(QUESTION),--question "$(QUESTION)")

app: $(READY)
	$(BIN)/python demos/app.py

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(READY)
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv site
