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
# completed, whoever began it. Two starts at once take turns. Of pip's own variables those count that say where
# packages come from (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_PROXY, ...).
set -euo pipefail

unset CDPATH # `cd` would print, and go elsewhere
for name in "${!PYTHON@}"; do # PYTHONHOME, PYTHONPATH and their kind belong to another program
    if [[ $name != PYTHON ]]; then unset "$name"; fi
done
for name in "${!PIP_@}"; do # PIP_CONSTRAINT, PIP_TARGET, PIP_REQUIRE_HASHES, ... do not go with pins
    case $name in
        PIP_INDEX_URL | PIP_EXTRA_INDEX_URL | PIP_NO_INDEX | PIP_FIND_LINKS | PIP_TRUSTED_HOST | PIP_CONFIG_FILE | \
            PIP_PROXY | PIP_CERT | PIP_CLIENT_CERT | PIP_KEYRING_PROVIDER | PIP_CACHE_DIR | PIP_NO_CACHE_DIR | \
            PIP_TIMEOUT | PIP_DEFAULT_TIMEOUT | PIP_RETRIES) ;;
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
    if command -v nvidia-smi >/dev/null; then
        if driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1); then
            driver=${driver%%$'\n'*}
        else
            say "nvidia-smi failed: ${driver:-without a word}"
            driver=
        fi
    fi
    if [[ $driver =~ ^([0-9]+)\. ]]; then
        if ((BASH_REMATCH[1] >= 580)); then
            echo cuda13
        elif ((BASH_REMATCH[1] >= 525)); then
            say "NVIDIA driver $driver is older than 580, which CUDA 13 needs: cuda12 is taken"
            echo cuda12
        else
            say "NVIDIA driver $driver is older than 525, which CUDA 12 needs: no GPU is used"
        fi
    elif [[ -e /dev/nvidiactl ]]; then
        echo cuda13
    fi
    if [[ -e /dev/accel0 || -e /dev/vfio/0 ]]; then echo tpu; fi
}

check_only= other=
sets=("$root/launch/requirements.txt")
for word in "$@"; do
    if [[ $word == auto ]]; then
        word=$(accelerator_here | head -n 1)
    fi
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
    if not record.is_file():
        return False
    first = {line.split(",")[0].strip('"').split("/")[0] for line in record.read_text().splitlines()}
    return all((site / name).exists() for name in first - {"..", "__pycache__", ""})


have = {}
for info in site.glob("*.dist-info"):
    name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
    have.setdefault(normal(name), []).append((version, info))
pin = re.compile(r'(\S+?)==(\S+?)(?:\s*;\s*python_version\s*(<|>=)\s*"3\.(\d+)")?')
for file in files:
    for line in file.read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        found = pin.fullmatch(line)
        if not found:
            sys.exit(f"{file}: '{line}' is not name==version, with or without a python_version marker")
        name, version, sign, minor = found.groups()
        if sign and (sys.version_info[1] >= int(minor)) != (sign == ">="):
            continue
        versions = have.get(normal(name), [])
        if [v for v, _ in versions] != [version] or not whole(versions[0][1]):
            print(f"{name}=={version}")

pyproject = root / "pyproject.toml"
for _, info in have.get("jsae", []):
    url = info / "direct_url.json"
    if whole(info) and url.is_file() and json.loads(url.read_text())["url"] == root.as_uri():
        if info.stat().st_mtime >= pyproject.stat().st_mtime:
            break
else:
    print("-e")
PYTHON
}

find_python() { # prints a Python >= 3.11 that can make environments
    local candidate found='' without=''
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        version=$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found+=" $candidate is $version;"
        elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            without=${without:-$candidate}
        else
            echo "$candidate"
            return
        fi
    done
    if [[ $without ]]; then
        fail "$without cannot make environments: its venv or ensurepip module is missing." \
            "On Debian and Ubuntu: apt install python3-venv (or $without-venv)."
    fi
    fail "Python >= 3.11 is needed.${found:- No python is on PATH;} set PYTHON=/path/to/python3.12 if it is elsewhere."
}

make_venv() { # a new, empty environment in .venv
    local with
    with=$(find_python)
    say "making $venv with $("$with" --version)"
    "$with" -m venv --clear "$venv" || fail "$with -m venv $venv failed: see above."
}

unwanted() { # prints the plugin of the other CUDA, if it is there: jax loads every one, and two of them clash
    if [[ $other ]] && compgen -G "$venv/lib/python3.*/site-packages/jax_${other}_plugin-*.dist-info" >/dev/null; then
        printf '%s\n' "jax-$other-plugin" "jax-$other-pjrt"
    fi
}

pip() { PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -I -m pip "$@"; }

has_pip() { "$python" -I -c 'import pip._internal.cli.main' >/dev/null 2>&1; }

if [[ -e $venv && ! -d $venv ]]; then
    fail "$venv is not a folder; move it away."
fi
lacks=everything
if [[ -x $python ]]; then lacks=$(missing) || lacks=everything; fi
if [[ -z $lacks && ! $(unwanted) ]]; then
    exit 0
fi
if [[ $check_only ]]; then
    say "$venv lacks:"
    surplus=$(unwanted | sed 's/$/ is too much/')
    fail "$lacks${lacks:+${surplus:+$'\n'}}$surplus"
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
    lacks=$(missing) || code=$?
fi
if [[ $code == 1 ]]; then exit 1; fi # a line of the pins that cannot be read: said above
if [[ $code != 0 ]]; then
    if [[ -d $venv ]]; then say "$venv has no working Python >= 3.11 of its own: made anew"; fi
    make_venv
    lacks=$(missing)
elif [[ $lacks ]] && ! has_pip; then
    say "$venv has no working pip: added"
    rm -rf "$venv"/lib/python3.*/site-packages/pip-*.dist-info # else ensurepip takes it for installed
    if ! "$python" -I -m ensurepip --upgrade >/dev/null 2>&1 || ! has_pip; then
        make_venv
        lacks=$(missing)
    fi
fi
surplus=$(unwanted)
if [[ $surplus ]]; then
    say "taking $(paste -s -d ' ' <<<"$surplus") out of $venv"
    # shellcheck disable=SC2086
    pip uninstall --quiet --yes $surplus || fail "taking it out failed: see above."
fi
if [[ -z $lacks ]]; then
    exit 0
fi

# Information folders that an interrupted pip left without their last file keep it from installing anew.
for info in "$venv"/lib/python3.*/site-packages/*.dist-info; do
    if [[ -d $info && ! -f $info/RECORD ]]; then rm -rf "$info"; fi
done

pins=()
project=
for line in $lacks; do
    if [[ $line == -e ]]; then project=yes; else pins+=("$line"); fi
done
began=$SECONDS
# setuptools first: with it in place, packages without a wheel build here, and pip fetches no second copy.
options=(--quiet --no-input --no-deps --no-compile --force-reinstall)
for line in ${pins[@]+"${pins[@]}"}; do
    if [[ $line == setuptools==* ]]; then pip install "${options[@]}" "$line" || fail "installing $line failed: see above."; fi
done
if ((${#pins[@]})); then
    say "installing ${#pins[@]} pinned packages into $venv (once; a minute or two)"
    pip install "${options[@]}" --no-build-isolation "${pins[@]}" ||
        fail "the installation failed: see above. Start again to go on from here."
    # pip compiles one file at a time, tests and all; this takes every core and leaves out what a study never imports.
    (cd "$venv"/lib/python3.*/site-packages && "$python" -I -m compileall -q -j 0 -x \
        '/(tests?|testing|lexers|pip|setuptools|tensorflow_datasets/(?!core/).*)/' .) >/dev/null 2>&1 || true
fi
if [[ $project ]]; then
    pip install "${options[@]}" --no-build-isolation --editable "$root" || fail "installing $root failed: see above."
fi
lacks=$(missing)
if [[ $lacks ]]; then
    fail "$venv still lacks $(tr '\n' ' ' <<<"$lacks")after the installation; remove $venv and start again."
fi
say "$venv is ready ($((SECONDS - began)) s)"
