#!/usr/bin/env bash
# Lint, types and all tests, in an environment of its own. Arguments go to pytest, e.g. scripts/test.sh -m 'not slow'
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$VQSEG_ROOT"
install_package '[dev]'
ruff format --check .
ruff check .
mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
exec python -m pytest -m "${VQSEG_MARKERS:-not soak and not gpu}" "$@"
