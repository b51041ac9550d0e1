# Every target sets up what it needs in .venv first; the second time that takes no time.
# Without make: python3 tools/setup_env.py, then the commands below.
PYTHON ?= python3
RUN := .venv/bin/python
PVT_DET := .venv/bin/pvt-det
SHAPES := output/shapes
# COCO's layout: annotations/, train2017/, val2017/; a part of COCO will do.
COCO ?= datasets/coco
PUBLISHED := $(foreach task,retinanet mask_rcnn,$(addprefix $(task)_pvt_,tiny small medium large))
MODELS_TRIED := $(addprefix try-,$(PUBLISHED))

.PHONY: help setup demo compare try $(MODELS_TRIED) test lint package clean

help:
	@echo "make demo     train a detector on generated shapes and show what it finds (10 minutes on 2 cores)"
	@echo "make test     run the tests"
	@echo "make compare  PVT-Tiny against ResNet-18 on the same shapes, schedule and seed"
	@echo "make try      20 iterations and an evaluation of all eight published PVT detectors on the COCO images in COCO=$(COCO)"
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
	$(PVT_DET) train --resume --config-file configs/shapes/retinanet_pvt_tiny.yaml --output $(SHAPES)/retinanet_pvt_tiny
	$(PVT_DET) train --resume --config-file configs/shapes/retinanet_R_18.yaml --output $(SHAPES)/retinanet_R_18
	$(PVT_DET) compare $(SHAPES)/retinanet_R_18 $(SHAPES)/retinanet_pvt_tiny

# Small images and random weights: that everything runs, not how well it detects. `make try-mask_rcnn_pvt_small` tries one.
try: $(MODELS_TRIED)

$(MODELS_TRIED): try-%: setup
	$(PVT_DET) train --resume --config-file configs/$*.yaml --output output/try/$* \
	    --train-json $(COCO)/annotations/instances_train2017.json --train-images $(COCO)/train2017 \
	    --val-json $(COCO)/annotations/instances_val2017.json --val-images $(COCO)/val2017 \
	    MODEL.WEIGHTS "" SOLVER.MAX_ITER 20 SOLVER.IMS_PER_BATCH 2 SOLVER.AMP.ENABLED True DATALOADER.NUM_WORKERS 1 \
	    INPUT.MIN_SIZE_TRAIN "(224, 256)" INPUT.MAX_SIZE_TRAIN 448 INPUT.MIN_SIZE_TEST 256 INPUT.MAX_SIZE_TEST 448

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
