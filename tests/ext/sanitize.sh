#!/usr/bin/env bash
# Runs tests/ext on extensions that are built with AddressSanitizer and UndefinedBehaviorSanitizer, in a temporary copy.
#
#   tests/ext/sanitize.sh [arguments of pytest]      PYTHON=... for another interpreter than .venv's
#
# PYTHONMALLOC=malloc puts every Python object under AddressSanitizer's eyes. Leak detection is off: CPython itself leaves
# memory behind at its end; tests/ext/test_references.py looks for lost references.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

mkdir -p "$copy/solo_fast/_ext" "$copy/tests"
: >"$copy/solo_fast/__init__.py"  # the real one imports what the extensions do without
cp solo_fast/_ext/__init__.py solo_fast/_ext/{ring,registry,shedder,tree}.pyx "$copy/solo_fast/_ext/"
cp tests/__init__.py "$copy/tests/"
cp -r tests/ext "$copy/tests/ext"
cd "$copy"

flags="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
CFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" "$python" - <<'PYTHON'
from Cython.Build import cythonize
from setuptools import Extension, setup

names = ("ring", "registry", "shedder", "tree")
setup(
    name="sanitized",
    packages=[],
    script_args=["-q", "build_ext", "--inplace"],
    ext_modules=cythonize(
        [Extension(f"solo_fast._ext.{name}", [f"solo_fast/_ext/{name}.pyx"]) for name in names],
        compiler_directives={"language_level": 3},
        quiet=True,
    ),
)
PYTHON

status=0
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=97 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
    "$python" -m pytest -q -p no:cacheprovider -o timeout=0 tests/ext "$@" >"$copy/output" 2>&1 || status=$?
cat "$copy/output"
findings=$(grep -c -E "ERROR: AddressSanitizer|runtime error:" "$copy/output" || true)
echo "sanitize: pytest ended with $status; $findings findings of AddressSanitizer and UndefinedBehaviorSanitizer"
[ "$status" = 0 ] && [ "$findings" = 0 ]
