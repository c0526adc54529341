#!/usr/bin/env bash
# Lints the chart with Helm's library, renders it for many sites, holds what it renders against the schemas of Kubernetes,
# and holds the Kustomize base against the chart.
#
#     packaging/test/kubernetes.sh [HEARTH]    check; HEARTH is a binary that reads what the pods would be given
#     packaging/test/kubernetes.sh --write     make the Kustomize base anew from the chart
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/needs.sh"
needs python3 python3
python3 -c 'import ensurepip' 2>/dev/null || needs no-venv python3-venv
python=$root/target/kubernetes
if ! "$python/bin/python" -c 'import helm_python, kubernetes_validate' 2>/dev/null; then
  rm -rf "$python"
  python3 -m venv "$python"
  "$python/bin/pip" install --quiet --disable-pip-version-check -r "$root/packaging/test/requirements.txt"
fi
"$python/bin/python" "$root/packaging/test/kubernetes.py" "$@"
