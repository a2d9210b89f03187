# Everything a person or a CI machine runs. `make help` lists the targets; each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow lint format bench checkpoints results clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	@touch $@

demo: $(READY) ## Evaluate the shipped checkpoints on 100 digits and print the leaderboard
	$(BIN)/rkd eval checkpoints --threat linf:0.2 --examples 100 --results build/demo
	$(BIN)/rkd leaderboard build/demo

test: $(READY) ## Run the tests that take seconds
	$(BIN)/python -m pytest

test-slow: $(READY) ## Run the tests that take minutes too
	$(BIN)/python -m pytest -m ""

lint: $(READY) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure both engines in turn, stage by stage
	$(BIN)/python benchmarks/stages.py

# One thread: sums in another order would give other weights.
TRAIN = OMP_NUM_THREADS=1 $(BIN)/rkd train --dataset digits --arch small_cnn --threat linf:0.2 --card-threat linf:0.1,0.2 --device cpu
checkpoints: $(READY) ## Train the shipped checkpoints again
	$(TRAIN) digits-plain --name digits-plain --arch-arg width=16
	$(TRAIN) digits-pgd-at --name digits-teacher --arch-arg width=32
	$(TRAIN) digits-trades --name digits-small --arch-arg width=6

results: $(READY) ## Evaluate the shipped checkpoints on all test digits and write results/
	$(BIN)/rkd eval checkpoints --device cpu --results results
	$(BIN)/rkd leaderboard results

clean: ## Remove everything that was made here except checkpoints and results
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
