# Each target is one or two Python commands, which also work where there is no make; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-for-the-demo
INSTALL = $(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --editable

.PHONY: setup demo test thorough native wheel-test lint full-size gpu-acceptance clean

setup: $(READY)

# Modules are compiled when they are imported first: most of the packages' never are, and all take longer than the rest
$(READY): pyproject.toml
	$(INSTALL) ".[build,cpu,dev]"
	@touch $(READY) $(DEMO_READY)

# The demo waits only for what it needs: a third of an installation are tools and compilers that the tests need
$(DEMO_READY): pyproject.toml
	$(INSTALL) ".[build,cpu,demo]"
	@touch $(DEMO_READY)

demo: $(DEMO_READY)
	$(BIN)/vsr-build demo

test: setup
	$(BIN)/python -m pytest

thorough: setup
	$(BIN)/python -m pytest -m 'thorough and not full_size'

# The library for hosts in C++, built in build/native, and its tests; docs/native.md says what it needs
native: setup
	$(BIN)/python -m pytest -m 'native and not thorough' tests/native

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	@mkdir -p build/types && ln -sfn ../.. build/types/vsr_trt  # mypy knows packages by folders of their name
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

# The sdist, the wheel made from it, and that wheel in an environment of its own, which has no torch.
# (-P: `build` is the package, not build.py here.)
wheel-test: setup
	rm -rf build/dist build/fresh
	$(BIN)/python -P -m build --outdir build/dist .
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install --no-compile --quiet --disable-pip-version-check "$$(ls build/dist/*.whl)[cpu]"
	cd build/fresh && bin/vsr --version && bin/vsr --self-test
	cd build/fresh && ! bin/python -c "import torch" 2>/dev/null

full-size: setup
	$(BIN)/python -m pytest -m full_size
	$(BIN)/vsr-build full-size
	$(BIN)/vsr-build full-size --family star --out full-size-out/star

gpu-acceptance: setup
	extra=$$($(BIN)/vsr-build gpu-acceptance --extra) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$$extra]"
	$(BIN)/vsr-build gpu-acceptance

clean:
	rm -rf $(VENV) demo-out full-size-out gpu-acceptance-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
