#!/usr/bin/env bash
# Lint, types and tests, in an environment of its own.
#   scripts/test.sh                  all but the nightly ones
#   scripts/test.sh --all            the nightly ones too
#   scripts/test.sh -m 'not slow'    arguments go to pytest
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$VQSEG_ROOT"
install_package '[dev,docs]'
ruff format --check .
ruff check .
mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if [ "${1:-}" = --all ]; then
    shift
else
    set -- -m 'not nightly' "$@" # of several -m the last counts
fi
# By file, because tests of a file share what takes long to make.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
