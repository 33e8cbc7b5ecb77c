#!/usr/bin/env bash
# launch/gpu.sh CONFIG=configs/X.py WORKDIR=FOLDER [KEY=VALUE ...] [--pipeline-argument ...]
#
# The study on the NVIDIA GPUs of this machine. Started again, it goes on where it stopped.
#
#   CONFIG       the experiment
#   WORKDIR      where the study goes: a folder, or gs://...
#   DATA_DIR     the data set's folder (config.data.dir), if the config does not say
#   STAGE        the launch module: pipeline (default), train_classifier, extract, train_sae, ...
#   ACCELERATOR  the pins to install: auto (default; cuda13, or cuda12 where the driver is older than 580),
#                cuda12, cuda13, or none for the CPU
#   PROCESSES    1 (default): one process drives all GPUs. all: one process a GPU. N: the GPUs dealt to N
#   COORDINATOR  host:port where several processes meet (default: a free port of this machine)
#   GRACE_S      seconds the other processes have to stop when one has ended early (default 120)
#
# If one process fails, the others are stopped and its exit code is the script's; 75 means preempted
# (SIGTERM, SIGUSR1, Ctrl-C): the checkpoint is written, start again to go on. A terminal that closes stops
# nothing.
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
keys=(CONFIG WORKDIR DATA_DIR STAGE ACCELERATOR PROCESSES COORDINATOR GRACE_S)
CONFIG='' WORKDIR='' DATA_DIR='' STAGE=pipeline ACCELERATOR=auto PROCESSES=1 COORDINATOR='' GRACE_S=120
read_arguments "$@"

gpus=0 mig=
if [[ $ACCELERATOR == none ]]; then
    :
elif [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then
    visible_devices
    gpus=${#visible[@]}
    if [[ "${visible[*]-}" == *MIG-* ]]; then mig=yes; fi
elif command -v nvidia-smi >/dev/null; then
    listed=$(nvidia-smi --list-gpus 2>&1) ||
        fail "nvidia-smi failed: ${listed:-without a word}. ACCELERATOR=none runs on the CPU"
    gpus=$(grep -c '^GPU ' <<<"$listed" || true)
    if [[ $listed == *'MIG '* ]]; then mig=yes; fi # indented lines below their GPU
fi
if [[ $PROCESSES == all ]]; then
    if ((gpus == 0)); then
        fail "PROCESSES=all: no GPU found (ACCELERATOR=$ACCELERATOR," \
            "CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset}, nvidia-smi --list-gpus); give a number"
    fi
    PROCESSES=$gpus
    if [[ $mig ]]; then PROCESSES=2; fi # refused below, however many there are
fi
if [[ ! $PROCESSES =~ ^[1-9][0-9]*$ ]]; then fail "PROCESSES=$PROCESSES is neither a positive number nor 'all'"; fi
if [[ $mig ]]; then refuse_mig "$PROCESSES"; fi
if [[ ! $GRACE_S =~ ^[0-9]+$ ]]; then fail "GRACE_S=$GRACE_S is not a number of seconds"; fi
pipeline_command
make_environment
cd "$root"

if ((PROCESSES == 1)); then
    exec "${command[@]}"
fi

if [[ ! $COORDINATOR ]]; then
    COORDINATOR=127.0.0.1:$(.venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi
export JSAE_COORDINATOR=$COORDINATOR JSAE_NUM_PROCESSES=$PROCESSES
pids=()
stop() { if ((${#pids[@]})); then kill "-$1" "${pids[@]}" 2>/dev/null || true; fi; }
trap 'stop TERM' TERM INT USR1
trap '' HUP # the terminal has gone: the run goes on

for ((i = 0; i < PROCESSES; i++)); do
    process=(env "JSAE_PROCESS_ID=$i")
    if ((gpus)); then
        ids=$(device_ids "$i" "$PROCESSES" "$gpus")
        process+=("JSAE_LOCAL_DEVICE_IDS=$ids")
    fi
    # A new session: Ctrl-C reaches this script only, which passes it on once. A second one ends at once.
    setsid "${process[@]}" "${command[@]}" </dev/null &
    pids+=($!)
done

status=0
deadline=
while ((${#pids[@]})); do
    alive=()
    for pid in "${pids[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then
            alive+=("$pid")
            continue
        fi
        code=0
        wait "$pid" || code=$?
        if ((code != 0 && status == 0)); then
            status=$code
            deadline=$((SECONDS + GRACE_S))
            # 75: all have heard the request and write their checkpoint; a second signal would cut that short.
            if ((code != 75)); then
                say "a process ended with exit code $code; stopping the others"
                stop TERM
            fi
        fi
    done
    pids=(${alive[@]+"${alive[@]}"})
    if [[ $deadline ]] && ((SECONDS >= deadline)); then stop KILL; fi
    if ((${#pids[@]})); then sleep 0.2; fi
done
exit "$status"
