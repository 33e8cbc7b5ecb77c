# Sourced by gpu.sh, tpu_vm.sh and slurm.sbatch: KEY=VALUE arguments and the pipeline command they stand for.
#
# The script sets `keys` (the names it takes) and a default for each; read_arguments overwrites them.
# Words that begin with -- go to the pipeline as they are (--restart=sae, --config.runtime.model_axis=2).
# shellcheck shell=bash disable=SC2034,SC2154

fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

usage() { sed -n '2,/^[^#]/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[1]}"; }

read_arguments() { # sets each KEY given, and the array `rest`
    local word key
    rest=()
    for word in "$@"; do
        key=${word%%=*}
        case $word in
            --*) rest+=("$word") ;;
            *=*)
                if [[ " ${keys[*]} " != *" $key "* ]]; then
                    fail "unknown key '$key' in '$word'. Valid keys: ${keys[*]}"
                fi
                printf -v "$key" '%s' "${word#*=}"
                ;;
            *) fail "'$word' is not KEY=VALUE. Valid keys: ${keys[*]}" ;;
        esac
    done
    if [[ ! $CONFIG ]]; then fail "CONFIG=configs/NAME.py is needed"; fi
    if [[ ! $WORKDIR ]]; then fail "WORKDIR=FOLDER is needed: the study's folder, local or gs://..."; fi
}

absolute() { # the path seen from any folder; names with a scheme (gs://) stay
    case $1 in
        '' | /* | *://*) printf '%s' "$1" ;;
        *) printf '%s/%s' "$PWD" "$1" ;;
    esac
}

pipeline_command() { # sets the array `command`; paths are made absolute, and $root becomes the folder to run in
    local data
    CONFIG=$(absolute "$CONFIG")
    if [[ ! -f $CONFIG ]]; then fail "CONFIG=$CONFIG is not a file"; fi
    if [[ ! -f $root/launch/$STAGE.py ]]; then
        fail "STAGE=$STAGE is not one of: $(cd "$root/launch" && printf '%s ' [!_]*.py | sed 's/\.py//g')"
    fi
    data=$(absolute "$DATA_DIR")
    command=("$root/.venv/bin/python" -m "launch.$STAGE" "--config=$CONFIG" "--workdir=$(absolute "$WORKDIR")")
    command+=(${data:+"--config.data.dir=$data"} ${rest[@]+"${rest[@]}"})
}

make_environment() { # .venv with the pins of ACCELERATOR
    case $ACCELERATOR in
        cuda13 | tpu) "$root/launch/venv.sh" "$ACCELERATOR" ;;
        none) "$root/launch/venv.sh" ;;
        *) fail "ACCELERATOR=$ACCELERATOR is not one of: cuda13 tpu none" ;;
    esac
}

device_ids() { # device_ids INDEX PROCESSES DEVICES: the comma list of the devices that process INDEX owns
    local each=$(($3 / $2))
    if (($3 % $2)); then fail "$3 devices cannot be dealt evenly to $2 processes"; fi
    seq -s , $(($1 * each)) $((($1 + 1) * each - 1))
}
