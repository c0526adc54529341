#!/usr/bin/env bash
# Everything that waits for a GPU, from a binary built beforehand: no compiler, no network. Parts are chosen by name and
# take under ten minutes each; what is missing on the machine is said and left out.
#
#     benches/gpu/run.sh [PART...]             default: right ceilings decode serving
#
#     right      products and decoders against references, bit for bit where bits must be equal
#     ceilings   bandwidth of memory, the rate of one large product
#     decode     one sequence, in the shape of each model of SHAPES that fits, its weights in each of FORMATS
#     serving    8 to 256 sequences, prompts, prompts beside sequences, in each shape of SERVING
#     tools      the profiler (ncu) on the three kernels that cost most; compute-sanitizer on `right`
#     peers      PyTorch, transformers and vLLM, where python3 (PYTHON) can import them
#
#     BIN        folder of gpu_bench, default target/cuda/bin (packaging/cuda/build.sh)
#     OUT        folder of the results, default benches/results/gpu-DATE: summary.txt, machine.txt, log.txt, *.json
#     SHAPES     default "mistral-7b codegemma-7b codellama-13b codestral-22b deepseek-33b mixtral-8x7b mixtral-8x22b"
#     FORMATS    of weights: bf16, int8, fp8, int4; default in decode "bf16 int8 int4" for mistral-7b and mixtral-8x7b, "bf16
#                int4" for mixtral-8x22b, bf16 otherwise
#     SERVING    default "mistral-7b codestral-22b"
#     GPU        ordinal of the device, default 0
#
# Changes no setting of the card. Parts can be run one by one into the same OUT: summary.txt and log.txt grow. Exit
# status: 1 if a part failed, 0 otherwise, also on a machine without a GPU.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${BIN:-$root/target/cuda/bin}
date=$(date -u +%Y-%m-%d)
out=${OUT:-$root/benches/results/gpu-$date}
shapes=${SHAPES:-mistral-7b codegemma-7b codellama-13b codestral-22b deepseek-33b mixtral-8x7b mixtral-8x22b}
serving_shapes=${SERVING:-mistral-7b codestral-22b}
gpu=${GPU:-0}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
# A part ends within this many seconds, whatever it is made of.
limit=590

say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }

# run_piece NAME SECONDS COMMAND...: output to the terminal, to log.txt and to a file of its own; its verdicts to the
# summary. Takes no longer than what is left of its part.
run_piece() {
  local name=$1 seconds=$2 start=$SECONDS left status
  shift 2
  left=$((part_end - SECONDS))
  if [ "$left" -lt 5 ]; then
    say "$name: left out, the part has no time left"
    return 0
  fi
  [ "$seconds" -gt "$left" ] && seconds=$left
  echo "-- $name: $*" | tee -a "$out/log.txt"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$out/log.txt" "$scratch/$name"
  status=${PIPESTATUS[0]}
  grep -E '^(verdict|nothing is measured): ' "$scratch/$name" | sed "s/^/$name: /" | tee -a "$out/summary.txt"
  [ "$status" = 124 ] && say "$name: stopped after $seconds s"
  say "$name: exit $status after $((SECONDS - start)) s"
  return "$status"
}

bench() { # NAME SECONDS ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  run_piece "$name" "$seconds" "$bin/gpu_bench" "$@" --device "$gpu" --date "$date" --out "$out/$name.json"
}

# The machine and what else is busy on it: figures mean nothing without.
machine() {
  {
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "kernel: $(uname -srm)"
    echo "cpu: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) threads"
    echo "binary: $(sha256sum "$bin/gpu_bench" 2>/dev/null || echo "none in $bin")"
    if command -v nvidia-smi >/dev/null; then
      nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,utilization.gpu,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,ecc.mode.current,mig.mode.current ||
        echo "nvidia-smi failed"
    else
      echo "nvidia-smi: not here"
    fi
  } >"$out/machine.txt" 2>&1
  cat "$out/machine.txt"
}

# A GPU that throttles shows here.
clocks() {
  local now
  now=$(command -v nvidia-smi >/dev/null && nvidia-smi -i "$gpu" --format=csv,noheader --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw)
  say "just after $1: ${now:-no nvidia-smi}"
}

right() { bench right 580 right; }

ceilings() {
  bench ceilings 120 ceilings || return 1
  # Twice: a difference between versions smaller than the one between these two is noise.
  if grep -q '"kind": "cuda"' "$out/ceilings.json"; then bench ceilings-again 120 ceilings || return 1; fi
  clocks ceilings
}

# of NAME FORMAT: files of bf16 have the name of the shape alone
of() { if [ "$2" = bf16 ]; then echo "$1"; else echo "$1-$2"; fi; }

decode() {
  local shape format formats status=0
  for shape in $shapes; do
    case $shape in
      mistral-7b | mixtral-8x7b) formats=${FORMATS:-bf16 int8 int4} ;;
      mixtral-8x22b) formats=${FORMATS:-bf16 int4} ;;
      *) formats=${FORMATS:-bf16} ;;
    esac
    for format in $formats; do
      bench "decode-$(of "$shape" "$format")" 100 decode --shape "$shape" --quantize "$format" || status=1
    done
  done
  clocks decode
  return $status
}

serving() {
  local shape format status=0
  for shape in $serving_shapes; do
    for format in ${FORMATS:-bf16}; do
      bench "serving-$(of "$shape" "$format")" 300 ceilings serving --shape "$shape" --quantize "$format" || status=1
    done
  done
  clocks serving
  return $status
}

# profile NAME KERNELS SKIP PART: share of the peaks of one kernel, after so many launches of it
profile() {
  local name=ncu-$1 kernels=$2 skip=$3 part=$4 metrics
  metrics=dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,gpu__time_duration.sum
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
  if run_piece "$name" 110 "$ncu" --clock-control none --kernel-name "regex:$kernels" --launch-skip "$skip" --launch-count 3 \
    --metrics "$metrics" "$bin/gpu_bench" "$part" --quick --device "$gpu" && grep -q 'gpu__time_duration' "$scratch/$name"; then
    say "$name: $(grep -E 'gpu__time_duration|dram__throughput|inst_executed_pipe_tensor' "$scratch/$name" | tail -3 | awk '{ printf "%s %s %s; ", $1, $(NF - 1), $NF }')"
  elif grep -q ERR_NVGPUCTRPERM "$scratch/$name"; then
    say "$name: no permission to read counters (ERR_NVGPUCTRPERM): the driver's NVreg_RestrictProfilingToAdminUsers"
  elif grep -q '^nothing is measured' "$scratch/$name"; then
    say "$name: no device to profile"
  else
    say "$name: could not read counters: $(grep -m1 -E '==(ERROR|WARNING|PROF)==' "$scratch/$name")"
  fi
}

tools() {
  local ncu sanitizer tool status=0
  ncu=$(command -v ncu || ls /opt/nvidia/nsight-compute/*/ncu /usr/local/cuda/bin/ncu 2>/dev/null | tail -1)
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)

  if [ -z "$ncu" ]; then
    say "ncu: not here"
  else
    profile few-rows '^skinny_warp_silu_1$' 20 decode
    # Steps of prompts launch it too, with nothing to do: 3 for the prompt alone and 4 before 64 sequences decode, of 32
    # layers each.
    profile attention '^attend_decode_bf16_128$' 240 serving
    profile prompts '^product_(128_wide|hopper_(128|256))_silu$' 20 serving
  fi

  if [ -z "$sanitizer" ]; then
    say "compute-sanitizer: not here"
    return 0
  fi
  for tool in memcheck racecheck; do
    if run_piece "$tool" 120 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/gpu_bench" right --quick --device "$gpu"; then
      say "$tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|^nothing is measured' "$scratch/$tool" | tail -1)"
    elif grep -qiE 'device not supported|not supported on this' "$scratch/$tool"; then
      say "$tool: refuses this machine"
    else
      say "$tool: found something, failed or was stopped: see log.txt"
      status=1
    fi
  done
  return $status
}

peers() {
  local python
  python=${PYTHON:-$(command -v python3)} || { say "peers: no python3 here"; return 0; }
  CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-$gpu} run_piece peers 580 "$python" "$root/benches/gpu/peers.py" --out "$out/peers.json" || return 1
  grep -E '^(torch|transformers|vllm): ' "$scratch/peers" | tee -a "$out/summary.txt"
}

[ $# -gt 0 ] || set -- right ceilings decode serving
for part in "$@"; do
  case $part in
    right | ceilings | decode | serving | tools | peers) ;;
    *)
      echo "error: no part called $part (right, ceilings, decode, serving, tools, peers)" >&2
      exit 2
      ;;
  esac
done
if [ ! -x "$bin/gpu_bench" ]; then
  echo "error: no gpu_bench in $bin: packaging/cuda/build.sh makes it, BIN names another folder" >&2
  exit 2
fi
mkdir -p "$out" || exit 2
machine
for part in "$@"; do
  echo "== $part"
  part_end=$((SECONDS + limit))
  "$part" || failed=1
done
echo "== summary ($out)"
cat "$out/summary.txt"
exit $failed
