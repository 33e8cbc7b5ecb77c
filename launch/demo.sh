#!/usr/bin/env bash
# launch/demo.sh [WORKDIR] [pipeline arguments]
#
# The whole study on the embedded data set, from a fresh clone and Python >= 3.11: makes .venv with the
# pinned dependencies, trains the classifier and the SAE, analyses and ablates the features, and writes
# the HTML report. A CPU is enough. Started again, it goes on where it stopped.
#
#   WORKDIR             where the study goes (default: runs/demo in the repository)
#   pipeline arguments  as for launch.pipeline, e.g. --restart=sae or --config.sae.topk.k=16
set -euo pipefail

unset CDPATH
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"
workdir=$root/runs/demo
case ${1:-} in
    -h | --help) usage; exit ;;
    -* | '') ;;
    *) workdir=$(absolute "$1"); shift ;;
esac
clean_environment
forget_outer_run
words=()
for word in "$@"; do words+=("$(absolute_word "$word")"); done
command=(.venv/bin/python -m launch.pipeline --config=configs/demo.py "--workdir=$workdir" ${words[@]+"${words[@]}"})
ACCELERATOR=auto

make_environment
cd "$root"
printf 'jsae: the report will be %s/report/index.html\n' "$workdir" >&2
# exec: signals reach the pipeline itself, and its exit code is this script's (75: preempted, start again).
exec "${command[@]}"
