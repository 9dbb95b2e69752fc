# `make demo` and `make test` set everything up by themselves; see README.md.
PYTHON ?= python3.11
BIN := .venv/bin
CHECK_GL := import envs.dmc.gl; envs.dmc.gl.choose_backend()
SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup test pytest test-all resolve lint demo docs bench model objectives presets soak fuzz atheris kills rllib benchmark clean

setup: .venv/.ready gl

# torch first and by its exact version: CPU builds are found under it where an index offers them.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq torch==2.13.0
	$(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	touch $@

# Software OpenGL for rendering, from the system's packages, where it is missing and we may install it.
.PHONY: gl
gl: .venv/.ready
	@$(BIN)/python -c "$(CHECK_GL)" || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq libegl1 libgl1-mesa-dri && $(BIN)/python -c "$(CHECK_GL)"; \
	  else exit 1; fi; }

test: setup
	$(MAKE) --jobs=2 lint pytest

# Bytecode of ours is kept: many tests begin an interpreter.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
pytest: .venv/.ready
	$(PYTEST) -m "not slow"

# Whether dependencies and extras can be had for later versions of Python. Minutes of waiting for an index.
resolve: .venv/.ready
	$(BIN)/python benchmarks/resolve.py

# The same behaviours at greater length: tests marked slow, and ten times the examples of hypothesis.
test-all: setup
	$(MAKE) lint
	$(PYTEST) --hypothesis-profile=thorough

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The whole line on cartpole-swingup, from the bundled model to a policy beside one on random weights, at the same time.
# What is there is not made again, and commands that were killed go on, so `make demo` may be killed and run again.
DEMO := runs/demo
# Episodes to collect, optimiser steps of the model, control steps (8 to an agent step) of each policy.
DEMO_EPISODES := 200
DEMO_STEPS := 300
DEMO_FRAMES := 40000
OBS := $(BIN)/perceiver-obs
DEMO_POLICIES := $(DEMO)/policy $(DEMO)/policy-random-weights
demo: setup
	$(MAKE) --no-print-directory --jobs=2 $(DEMO_POLICIES:=/evaluation.json) $(DEMO)/policy/watch.gif
	$(OBS) report --out $(DEMO)

$(DEMO)/model/model.safetensors:
	$(OBS) collect --task cartpole-swingup --random-init --episodes $(DEMO_EPISODES) --max-steps 50 \
	  --out $(DEMO)/data
	$(OBS) train-predictor --data $(DEMO)/data --begin-with dmc-small --steps $(DEMO_STEPS) \
	  --learning-rate 3e-4 --evaluate-every 100 --checkpoint-every 50 --out $(DEMO)/model

$(DEMO)/probe/probe.json: $(DEMO)/model/model.safetensors
	$(OBS) probe --model $(DEMO)/model --data $(DEMO)/data --random-weights $(DEMO)/random-weights --out $(DEMO)/probe

$(DEMO)/policy/policy.zip: SEES := $(DEMO)/model
$(DEMO)/policy-random-weights/policy.zip: SEES := $(DEMO)/random-weights
$(DEMO_POLICIES:=/policy.zip): $(DEMO)/probe/probe.json
	set -o pipefail; $(OBS) train-policy --task cartpole-swingup --model $(SEES) --out $(@D) \
	  --algorithm CrossQ --learning-rate 1e-3 --hyperparameters ent_coef auto_0.1 --seed 0 \
	  --total-frames $(DEMO_FRAMES) --eval-every $$(($(DEMO_FRAMES) / 5)) --eval-episodes 3 \
	  --no-progress-bar | sed -u 's|^|$(notdir $(@D)): |'

$(DEMO)/%/evaluation.json: $(DEMO)/%/policy.zip
	$(OBS) evaluate --policy $(@D) --episodes 5

$(DEMO)/policy/watch.gif: $(DEMO)/policy/policy.zip
	$(OBS) watch cartpole-swingup --model $(DEMO)/model --policy $(@D) --episodes 8 --max-steps 125 --out $@

# RLlib's example, and the tests of the wrappers with the Gymnasium that RLlib pins, in an environment of their own.
# That Gymnasium's RecordEpisodeStatistics counts a step too few after same-step resets, so its test is left out.
RLLIB := .venv-rllib/bin
rllib: setup .venv-rllib/.ready
	$(RLLIB)/pytest -p no:cacheprovider -k "not own_wrappers" tests/rllib_floor.py tests/test_context_wrapper.py tests/test_vector_wrapper.py \
	  tests/test_vec_perceiver_context.py
.venv-rllib/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-rllib
	$(RLLIB)/pip install -qq torch==2.13.0
	$(RLLIB)/pip install -qq -c <(grep -v ^gymnasium= constraints.txt) -e . 'ray[rllib]' hypothesis psutil pytest
	touch $@

# The documentation, into build/site.
docs: setup
	$(BIN)/mkdocs build --strict

# What a step costs and what was tried, for the docs; torch.compile needs a C++ compiler.
bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/steps.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/attempts.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/page.py

# What the sizes of models cost and carry; half an hour on one core.
presets: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/presets.py

# A model of six tasks from nothing, by today's code: a night on two cores. MODEL holds options, such as --help.
model: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/make_model.py $(MODEL)

# A model trained for minutes on a GPU machine without network. `make gpu-site` gathers here the packages that it lacks,
# those of Python 3.12 on x86-64; there, `python3` has torch, and `make gpu` runs the job. GPU holds options.
GPU_PACKAGES := mujoco dm_control dm-env dm-tree shimmy gymnasium farama-notifications stable_baselines3 sb3_contrib \
  tyro docstring_parser typeguard vector-quantize-pytorch einx frozendict loguru torch-einops-utils pyopengl glfw websockets
.PHONY: gpu gpu-site
gpu-site: setup
	rm -rf .gpu/site
	$(BIN)/pip install -q --no-deps --no-compile --only-binary=:all: --python-version 3.12 --target .gpu/site \
	  $(foreach glibc,17 24 27 28 31 34,--platform manylinux_2_$(glibc)_x86_64) --platform manylinux2014_x86_64 \
	  --platform manylinux2010_x86_64 -c constraints.txt $(GPU_PACKAGES)
	cd .gpu/site && rm -rf dm_control/locomotion dm_control/suite/dog_assets \
	  mujoco/{experimental,introspect,include,_render_filament*} OpenGL/{DLLS,GLES*,raw/GLES*,raw/WGL,raw/GLX} test docs
gpu:
	MUJOCO_GL=egl OMP_NUM_THREADS=1 PYTHONPATH=.gpu/site:. python3 benchmarks/gpu_job.py $(GPU)

# What contexts learn from in the same time, on the rollouts of one task that `make model` has made; an hour on one core.
ROLLOUTS := runs/model/data/walker-walk
objectives: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/objectives.py --on-policy $(ROLLOUTS)-expert \
	  --data $(ROLLOUTS)-random_init $(ROLLOUTS)-exploration $(ROLLOUTS)-learning

# What has to hold for long: a million steps, damaged files, and SIGKILLs. Figures in benchmarks/results/.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py
# Coverage-guided, ten minutes; atheris has wheels for few systems and is no dependency.
atheris: setup
	$(BIN)/pip install -qq atheris
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/atheris_fuzz.py
kills: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kills.py

# DMControl-100k for the bundled model and its baselines, 108 runs; goes on from what is there.
benchmark: setup
	OMP_NUM_THREADS=1 $(OBS) benchmark dmc100k

clean:
	rm -rf .venv .venv-rllib build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
