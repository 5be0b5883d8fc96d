# The README's two commands are `make run` and `make test`; both install what they need into .venv.
PYTHON ?= python3
# Without TORCH the torch that is there stays; where there is none, TESTED is installed, the version that
# development and CI use. It is a CPU build only where the configured index offers one: PyPI's for Linux brings
# CUDA along. `make install TORCH=torch` takes the index's newest, and with
# `make install VENV_FLAGS=--system-site-packages` a torch that the machine has is used.
TESTED := torch==2.13.0
# Where there is no GPU the tests of its kernels run in this version's interpreter; CUDA builds of torch bring their
# own. Systems for which there is none do without, and skip those tests.
TRITON := triton==3.6.0
# The CUDA compiler, which needs no GPU and comes with torch's CUDA builds: CI compiles kernels/cuda with it.
NVRTC := nvidia-cuda-nvrtc==13.0.88
TORCH ?=
VENV_FLAGS ?=
ARGS ?=

# The stamp holds what was asked for; when more is asked for than that, the installation is redone.
ASKED := $(strip $(TORCH) $(VENV_FLAGS))
CHANGED := $(filter-out $(shell cat .venv/.installed 2>/dev/null),$(ASKED))
ifdef CHANGED
.PHONY: .venv/.installed
endif

.PHONY: install nvrtc run test test-all lint
.venv/.installed: pyproject.toml Makefile
	test -x .venv/bin/pip -a -z "$(CHANGED)" || $(PYTHON) -m venv $(VENV_FLAGS) .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	$(if $(CHANGED),.venv/bin/python -m pip uninstall --quiet --yes torch)
	$(if $(TORCH),,.venv/bin/python -c "import torch" 2>/dev/null ||) \
		.venv/bin/python -m pip install --quiet "$(or $(TORCH),$(TESTED))"
	.venv/bin/python -m pip install --quiet -e ".[dev,oracle]"
	.venv/bin/python -c "import triton" 2>/dev/null || .venv/bin/python -m pip install --quiet "$(TRITON)" || true
	.venv/bin/python -m kernels.cpu
	$(if $(ASKED),echo "$(ASKED)" >,touch) $@

install: .venv/.installed

nvrtc: install
	.venv/bin/python -c "from kernels.nvrtc import load_nvrtc; load_nvrtc()" 2>/dev/null || \
		.venv/bin/python -m pip install --quiet --no-deps "$(NVRTC)"

run: install
	.venv/bin/python -m app $(ARGS)

# In the folders' order, not with the files of the most tests first: neighbours can then share what is costly to
# start (tests/static a browser), and the last files are short ones.
PYTEST := .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) -m "not slow" $(ARGS)

test-all: install
	$(PYTEST) $(ARGS)

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
