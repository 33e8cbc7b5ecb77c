#!/usr/bin/env bash
# launch/device_check.sh [--target=cpu] [--out=FILE.jsonl] [--items=PATTERN] [--seconds=600]
#
# What to run in ten minutes on one card or TPU: launch/benchmark/device.py says what is measured, in which
# order. Each number is a line of FILE (default: device_check.jsonl) as soon as it is there; started again, it
# goes on. Peers (timm, dictionary_learning) take part where torch and they are installed beside it.
#
#   --target=cpu  all of it at tiny sizes on the CPU: proves the script
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
words=()
for word in "$@"; do words+=("$(absolute_word "$word")"); done
ACCELERATOR=auto
if [[ " $* " == *' --target=cpu '* ]]; then ACCELERATOR=none; fi

make_environment
cd "$root"
exec .venv/bin/python -m launch.benchmark.device ${words[@]+"${words[@]}"}
