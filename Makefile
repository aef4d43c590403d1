# make demo   set up, train on the generated shapes, evaluate, draw   -> output/demo/
# make test   set up, run the tests
# make lint   set up, check style and types
#
# VENV=<path>         another virtual environment than .venv, an existing one too
# DETECTRON2=<source> another source of Detectron2: a path, a wheel or a URL

PYTHON ?= python3
VENV ?= .venv
DETECTRON2_COMMIT := 02b5c4e295e990042a714712c21dc79b731e8833
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2.git@$(DETECTRON2_COMMIT)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
SHAPES := configs/yolact_shapes.yaml

.PHONY: setup demo test lint

setup: $(VENV)/.yolact_d2

# Packages that are installed already, in the system too, stay as they are. Detectron2 imports
# pkg_resources, which setuptools removed in version 81.
$(VENV)/.yolact_d2: setup.py Makefile
	$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(RUN) -c "import torch, torchvision" 2> /dev/null || $(PIP) install torch torchvision
	$(PIP) install -q "setuptools<81" wheel ninja
	$(RUN) -c "import detectron2.config" 2> /dev/null \
		|| $(PIP) install --no-build-isolation "$(DETECTRON2)" \
		|| { printf '%s\n' "" "Detectron2 could not be installed from" "    $(DETECTRON2)" \
			"Two ways out:" \
			"  make $(MAKECMDGOALS) DETECTRON2=<path of a clone, wheel or URL>" \
			"  install it yourself into $(VENV), then make $(MAKECMDGOALS) again"; exit 1; }
	$(PIP) install -q --no-build-isolation -e ".[test,dev]"
	touch $@

demo: setup
	$(RUN) train_net.py --config-file $(SHAPES)
	$(RUN) tools/visualize_predictions.py --config-file $(SHAPES) --output output/demo \
		MODEL.WEIGHTS output/shapes/model_final.pth

test: setup
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
