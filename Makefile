# Everything a person or a CI machine runs. `make help` lists the targets; each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow fuzz lint format bench gpu gpu-wheels checkpoints classifiers defences students students-table results regression curious maskings honest trust-table clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	@touch $@

CLASSIFIERS = checkpoints/digits-plain.toml checkpoints/digits-small.toml checkpoints/digits-teacher.toml

demo: $(READY) ## Evaluate the shipped classifiers on 100 digits and print the leaderboard
	$(BIN)/rkd eval $(CLASSIFIERS) --threat linf:0.2 --examples 100 --results build/demo
	$(BIN)/rkd leaderboard build/demo

test: $(READY) ## Run the tests that take seconds
	$(BIN)/python -m pytest

test-slow: $(READY) ## Run the tests that take minutes too
	$(BIN)/python -m pytest -m ""

# A kind of file is one file in tests/fuzz/kinds. `CASE=cards/0/17` repeats one case that failed.
fuzz: $(READY) ## Feed 20,000 hostile files to all that reads files (CASES, SEED, KIND, CASE)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz --cases $(or $(CASES),20000) --seed $(or $(SEED),0) \
		--kind "$(KIND)" --case "$(CASE)"

lint: $(READY) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure both engines in turn, stage by stage
	$(BIN)/python benchmarks/stages.py

# A machine with a GPU may have no network: it has torch, and the rest comes from build/wheels.
GPU_PYTHON = $(if $(DRY),$(BIN)/python,$(PYTHON))
gpu: $(if $(DRY),$(READY)) ## Measure the GPU path, or go on with it (DRY=1: at toy size on a CPU; PARTS)
	@for wheel in $(wildcard build/wheels/*.whl); do $(PYTHON) -m zipfile -e $$wheel build/site; done
	PYTHONPATH=$(CURDIR):$(if $(DRY),,$(CURDIR)/build/site) $(GPU_PYTHON) benchmarks/gpu.py \
		$(if $(DRY),--dry --out build/gpu-dry) $(PARTS)

FETCH = $(BIN)/pip download --quiet --dest build/wheels --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64
gpu-wheels: $(READY) ## Fetch what `make gpu` needs besides torch (Python 3.12, x86-64)
	$(FETCH) pydantic tomli-w
	$(FETCH) --no-deps 'pyautoattack>=0.2,<0.3'
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheels .

# One thread: sums in another order would give other weights.
checkpoints: classifiers defences ## Make all shipped checkpoints again
	OMP_NUM_THREADS=1 $(DISTIL) rslad --name digits-rslad-0 $(ROBUST) $(CNN) --set seed=0
	OMP_NUM_THREADS=1 $(DISTIL) inductive_bias --name digits-inductive_bias-0 $(BIASES) $(VIT) --set seed=0

TRAIN = OMP_NUM_THREADS=1 $(BIN)/rkd train --dataset digits --threat linf:0.2 --card-threat linf:0.1,0.2 --device cpu
classifiers: $(READY) ## Train the shipped classifiers again
	$(TRAIN) digits-plain --name digits-plain --arch small_cnn --arch-arg width=16
	$(TRAIN) digits-pgd-at --name digits-teacher --arch small_cnn --arch-arg width=32
	$(TRAIN) digits-trades --name digits-small --arch small_cnn --arch-arg width=6
	$(TRAIN) digits-plain --name digits-involution --arch rednet26 --arch-arg width=4

# Defences around these, at a radius where the plain network falls. The front ends 0 to 4 are not trained at all.
DEFEND = OMP_NUM_THREADS=1 $(BIN)/rkd train --threat linf:0.15 --device cpu
PLAIN = --part checkpoints/digits-plain.toml
FRONT = --family frontend --arch-arg depth=33 --arch-arg width=16
MEMBER = --part checkpoints/digits-front-
defences: classifiers ## Make the shipped defences again
	for seed in 0 1 2 3 4; do \
		$(DEFEND) fit --name digits-front-$$seed $(FRONT) $(PLAIN) --arch-arg amplitude=0.05 --set seed=$$seed; \
	done
	$(DEFEND) digits-frontend --name digits-frontend-plain $(FRONT) $(PLAIN)
	$(DEFEND) digits-frontend --name digits-frontend-robust $(FRONT) --part checkpoints/digits-teacher.toml
	$(DEFEND) fit --name digits-ensemble-3 --family ensemble $(MEMBER)0.toml $(MEMBER)1.toml $(MEMBER)2.toml
	$(DEFEND) fit --name digits-ensemble-5 --family ensemble $(MEMBER)0.toml $(MEMBER)1.toml $(MEMBER)2.toml $(MEMBER)3.toml $(MEMBER)4.toml
	$(DEFEND) fit --name digits-cache --family cache $(PLAIN) --arch-arg items=500
	$(DEFEND) digits-denoiser --name digits-denoiser --family denoiser $(PLAIN)
	$(DEFEND) fit --name digits-detector --family detector $(PLAIN) \
		--arch-arg 'criteria=["noise", "targeted"]' --arch-arg sigma=0.1 --arch-arg lr_t=0.015 --arch-arg radius=0.3 --arch-arg steps_t=20
	$(DEFEND) fit --name digits-smoothed --family smoothed $(PLAIN)

# One line for each student: a method, the teachers in the order in which it names them, a network and a seed.
DISTIL = $(BIN)/rkd distill --dataset digits --device cpu --threat linf:0.2 --card-threat linf:0.1,0.2
ROBUST = --teacher checkpoints/digits-teacher.toml
BOTH = $(ROBUST) --teacher checkpoints/digits-plain.toml
BIASES = --teacher checkpoints/digits-plain.toml --teacher checkpoints/digits-involution.toml
CNN = --student small_cnn --arch-arg width=8
VIT = --student vit_tiny --arch-arg width=36 --arch-arg depth=3 --arch-arg distillation_tokens=2
STUDENTS = build/students
students: classifiers ## Distil the students of docs/distillation.md into build/students, two at a time
	@for seed in 0 1 2; do \
		for method in kd hint crd ard akd iad rslad adaad adaiad saad saad-c crdnd_reconstructed; do \
			echo $$method --name digits-$$method-$$seed $(ROBUST) $(CNN) --set seed=$$seed; \
		done; \
		for method in ard iad rslad adaad; do \
			echo $$method --with igdm --name digits-$$method-igdm-$$seed $(ROBUST) $(CNN) --set seed=$$seed; \
		done; \
		for method in mtard iad2 akd2; do \
			echo $$method --name digits-$$method-$$seed $(BOTH) $(CNN) --set seed=$$seed; \
		done; \
		echo peeraid --name digits-peeraid-$$seed $(CNN) --set seed=$$seed; \
		echo inductive_bias --name digits-inductive_bias-$$seed $(BIASES) $(VIT) --set seed=$$seed; \
	done | OMP_NUM_THREADS=1 xargs -P 2 -L 1 $(DISTIL) --out $(STUDENTS)

students-table: $(READY) ## Evaluate the students, compare their methods and write results/students.csv
	$(BIN)/rkd eval $(STUDENTS) --threat linf:0.2 --device cpu --results $(STUDENTS)/results
	$(BIN)/python benchmarks/students.py $(STUDENTS) $(STUDENTS)/results

results: $(READY) ## Evaluate the shipped checkpoints on all test digits and write results/
	$(BIN)/rkd eval $(CLASSIFIERS) --device cpu --results results
	$(BIN)/rkd leaderboard results

regression: $(READY) ## Repeat cheap runs of results/ and fail where verdicts changed (DEVICE)
	$(BIN)/python benchmarks/regression.py $(DEVICE)

curious: $(READY) ## Repeat the curious case on real networks (RKD_TEST_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/curious.py

maskings: $(READY) ## Write the table of docs/adaptive.md again (NETWORK=digits, or resnet2b with RKD_TEST_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/maskings.py $(or $(NETWORK),digits)

honest: $(READY) ## Evaluate honest networks with and without a look for surfaces (RKD_TEST_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/honest.py

trust-table: $(READY) ## Write the tables of docs/trust.md again (RKD_TEST_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trust_table.py

clean: ## Remove everything that was made here except checkpoints and results
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
