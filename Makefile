# Every target first sets up .venv, which takes no time if it is up to date.
# Without make: python3 tools/setup_env.py, then the commands below.
PYTHON ?= python3
RUN := .venv/bin/python
PVT_DET := .venv/bin/pvt-det
SHAPES := output/shapes
# A folder in COCO's layout: annotations/, train2017/, val2017/. A part of COCO is enough.
COCO ?= datasets/coco
PUBLISHED := $(foreach task,retinanet mask_rcnn,$(addprefix $(task)_pvt_,tiny small medium large))
MODELS_TRIED := $(addprefix try-,$(PUBLISHED))

# What runs with the oldest supported versions: everything but the commands, the pages and the development tools.
CORE := $(addprefix tests/,config data deployment engine layers modeling models runtimes solver utils weights)

.PHONY: help setup lock demo compare try $(MODELS_TRIED) test test-oldest lint docs package sbom clean

help:
	@echo "make demo     train a detector on photographs of blood cells and show what it finds (5 to 20 minutes on 2 cores)"
	@echo "make test     run the tests"
	@echo "make test-oldest  run the tests of the core with the oldest supported versions, in .venv-oldest"
	@echo "make compare  train PVT-Tiny and ResNet-18 on the same generated shapes and compare them"
	@echo "make try      run all eight published PVT v1 detectors for 20 iterations on the COCO images in COCO=$(COCO)"
	@echo "make lint     check style, types and import direction"
	@echo "make docs     build the documentation site into site/"
	@echo "make package  build the wheel into dist/"
	@echo "make sbom     build the wheel, and write a software bill of materials beside it"
	@echo "make lock     write the newest and oldest versions that setup.py allows into requirements/"
	@echo "make clean    remove the environments, caches and build folders; keep output/ and datasets/"

setup:
	@$(PYTHON) tools/setup_env.py

# Does not need the environment, so that it can replace a lock file that cannot be installed.
lock:
	@$(PYTHON) tools/lock.py

demo: setup
	$(RUN) tools/demo.py

# --resume continues an interrupted run. A finished run is only evaluated again.
compare: setup
	$(RUN) datasets/make_shapes.py
	$(PVT_DET) train --resume --config-file configs/shapes/retinanet_pvt_tiny.yaml --output $(SHAPES)/retinanet_pvt_tiny
	$(PVT_DET) train --resume --config-file configs/shapes/retinanet_R_18.yaml --output $(SHAPES)/retinanet_R_18
	$(PVT_DET) compare $(SHAPES)/retinanet_R_18 $(SHAPES)/retinanet_pvt_tiny

# Small images and random weights: this checks that everything runs. `make try-mask_rcnn_pvt_small` tries one model.
try: $(MODELS_TRIED)

$(MODELS_TRIED): try-%: setup
	$(PVT_DET) train --resume --config-file configs/$*.yaml --output output/try/$* \
	    --train-json $(COCO)/annotations/instances_train2017.json --train-images $(COCO)/train2017 \
	    --val-json $(COCO)/annotations/instances_val2017.json --val-images $(COCO)/val2017 \
	    MODEL.WEIGHTS "" SOLVER.MAX_ITER 20 SOLVER.STEPS "[]" SOLVER.IMS_PER_BATCH 2 SOLVER.AMP.ENABLED True \
	    DATALOADER.NUM_WORKERS 1 \
	    INPUT.MIN_SIZE_TRAIN "(224, 256)" INPUT.MAX_SIZE_TRAIN 448 INPUT.MIN_SIZE_TEST 256 INPUT.MAX_SIZE_TEST 448

test: setup
	$(RUN) -m pytest -n 2 --dist worksteal -m "not openvino"
	$(RUN) -m pytest -n 2 -m openvino

test-oldest:
	@$(PYTHON) tools/setup_env.py --oldest
	.venv-oldest/bin/python -m pytest -n 2 -m "not openvino" $(CORE)
	.venv-oldest/bin/python -m pytest -n 2 -m openvino $(CORE)

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	.venv/bin/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

package: setup
	rm -rf build dist
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

sbom: package
	$(RUN) tools/sbom.py

clean:
	rm -rf .venv .venv-oldest build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
