# make setup | demo | test | test-slow | lint | wheel | clean
# Another Python has its own environment: make test PYTHON=python3.12
# More extras of setup.cfg, each after a comma: make setup EXTRAS=,cuda

PYTHON ?= python3
EXTRAS ?=

PYVER := $(shell $(PYTHON) -c \
  'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(PYVER),)
  $(error $(PYTHON) does not run; give another one, such as PYTHON=python3.12)
endif
ifeq ($(origin PYTHON),file)
  VENV ?= .venv
else
  VENV ?= .venv-$(PYVER)
endif

comma := ,
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(PYVER)$(subst $(comma),-,$(EXTRAS))

.PHONY: setup demo test test-slow lint wheel clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \
	  sys.exit(v != "$(PYVER)" and "$(VENV) has Python " + v + \
	  ", not $(PYVER): remove it, or give another VENV=folder.")'
	$(BIN)/python -m pip install --quiet --editable '.[test$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/python -m pynas_jax.main --config=configs/pipeline.py:demo \
	  --workdir=runs/demo
	$(BIN)/python -m pynas_jax.deblur --input pynas_jax/data/blurry \
	  --output runs/demo/deblurred --overwrite

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-slow: lint
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/python -m ruff check .

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune \
	  -exec rm -rf {} +
