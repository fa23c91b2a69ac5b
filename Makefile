PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
QUESTION ?= Which checks does the verifier make before it asks a model?

.PHONY: install research check test soak bench bench-short clean lock

install: $(READY)

# The pip that comes with Python 3.11 cannot install what asks for extras of a package whose hash is given.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.3"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

research: $(READY)
	$(BIN)/python -m orchestrator research "$(QUESTION)" --documents docs

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py

# Three processes on two cores: many tests wait for processes that they kill and start again.
test: $(READY)
	$(BIN)/python -m pytest -q -n 3 --dist worksteal

# 500 runs against a server that fails in every way it can; SOAK="--seed 7" repeats one.
soak: $(READY)
	$(BIN)/python tests/soak.py $(SOAK)

bench: $(READY)
	$(BIN)/python -m benchmarks.speed --write calls
	$(BIN)/python -m benchmarks.speed --runs 1000 --branches 3 --rounds 1 --peers langgraph orchestrator --write runs
	$(BIN)/python -m benchmarks.speed --branches 10000 --limit 100 --rounds 1 --peers orchestrator --write many
	$(BIN)/python -m benchmarks.speed --branches 1000 --waiting --rounds 1 --peers wire orchestrator --write waiting
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.fanout
	$(BIN)/python -m benchmarks.documents
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.summaries

# A minute of it, for CI: it fails where the job does not come out right, and never for the time that it took.
bench-short: $(READY)
	$(BIN)/python -m benchmarks.speed --short
	$(BIN)/python -m benchmarks.speed --branches 3 --runs 50 --rounds 1

# The lock holds hashes and no addresses; uv only writes it, nothing else needs it.
lock:
	uv pip compile --quiet --universal --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-strip-extras --group dev --all-extras pyproject.toml --custom-compile-command "make lock" --output-file requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
