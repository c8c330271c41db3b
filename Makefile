# make quickstart   install, then data → SFT → GRPO → evaluation → report on this machine's CPU, with the numbers to expect
# make test         install, then the tests (no GPU needed; the slow ones: make test-slow; on a GPU machine: make test-gpu)
# make env          only install: .venv with exact pins, nothing outside this folder
# Another Python: make PYTHON=/path/to/python3.12 …      More test arguments: make test ARGS="-k resume -x"
PYTHON ?= python3
MEGALADDER_VENV ?= $(CURDIR)/.venv
export MEGALADDER_VENV
export USE_HUB_KERNELS = NO
RUN := $(MEGALADDER_VENV)/bin/python
ARGS ?=

.PHONY: env quickstart test test-slow test-gpu lint clean

env:
	@$(PYTHON) tools/env/setup_env.py

quickstart: env
	@PATH="$(MEGALADDER_VENV)/bin:$$PATH" bash examples/quickstart.sh

test: env
	@$(RUN) -m pytest $(ARGS)

test-slow: env
	@$(RUN) -m pytest -m "slow and not gpu" $(ARGS)

test-gpu: env
	@$(RUN) -m pytest -m gpu $(ARGS)

lint: env
	@$(RUN) -m ruff check .

clean:
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
