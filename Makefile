# make demo: set up and run the encoder study.  make test: set up and pass the tests.
# Both do their own set-up, in any order, again and again.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STAMP := .venv/.installed
# Two threads on two cores: without these a step of a small model spends its time spinning.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
# Bytecode is kept, whatever the environment says: tests start some hundred processes.
export PYTHONDONTWRITEBYTECODE :=

# Schedules of `make faults`, and the seed that they are drawn by.
N ?= 10
SEED ?= 0

# What a training needs beside torch, transformers, peft, safetensors, numpy, pillow and pyyaml, and the
# Python of the machine that it is carried to.
CARRIED := pydantic pydantic_core annotated-types typing-inspection typing_extensions
CARRY_PYTHON ?= 3.12

.PHONY: demo install carry test test-slow test-ray test-torch test-lowest test-extras test-cluster coverage check lint audit schemas faults clean

demo: install
	.venv/bin/chip-ablate run ablations/encoder.yaml

install: $(STAMP)

# Into .carry, for a machine with a GPU that has those and no network (docs/speed.md).
carry:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer on PATH: say PYTHON=/path/to/python"; exit 2; }
	rm -rf .carry
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--implementation cp --python-version $(CARRY_PYTHON) --platform manylinux_2_17_x86_64 \
		-c constraints.txt --target .carry $(CARRIED)
	@du -sm .carry | awk '{ if ($$1 > 60) { print "make: .carry takes " $$1 " MB, more than 60"; exit 2 } }'

# Three workers of one thread each on two cores, file by file: tests on Ray wait most of their time.
# The order of files is that of tests/conftest.py, the longest first. Ray gives its workers a niceness
# of 15, with which they would hardly run beside the other tests.
test: install
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What `make test` leaves out because it takes long and a cheaper test holds the same or nearly so, one
# after another. The clusters are `make test-cluster`.
test-slow: install
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 .venv/bin/python -m pytest -m "slow and not gpu" \
		--ignore=tests/cluster

# Clusters in namespaces of this machine: up, a study by job, down, and the figures; once with a shared
# disk, once with an S3-compatible server in its place; and trials whose workers sit on two machines.
# Needs root, openssh-server, rsync and iproute2.
test-cluster: install
	.venv/bin/python tests/cluster/loopback.py
	.venv/bin/python tests/cluster/no_shared_disk.py
	.venv/bin/python tests/cluster/two_machines.py

# The suite of executors on another release of Ray, in an environment of its own: make test-ray RAY=2.59.0
test-ray:
	@test -n "$(RAY)" || { echo "make: say which release: make test-ray RAY=2.59.0"; exit 2; }
	@test -x .venv-ray-$(RAY)/bin/python || $(PYTHON) -m venv .venv-ray-$(RAY)
	sed 's/^ray==.*/ray==$(RAY)/' constraints.txt > .venv-ray-$(RAY)/constraints.txt
	.venv-ray-$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-ray-$(RAY)/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-ray-$(RAY)/bin/python -m pytest tests/orchestrator/executors -m "ray and not gpu"

# What computes, on another release of torch, in an environment of its own: make test-torch TORCH=2.15.0
test-torch:
	@test -n "$(TORCH)" || { echo "make: say which release: make test-torch TORCH=2.15.0"; exit 2; }
	@test -x .venv-torch-$(TORCH)/bin/python || $(PYTHON) -m venv .venv-torch-$(TORCH)
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > .venv-torch-$(TORCH)/constraints.txt
	.venv-torch-$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-torch-$(TORCH)/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-torch-$(TORCH)/bin/python -m pytest -n 2 --dist loadfile \
		tests/chip_core/objectives tests/chip_core/models tests/chip_core/training \
		tests/chip_core/reference_cache tests/chip_core/data tests/chip_core/evaluation/inference \
		tests/chip_core/test_trial.py

# The lower bounds of pyproject.toml, in an environment of its own: what needs no Ray.
test-lowest:
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-lowest/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile \
		-m "not slow and not gpu and not ray and not e2e"

# What needs torchao or bitsandbytes, in an environment of its own.
test-extras:
	@test -x .venv-extras/bin/python || $(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[dev,int8,nf4]'
	OMP_NUM_THREADS=1 .venv-extras/bin/python -m pytest tests/chip_core/models/test_precision_nf4.py \
		tests/chip_core/training/optimizer

# Lines and branches of chip_core that its own tests do not reach.
coverage: install
	.venv/bin/python -m pytest tests/chip_core --cov --cov-report=term-missing:skip-covered

check: lint test audit

lint: install
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The pinned versions held against the advisory service. What could not be looked up is an error of
# one line, never a pass; without a network: make check AUDIT=off. Neither lint nor test needs it.
audit: install
ifeq ($(AUDIT),off)
	@echo "audit: NOT DONE, as AUDIT=off says"
else
	@.venv/bin/python .ci/audit.py
endif

# What editors are told of study files and recipes; a test fails where they are out of date.
schemas: install
	.venv/bin/chip-ablate schema study > ablations/study.schema.json
	.venv/bin/chip-ablate schema recipe > chip_core/recipes/recipe.schema.json

# Spoil a small study N times on a cluster of three nodes, two faults each (docs/faults.md);
# JSON=FILE keeps the outcomes.
faults: install
	RAY_DASHBOARD_STARTUP_TIMEOUT_S=600 .venv/bin/python -m tests.faults.run --schedules $(N) --seed $(SEED) $(if $(JSON),--json $(JSON))

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer on PATH: install one, or say PYTHON=/path/to/python"; exit 2; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv || { \
		echo "make: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; rm -rf .venv; exit 2; }
	@echo "installing into .venv (a few minutes the first time)"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-c constraints.txt -e '.[dev]'
	@# Bytecode of some 27,000 files: pip makes it on one core. Templates that are no Python are left.
	@.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
	@touch $(STAMP)

clean:
	rm -rf .carry .venv .venv-ray-* .venv-torch-* .venv-lowest .venv-extras .mypy_cache .ruff_cache .pytest_cache
