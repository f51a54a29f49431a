# SPDX-License-Identifier: Apache-2.0
# make quickstart   install into .venv, then text in, pretrained encoder out
# make finetune-demo   the quickstart's model on a task, and one untrained
# make test         install into .venv, then the whole suite
# make docs         the documentation as a site in build/site
#
# Another interpreter: make quickstart PYTHON=python3.12
# An accelerator:      make quickstart EXTRAS=cuda      (or tpu)
# Another length:      make quickstart ARGS=--gin.TRAIN_STEPS=300

PYTHON ?=
EXTRAS ?=
PYTEST_FLAGS ?=
KILLS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python metro_jax/scripts/install.py
INSTALLED := $(VENV)/.installed$(addprefix -,$(EXTRAS))
INSTALLED_TEST := $(INSTALLED)-test

.DEFAULT_GOAL := help
.PHONY: help install install-test quickstart finetune-demo test test-slow \
  fault-test docs lint format clean

help:
	@sed -n 's/^# \{0,1\}\(make .*\)/\1/p; s/^# \(An.*:.*\)/\1/p' Makefile
	@echo 'make test-slow    what takes long; EXTRAS=aot adds TPU and GPU compilers'
	@echo 'make fault-test   kills, broken disks and NaNs; prints a table'
	@echo 'make fault-test KILLS=200   and a run is killed so often, at random'
	@echo 'make lint         ruff check and format check;  make format mends'
	@echo 'make clean        remove .venv, caches and runs/quickstart'

$(VENV)/.made: metro_jax/scripts/make_venv.sh
	@sh metro_jax/scripts/make_venv.sh $(VENV) $(PYTHON)
	@touch $@

# Stamps: installing is repeated when setup.py has changed since.
$(INSTALLED): $(VENV)/.made setup.py
	@$(INSTALL) --extras='$(EXTRAS)'
	@touch $@

$(INSTALLED_TEST): $(VENV)/.made setup.py
	@$(INSTALL) --extras='test,$(EXTRAS)'
	@touch $(INSTALLED) $@

$(VENV)/.installed-docs: $(INSTALLED) setup.py
	@$(INSTALL) --extras='docs'
	@touch $@

install: $(INSTALLED)

install-test: $(INSTALLED_TEST)

quickstart: $(INSTALLED)
	@$(BIN)/python -m metro_jax.scripts.quickstart $(ARGS)

finetune-demo: $(INSTALLED)
	@$(BIN)/python -m metro_jax.scripts.finetune_demo $(ARGS)

test: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(PYTEST_FLAGS)

test-slow: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -n 2 -m slow $(PYTEST_FLAGS)

fault-test: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -m slow tests/end_to_end/faults_test.py \
	  tests/end_to_end/recipe_faults_test.py $(PYTEST_FLAGS)
	$(if $(KILLS),$(BIN)/python tests/end_to_end/kills.py \
	  --folder=.cache/kills --kills=$(KILLS))

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist ./*.egg-info \
	  runs/quickstart
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
