# Two commands matter: `make run` (the quickstart, from nothing) and `make test`.
# PYTHON=… picks the interpreter; PIP_ARGS=… is passed to pip, for instance an index with CPU builds of torch.
# ARGS=… is passed to a benchmark, such as ARGS="--only faults".
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SPEC ?= examples/quickstart.yaml

.PHONY: run test nightly check format clean bench-data bench-model bench-train bench-serve bench-moderation bench-domains

run: $(VENV)/.run-installed
	$(BIN)/eagleray run $(SPEC)

test: $(VENV)/.dev-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

nightly: $(VENV)/.dev-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(VENV)/.dev-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-data: $(VENV)/.dev-installed
	cd benchmarks && ../$(BIN)/python data.py $(ARGS)

bench-model: $(VENV)/.dev-installed
	cd benchmarks && ../$(BIN)/python model.py $(ARGS)

bench-train: $(VENV)/.dev-installed
	cd benchmarks && ../$(BIN)/python train.py $(ARGS)

bench-serve: $(VENV)/.dev-installed
	cd benchmarks && ../$(BIN)/python serve.py $(ARGS)

bench-moderation: $(VENV)/.dev-installed
	cd benchmarks && ../$(BIN)/python moderation.py $(ARGS)

bench-domains: $(VENV)/.dev-installed
	cd benchmarks && ../$(BIN)/python domains.py $(ARGS)

clean:
	rm -rf $(VENV)

$(BIN)/pip:
	PYTHON=$(PYTHON) sh .ci/venv $(VENV)

$(VENV)/.run-installed: $(BIN)/pip pyproject.toml
	$(BIN)/pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(BIN)/pip install --quiet $(PIP_ARGS) --editable '.[platform]'
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed
	$(BIN)/pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	@touch $@
