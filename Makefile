# make check: everything CI checks. make fix: format and mend what can be mended. make docs: renew help in README.md.
# make test-gpu: on a machine with a GPU.
.PHONY: check fix lint test test-gpu docs

PYTHON_FILES = mgmae_cli tests plugins

check: lint test

lint:
	ruff format --check $(PYTHON_FILES)
	ruff check $(PYTHON_FILES)
	mypy
	cog --check README.md

test:
	pytest

test-gpu:
	pytest --gpu -n 0 tests/gpu

fix:
	ruff format $(PYTHON_FILES)
	ruff check --fix $(PYTHON_FILES)

docs:
	cog -r README.md
