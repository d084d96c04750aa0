# Targets for people and CI. `make` alone lists them.

# cpu or gpu. If empty: that of .venv, or cpu for a new one.
EXTRACTOR ?=
# Model for `make serve`. The default is fetched if needed.
DEMO_MODEL := models/smollm2-135m-instruct
MODEL ?= $(DEMO_MODEL)
# More arguments, for example: make test ARGS="tests/analysis -k isn"
ARGS ?=
# Starting an engine keeps one core busy, so tests run in two processes, each with its own files. Files run in order of
# name: by number of tests, the engines would come last, with one process idle. Empty for one process.
TEST_PROCESSES ?= -n 2 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup model demo demo-moe test test-all test-gpu check docs bench bench-peers serve clean
define ACTIVATE
@printf '\n%s\n' "Run ./sparcom --help for all commands. To type sparcom alone: source $(BIN)/activate"
endef

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Make .venv and install everything in it (EXTRACTOR=gpu for CUDA; PYTHON=... for another Python)
	@scripts/setup $(EXTRACTOR)

model: setup  ## Fetch the demo's model
	@$(BIN)/sparcom model fetch $(notdir $(DEMO_MODEL)) --output $(DEMO_MODEL)

demo: setup  ## Run a small real model from start to report: fetch, serve, submit, verify, analyze
	@$(BIN)/sparcom demo $(ARGS)
	$(ACTIVATE)

demo-moe: setup  ## Run four models: dense and MoE, each before and after fine-tuning
	@$(BIN)/sparcom demo --moe --output demo-moe-output $(ARGS)
	$(ACTIVATE)

test: model  ## Run the tests (ARGS="-k name" for some)
	@$(BIN)/python -m pytest -m "not gpu and not aot and not slow" $(TEST_PROCESSES) $(ARGS)

test-all: model  ## Run also the slow tests: one engine per model family and per page of the documentation
	@$(BIN)/python -m pytest -m "not gpu and not aot" $(TEST_PROCESSES) $(ARGS)

test-gpu: setup  ## Run the tests that need a CUDA device; without one they are reported as skipped
	@$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

check: setup  ## Check lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## Build the site into docs/_build/html; a warning is an error
	@$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

bench: model  ## Measure capture, references, archive writing and analysis, as ratios
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-peers: model  ## Compare an extraction with transformers, nnsight and TransformerLens (installs them in .peers)
	@$(BIN)/python benchmarks/peers.py $(ARGS)

serve: $(if $(filter $(DEMO_MODEL),$(MODEL)),model,setup)  ## Serve MODEL=name-or-folder over REST
	@$(BIN)/sparcom serve --model $(MODEL) $(ARGS)

clean:  ## Remove caches and outputs; keep .venv, models/ and sparcom-data/
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist demo-output demo-moe-output bench-output .peers docs/_build
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
