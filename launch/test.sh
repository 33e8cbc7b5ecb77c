#!/usr/bin/env bash
# launch/test.sh [pytest arguments]
#
# Lint, format, types and all tests, in .venv with the pinned dependencies and the test extras; with
# arguments, lint, format, types and those tests. One process per core, at most 8, each with whole files of
# tests. The exit code is that of the first check that fails.
set -euo pipefail

unset CDPATH
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"
case ${1:-} in
    -h | --help) usage; exit ;;
esac
clean_environment
forget_outer_run

"$root/launch/venv.sh" test gcs
cd "$root"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
exec .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder "$@"
