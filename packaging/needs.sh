# Sourced by the scripts here: `needs COMMAND PACKAGE ...` installs what is missing, or says how to.
needs() {
  local missing=()
  while [ $# -gt 1 ]; do
    command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("$2")
    shift 2
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "== installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "error: missing: ${missing[*]}" >&2
    echo "  fix: sudo apt-get install ${missing[*]}" >&2
    exit 2
  fi
}

# cargo_tool COMMAND VERSION: a tool of cargo's, built once.
cargo_tool() {
  command -v "$1" >/dev/null || cargo install --locked "$1@$2"
}
