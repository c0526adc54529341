#!/usr/bin/env bash
# The life of the package in a Debian with systemd and without a network: installed, used, upgraded, downgraded, upgraded
# with settings that are wrong, removed, installed again, purged. And what can be said of the files: lintian, the manual,
# the score of the unit.
#
#     packaging/test/package.sh NEW.deb [OLD.deb]
#
# OLD is the release before; without one NEW is taken under a lower version.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/needs.sh"
. "$root/packaging/test/box.sh"
new=$(realpath "$1")
needs lintian lintian mandoc mandoc systemd-analyze systemd dpkg-deb dpkg

fail() {
  echo "error: $*" >&2
  [ -z "${box_pid:-}" ] || inside journalctl -u hearth --no-pager -n 30 >&2 || true
  exit 1
}
says() { # PATTERN COMMAND...: it succeeds, and its output has the pattern
  local pattern=$1 said
  shift
  said=$("$@" 2>&1) || fail "$* failed: $said"
  grep -qE -- "$pattern" <<<"$said" || fail "$* did not say '$pattern': $said"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "== files"
lintian --allow-root --fail-on error,warning "$new"
echo "lintian: clean"
dpkg-deb -x "$new" "$scratch/new"
for page in "$scratch"/new/usr/share/man/man*/*.gz; do
  zcat "$page" | mandoc -T lint -W error >"$scratch/lint" || fail "$page: $(cat "$scratch/lint")"
done
echo "mandoc: $(ls "$scratch"/new/usr/share/man/man*/*.gz | wc -l) pages without an error"
score() { systemd-analyze security --offline=true --root="$1" --no-pager hearth.service | sed -n 's/.*exposure level for hearth.service: \([0-9.]*\).*/\1/p'; }
mkdir -p "$scratch/new/etc/systemd/system"
plain=$(score "$scratch/new")
mkdir -p "$scratch/new/usr/lib/systemd/system/hearth.service.d"
cp "$scratch/new/usr/share/hearth/cuda.conf" "$scratch/new/usr/lib/systemd/system/hearth.service.d/50-cuda.conf"
cuda=$(score "$scratch/new")
for of in "$plain" "$cuda"; do
  awk -v of="${of:-10}" 'BEGIN { exit !(of <= 2.0) }' || fail "systemd-analyze security: $plain and $cuda; the limit is 2.0"
done
echo "systemd-analyze security: $plain, with an NVIDIA GPU $cuda"

old=${2:-}
if [ -z "$old" ]; then
  old=$scratch/old.deb
  dpkg-deb -R "$new" "$scratch/old"
  sed -i 's/^Version: .*/Version: 0.0.9-1/' "$scratch/old/DEBIAN/control"
  dpkg-deb --root-owner-group -b "$scratch/old" "$old" >/dev/null
fi

box_tidy='box_close; rm -rf "$scratch"'
box_open
cp "$new" "$box/root/new.deb"
cp "$old" "$box/root/old.deb"
install() { inside apt-get install -y --allow-downgrades -o APT::Sandbox::User=root "/root/$1.deb" >"$scratch/apt" 2>&1 || fail "apt-get install $1: $(cat "$scratch/apt")"; }
version() { inside dpkg-query -Wf '${Version}' hearth; }
key() { inside cat /var/lib/hearth/key; }
ask() { inside curl -fsS --retry 20 --retry-connrefused --retry-delay 1 -m 30 -H "Authorization: Bearer $(key)" http://127.0.0.1:5052/v1/models; }

echo "== installed on a host without a network"
install old
says '^active' inside systemctl is-active hearth
says '^enabled' inside systemctl is-enabled hearth
says ember-demo ask
says '127.0.0.1:5052' inside ss -ltn
inside ss -ltnH | awk '{ print $4 }' | grep -vE '^(127\.|\[::1\])' && fail "something listens beyond this host"
says '^hearth ' inside stat -c '%U %a' /var/lib/hearth
says '^600 hearth' inside stat -c '%a %U' /var/lib/hearth/key
says '^640 root hearth' inside stat -c '%a %U %G' /etc/hearth/hearth.toml
says 'nologin' inside getent passwd hearth
says 'valid' inside hearth config check
says "^$" inside dpkg --verify hearth
made=$(inside bash -c 'hearth keys create somebody --print 2>/dev/null')
sleep 2 # a running server knows a new key within a second, and says so
says ember-demo inside curl -fsS -m 30 -H "Authorization: Bearer $made" http://127.0.0.1:5052/v1/models
says '^0$' inside bash -c 'find /var/lib/hearth -not -user hearth | wc -l'
says ready inside hearth status
echo "a key that root makes is known to the server that runs as hearth; status answers"
echo "runs as hearth on loopback, enabled, with a key of its own"

echo "== what an administrator leaves there"
before=$(key)
inside bash -c 'printf "\n[engine]\nqueue_requests = 100\n" >>/etc/hearth/hearth.toml
  printf "[server]\ndrain = 7\n" >/etc/hearth/conf.d/site.toml
  install -d -o hearth -g hearth /var/lib/hearth/models/mine && echo weights >/var/lib/hearth/models/mine/x && chmod 444 /var/lib/hearth/models/mine/x'
kept() {
  [ "$(key)" = "$before" ] || fail "$1: the key is another one"
  says weights inside cat /var/lib/hearth/models/mine/x
  says 'drain = 7 .*site.toml' inside hearth config show --origin
  says 'queue_requests = 100 .*hearth.toml' inside hearth config show --origin
  says ember-demo ask
  echo "$1: $(version); key, models and settings are as they were, and it serves"
}
inside systemctl restart hearth
kept "before"

echo "== restarted and reloaded"
listening() { inside ss -ltnH sport = :5052 | awk '{ print $4 }' | sort | tr '\n' ' '; }
asking() { # COMMANDS: run in the box while somebody asks all the time; prints how often what was answered
  inside bash -c 'printf "Authorization: Bearer %s" "$(cat /var/lib/hearth/key)" >/tmp/header
    rm -f /tmp/done /tmp/answers
    for _ in 1 2 3 4; do
      while [ ! -e /tmp/done ]; do
        curl -sS -m 30 -o /dev/null -w "%{http_code}\n" -H @/tmp/header http://127.0.0.1:5052/v1/models 2>&1
      done >>/tmp/answers &
    done
    '"$1"'
    touch /tmp/done
    wait
    sort /tmp/answers | uniq -c'
}
answers=$(asking 'for _ in 1 2 3 4 5; do systemctl restart hearth; done')
[ "$(wc -l <<<"$answers")" = 1 ] && grep -q ' 200$' <<<"$answers" || fail "five restarts were noticed: $answers"
echo "five restarts, asked all the time: $(xargs <<<"$answers" | cut -d' ' -f1) answers, every one 200"
inside bash -c 'echo "[server]
listen = [\"127.0.0.1:5052\", \"127.0.0.2:5052\"]" >/etc/hearth/conf.d/listen.toml; systemctl restart hearth'
[ "$(listening)" = "127.0.0.1:5052 127.0.0.2:5052 " ] || fail "two addresses are configured; it listens on $(listening)"
inside bash -c 'echo "[server]
listen = \"0.0.0.0:5052\"" >/etc/hearth/conf.d/listen.toml; systemctl restart hearth'
[ "$(listening)" = "0.0.0.0:5052 " ] || fail "all addresses are configured; it listens on $(listening)"
inside bash -c 'rm /etc/hearth/conf.d/listen.toml; systemctl restart hearth'
[ "$(listening)" = "127.0.0.1:5052 " ] || fail "it listens on $(listening)"
echo "a restart takes up other addresses and gives up those of before"
inside bash -c 'systemctl stop hearth && mkdir -p /etc/systemd/system/hearth.socket.d &&
  printf "[Socket]\nListenStream=\nListenStream=127.0.0.1:443\n" >/etc/systemd/system/hearth.socket.d/port.conf &&
  systemctl daemon-reload && systemctl start hearth.socket hearth'
says 401 inside curl -sS -m 30 -o /dev/null -w '%{http_code}' http://127.0.0.1:443/v1/models
inside bash -c 'systemctl stop hearth.socket hearth; rm -r /etc/systemd/system/hearth.socket.d; systemctl daemon-reload; systemctl start hearth'
echo "hearth.socket gives it a port below 1024"
says '' inside systemctl reload hearth
inside bash -c 'echo "[server]
allow = [\"10.0.0.0/33\"]" >/etc/hearth/conf.d/listen.toml'
inside systemctl reload hearth >/dev/null 2>&1 && fail "a reload of wrong settings says that it worked"
inside rm /etc/hearth/conf.d/listen.toml
says ember-demo ask
answers=$(asking 'for _ in 1 2 3 4 5; do systemctl reload hearth; done')
[ "$(wc -l <<<"$answers")" = 1 ] && grep -q ' 200$' <<<"$answers" || fail "five reloads were noticed: $answers"
echo "a reload says whether it worked, and is not noticed"

echo "== a host with an NVIDIA GPU"
inside bash -c 'mkdir -p /root/bus/pci/devices/0000:01:00.0 && cd /root/bus/pci/devices/0000:01:00.0 &&
  echo 0x10de >vendor && echo 0x030200 >class && mount --bind /root/bus /sys/bus && systemctl daemon-reload'
says '^no$' inside systemctl show -P PrivateDevices hearth
says 'char-nvidia' inside systemctl show -P DeviceAllow hearth
if inside systemctl restart hearth 2>/dev/null; then
  echo "a build without CUDA serves on the processor"
else
  # One with CUDA never takes the processor in silence: its reason is in the journal, and the way out is a setting.
  says 'install the NVIDIA driver' inside journalctl -u hearth --no-pager -n 20
  inside bash -c 'printf "[engine]\ndevice = \"cpu\"\n" >/etc/hearth/conf.d/device.toml && systemctl restart hearth'
  echo "a GPU without its driver: said so and did not start; serves with engine.device = \"cpu\""
fi
says ember-demo ask
inside bash -c 'umount /sys/bus && rm -f /etc/hearth/conf.d/device.toml && systemctl daemon-reload'
says '^yes$' inside systemctl show -P PrivateDevices hearth
echo "the sandbox is opened for the driver where there is one, and nowhere else"

echo "== upgraded and downgraded"
install new
kept "N-1 to N"
install old
kept "N to N-1"
pid=$(inside systemctl show -P MainPID hearth)
inside bash -c 'echo "[server]
drian = 7" >/etc/hearth/conf.d/wrong.toml'
install new
says 'not \(re\)started' cat "$scratch/apt"
says 'drian' cat "$scratch/apt"
[ "$(inside systemctl show -P MainPID hearth)" = "$pid" ] || fail "wrong settings: the server that ran was taken down"
inside bash -c 'rm /etc/hearth/conf.d/wrong.toml; mkdir -p /etc/systemd/system/hearth.service.d
printf "[Service]\nEnvironment=HEARTH__SERVER__DRAIN=soon\n" >/etc/systemd/system/hearth.service.d/wrong.conf'
install old
says "environment variable HEARTH__SERVER__DRAIN" cat "$scratch/apt"
[ "$(inside systemctl show -P MainPID hearth)" = "$pid" ] || fail "a wrong variable of the unit: the server that ran was taken down"
inside rm -r /etc/systemd/system/hearth.service.d
inside systemctl daemon-reload
install new
kept "N-1 to N with settings that are wrong: said so, the server went on; put right"

echo "== removed, installed again, purged"
inside apt-get remove -y hearth >/dev/null 2>&1
inside test ! -e /usr/bin/hearth || fail "remove left the binary"
says inactive bash -c '! nsenter -t "$0" -m -p -- systemctl is-active hearth' "$box_pid"
install new
kept "installed again"
inside apt-get purge -y hearth >"$scratch/apt" 2>&1 || fail "purge: $(cat "$scratch/apt")"
left=$(inside find / -xdev \( -path /proc -o -path /sys -o -path /var/log -o -path /root -o -path /var/lib/dpkg -o -path /usr/share/doc \) -prune -o -iname '*hearth*' -print)
[ -z "$left" ] || fail "purge left $left"
inside pgrep -x hearth >/dev/null && fail "purge left a process"
says 0 inside bash -c 'systemctl --failed --no-legend | wc -l'
echo "purge left nothing"

# What is mounted from a volume of its own is somebody else's to empty.
inside bash -c 'mkdir -p /var/lib/hearth && mount -t tmpfs volume /var/lib/hearth'
install new
inside systemctl stop hearth
inside apt-get purge -y hearth >"$scratch/apt" 2>&1 || fail "purge beside a volume: $(cat "$scratch/apt")"
inside test -s /var/lib/hearth/key || fail "purge emptied a volume"
inside umount /var/lib/hearth
inside rmdir /var/lib/hearth
echo "purge left a mounted volume as it was"
