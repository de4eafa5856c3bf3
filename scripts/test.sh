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
types="$(mktemp)"
trap 'rm -f "$types"' EXIT
mypy >"$types" 2>&1 & # beside the tests, which leave a processor idle now and then
mypy=$!
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests of the site fail, instead of being left out, without mkdocs and, at night, without Chromium.
export VQSEG_REQUIRE_SITE="${VQSEG_REQUIRE_SITE-mkdocs}"
if [ "${1:-}" = --all ]; then
    shift
    VQSEG_REQUIRE_SITE="${VQSEG_REQUIRE_SITE:+$VQSEG_REQUIRE_SITE browser}"
elif [ "${1:-}" = -m ]; then
    set -- -m "not nightly and ($2)" "${@:3}" # of several -m pytest would read the last
else
    set -- -m 'not nightly' "$@"
fi
# By file, because tests of a file share what takes long to make.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25 "$@" || tests=$?
wait "$mypy" || tests=$?
cat "$types"
exit "${tests:-0}"
