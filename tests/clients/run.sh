#!/bin/sh
# Drives a hearth binary with the official OpenAI Python client: tests/clients/run.sh [BINARY]
# The client is installed from the Python package index into a virtual environment that is kept between runs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=${1:-$root/target/release/hearth}
client=openai==3.52.0
venv=${HEARTH_CLIENT_VENV:-$root/target/clients-venv}

[ -x "$binary" ] || { echo "error: $binary is not a program; build it with cargo build --release" >&2; exit 2; }
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "$client"

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

key=a-key-for-the-clients-0123
# Few sequences and a short queue, so that the script can fill it.
HEARTH_KEY=$key HEARTH__ENGINE__SEQUENCES=8 HEARTH__ENGINE__QUEUE_REQUESTS=8 \
    "$binary" serve --listen 127.0.0.1:0 --metrics '' --state-dir "$work" 2>"$work/log" &
server=$!
url=
for _ in $(seq 300); do
    url=$(sed -n 's/.* at \(http:.*\)/\1/p' "$work/log")
    [ -z "$url" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[ -n "$url" ] || { cat "$work/log" >&2; echo "error: the server did not start" >&2; exit 1; }

status=0
"$venv/bin/python" "$here/openai_sdk.py" "$url/v1" "$key" || status=1
kill -TERM "$server"
wait "$server" || { echo "FAILED  the server ended with status $?" >&2; status=1; }
server=
[ "$status" = 0 ] || tail -20 "$work/log" >&2
exit "$status"
