# Limner's commands. A bare machine needs python3 (3.11 or newer), make and git; all else goes into
# .venv. ARGS="..." is handed on: make demo ARGS="max_train_steps=100", make test ARGS="-k lora".

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-portable check lint format docs install-pretrain clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

demo: $(VENV)/core.stamp ## install, then train a LoRA on the embedded model and draw with it
	$(BIN)/python -m train configs/demo/line_icons_lora.yaml resume=true $(ARGS)

test: $(VENV)/dev.stamp ## install, then run the tests
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/dev.stamp ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

test-portable: $(VENV)/dev.stamp ## the tests as on CPUs with narrower vectors, and as a background job
	@sh scripts/test_portable.sh $(PYTEST) -m "not slow" $(ARGS)

check: lint test ## everything that must pass before a change lands

lint: $(VENV)/dev.stamp ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev.stamp ## sort imports, mend what can be mended, lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/core.stamp ## write docs/recipes.md anew from the docstrings of the recipe fields
	$(BIN)/python -m scripts.write_recipe_reference

install-pretrain: $(VENV)/pretrain.stamp ## what the scripts that build the embedded models need

clean: ## remove .venv, caches and build outputs; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp is older than pyproject.toml or constraints.txt: install again. pip's own
# settings decide which build of torch comes (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).

$(VENV)/core.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing Limner and its libraries into $(VENV), some minutes the first time." \
	  "On disk: 2 GB, or 6 GB if pip's torch is a CUDA build."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(INSTALL) --editable '.[dev,anim]'
	@touch $@

# Without its dependencies: of open-clip-torch only the vocabulary file is read, and torchvision,
# which it asks for, is never required.
$(VENV)/pretrain.stamp: $(VENV)/core.stamp
	$(INSTALL) --editable '.[pretrain,eval]'
	$(INSTALL) --no-deps open-clip-torch
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"$(PYTHON) is Python {sys.version.split()[0]}; Limner needs 3.11 or newer. Remedy: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment. Remedy on Debian: apt install python3-venv"; exit 1; }
