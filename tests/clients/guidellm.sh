#!/bin/sh
# Compares `hearth bench serve` with guidellm, the load generator of the vLLM project: tests/clients/guidellm.sh [BINARY]
# guidellm is installed from the Python package index into a virtual environment that is kept between runs (640 MB).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=${1:-$root/target/release/hearth}
venv=${HEARTH_GUIDELLM_VENV:-$root/target/guidellm-venv}

[ -x "$binary" ] || { echo "error: $binary is not a program; build it with cargo build --release" >&2; exit 2; }
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/outside/requirements.txt"
exec python3 "$here/outside/compare.py" "$binary" "$venv/bin/guidellm"
