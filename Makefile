# Every target sets up what it needs in .venv first; the second time that takes no time.
# Without make: python3 tools/setup_env.py, then the commands below.
PYTHON ?= python3
RUN := .venv/bin/python
SHAPES := output/shapes

.PHONY: help setup demo compare test lint package clean

help:
	@echo "make demo     train a detector on generated shapes and show what it finds (10 minutes on 2 cores)"
	@echo "make test     run the tests"
	@echo "make compare  PVT-Tiny against ResNet-18 on the same shapes, schedule and seed"
	@echo "make lint     style, types and import direction"
	@echo "make package  build the wheel into dist/"
	@echo "make clean    remove .venv, caches and build folders; output/ and datasets/ stay"

setup:
	@$(PYTHON) tools/setup_env.py

demo: setup
	$(RUN) tools/demo.py

# --resume: a run that was interrupted goes on, one that is finished is only evaluated again.
compare: setup
	$(RUN) datasets/make_shapes.py
	$(RUN) tools/train_net.py --resume --config-file configs/shapes/retinanet_pvt_tiny.yaml --output $(SHAPES)/retinanet_pvt_tiny
	$(RUN) tools/train_net.py --resume --config-file configs/shapes/retinanet_R_18.yaml --output $(SHAPES)/retinanet_R_18
	$(RUN) tools/compare.py $(SHAPES)/retinanet_R_18 $(SHAPES)/retinanet_pvt_tiny

test: setup
	$(RUN) -m pytest -n 2

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	.venv/bin/lint-imports

package: setup
	rm -rf build dist
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
