# Every target runs in the project's own environment; uv makes it on first use.
.PHONY: help check format lint types test slow soak gpu bench demo docs infra-check lock

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

check: lint types test  ## all that must pass before a change is merged

format:          ## format the code and mend what can be mended
	uv run ruff format .
	uv run ruff check --fix .

lint:            ## format and lint, nothing changed
	uv run ruff format --check .
	uv run ruff check .

types:           ## strict types
	uv run mypy

test:            ## the test suite without its slow part
	uv run pytest

slow:            ## the slow tests: minutes each
	uv run pytest -m "slow and not gpu" --timeout 3600

soak:            ## half an hour of faults and kills against a real S3 server; fails unless nothing is lost
	RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 uv run python -m tests.soak --minutes 30

gpu:             ## tests that need a CUDA device
	uv run pytest -m gpu --timeout 3600

bench:           ## benchmarks; each prints what it compares with
	for script in tests/benchmarks/*.py; do uv run python $$script || exit 1; done

demo:            ## a real micrograph through the bundled model, results in out/demo
	uv run pipelines/segment_tiles.py

docs:            ## write the pages that are made from the code
	uv run python docs/make_reference.py
	uv run python docs/make_models.py

infra-check:     ## render every overlay of infra/ and check all manifests, the image, the launcher and the dashboard
	uv run pytest tests/unit/test_infra.py

lock:            ## write the exact versions that the container is built with
	uv export --no-dev --extra query --extra geo --no-hashes --no-emit-project --format requirements-txt -q -o infra/docker/requirements.txt
