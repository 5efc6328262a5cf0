# Short names for the commands of README.md and CONTRIBUTING.md; nothing here that they do not show.
PYTHON ?= python3

.PHONY: demo test check slow bench readme clean

demo:  ## build the environment and explain a photograph that ships with scikit-image
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && .venv/bin/xai explain sample:coffee --method gradcam

test:  ## build or reuse the environment and run the tests
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[test,hf,onnx,ray]" && .venv/bin/python -m pytest

check:  ## linter and type checker
	.venv/bin/ruff check .
	.venv/bin/mypy

slow:  ## the walk over timm and torchvision, and other long tests
	.venv/bin/python -m pytest -n 0 -m "walk or slow"

bench:  ## each speed ratio beside its goal; exits 1 below a goal
	.venv/bin/pip install -q -c constraints.txt -e ".[bench]"
	.venv/bin/python tests/benchmarks/shapley_error.py --table examples/tables/shapley_error.md
	.venv/bin/python tests/benchmarks/run.py --table examples/tables/benchmarks.md
	.venv/bin/python tests/benchmarks/removal.py --table examples/tables/removal.md
	.venv/bin/python tests/benchmarks/activation_maximization.py --table examples/tables/activation_maximization_speed.md
	.venv/bin/python tests/benchmarks/cka.py --table examples/tables/cka.md
	.venv/bin/python tests/benchmarks/dissection.py --table examples/tables/dissection_speed.md
	.venv/bin/python tests/benchmarks/filters.py --table examples/tables/filters_cost.md
	.venv/bin/python tests/benchmarks/fourier.py --table examples/tables/fourier.md

readme:  ## write the generated tables and the picture of README.md anew
	.venv/bin/python tests/readme_tables.py --write
	.venv/bin/python tests/readme_picture.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
