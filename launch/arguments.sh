# Sourced by the other launch scripts: a clean environment, KEY=VALUE arguments and the pipeline command they stand for.
#
# The script sets `keys` (the names it takes) and a default for each; read_arguments overwrites them.
# Words that begin with -- go to the pipeline as they are (--restart=sae, --config.runtime.model_axis=2), but
# for paths in them, which are meant from the folder where they were typed.
# shellcheck shell=bash disable=SC2034,SC2154

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2 || true; } # the terminal may be gone

fail() { say "$@"; exit 2; }

usage() { sed -n '2,/^[^#]/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[1]}"; }

clean_environment() { # what a module system, a notebook or an outer run has set for another program
    local name left=()
    unset CDPATH # `cd` would print, and go elsewhere
    for name in PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONINSPECT PYTHONOPTIMIZE PYTHONSAFEPATH PYTHONWARNINGS; do
        if [[ ${!name:-} ]]; then left+=("$name"); fi
        unset "$name"
    done
    if ((${#left[@]})); then say "left out here: ${left[*]}; .venv has all that is needed"; fi
    if [[ ${TMPDIR:-} && (! -d $TMPDIR || ! -w $TMPDIR) ]]; then
        say "TMPDIR=$TMPDIR is no folder to write in on $HOSTNAME; /tmp is used"
        unset TMPDIR
    fi
}

forget_outer_run() { unset JSAE_COORDINATOR JSAE_NUM_PROCESSES JSAE_PROCESS_ID JSAE_LOCAL_DEVICE_IDS; }

read_arguments() { # sets each KEY given, and the array `rest`
    local word key
    rest=()
    for word in "$@"; do
        key=${word%%=*}
        case $word in
            --*) rest+=("$(absolute_word "$word")") ;;
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

absolute() { # the path seen from any folder, without a slash at its end; names with a scheme (gs://) stay
    local path=$1 home
    case $path in # not every shell opens a ~ inside KEY=VALUE
        '~' | '~/'*) path=${HOME:?is not set: write $1 in full}${path#'~'} ;;
        '~'[a-z_]*)
            home=${path%%/*}
            home=$(getent passwd "${home#'~'}" | cut -d : -f 6)
            if [[ $home ]]; then path=$home${path#"${path%%/*}"}; fi
            ;;
    esac
    case $path in
        '' | /* | *://*) ;;
        *) path=$PWD/$path ;;
    esac
    while [[ $path == ?*/ && $path != *:// ]]; do path=${path%/}; done
    printf '%s' "$path"
}

absolute_word() { # --config.KEY=PATH with an absolute path, any other word as it is
    case $1 in
        --config.data.dir=download) printf '%s' "$1" ;;
        --config.*.dir=?* | --config.*.cache_dir=?* | --config.*.workdir=?* | --config.*.embedding_workdir=?* | \
            --config.*.pretrained=?* | --config.*.twin=?* | --config.*.compile_cache=?* | --workdir=?*)
            printf '%s=%s' "${1%%=*}" "$(absolute "${1#*=}")"
            ;;
        *) printf '%s' "$1" ;;
    esac
}

pipeline_command() { # sets the array `command`; paths are made absolute, and $root becomes the folder to run in
    local data=$DATA_DIR form=''
    if [[ $CONFIG == *.py:* ]]; then # configs/x.py:FORM; a form may be a file, such as weights
        form=${CONFIG#*.py:}
        CONFIG=${CONFIG%%.py:*}.py
        if [[ $form == '~'* || $form == */* || -e $form ]]; then form=$(absolute "$form"); fi
    fi
    CONFIG=$(absolute "$CONFIG")
    if [[ ! -f $CONFIG ]]; then fail "CONFIG=$CONFIG is not a file"; fi
    if [[ ! -f $root/launch/$STAGE.py ]]; then
        fail "STAGE=$STAGE is not one of: $(cd "$root/launch" && printf '%s ' [!_]*.py | sed 's/\.py//g')"
    fi
    if [[ $data != download ]]; then data=$(absolute "$data"); fi
    command=("$root/.venv/bin/python" -m "launch.$STAGE" "--config=$CONFIG${form:+:$form}")
    command+=("--workdir=$(absolute "$WORKDIR")" ${data:+"--config.data.dir=$data"} ${rest[@]+"${rest[@]}"})
}

make_environment() { # .venv with the pins of ACCELERATOR, and those of gs:// where a path of the command is there
    local words=()
    case $ACCELERATOR in
        auto | cuda12 | cuda13 | tpu) words+=("$ACCELERATOR") ;;
        none) export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} ;; # a GPU in the machine is left alone
        *) fail "ACCELERATOR=$ACCELERATOR is not one of: auto cuda12 cuda13 tpu none" ;;
    esac
    if [[ " ${command[*]}" == *[\ =]gs://* ]]; then words+=(gcs); fi
    "$root/launch/venv.sh" ${words[@]+"${words[@]}"}
}

visible_devices() { # sets the array `visible` to CUDA_VISIBLE_DEVICES as CUDA reads it: up to the first that is none
    local device listed
    visible=()
    IFS=', ' read -r -a listed <<<"${CUDA_VISIBLE_DEVICES:-}"
    for device in ${listed[@]+"${listed[@]}"}; do
        if [[ ! $device =~ ^([0-9]+|(GPU|MIG)-.+)$ ]]; then break; fi # -1, NoDevFiles
        visible+=("$device")
    done
}

refuse_mig() { # refuse_mig PROCESSES: slices of a GPU cannot work together
    if (($1 > 1)); then
        fail "$1 processes on MIG slices: slices cannot work together, and a process sees one." \
            "Run one process with CUDA_VISIBLE_DEVICES=MIG-... (nvidia-smi -L), or switch MIG off"
    fi
}

device_ids() { # device_ids INDEX PROCESSES DEVICES: the comma list of the devices that process INDEX owns
    local each=$(($3 / $2))
    if (($3 % $2)) || ((each == 0)); then fail "$3 devices cannot be dealt evenly to $2 processes"; fi
    seq -s , $(($1 * each)) $((($1 + 1) * each - 1))
}

tasks_per_node() { # tasks_per_node '2(x3),1': the tasks of each node, one a line
    local part
    for part in ${1//,/ }; do
        if [[ ! $part =~ ^([0-9]+)(\(x([0-9]+)\))?$ ]]; then fail "'$1' is no list of tasks a node, such as 2(x3),1"; fi
        yes "${BASH_REMATCH[1]}" 2>/dev/null | head -n "${BASH_REMATCH[3]:-1}" || true
    done
}
