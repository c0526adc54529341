#!/usr/bin/env bash
# The container image with a read-only root, without capabilities, under its own user and under users chosen at random as
# OpenShift does; with stand-ins for the driver where container runtimes put the host's.
#
#     packaging/test/image.sh IMAGE.tar
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/needs.sh"
needs podman podman runc runc cc gcc curl curl
scratch=$(mktemp -d)
trap 'podman rm -fvt 1 hearth-test >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

fail() {
  echo "error: $*" >&2
  podman logs hearth-test >&2 || true
  exit 1
}

image=$(podman load -qi "$1" | sed 's/.*: //')
echo "$image: $(podman image inspect -f '{{.Size}}' "$image" | awk '{ printf "%.1f MB", $1 / 1e6 }')"
files=$(podman create "$image")
podman export "$files" | tar t >"$scratch/files"
podman rm -v "$files" >/dev/null
if grep -E '(^|/)(sh|bash|busybox|apt|dpkg|perl|python3?)$' "$scratch/files"; then
  fail "there is more in the image than a server needs"
fi

# The network is the host's loopback: a network of its own would need more than this test should ask for.
serve() { # ARGUMENTS of podman...
  podman rm -fvt 1 hearth-test >/dev/null 2>&1 || true
  podman run -d --name hearth-test --runtime runc --ulimit nofile=4096:4096 --ulimit nproc=1024:1024 --network host --read-only --read-only-tmpfs=false \
    --cap-drop all --security-opt no-new-privileges -e HEARTH__SERVER__LISTEN=127.0.0.1:15052 \
    -e HEARTH__SERVER__METRICS= -e HEARTH__CONSOLE__LISTEN= "$@" "$image" >/dev/null
  for _ in $(seq 50); do
    curl -fsS -m 5 http://127.0.0.1:15052/health/ready >/dev/null 2>&1 && return
    [ "$(podman inspect -f '{{.State.Running}}' hearth-test)" = true ] || fail "$*: it ended"
    sleep 0.2
  done
  fail "$*: it is not ready"
}
answers() { # WHO KEY
  curl -fsS -m 30 -H "Authorization: Bearer $2" -H 'Content-Type: application/json' http://127.0.0.1:15052/v1/completions \
    -d '{"model":"ember-demo","prompt":"def add(a, b):","max_tokens":4}' | grep -q '"text"' || fail "$1: no answer"
  start=$(date +%s%N)
  podman stop -t 20 hearth-test >/dev/null
  code=$(podman inspect -f '{{.State.ExitCode}}' hearth-test)
  [ "$code" = 0 ] || fail "$1: ended with $code"
  echo "$1: ready, answers, stops by itself in $((($(date +%s%N) - start) / 1000000)) ms"
}

serve
podman cp hearth-test:/var/lib/hearth/key "$scratch/key"
answers "its own user (10001), key in its volume" "$(cat "$scratch/key")"
random=$((100000 + RANDOM))
serve --user "$random:0" -v hearth-test-state:/var/lib/hearth
podman volume inspect hearth-test-state >/dev/null
podman cp hearth-test:/var/lib/hearth/key "$scratch/key"
answers "user $random of group 0, key in its volume" "$(cat "$scratch/key")"
podman rm -fv hearth-test >/dev/null
podman volume rm hearth-test-state >/dev/null
mkdir -m 1777 "$scratch/state"
serve --user "$random:$random" -v "$scratch/state:/var/lib/hearth" -e HEARTH_KEY=a-key-of-this-test-0001
answers "user and group $random, a volume that all may write (as emptyDir), key from the environment" a-key-of-this-test-0001

echo "== a driver where runtimes put it"
mkdir "$scratch/lib"
echo 'int cuInit(unsigned flags) { return 0; } int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
  int cuGetErrorName(int e, const char **t) { *t = "CUDA_ERROR"; return 0; }
  int cuGetErrorString(int e, const char **t) { *t = "a stand-in"; return 0; }' |
  cc -shared -fPIC -x c -o "$scratch/lib/libcuda.so.1" - -Wl,--no-as-needed -lm -ldl -lpthread -lrt
podman rm -fv hearth-test >/dev/null
for place in /usr/lib64 /usr/lib/x86_64-linux-gnu /usr/local/nvidia/lib64; do
  said=$(podman run --rm --runtime runc --ulimit nofile=4096:4096 --ulimit nproc=1024:1024 --network none --read-only --cap-drop all -v "$scratch/lib/libcuda.so.1:$place/libcuda.so.1:ro" \
    "$image" complete --max-tokens 2 x 2>&1) && status=0 || status=$?
  case $status-$said in
    5-*"knows CUDA 12.8"*) echo "$place: the driver is found" ;;
    *"made without CUDA"*) echo "$place: not asked, this binary is made without CUDA" ;;
    *) fail "$place: the driver is not found: $status $said" ;;
  esac
done
podman rmi -f "$image" >/dev/null
