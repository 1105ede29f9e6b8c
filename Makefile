# make train and make test need nothing but Python >= 3.11 and pip; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

seeds ?= 1
split ?= test
run ?= gpt-tinystories-1
.PHONY: help setup train serve play align test slow faults screenshots lint docs clean

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

setup: .venv/installed  ## make .venv, install, fetch and prepare the default data
	$(BIN)/python scripts/prepare.py data=tinystories

train: .venv/installed  ## train the default model: a GPT on stories
	$(BIN)/python scripts/train.py model=gpt data=tinystories

serve: .venv/installed  ## serve that run at http://127.0.0.1:8000/v1; run=NAME for another
	$(BIN)/python scripts/serve.py runs/$(run)

play: .venv/installed  ## look at the newest runs in a browser, at http://127.0.0.1:8000/
	$(BIN)/python scripts/play.py

align: .venv/installed  ## all stages of post-training on stories, and the report; seeds=3 for three of each
	$(BIN)/python examples/align/align.py seeds=$(seeds) split=$(split)

test: .venv/installed  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

slow: .venv/installed  ## the tests that take over five seconds each, but for the 200 kills of `make faults`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow -k "not kills"

faults: .venv/installed  ## every fault the tests can inject, in under half an hour, and the table of what held
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m fault tests/[a-z]*/

screenshots: .venv/installed  ## pictures of the playground for docs/, of runs that are trained for them where there are none yet
	$(BIN)/python tests/playground/pictured_runs.py build/pictured
	PICTURED_RUNS=build/pictured $(BIN)/python -m pytest tests/playground/test_screenshots.py

lint: .venv/installed  ## ruff, its format, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet src tests scripts benchmarks examples
	$(BIN)/mypy

.venv/docs: .venv/installed
	$(BIN)/pip install -q -e ".[docs]"
	touch $@

docs: .venv/docs  ## the pages of docs/ and the API as a site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:           ## remove .venv; data and runs stay
	rm -rf .venv
