#!/usr/bin/env bash
# Puts nvcc and the CUDA 13.0 files that a build needs into a folder, from wheels pinned by version and hash, and prints
# the exports that a build takes. No GPU, no driver, no root. 270 MB; a second call finds its stamp and only prints.
#
#     eval "$(packaging/cuda/toolchain.sh [FOLDER])"       default FOLDER: target/cuda-toolchain
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../target/cuda-toolchain}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
home=$folder/nvidia/cu13
stamp=$folder/.requirements

if ! cmp -s "$here/requirements.txt" "$stamp"; then
  echo "installing the CUDA toolchain into $folder" >&2
  rm -rf "$folder/nvidia" "$stamp"
  python3 -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: \
    --no-compile --upgrade --target "$folder" --requirement "$here/requirements.txt" >&2
  ln -sfn lib "$home/lib64" # where build scripts look for the runtime
  "$home/bin/nvcc" --version | grep -q 'release 13.0,' || {
    echo "error: $home/bin/nvcc does not run or is not release 13.0" >&2
    exit 1
  }
  cp "$here/requirements.txt" "$stamp"
fi

printf 'export CUDA_HOME=%q\n' "$home"
printf 'export PATH=%q:"$PATH"\n' "$home/bin"
