# Every target sets up .venv on its own; only Python 3.11 or newer, its venv module and make must be there.
# PYTHON=python3.12 picks the interpreter, CORPUS=path the folder of `make demo`.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check format bench clean

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv with everything in it

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "seqpit needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[all,dev]'
	@touch $@

demo: .venv/.installed ## ingest, sweep and leaderboard on a small corpus, or on CORPUS=path
	$(BIN)/python -m jobs.demo $(if $(CORPUS),'$(CORPUS)')

test: .venv/.installed ## all tests
	$(BIN)/python -m pytest

check: .venv/.installed ## lint, format, types, who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/.installed ## rewrite the files as `make check` wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/.installed ## measure one trial, as JSON
	$(BIN)/python -m jobs.bench trial --json

clean: ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find pipeline jobs cluster tests -name __pycache__ -type d -prune -exec rm -rf {} +
