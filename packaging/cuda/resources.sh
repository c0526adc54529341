#!/usr/bin/env bash
# Prints what the compiler says of each kernel on each device: registers, shared memory, spilled bytes. Fails when one
# spills.
#
#     packaging/cuda/resources.sh FOLDER...     folders with the NAME.resources that kernels/build.rs writes; newest wins
set -euo pipefail

newest=$(ls -td "$@" | head -1)
ls "$newest"/*.resources >/dev/null 2>&1 || { echo "error: no reports in $newest: build with the feature cuda" >&2; exit 1; }
cat "$newest"/*.resources | awk '
  /Compiling entry function/ { match($0, /function .[^'"'"']*/); name = substr($0, RSTART + 10, RLENGTH - 10); match($0, /sm_[0-9a-z]+/); arch = substr($0, RSTART, RLENGTH) }
  /spill stores/ { for (i = 1; i <= NF; i++) if ($i == "spill" && $(i + 1) ~ /^stores/) spill = $(i - 2) }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
    shared = 0; if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
    printf "%-34s %-7s %4d registers %6d bytes shared %5d bytes spilled\n", name, arch, registers, shared, spill
    spilled += spill > 0
  }
  END { if (spilled) { printf "error: %d kernels spill\n", spilled > "/dev/stderr"; exit 1 } }' | sort
