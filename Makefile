# make demo: a new .venv, the install, then the tour.   make test: the test suite.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Test processes; waiting threads sleep, so that two processes of two threads do not fight for two cores.
WORKERS ?= 2
TEST   := env OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive MPLBACKEND=Agg $(VENV)/bin/python -m pytest -n $(WORKERS)
# uv installs no bytecode: where Python may not keep its own, every process would compile torch anew, seconds each.
unexport PYTHONDONTWRITEBYTECODE
STAMP  := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: demo test test-slow lint types bench clean

demo: $(STAMP)
	$(BIN)/python -m apps.tour

test: $(STAMP)
	$(TEST) -m "not slow"

test-slow: $(STAMP)
	$(TEST) -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m apps.bench scan

# uv installs the set (about 6 GB, most of it the CUDA libraries that torch depends on) several times faster than pip.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,peers]'
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) runs report
