#!/usr/bin/env bash
# Builds the one binary for hosts with and without a GPU: no CUDA library is needed at link time or at start; libcuda is
# opened when a device is looked for. Takes nvcc from toolchain.sh unless CUDA_HOME names one.
#
#     packaging/cuda/build.sh [FOLDER]         default FOLDER: target/cuda; stripped binaries in FOLDER/bin
#
#     PROFILE            cargo profile, default release
#     BINARIES           which, default "hearth gpu_bench"
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/target/cuda}
profile=${PROFILE:-release}
binaries=${BINARIES:-hearth gpu_bench}
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)

if [ -z "${CUDA_HOME:-}" ]; then
  exports=$("$root/packaging/cuda/toolchain.sh")
  eval "$exports"
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"

echo "== build"
case $profile in dev) out=debug ;; *) out=$profile ;; esac
out=$folder/target/$out
files=()
start=$(date +%s)
cd "$root"
for binary in $binaries; do
  case $binary in
    hearth) what=(-p hearth --features cuda --bin hearth) files+=("$out/hearth") ;;
    gpu_bench) what=(-p hearth-models --features cuda --example gpu_bench) files+=("$out/examples/gpu_bench") ;;
    *)
      echo "error: BINARIES names $binary; there are hearth and gpu_bench" >&2
      exit 2
      ;;
  esac
  # One by one: an example brings the features of the tests with it, which the server is not to have.
  CARGO_TARGET_DIR=$folder/target cargo build --locked --profile "$profile" "${what[@]}"
done
echo "built in $(($(date +%s) - start)) s"

echo "== kernels (registers, shared memory, spills)"
"$root/packaging/cuda/resources.sh" $(dirname "$(ls -t "$out"/build/hearth-kernels-*/out/*.resources | head -1)") > "$folder/resources.txt"
cat "$folder/resources.txt"

echo "== binaries"
stripped=()
for file in "${files[@]}"; do
  stripped+=("$folder/bin/$(basename "$file")")
  strip -o "${stripped[-1]}" "$file"
done
"$root/packaging/cuda/check.sh" "${stripped[@]}"
