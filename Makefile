# make quickstart   install, then data → SFT → GRPO → evaluation → report on this machine's CPU, with the numbers to expect
# make quickstart-moe   the same with a mixture of experts
# make test         install, then the tests of every part that take seconds (no GPU needed)
# make test-slow    the tests marked slow: layouts on many ranks, a real vLLM, killed runs (on a GPU machine: make test-gpu)
# make docs         the site of docs/ in site/; a broken link or anchor fails
# make lint         ruff's rules; make format: is everything formatted; make types: mypy
# make env          only install: .venv with exact pins, nothing outside this folder
# Another Python: make PYTHON=/path/to/python3.12 …      More test arguments: make test ARGS="-k resume -x"
# Paths reach the shell as its own variables, never as make's: a folder's name may hold spaces, quotes, $ and backticks.
PYTHON ?= python3
export PYTHON
export USE_HUB_KERNELS = NO
# Python keeps what it has compiled, here too where an image says otherwise: a run starts hundreds of processes.
export PYTHONDONTWRITEBYTECODE =
VENV = "$${MEGALADDER_VENV:-$$PWD/.venv}"
RUN = $(VENV)/bin/python
ARGS ?=

.PHONY: env quickstart quickstart-moe test chaos test-slow test-gpu lint format types docs clean

env:
	@"$$PYTHON" tools/env/setup_env.py

quickstart: env
	@PATH=$(VENV)/bin:"$$PATH" bash examples/quickstart.sh

quickstart-moe: env
	@PATH=$(VENV)/bin:"$$PATH" bash examples/quickstart.sh moe

test: env
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: env
	@PYTHONPATH=.:tests $(RUN) -m chaos.run $(ARGS)

test-slow: env
	@$(RUN) -m pytest -m "slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: env
	@$(RUN) -m pytest -m gpu $(ARGS)

lint: env
	@$(RUN) -m ruff check .

format: env
	@$(RUN) -m ruff format --check .

types: env
	@$(RUN) -m mypy

docs: env
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

clean:
	@rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
