# Each target sets up what it needs: a machine with Python 3.11 or newer is enough.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: venv face tune plan train test soak s3 check assets bench bench-gpu bench-scale chaos truth clean

venv: $(STAMP)

# Written last, so that a failed installation is repeated.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

# What finds faces in footage; its wheels end with Python 3.12 (latentsync_ray/latentsync/data/facemesh.py).
face: .venv/.face

.venv/.face: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[face]'
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps mediapipe==0.10.21
	@touch $@

# make tune ARGS='workers.max_groups=4'
tune: $(STAMP)
	$(BIN)/python -m latentsync_ray.tune search_spaces/transition.yaml $(ARGS)

# make plan ARGS='--simulate --gpus 2'
plan: $(STAMP)
	$(BIN)/python -m latentsync_ray.plan search_spaces/transition.yaml $(ARGS)

train: $(STAMP)
	$(BIN)/python -m latentsync_ray.train configs/demo $(ARGS)

test: $(STAMP)
	@$(MAKE) --no-print-directory face || echo "no MediaPipe for this Python: the test of footage is left out"
	$(BIN)/python -m pytest $(ARGS)

# Chaos, leaks, random damage and searches, budgets, branches, an object store: hours on two cores.
soak: $(STAMP)
	$(BIN)/python -m pytest -m soak $(ARGS)

# The demo search on an S3 server on this machine that fails, throttles and dawdles at random.
s3: $(STAMP)
	$(BIN)/python tests/integration/s3.py $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

assets: $(STAMP)
	$(BIN)/python assets/make_assets.py $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/run.py $(ARGS)

# A step of configs/256 at full size on a GPU: make bench-gpu ARGS='first_stage.batch_size=4'
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-scale: $(STAMP)
	$(BIN)/python benchmarks/scale.py $(ARGS)
	$(BIN)/python benchmarks/plan_scale.py

# make chaos ARGS='--kills 30 --seed 0'
chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py $(ARGS)

# What adaptive searches find, held against a grid that is trained whole.
truth: $(STAMP)
	$(BIN)/python benchmarks/truth.py $(ARGS)

# Leaves data/ and results/, which took time to make.
clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
