#!/usr/bin/env bash
# launch/tpu_vm.sh CONFIG=configs/X.py WORKDIR=gs://BUCKET/FOLDER [KEY=VALUE ...] [--pipeline-argument ...]
#
# The study on a TPU VM. Without NAME it runs here, on this worker; with NAME it is started on all workers
# of that slice through gcloud, each from its own checkout. Started again, it goes on where it stopped.
#
#   CONFIG       the experiment
#   WORKDIR      where the study goes; with several workers a place all of them reach (gs://...)
#   DATA_DIR     the data set's folder on the workers (config.data.dir), if the config does not say
#   STAGE        the launch module: pipeline (default), train_classifier, extract, train_sae, ...
#   ACCELERATOR  the pins to install: tpu (default), or none for the CPU
#   COORDINATOR  auto (default): jax finds the slice's other workers. none: this worker is alone
#   NAME         the TPU VM to start on; needs gcloud here, and a checkout of the repository on each worker
#   ZONE         its zone
#   PROJECT      its project, if it is not gcloud's own
#   REPO         the checkout on the workers, from their home folder (default jsae)
#
# Exit code 75 of a worker means preempted: the checkpoint is written, start again to go on.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"
case ${1:-} in
    -h | --help) usage; exit ;;
esac
keys=(CONFIG WORKDIR DATA_DIR STAGE ACCELERATOR COORDINATOR NAME ZONE PROJECT REPO)
CONFIG='' WORKDIR='' DATA_DIR='' STAGE=pipeline ACCELERATOR=tpu COORDINATOR=auto NAME='' ZONE='' PROJECT='' REPO=jsae
read_arguments "$@"
case $COORDINATOR in
    auto | none) ;;
    *) fail "COORDINATOR=$COORDINATOR is not one of: auto none" ;;
esac

if [[ $NAME ]]; then
    if [[ ! $ZONE ]]; then fail "NAME=$NAME needs ZONE=, the zone of the TPU VM"; fi
    remote=(launch/tpu_vm.sh)
    for key in CONFIG WORKDIR DATA_DIR STAGE ACCELERATOR COORDINATOR; do
        if [[ ${!key} ]]; then remote+=("$key=${!key}"); fi
    done
    printf -v line 'cd %q &&' "$REPO"
    printf -v words ' %q' "${remote[@]}" ${rest[@]+"${rest[@]}"}
    exec gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"} \
        --worker=all --command="$line$words"
fi

pipeline_command
make_environment
cd "$root"
if [[ $COORDINATOR == auto ]]; then
    export JSAE_COORDINATOR=auto
fi
exec "${command[@]}"
