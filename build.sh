#!/usr/bin/env bash
# Builds, tests and shows Solo. Each subcommand sets up what it needs, and skips what is already up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

ROOT=$PWD
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
STAMPS=$ROOT/build/stamps

usage() {
    cat <<'USAGE'
usage: ./build.sh [SUBCOMMAND]

  binary      make dist/solo, the whole program in one file (the default)
  demo        run examples/demo.py: deploy, call, crash, kill, stop
  test        lint, format check, types, and the tests from source; arguments go to pytest instead of its defaults
  e2e         build the binary if needed and run against it what goes through a kernel or the command line;
              arguments go to pytest instead
  bench       measure, beside the floors of each thing measured; arguments go to the hot core's pytest
  lock        resolve requirements.lock anew from pyproject.toml
  clean       remove everything that was built, .venv included

  PYTHON3=/path/to/python3   the interpreter to build with (3.11 or later)
  SOLO_RELEASE=1             pack the binary as small as it gets (slow)
  ccache, where it is installed, takes a minute off each later build of the binary.
USAGE
}

say() { printf '\033[2m==\033[0m %s\n' "$*" >&2; }
if [[ ! -t 2 || -n ${NO_COLOR:-} ]]; then say() { printf '== %s\n' "$*" >&2; }; fi
fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

# An interpreter will do when it is recent enough and can make virtual environments and C extensions.
usable() {
    "$1" -I -c '
import sys, sysconfig, os, ensurepip, venv
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))
' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON3:+"$PYTHON3"} python3.11 python3 python3.12 python3.13 /usr/bin/python3; do
        if usable "$candidate"; then
            "$candidate" -I -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

need_tools() {
    local missing=() base
    command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    base=$(find_python) || missing+=(python3 python3-venv python3-dev)
    if ((${#missing[@]})); then
        if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
            say "installing ${missing[*]}"
            apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
            base=$(find_python) || fail "no Python 3.11 or later with venv and headers, even after installing ${missing[*]}"
        else
            fail "needs ${missing[*]} (Python 3.11 or later, with venv and its headers); install them, or name another Python with PYTHON3=/path"
        fi
    fi
    BASE_PYTHON=$base
}

# A stamp is up to date while it is newer than everything it was made from.
fresh() {
    local stamp=$STAMPS/$1
    shift
    [[ -e $stamp && -z $(find "$@" -newer "$stamp" -print -quit 2>/dev/null) ]]
}

setup_venv() {
    if ! "$PYTHON" -c '' 2>/dev/null; then
        need_tools
        say "making .venv with $("$BASE_PYTHON" -V)"
        rm -rf "$VENV" "$STAMPS"
        "$BASE_PYTHON" -m venv "$VENV"
    fi
    mkdir -p "$STAMPS"
    # The stamp lives in .venv too: a new environment is never taken for a filled one.
    if ! fresh packages requirements.lock || [[ ! -e $VENV/.filled ]]; then
        say "installing requirements.lock"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock \
            2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
        touch "$VENV/.filled" "$STAMPS/packages"
    fi
    setup_command
}

# What `pip install --editable` does, without the import hook that it adds to each start of the interpreter.
setup_command() {
    local site
    site=$(echo "$VENV"/lib/python3.*/site-packages)
    if [[ $(cat "$site/solo_fast.pth" 2>/dev/null) != "$ROOT" || ! -x $VENV/bin/solo ]]; then
        printf '%s\n' "$ROOT" >"$site/solo_fast.pth"
        printf '#!/bin/sh\nexec "%s" -I -m solo_fast "$@"\n' "$PYTHON" >"$VENV/bin/solo"
        chmod +x "$VENV/bin/solo"
    fi
}

setup_extensions() {
    setup_venv
    local unit made=1
    for unit in solo_fast/_ext/*.pyx; do
        [[ -e $unit ]] || continue
        compgen -G "${unit%.pyx}.cpython-*.so" >/dev/null || made=0
    done
    [[ -e solo_fast/gateway/wire/solo_pb2.py ]] || made=0
    if ((!made)) || ! fresh extensions setup.py proto solo_fast/_ext/*.p[yx][xd] "$STAMPS/packages"; then
        command -v gcc >/dev/null || need_tools
        say "generating the protobuf modules and compiling the extensions"
        "$PYTHON" setup.py -q build_ext --inplace
        touch "$STAMPS/extensions"
    fi
}

binary() {
    setup_extensions
    "$PYTHON" packaging/build_binary.py
}

run_tests() {
    setup_extensions
    say "ruff check"
    "$VENV/bin/ruff" check --quiet .
    say "ruff format --check"
    "$VENV/bin/ruff" format --check --quiet .
    say "mypy"
    "$VENV/bin/mypy"
    say "pytest"
    if (($#)); then
        "$PYTHON" -m pytest "$@"
    else
        "$PYTHON" -m pytest --ignore=tests/e2e -m 'not slow'
    fi
}

run_e2e() {
    binary
    # What goes through a kernel or the command line holds for the binary too, so those tests run again with it.
    (($#)) || set -- tests/e2e tests/operations tests/gateway tests/cli
    say "tests against dist/solo"
    SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m pytest "$@"
}

lock() {
    setup_venv
    say "resolving requirements.lock"
    local resolver
    resolver=$(mktemp -d)
    "$PYTHON" -m venv "$resolver"
    "$resolver/bin/pip" install --quiet --disable-pip-version-check uv
    "$resolver/bin/uv" pip compile pyproject.toml --universal --python-version 3.11 --all-extras --generate-hashes \
        --no-emit-index-url --no-header --quiet --upgrade --output-file requirements.lock
    rm -rf "$resolver"
}

main() {
    local subcommand=${1:-binary}
    (($#)) && shift
    case $subcommand in
    binary) binary ;;
    demo)
        setup_extensions
        say "examples/demo.py"
        exec "$PYTHON" examples/demo.py "$@"
        ;;
    test) run_tests "$@" ;;
    e2e) run_e2e "$@" ;;
    bench)
        binary
        say "the appliance"
        SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m bench.appliance
        say "the admission path"
        "$PYTHON" -m bench.admission
        say "hot swap under load"
        SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m bench.swap
        say "the sandbox"
        "$PYTHON" -m bench.sandbox
        say "2,000 idle services"
        SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m bench.scale
        say "ten watchers of a flood"
        SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m bench.watch
        say "recovery of 1,000 services"
        SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m bench.recovery
        say "a thousand watched services"
        SOLO_BIN=$ROOT/dist/solo "$PYTHON" -m bench.limits
        say "the event store"
        "$PYTHON" -m bench.store
        say "the hot core"
        "$PYTHON" -m pytest -q bench/test_hot_core.py --benchmark-columns=min,median,ops --benchmark-disable-gc "$@"
        ;;
    lock) lock ;;
    clean)
        say "removing .venv, build, dist and generated files"
        rm -rf .venv build dist solo_fast/gateway/wire ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
        rm -f solo_fast/_ext/*.so solo_fast/_ext/*.c solo_fast/_ext/*.html
        find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
        ;;
    -h | --help | help) usage ;;
    *)
        usage >&2
        fail "there is no subcommand $subcommand"
        ;;
    esac
}

main "$@"
