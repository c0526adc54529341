#!/usr/bin/env bash
# Starts hearth as built by build.sh on a host without a GPU, in the ways such hosts differ: no driver, a driver without
# a device, an old driver, one that lacks what this build calls. What it says of each is checked, and that it serves on
# the CPU where nobody can have expected a GPU. The drivers are stand-ins made here with cc; a real one is not touched.
#
#     packaging/cuda/start.sh target/cuda/bin/hearth
set -euo pipefail

binary=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/lib"

driver() { # CODE
  printf '%s\n' "$1" | cc -shared -fPIC -x c -o "$scratch/lib/libcuda.so.1" -
}

ask() { # FLAGS...: one completion on the embedded model
  LD_LIBRARY_PATH=$scratch/lib "$binary" complete "$@" --max-tokens 4 'def add(a, b):' 2>"$scratch/said"
}

serves() { # HOST PATTERN
  if ! ask >"$scratch/text" || [ ! -s "$scratch/text" ]; then
    echo "error: $1: no answer: $(cat "$scratch/said")" >&2
    exit 1
  fi
  tells "$1" "$2"
}

refuses() { # HOST PATTERN FLAGS...
  local host=$1 pattern=$2 status=0
  shift 2
  ask "$@" >/dev/null || status=$?
  if [ "$status" != 5 ]; then
    echo "error: $host: exit $status instead of 5: $(cat "$scratch/said")" >&2
    exit 1
  fi
  tells "$host" "$pattern"
}

tells() { # HOST PATTERN
  if ! grep -q "$2" "$scratch/said"; then
    echo "error: $1: said \"$(cat "$scratch/said")\"" >&2
    exit 1
  fi
  echo "$1: $(grep "$2" "$scratch/said" | head -1)"
}

errors='
  int cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR"; return 0; }
  int cuGetErrorString(int error, const char **text) { *text = "a stand-in"; return 0; }'
if ldconfig -p | grep -q 'libcuda\.so'; then
  echo "no driver: left out, this host has one"
else
  serves "no driver" 'device: the CPU (this host has no NVIDIA GPU)'
  refuses "no driver, CUDA asked for" 'this host has no NVIDIA GPU' --device cuda
fi
# 100 is CUDA_ERROR_NO_DEVICE.
driver "int cuInit(unsigned flags) { return flags ? 1 : 100; } $errors"
serves "a driver without a device" 'device: the CPU (this host has no NVIDIA GPU)'
driver "int cuInit(unsigned flags) { return 0; } int cuDriverGetVersion(int *v) { *v = 12080; return 0; } $errors"
refuses "a driver that is too old" 'knows CUDA 12.8; this build needs 580'
serves_on_cpu() { ask --device cpu >"$scratch/text" && [ -s "$scratch/text" ]; }
serves_on_cpu || { echo "error: the CPU was asked for and does not serve: $(cat "$scratch/said")" >&2; exit 1; }
echo "a driver that is too old, the CPU asked for: serves"
driver 'int nothing;'
refuses "a driver that lacks a function" 'does not fit this build'
