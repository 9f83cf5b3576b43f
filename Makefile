PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test fuzz lint docs check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check,docs]'
	touch $(STAMP)

demo: setup
	$(BIN)/sparsify run --recipe recipes/digits.toml --out runs/demo --overwrite

test: setup  # each worker, and each process that a test starts, reads the bytecode of the one before
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 20000

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: setup
	$(BIN)/zensical build --strict --clean

check: lint docs test

clean:
	rm -rf .venv .cache runs site
