#!/bin/sh
# Hearth beside llama.cpp on this machine's processor: benches/peers/run.sh [BINARY] [ARGUMENTS OF llama.py...]
# llama.cpp is compiled for this processor from its Python package (g++; 10 to 20 minutes on two cores) into a virtual
# environment that is kept between runs. Takes 7 GB of disk and 8 GB of memory; a quiet machine is part of the method.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=${1:-$root/target/release/hearth}
[ $# -eq 0 ] || shift
venv=${HEARTH_PEERS_VENV:-$root/target/peers-venv}

[ -x "$binary" ] || { echo "error: $binary is not a program; build it with cargo build --release" >&2; exit 2; }
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
CMAKE_ARGS="${CMAKE_ARGS:--DGGML_NATIVE=ON -DLLAVA_BUILD=OFF}" \
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
exec "$venv/bin/python" "$here/llama.py" "$binary" "$@"
