#!/usr/bin/env bash
# launch/test.sh [pytest arguments]
#
# Lint, format and all tests, in .venv with the pinned dependencies and the test extras; with arguments,
# lint, format and those tests. One process a core, at most 8, each with whole files of tests. The exit code
# is that of the first check that fails.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
case ${1:-} in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
esac

"$root/launch/venv.sh" test
cd "$root"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder "$@"
