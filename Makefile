# make demo: install and run the bundled demo.   make test: install and run the tests.
# make test-target TARGET=cuda [HOST=me@board]: what only the hardware can tell.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test test-target check clean

demo: $(VENV)/.installed
	$(BIN)/hwloop optimize --run runs/demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov=hwloop --cov-report=term --cov-fail-under=90 -rfEs

test-target: $(VENV)/.installed
	$(BIN)/python -m pytest -v tests/test_on_target.py --target $(TARGET) $(if $(HOST),--host $(HOST))

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[cpu,dev,rtx]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage*
