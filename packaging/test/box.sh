# Sourced by the tests here: a Debian with its own systemd, in namespaces of its own, whose network is loopback and nothing
# else. Needs root, and the mirror that this host's apt uses for the first box; later ones are made from what is kept.
#
#   box_open         boots a fresh one; $box is its root as seen from here, $box_pid its first process
#   inside CMD...    runs a command in it
#   box_close        ends it and takes it away; set as the trap on EXIT by box_open, or $box_tidy, which calls it

boxes=${BOXES:-/var/tmp/hearth-boxes}

# Debian as a server has it, once.
box_base() {
  [ "$(id -u)" = 0 ] || { echo "error: $0 boots a system of its own: run it as root" >&2; exit 2; }
  needs debootstrap debootstrap unshare util-linux ip iproute2
  [ -e "$boxes/base/made" ] && return
  echo "== a Debian to install into (once)"
  local mirror suite
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null |
    sed -nE 's,^(URIs:|deb( \[[^]]*\])?) *(https?://[^ ]+).*,\3,p' | head -1 || true)
  rm -rf "$boxes/base"
  mkdir -p "$boxes/base"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2,procps,ca-certificates,curl,openssl,minisign \
    "$suite" "$boxes/base/root" "$mirror" >"$boxes/debootstrap.log" || { tail -5 "$boxes/debootstrap.log" >&2; exit 1; }
  # Packages come from files here, as on a host without a network.
  rm -rf "$boxes"/base/root/var/cache/apt/archives/*.deb "$boxes"/base/root/etc/apt/sources.list* "$boxes"/base/root/var/lib/apt/lists/*
  mkdir -p "$boxes/base/root/var/lib/apt/lists/partial"
  touch "$boxes/base/made"
}

box_open() {
  box_base
  box_dir=$(mktemp -d "$boxes/box.XXXXXX")
  box=$box_dir/root
  mkdir "$box_dir/upper" "$box_dir/work" "$box"
  trap "${box_tidy:-box_close}" EXIT
  mount -t overlay overlay -o "lowerdir=$boxes/base/root,upperdir=$box_dir/upper,workdir=$box_dir/work" "$box"
  unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child --propagation private \
    bash "$(dirname "${BASH_SOURCE[0]}")/boot.sh" "$box" </dev/null >"$box_dir/boot.log" 2>&1 &
  box_job=$!
  for _ in $(seq 100); do
    box_pid=$(pgrep -P "$box_job" || true)
    [ -n "$box_pid" ] && inside true 2>/dev/null && case $(inside systemctl is-system-running 2>/dev/null) in
      running | degraded) return 0 ;;
    esac
    sleep 0.2
  done
  echo "error: the box does not boot: $(cat "$box_dir/boot.log")" >&2
  exit 1
}

inside() {
  nsenter -t "$box_pid" -m -p -n -i -u -C -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
}

box_close() {
  # All of it, whatever fails: the end of a killed box is no success.
  set +e
  [ -n "${box_job:-}" ] && { kill -9 "$box_job" 2>/dev/null; wait "$box_job" 2>/dev/null; }
  [ -n "${box_dir:-}" ] && { umount -l "$box" 2>/dev/null; rm -rf "$box_dir"; }
  box_job= box_dir=
}
