#!/usr/bin/env bash
# Builds the one binary for hosts with and without CUDA: no CUDA library is needed at link time or at start; libcuda,
# cuBLAS and cuRAND are opened when a device is asked for. Takes nvcc from toolchain.sh unless CUDA_HOME names one.
#
#     packaging/cuda/build.sh [FOLDER]         default FOLDER: target/cuda; stripped binaries in FOLDER/bin
#
#     CUDA_COMPUTE_CAP   capability that candle's own kernels are built for, default 90 (H100, H200); ours carry all
#     PROFILE            cargo profile, default release
#     BINARIES           which, default "hearth gpu_spike"
#
# candle-core asks cudarc for load-time linking. A feature cannot take that back, so its one line is changed in a copy
# made from Cargo's own source cache, put in by --config; this tree, its Cargo.lock and plain builds are untouched.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/target/cuda}
profile=${PROFILE:-release}
binaries=${BINARIES:-hearth gpu_spike}
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)

if [ -z "${CUDA_HOME:-}" ]; then
  exports=$("$root/packaging/cuda/toolchain.sh")
  eval "$exports"
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"

echo "== candle-core with run-time loading"
cd "$root"
manifest=$(cargo metadata --locked --format-version 1 --all-features | python3 -c '
import json, sys
packages = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "candle-core"]
assert len(packages) == 1, "one candle-core expected in the dependency tree"
print(packages[0]["manifest_path"])')
version=$(basename "$(dirname "$manifest")")
patched=$folder/$version
rm -rf "$patched.new"
cp -r "$(dirname "$manifest")" "$patched.new"
line='^ *"dynamic-linking",$'
count=$(grep -c "$line" "$patched.new/Cargo.toml" || true)
if [ "$count" != 1 ]; then
  echo "error: $version/Cargo.toml has $count lines \"dynamic-linking\", one expected: look at how it asks for cudarc" >&2
  exit 1
fi
sed -i "s/\"dynamic-linking\"/\"fallback-dynamic-loading\"/" "$patched.new/Cargo.toml"
# Kept when it is the same, so that Cargo finds nothing to rebuild.
if diff -rq "$patched.new" "$patched" >/dev/null 2>&1; then rm -rf "$patched.new"; else
  rm -rf "$patched"
  mv "$patched.new" "$patched"
fi

echo "== tree with its own lock file"
tree=$folder/tree
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 -delete
for entry in "$root"/* "$root"/.cargo; do
  case $(basename "$entry") in
    target | Cargo.lock) ;;
    *) if [ -e "$entry" ]; then ln -s "$entry" "$tree/"; fi ;;
  esac
done
rm "$tree/Cargo.toml"
cp "$root/Cargo.toml" "$root/Cargo.lock" "$tree/"

echo "== build (candle's kernels for compute capability $CUDA_COMPUTE_CAP)"
case $profile in dev) out=debug ;; *) out=$profile ;; esac
out=$folder/target/$out
targets=() files=()
for binary in $binaries; do
  case $binary in
    hearth) targets+=(--bin hearth) files+=("$out/hearth") ;;
    gpu_spike) targets+=(--example gpu_spike) files+=("$out/examples/gpu_spike") ;;
    *)
      echo "error: BINARIES names $binary; there are hearth and gpu_spike" >&2
      exit 2
      ;;
  esac
done
# Both packages are always named: Cargo gives the dependencies the same features then, and builds them once.
start=$(date +%s)
cd "$tree"
CARGO_TARGET_DIR=$folder/target cargo build --profile "$profile" \
  --config "patch.crates-io.candle-core.path=\"$patched\"" \
  -p hearth -p hearth-kernels --features hearth/cuda,hearth-kernels/cuda "${targets[@]}"
echo "built in $(($(date +%s) - start)) s"

echo "== lock file"
# Only the source and checksum lines of candle-core may have fallen out.
if ! diff <(awk -v RS= '/name = "candle-core"/ { gsub(/\n(source|checksum) = [^\n]*/, "") } { print $0 "\n" }' "$root/Cargo.lock") \
          <(awk -v RS= '{ print $0 "\n" }' "$tree/Cargo.lock"); then
  echo "error: the build changed more of the lock file than candle-core's source: other versions were built" >&2
  exit 1
fi
echo "unchanged but for the source of $version"

echo "== binaries"
stripped=()
for file in "${files[@]}"; do
  stripped+=("$folder/bin/$(basename "$file")")
  strip -o "${stripped[-1]}" "$file"
done
"$root/packaging/cuda/check.sh" "${stripped[@]}"
