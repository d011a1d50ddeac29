# Set-up is the stamp file: it is made anew when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: run test lint

run: $(STAMP)
	@$(BIN)/clmm run default --out runs/default

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p streams -p safety -p reports -p clmm

$(STAMP): pyproject.toml
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "clmm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Install one, or: make PYTHON=/path/to/python" >&2; \
	  exit 1; fi; \
	if [ ! -x $(BIN)/python ]; then echo "Making $(VENV) with $$found"; $$found -m venv $(VENV); fi
	@echo "Installing into $(VENV); the first time fetches about 6 GB and takes minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
	  && VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --compile-bytecode -e '.[test]' \
	  || $(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $@
