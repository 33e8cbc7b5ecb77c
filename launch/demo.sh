#!/usr/bin/env bash
# launch/demo.sh [WORKDIR] [pipeline arguments]
#
# The whole study on the embedded data set, from a fresh clone and Python >= 3.11: makes .venv with the
# pinned dependencies, trains the classifier and the SAE, analyses and ablates the features, and writes
# the HTML report. A CPU is enough. Started again, it goes on where it stopped.
#
#   WORKDIR             where the study goes (default: runs/demo in the repository)
#   pipeline arguments  as for launch.pipeline, e.g. --restart=sae or --config.sae.k=16
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
workdir=$root/runs/demo
case ${1:-} in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
    -* | '') ;;
    *) workdir=$1; shift ;;
esac
if [[ $workdir != /* && $workdir != *://* ]]; then workdir=$PWD/$workdir; fi

"$root/launch/venv.sh" auto
cd "$root"
printf 'jsae: the report will be %s/report/index.html\n' "$workdir" >&2
# exec: signals reach the pipeline itself, and its exit code is this script's (75: preempted, start again).
exec .venv/bin/python -m launch.pipeline --config=configs/demo.py --workdir="$workdir" "$@"
