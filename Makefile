# Each target sets up what it needs: a machine with Python 3.11 or newer is enough.
PYTHON ?= python3
ARGS ?=
NAME ?= cooldown
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
RUN := .venv/.installed
DEV := .venv/.dev
# Two files at a time, the long ones first; the tests of a file share their Ray cluster.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: venv face tune plan train example picture test soak s3 check assets bench bench-gpu bench-scale count chaos truth coverage clean

venv: $(DEV)

# What running needs. Stamps are written last, so that a failed installation is repeated.
$(RUN): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

# What tests, linters and benchmarks need besides.
$(DEV): $(RUN)
	$(INSTALL) -e '.[dev]'
	@touch $@

# What finds faces in footage; its wheels end with Python 3.12 (latentsync_ray/latentsync/data/facemesh.py).
face: .venv/.face

.venv/.face: $(RUN)
	$(INSTALL) -e '.[face]'
	$(INSTALL) --no-deps mediapipe==0.10.21
	@touch $@

# make tune ARGS='workers.max_groups=4'
tune: $(RUN)
	$(BIN)/latentsync-ray tune search_spaces/transition.yaml $(ARGS)

# make plan ARGS='--simulate --gpus 2'
plan: $(RUN)
	$(BIN)/latentsync-ray plan search_spaces/transition.yaml $(ARGS)

train: $(RUN)
	$(BIN)/latentsync-ray train configs/demo $(ARGS)

# make example NAME=gan_later
example: $(RUN)
	$(BIN)/latentsync-ray tune examples/$(NAME)/search_space.yaml $(ARGS)

# README's picture: the top of the demo search's report. A finished search trains nothing.
CHROMIUM ?= $(firstword $(shell which chromium chromium-browser google-chrome 2>/dev/null))
picture: $(RUN)
	@test -n "$(CHROMIUM)" || { echo "needs Chromium; name it: make picture CHROMIUM=/path/to/chrome" >&2; exit 1; }
	@folder=$$($(BIN)/latentsync-ray tune search_spaces/transition.yaml $(ARGS) | tee /dev/stderr | sed -n 's/^results: //p') && \
		test -n "$$folder" && page=$$(mktemp --suffix=.html) && sed "s#$$PWD/##g" "$$folder/report.html" > "$$page" && \
		$(CHROMIUM) --headless --no-sandbox --hide-scrollbars --virtual-time-budget=10000 --window-size=1280,2100 \
		--screenshot=docs/report.png "file://$$page"; status=$$?; rm -f "$$page"; exit $$status

test: $(DEV)
	@$(MAKE) --no-print-directory face || echo "no MediaPipe for this Python: the test of footage is left out"
	$(PYTEST) $(ARGS)

# Chaos, leaks, random damage and searches, budgets, branches, an object store: hours on two cores.
soak: $(DEV)
	$(BIN)/python -m pytest -m soak $(ARGS)

# The demo search on an S3 server on this machine that fails, throttles and dawdles at random.
s3: $(DEV)
	$(BIN)/python tests/integration/s3.py $(ARGS)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(PYTEST) -m 'not slow' $(ARGS)

assets: $(DEV)
	$(BIN)/python assets/make_assets.py $(ARGS)

bench: $(DEV)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/run.py $(ARGS)

# Kernels, FLOPs and bytes of a step of configs/256, counted without a GPU: make count ARGS='first_stage.batch_size=16'
count: $(DEV)
	$(BIN)/python -m benchmarks.gpu.count $(ARGS)

# On one GPU, 360 and 300 s: what is built in, then prototypes. A part alone: make bench-gpu PARTS=2
PARTS ?= 1 2
bench-gpu: $(DEV)
	@status=0; for part in $(PARTS); do $(BIN)/python -m benchmarks.gpu.bench $$part $(ARGS) || status=1; done; exit $$status

bench-scale: $(DEV)
	$(BIN)/python benchmarks/scale.py $(ARGS)
	$(BIN)/python benchmarks/plan_scale.py

# make chaos ARGS='--faults 30 --seed 0', or with groups of two, large states and stops:
# make chaos ARGS='--faults 30 --seed 0 --ranks 2 --state-mb 50 --stops'
chaos: $(DEV)
	$(BIN)/python benchmarks/chaos.py $(ARGS)

# What adaptive searches find, held against a grid that is trained whole.
truth: $(DEV)
	$(BIN)/python benchmarks/truth.py $(ARGS)

# How often the intervals of a search hold the truth, by simulation: two minutes. make coverage ARGS=1000
coverage: $(DEV)
	$(BIN)/python benchmarks/coverage.py $(ARGS)

# Leaves data/ and results/, which took time to make.
clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
