#!/usr/bin/env bash
# launch/venv.sh [--check] [test] [gcs] [cuda12|cuda13|tpu|auto]
#
# Brings .venv in the repository to what launch/requirements*.txt pin, and installs the project into it
# (editable). The other launch scripts call this first; what is already there costs well under a second.
#
#   test         also launch/requirements-test.txt, for launch/test.sh
#   gcs          also what paths on gs:// need
#   cuda12, cuda13, tpu  also that accelerator's pins; auto takes the one this machine has, or none:
#                cuda13 where the NVIDIA driver is 580 or newer, cuda12 where it is 525 or newer
#   --check      install nothing: print what is missing, and exit 1 if anything is
#
# Python >= 3.11 is looked for on PATH; PYTHON=/path/to/python names one. The environment itself is the
# only record of what is installed: a half-made one, an interrupted install or a moved checkout is
# completed, whoever began it. Two starts at once take turns. Of pip's variables those count that say where
# packages come from (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_PROXY, ...).
set -euo pipefail

unset CDPATH # `cd` would print, and go elsewhere
for name in "${!PYTHON@}" "${!PIP_@}"; do # PYTHONPATH, PIP_TARGET, ... belong to another program
    case $name in
        PYTHON | PIP_*INDEX* | PIP_FIND_LINKS | PIP_TRUSTED_HOST | PIP_CONFIG_FILE | PIP_PROXY | PIP_*CERT | \
            PIP_KEYRING_PROVIDER | PIP_*CACHE_DIR | PIP_*TIMEOUT | PIP_RETRIES) ;;
        *) unset "$name" ;;
    esac
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

say() { printf 'jsae: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

accelerator_here() { # the one jsae.runtime.mesh.check_accelerator looks for; none where only the CPU is wanted
    local driver=
    if [[ ${JAX_PLATFORMS:-} == cpu ]]; then return; fi
    if ! command -v nvidia-smi >/dev/null; then
        if [[ -e /dev/nvidiactl ]]; then echo cuda13; fi
    elif ! driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1); then
        say "nvidia-smi failed: ${driver:-without a word}"
    elif [[ $driver =~ ^([0-9]+)\. ]]; then
        driver=${driver%%$'\n'*}
        if ((BASH_REMATCH[1] >= 580)); then
            echo cuda13
        elif ((BASH_REMATCH[1] >= 525)); then
            say "NVIDIA driver $driver is older than 580, which CUDA 13 needs: cuda12 is taken"
            echo cuda12
        else
            say "NVIDIA driver $driver is older than 525, which CUDA 12 needs: no GPU is used"
        fi
    fi
    if [[ -e /dev/accel0 || -e /dev/vfio/0 ]]; then echo tpu; fi
}

check_only= other=
sets=("$root/launch/requirements.txt")
for word in "$@"; do
    if [[ $word == auto ]]; then word=$(accelerator_here | head -n 1); fi
    case $word in
        -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
        --check) check_only=yes ;;
        test | gcs | cuda12 | cuda13 | tpu) sets+=("$root/launch/requirements-$word.txt") ;;
        '') ;;
        *) fail "unknown word '$word': expected --check, test, gcs, cuda12, cuda13, tpu or auto" ;;
    esac
    case $word in
        cuda12) other=cuda13 ;;
        cuda13) other=cuda12 ;;
    esac
done

missing() { # prints the pins that .venv lacks, and '-e' if the project is not installed from this checkout
    "$python" -I - "$venv" "$root" "${sets[@]}" <<'PYTHON'
import json, pathlib, re, sys, sysconfig

venv, root, *files = map(pathlib.Path, sys.argv[1:])
if sys.version_info < (3, 11) or sys.prefix == sys.base_prefix or not venv.samefile(sys.prefix):
    sys.exit(3)  # not this environment's interpreter, or one too old
site = pathlib.Path(sysconfig.get_path("purelib"))
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()


def whole(info):  # pip writes RECORD last; what it lists at the top level must still be there
    record = info / "RECORD"
    lines = record.read_text().splitlines() if record.is_file() else []
    first = {line.split(",")[0].strip('"').split("/")[0] for line in lines}
    return bool(first) and all((site / name).exists() for name in first - {"..", "__pycache__", ""})


have = {}
for info in site.glob("*.dist-info"):
    name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
    have.setdefault(normal(name), []).append((version, info))
pin = re.compile(r'(\S+?)==(\S+?)(?:\s*;\s*python_version\s*(<|>=)\s*"3\.(\d+)")?')
for line in (line for file in files for line in file.read_text().splitlines()):
    if not line.split("#")[0].strip():
        continue
    found = pin.fullmatch(line.split("#")[0].strip())
    if not found:
        sys.exit(f"'{line}' is not name==version, with or without a python_version marker")
    name, version, sign, minor = found.groups()
    if sign and (sys.version_info[1] >= int(minor)) != (sign == ">="):
        continue
    versions = have.get(normal(name), [])
    if [v for v, _ in versions] != [version] or not whole(versions[0][1]):
        print(f"{name}=={version}")


def editable(info):  # installed from this checkout, after its pyproject.toml was last changed
    url = info / "direct_url.json"
    here = whole(info) and url.is_file() and json.loads(url.read_text())["url"] == root.as_uri()
    return here and info.stat().st_mtime >= (root / "pyproject.toml").stat().st_mtime


if not any(editable(info) for _, info in have.get("jsae", [])):
    print("-e")
PYTHON
}

find_python() { # prints a Python >= 3.11 that can make environments
    local candidate version found='' without=''
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        version=$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found+=" $candidate is $version;"
        elif "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "$candidate"
            return
        else
            without=${without:-$candidate}
        fi
    done
    if [[ $without ]]; then
        fail "$without cannot make environments: its venv or ensurepip module is missing." \
            "On Debian and Ubuntu: apt install python3-venv (or $without-venv)."
    fi
    fail "Python >= 3.11 is needed.${found:- No python is on PATH;} set PYTHON=/path/to/python3.12 if it is elsewhere."
}

unwanted() { # prints the plugin of the other CUDA, if it is there: jax loads every one, and two of them clash
    if [[ $other ]] && compgen -G "$venv/lib/python3.*/site-packages/jax_${other}_plugin-*.dist-info" >/dev/null; then
        printf '%s\n' "jax-$other-plugin" "jax-$other-pjrt"
    fi
}

pip() { PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -I -m pip "$@"; }

install() { # install WORDS: of exactly these, without what they need and without building in a copy of the environment
    pip install --quiet --no-input --no-deps --no-compile --force-reinstall --no-build-isolation "$@" ||
        fail "the installation failed: see above. Start again to go on from here."
}

if [[ -e $venv && ! -d $venv ]]; then fail "$venv is not a folder; move it away."; fi
lacks=everything
if [[ -x $python ]]; then lacks=$(missing) || lacks=everything; fi
surplus=$(unwanted)
if [[ -z $lacks$surplus ]]; then exit 0; fi
if [[ $check_only ]]; then
    say "$venv lacks:"
    fail "$lacks${surplus:+${lacks:+$'\n'}$(sed 's/$/ is too much/' <<<"$surplus")}"
fi

# One install at a time: the lock is on the pins themselves, so that no file is left behind.
if command -v flock >/dev/null; then
    exec 9<>"$root/launch/requirements.txt"
    code=0
    told=$(flock -n 9 2>&1) || code=$?
    if ((code == 1)); then
        say "another start is installing into $venv; waiting for it"
        flock 9 || code=$?
    fi
    if ((code > 1)); then
        say "this disk has no locks ($told): nothing else may install into $venv meanwhile"
    fi
fi

code=3
if [[ -x $python ]]; then
    code=0
    lacks=$(missing) || code=$? # another start may have installed meanwhile
fi
if ((code == 1)); then exit 1; fi # a line of the pins that cannot be read: said above
if ((code)) || { [[ $lacks ]] && ! "$python" -I -c 'import pip._internal.cli.main' >/dev/null 2>&1; }; then
    with=$(find_python)
    say "making $venv with $("$with" --version)"
    "$with" -m venv --clear "$venv" || fail "$with -m venv $venv failed: see above."
    lacks=$(missing)
fi
surplus=$(unwanted)
if [[ $surplus ]]; then
    say "taking $(paste -s -d ' ' <<<"$surplus") out of $venv"
    # shellcheck disable=SC2086
    pip uninstall --quiet --yes $surplus || fail "taking it out failed: see above."
fi
if [[ -z $lacks ]]; then exit 0; fi

# Information folders that an interrupted pip left without their last file keep it from installing again.
for info in "$venv"/lib/python3.*/site-packages/*.dist-info; do
    if [[ -d $info && ! -f $info/RECORD ]]; then rm -rf "$info"; fi
done
began=$SECONDS
pins=$(grep -v '^-e$' <<<"$lacks" || true)
if [[ $pins ]]; then
    say "installing $(wc -l <<<"$pins") pinned packages into $venv (once; a minute or two)"
    setuptools=$(grep '^setuptools==' <<<"$pins" || true)
    if [[ $setuptools ]]; then install "$setuptools"; fi # first: packages without a wheel are built with it
    # shellcheck disable=SC2086
    install $pins
fi
if grep -qx -- -e <<<"$lacks"; then install --editable "$root"; fi
lacks=$(missing)
if [[ $lacks ]]; then
    fail "$venv still lacks $(tr '\n' ' ' <<<"$lacks")after the installation; remove $venv and start again."
fi
say "$venv is ready ($((SECONDS - began)) s)"
