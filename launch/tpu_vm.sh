#!/usr/bin/env bash
# launch/tpu_vm.sh CONFIG=configs/X.py WORKDIR=gs://BUCKET/FOLDER [KEY=VALUE ...] [--pipeline-argument ...]
#
# The study on a TPU VM. Without NAME it runs here, on this worker; with NAME it is started on all workers
# of that slice through gcloud, each from its checkout: detached, so that a lost connection stops nothing.
# It says how to follow and how to stop it. Started again, it goes on where it stopped.
#
#   CONFIG       the experiment
#   WORKDIR      where the study goes; with several workers a place all of them reach (gs://...)
#   DATA_DIR     the data set's folder on the workers (config.data.dir), if the config does not say
#   STAGE        the launch module: pipeline (default), train_classifier, extract, train_sae, ...
#   ACCELERATOR  the pins to install: tpu (default), or none for the CPU
#   DETACH       yes: run in the background with REPO/runs/tpu_vm.log for a log (with NAME always)
#   COORDINATOR  auto (default): jax finds the slice's other workers. none: this worker is alone
#   NAME         the TPU VM to start on; needs gcloud here, and a checkout of the repository on each worker
#   ZONE         its zone
#   PROJECT      its project, if it is not the one of gcloud
#   REPO         the checkout on the workers, from their home folder (default jsae)
#
# Exit code 75 of a worker means preempted: the checkpoint is written, start again to go on.
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
keys=(CONFIG WORKDIR DATA_DIR STAGE ACCELERATOR COORDINATOR DETACH NAME ZONE PROJECT REPO)
CONFIG='' WORKDIR='' DATA_DIR='' STAGE=pipeline ACCELERATOR=tpu COORDINATOR=auto DETACH=''
NAME='' ZONE='' PROJECT='' REPO=jsae
read_arguments "$@"
there=() # the words as typed, without those that say where
for word in "$@"; do
    case $word in
        NAME=* | ZONE=* | PROJECT=* | REPO=* | DETACH=*) ;;
        *) there+=("$word") ;;
    esac
done
case $COORDINATOR in
    auto | none) ;;
    *) fail "COORDINATOR=$COORDINATOR is not one of: auto none" ;;
esac
case $DETACH in
    yes | '') ;;
    *) fail "DETACH=$DETACH is not 'yes'" ;;
esac

if [[ $NAME ]]; then
    if [[ ! $ZONE ]]; then fail "NAME=$NAME needs ZONE=, the zone of the TPU VM"; fi
    printf -v line 'cd %q &&' "$REPO"
    printf -v words ' %q' launch/tpu_vm.sh ${there[@]+"${there[@]}"} DETACH=yes
    ssh=(gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
    "${ssh[@]}" --worker=all --command="$line$words"
    printf -v line '%q ' "${ssh[@]}"
    printf -v REPO '%q' "$REPO"
    printf 'follow: %s--worker=0 --command=%q\n' "$line" "tail -n 100 -F $REPO/runs/tpu_vm.log" >&2
    printf 'stop:   %s--worker=all --command=%q\n' "$line" "kill -TERM \$(cat $REPO/runs/tpu_vm.pid)" >&2
    exit
fi

pipeline_command
if [[ $DETACH ]]; then
    mkdir -p "$root/runs"
    exec 9>>"$root/runs/tpu_vm.pid" # locked by whatever runs, to its end: a TPU serves one run
    code=0
    flock -n 9 || code=$?
    if ((code == 1)); then
        fail "a run is going on here, process $(cat "$root/runs/tpu_vm.pid"); its log is $root/runs/tpu_vm.log"
    fi
    trap '' HUP # the run inherits it: the connection may be lost before it has a session
    setsid "$root/launch/tpu_vm.sh" ${there[@]+"${there[@]}"} \
        >>"$root/runs/tpu_vm.log" 2>&1 </dev/null &
    echo "$!" >"$root/runs/tpu_vm.pid"
    say "process $! on $HOSTNAME writes $root/runs/tpu_vm.log"
    exit
fi
make_environment
cd "$root"
if [[ $COORDINATOR == auto ]]; then
    export JSAE_COORDINATOR=auto
fi
exec "${command[@]}"
