#!/usr/bin/env bash
# Everything that waits for a GPU, from binaries built beforehand: no compiler, no network. Parts are chosen by name and
# take under ten minutes each; what is missing on the machine is said and left out.
#
#     benches/gpu/run.sh [PART...]             default: spike
#
#     spike      does the one binary find the device; ceilings of memory, one product, one captured graph
#     tools      can the profiler read its counters, does compute-sanitizer find the spike clean
#
#     BIN        folder of the binaries, default target/cuda/bin (packaging/cuda/build.sh)
#     OUT        folder of the results, default benches/results/gpu-DATE: summary.txt, machine.txt, log.txt, *.json
#
# Changes no setting of the card. Exit status: 1 if a part failed, 0 otherwise, also on a machine without a GPU.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${BIN:-$root/target/cuda/bin}
out=${OUT:-$root/benches/results/gpu-$(date -u +%Y-%m-%d)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }

# run_part NAME SECONDS COMMAND...: output to the terminal, to log.txt and to a file of its own
run_part() {
  local name=$1 limit=$2
  shift 2
  local start=$SECONDS status
  echo "-- $name: $*" | tee -a "$out/log.txt"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$out/log.txt" "$scratch/$name"
  status=${PIPESTATUS[0]}
  [ "$status" = 124 ] && say "$name: stopped after $limit s"
  say "$name: exit $status after $((SECONDS - start)) s"
  return "$status"
}

# The machine and what else is busy on it: figures mean nothing without.
machine() {
  {
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "kernel: $(uname -srm)"
    echo "cpu: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) threads"
    echo "binary: $(sha256sum "$bin/gpu_spike" 2>/dev/null || echo "none in $bin")"
    if command -v nvidia-smi >/dev/null; then
      nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,utilization.gpu,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,ecc.mode.current,mig.mode.current ||
        echo "nvidia-smi failed"
    else
      echo "nvidia-smi: not here"
    fi
  } >"$out/machine.txt" 2>&1
  cat "$out/machine.txt"
}

# The CUDA libraries that the binary opens by name: the loader's own, a toolkit's, or those of Python packages.
find_libraries() {
  local python folder
  for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/nvidia/lib64; do
    [ -d "$folder" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
  done
  python=$(command -v python3) && while read -r folder; do
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
  done < <("$python" -c '
import glob, sys
for entry in sys.path:
    for name in glob.glob(entry + "/nvidia/*/lib"):
        print(name)' 2>/dev/null)
  export LD_LIBRARY_PATH
}

spike() {
  local pair
  run_part spike 240 "$bin/gpu_spike" --out "$out/spike.json" || return 1
  # Twice: a difference between versions smaller than the one between these two is noise.
  if grep -q '"device": "cuda"' "$out/spike.json"; then
    run_part spike-again 120 "$bin/gpu_spike" --out "$out/spike-again.json" || return 1
  fi
  pair=$(command -v nvidia-smi >/dev/null && nvidia-smi --format=csv,noheader --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw)
  say "just after the spike: ${pair:-no nvidia-smi}"
}

tools() {
  local ncu sanitizer
  ncu=$(command -v ncu || ls /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -1)
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)

  if [ -z "$ncu" ]; then
    say "ncu: not here"
  elif run_part ncu 120 "$ncu" --clock-control none --kernel-name regex:skinny --launch-skip 2 --launch-count 1 \
    --metrics dram__bytes_read.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,gpu__time_duration.sum \
    "$bin/gpu_spike" --quick && grep -q 'dram__bytes_read.sum' "$scratch/ncu"; then
    say "ncu: counters can be read ($("$ncu" --version | tail -1))"
  elif grep -q ERR_NVGPUCTRPERM "$scratch/ncu"; then
    say "ncu: no permission to read counters (ERR_NVGPUCTRPERM): the driver's NVreg_RestrictProfilingToAdminUsers"
  elif grep -q '^no NVIDIA device' "$scratch/ncu"; then
    say "ncu: no device to profile"
  else
    say "ncu: could not read counters: $(grep -m1 -E '==(ERROR|PROF)==' "$scratch/ncu")"
  fi

  if [ -z "$sanitizer" ]; then
    say "compute-sanitizer: not here"
    return 0
  fi
  local tool status=0
  for tool in memcheck racecheck; do
    if run_part "$tool" 150 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/gpu_spike" --quick; then
      say "$tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|^no NVIDIA device' "$scratch/$tool" | tail -1)"
    elif grep -qiE 'device not supported|not supported on this' "$scratch/$tool"; then
      say "$tool: refuses this machine"
    else
      say "$tool: found something, or failed: see log.txt"
      status=1
    fi
  done
  return $status
}

[ $# -gt 0 ] || set -- spike
for part in "$@"; do
  case $part in
    spike | tools) ;;
    *)
      echo "error: no part called $part (spike, tools)" >&2
      exit 2
      ;;
  esac
done
if [ ! -x "$bin/gpu_spike" ]; then
  echo "error: no gpu_spike in $bin: packaging/cuda/build.sh makes it, BIN names another folder" >&2
  exit 2
fi
mkdir -p "$out"
rm -f "$out/summary.txt" "$out/log.txt"
find_libraries
machine
for part in "$@"; do
  echo "== $part"
  "$part" || failed=1
done
echo "== summary ($out)"
cat "$out/summary.txt"
exit $failed
