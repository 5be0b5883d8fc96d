# The README's two commands are `make run` and `make test`; both install what they need into .venv.
PYTHON ?= python3
# The CPU build that development and CI are pinned to. `make install TORCH=torch` takes the registry's
# newest build instead (with CUDA on Linux); an installed CUDA build is used with `VENV_FLAGS=--system-site-packages`.
TORCH ?= torch==2.13.0
VENV_FLAGS ?=
ARGS ?=

.PHONY: install run test test-all lint
.venv/.installed: pyproject.toml Makefile
	test -x .venv/bin/python || $(PYTHON) -m venv $(VENV_FLAGS) .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -c "import torch" 2>/dev/null || .venv/bin/python -m pip install --quiet "$(TORCH)"
	.venv/bin/python -m pip install --quiet -e ".[dev,oracle]"
	touch $@

install: .venv/.installed

run: install
	.venv/bin/python -m app $(ARGS)

test: install
	.venv/bin/python -m pytest -q -m "not slow" $(ARGS)

test-all: install
	.venv/bin/python -m pytest -q $(ARGS)

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
