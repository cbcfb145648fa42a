# Limner's commands. A bare machine needs python3 (3.11 or newer), make and git; everything else is
# installed into .venv. ARGS="..." is passed on: make demo ARGS="max_train_steps=100",
# make test ARGS="-k lora".

PYTHON ?= python3
ARGS ?=
VENV := .venv
INTEROP := .venv-interop
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
MOCK_PYTEST := $(BIN)/python -m tests.gpu.run_pytest --mock -n 2 --dist worksteal

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Tests start many processes; without byte code each would compile the packages again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test smoke test-slow test-portable test-gpu test-fake-gpu bench-gpu test-interop \
  check lint format docs install-pretrain install-interop clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

demo: $(VENV)/core.stamp ## install, then train a LoRA on the embedded model and generate with it
	$(BIN)/python -m train configs/demo/line_icons_lora.yaml resume=true $(ARGS)

# With ARGS, which choose tests of the main suite, the mock device is left out. It is compiled in the
# meantime; a failure shows when it is needed.
test: $(VENV)/dev.stamp ## install, then run the tests, and test-fake-gpu unless there are ARGS
	@$(if $(ARGS),,$(BIN)/python -m tests.gpu.mock_cuda >/dev/null 2>&1 &) \
	  $(PYTEST) -m "not slow and not interop" $(ARGS) || exit; wait
	$(if $(ARGS),,@$(MAKE) --no-print-directory test-fake-gpu)

smoke: $(VENV)/dev.stamp ## run one test of each promise in a minute (tests/smoke.txt)
	$(BIN)/python -m pytest -q @tests/smoke.txt $(ARGS)

test-slow: $(VENV)/dev.stamp ## run the tests that take minutes; on the mock device unless there are ARGS
	$(PYTEST) -m slow $(ARGS)
	$(if $(ARGS),,$(MOCK_PYTEST) -m slow)

test-portable: $(VENV)/dev.stamp ## the tests with the kernels of CPUs with narrower vectors, and as a background job
	@sh scripts/test_portable.sh $(PYTEST) -m "not slow and not interop" $(ARGS)

test-gpu: $(VENV)/dev.stamp ## run the GPU tests (11 minutes), on a mock device where there is no GPU
	$(BIN)/python -m tests.gpu.run_pytest $(ARGS)

test-fake-gpu: $(VENV)/dev.stamp ## run a choice of them in a minute on the mock device (tests/gpu/choice.txt)
	$(MOCK_PYTEST) -m "not slow" $(ARGS)

bench-gpu: $(VENV)/dev.stamp ## check and measure on a GPU in 8 minutes, with random weights at full size
	$(BIN)/python -m scripts.bench.gpu $(ARGS)

test-interop: $(VENV)/dev.stamp ## run Limner's files in other versions of diffusers (after make install-interop)
	$(BIN)/python -m pytest -q -rs -m interop tests/interop $(ARGS)

check: lint test ## run everything that must pass before a change is merged

lint: $(VENV)/dev.stamp ## run ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev.stamp ## sort imports, apply automatic fixes, format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/core.stamp ## write docs/recipes.md and docs/schema/ from the docstrings of the recipe fields
	$(BIN)/python -m scripts.write_recipe_reference

install-pretrain: $(VENV)/pretrain.stamp ## install what the scripts that build the embedded models need

install-interop: $(INTEROP)/032/stamp $(INTEROP)/034/stamp $(INTEROP)/new/stamp ## install other versions of diffusers into .venv-interop (4 GB)

clean: ## remove the environments, caches and build outputs, but keep runs/
	rm -rf $(VENV) $(INTEROP) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. If a stamp is older than pyproject.toml or constraints.txt, packages are installed
# again. pip's own settings select the build of torch (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).

$(VENV)/core.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing Limner and its libraries into $(VENV); this takes some minutes the first time." \
	  "Disk space: 2 GB, or 6 GB if pip's torch is a CUDA build."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(INSTALL) --editable '.[dev,anim]'
	@touch $@

# open-clip-torch is installed without its dependencies: only its vocabulary file is read, and its
# dependency torchvision is not needed.
$(VENV)/pretrain.stamp: $(VENV)/core.stamp
	$(INSTALL) --editable '.[pretrain,eval]'
	$(INSTALL) --no-deps open-clip-torch
	@touch $@

# Old versions of diffusers with the transformers of their time, and the newest of both; the torch of
# constraints.txt. An environment that could not be completed is removed, and its tests are skipped.
$(INTEROP)/032/stamp: PACKAGES = diffusers==0.32.1 transformers==4.54.1
$(INTEROP)/034/stamp: PACKAGES = diffusers==0.34.0 transformers==4.53.3
$(INTEROP)/new/stamp: PACKAGES = diffusers transformers
$(INTEROP)/%/stamp: Makefile constraints.txt
	@echo "Installing $(PACKAGES) into $(@D)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES) \
	  peft accelerate safetensors "$$(grep ^torch== constraints.txt)" || { rm -rf $(@D); \
	  echo "$(PACKAGES) could not be installed; make test-interop skips what needs it"; exit 1; }
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"$(PYTHON) is Python {sys.version.split()[0]}; Limner needs 3.11 or newer. Remedy: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot create a virtual environment. Remedy on Debian: apt install python3-venv"; exit 1; }
