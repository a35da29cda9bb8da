# Two commands are all a newcomer needs: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo/out
GOLDENS ?= tests/golden

.PHONY: demo test slow gpu matrix lint docs format bench goldens clean

demo: $(VENV)/.installed
	$(BIN)/python demo/draw.py --out $(OUT)

# Two processes of one thread each: see tests/conftest.py.
test: $(VENV)/.tested
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.tested
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --slow

# What needs a CUDA device: Philox against the card, no step that waits for it, half precision, offloading; then timings
# beside diffusers. Says what it skips.
gpu: $(VENV)/.tested
	$(BIN)/python -m pytest -q -rs -m gpu tests
	$(BIN)/python benchmarks/card.py

# The fast suite on each Python of 3.10 to 3.13 that is found, with the newest and the oldest versions: see noxfile.py.
# What it did not find it lists as skipped. Where there is pyenv, all of its versions are looked at.
matrix: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet 'nox[uv]>=2024.10'
	PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | paste -sd: -) UV_PYTHON_DOWNLOADS=never $(BIN)/nox

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, with every link checked, in build/site.
docs: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# All recordings of the webui in one folder, e.g. make goldens GOLDENS=/path/to/goldens
goldens: $(VENV)/.tested
	WEBUI_GOLDENS=$(abspath $(GOLDENS)) $(BIN)/python -m pytest -q -m goldens tests

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed Makefile tests/no-deps.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet setuptools wheel
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --requirement tests/no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) demo/out dist build *.egg-info
