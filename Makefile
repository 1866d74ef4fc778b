.PHONY: check format nightly
check:
	bash .ci/run
format:
	uv run ruff check --fix . && uv run ruff format .
nightly:
	NIGHTLY=1 bash .ci/run
