#!/usr/bin/env bash
# Starts a binary built by build.sh on a host without a GPU, in the ways such hosts differ: no CUDA library at all, a
# driver without a device, a driver that lacks what this build calls. Each time it must exit 0 and say that it runs on
# the CPU. The libraries are stand-ins made here with cc; real ones are not touched.
#
#     packaging/cuda/start.sh target/cuda/bin/gpu_spike
set -euo pipefail

binary=$1
stand_ins=$(mktemp -d)
trap 'rm -rf "$stand_ins"' EXIT

library() { # NAME CODE
  printf '%s\n' "$2" | cc -shared -fPIC -x c -o "$stand_ins/$1" -
}
expect() { # HOST, then a pattern
  local said
  said=$(LD_LIBRARY_PATH=$stand_ins "$binary" 2>/dev/null) || { echo "error: $1: exit $?: $said" >&2; exit 1; }
  if ! grep -q "$2" <<<"$said" || ! grep -q 'running on the CPU' <<<"$said"; then
    echo "error: $1: said \"$said\"" >&2
    exit 1
  fi
  echo "$1: $(head -1 <<<"$said")"
}

if ldconfig -p | grep -q 'libcuda\.so'; then
  echo "no library: left out, this host has a driver"
else
  expect "no library" 'libcuda is not installed'
fi
# 100 is CUDA_ERROR_NO_DEVICE.
library libcuda.so.1 '
  int cuInit(unsigned flags) { return flags ? 1 : 100; }
  int cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_NO_DEVICE"; return error != 100; }
  int cuGetErrorString(int error, const char **text) { *text = "no device is detected"; return error != 100; }'
if ! ldconfig -p | grep -q 'libcublas\.so'; then expect "a driver without the toolkit" 'libcublas is not installed'; fi
library libcublas.so.13 'int nothing;'
library libcurand.so.10 'int nothing;'
expect "a driver without a device" 'no usable device 0'
library libcuda.so.1 'int nothing;'
expect "a driver that lacks a function" 'do not fit this build'
