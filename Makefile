# make demo PROMPT="a red penguin"    a prompt becomes a turntable and a game asset
# make test                                          the tests but the slow ones
# make weights                                       prints the commands that train the embedded models
# make docs                                          the documentation as a site, in site/, its links checked
# make blender                                       the Blender add-on, as dist/threedgen-blender.zip
# demo, test, test-slow, lint, types and docs first make the virtual environment .venv, once; all but demo also install
# the developers' packages. The same commands without make are in README.md.
#
# PYTHON    a Python of 3.11 or newer
# TORCH     what pip installs first
# PIP_ARGS  added to each pip install: on Linux with no CUDA device, an --extra-index-url with torch's CPU
#           wheels saves gigabytes (README.md)
# ARGS      further words for demo, such as ARGS="seed=3 trainer.max_steps=100"

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
PIP_ARGS ?=
ARGS ?=
TEST_ARGS ?= -m "not slow"
BIN = $(VENV)/bin
READY = $(VENV)/installed
TOOLS = $(VENV)/installed-dev

# the prompt as it was typed: make must not read its dollars, nor the shell its quotes
ifdef PROMPT
override PROMPT := $(value PROMPT)
else
PROMPT := a red penguin
endif
export PROMPT

.PHONY: demo test test-slow lint types docs blender weights clean

demo: $(READY)
	$(BIN)/python launch.py --config mvdream-toybox.yaml "prompt=$$PROMPT" $(ARGS)

# a process for each core, one thread each
test: $(TOOLS)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(TEST_ARGS)

test-slow: $(TOOLS)
	$(BIN)/python -m pytest -m slow

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy runs no import hooks, so it is shown the folders where an installation puts them
types: $(TOOLS)
	rm -rf $(VENV)/types && mkdir -p $(VENV)/types
	cp -R threedgen $(VENV)/types/threedgen
	cp -R guidance representations $(VENV)/types/threedgen/
	root=$$PWD && bin=$$(cd $(BIN) && pwd) && cd $(VENV)/types && "$$bin/mypy" --config-file "$$root/pyproject.toml" -p threedgen

docs: $(TOOLS)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[docs]" -c constraints.txt
	$(BIN)/python -m mkdocs build --strict

weights:
	@cat weights/recipe.sh

blender:
	mkdir -p dist
	cd addons/blender && $(PYTHON) -m zipfile -c ../../dist/threedgen-blender.zip blender_manifest.toml *.py

$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) "$(TORCH)" -c constraints.txt
	$(BIN)/python -m pip install $(PIP_ARGS) -e . -c constraints.txt
	touch $(READY)

$(TOOLS): $(READY)
	$(BIN)/python -m pip install $(PIP_ARGS) -e ".[dev]" -c constraints.txt
	touch $(TOOLS)

clean:
	rm -rf $(VENV) site build dist *.egg-info
