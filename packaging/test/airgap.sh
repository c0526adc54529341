#!/usr/bin/env bash
# The README's way from a release to a served checkpoint, in a Debian with systemd whose network is loopback and nothing
# else: commands and seconds are counted. A GitLab with a certificate of the site's own authority stands on a loopback
# address. Then every packet is counted: on loopback, and on an interface that leads nowhere, where whatever dials shows.
#
#     packaging/test/airgap.sh RELEASE-FOLDER
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/needs.sh"
. "$root/packaging/test/box.sh"
release=$(realpath "$1")
needs python3 python3 openssl openssl tcpdump tcpdump minisign minisign
scratch=$(mktemp -d)
others=()
tidy() {
  set +e
  for pid in "${others[@]}"; do kill "$pid" 2>/dev/null || true; done
  ip link delete canary-out 2>/dev/null || true
  box_close
  rm -rf "$scratch"
}
fail() {
  echo "error: $*" >&2
  [ -z "${box_pid:-}" ] || inside journalctl -u hearth --no-pager -n 30 >&2 || true
  exit 1
}

echo "== the connected side"
deb=$(ls "$release"/hearth_*_amd64.deb)
dpkg-deb --fsys-tarfile "$deb" | tar xO ./usr/bin/hearth >"$scratch/hearth"
chmod 755 "$scratch/hearth"
# The embedded model's files stand in for a checkpoint that somebody fetched.
mkdir "$scratch/our-model"
cp "$root"/models/ember/{config.json,generation_config.json,model.safetensors,tokenizer.json,tokenizer_config.json} "$scratch/our-model/"
cp "$root/LICENSE" "$scratch/our-model/"
mkdir "$scratch/carried"
on_connected_side() { (cd "$scratch" && env -u HEARTH_CONFIG HEARTH__SERVER__STATE_DIR="$scratch/state" ./hearth "$@" >"$scratch/said" 2>&1) || fail "hearth $*: $(cat "$scratch/said")"; }
on_connected_side models import our-model --accept-license
on_connected_side bundle key site
on_connected_side bundle create -o carried/hearth.bundle --model our-model --with "$release" --sign site.key
cp "$scratch/site.pub" "$scratch/carried/"
echo "to carry: $(cd "$scratch/carried" && du -h -- * | tr '\t\n' '  ')"

echo "== the site: names, an authority, GitLab"
box_tidy=tidy
box_open
site=$scratch/certificates
mkdir "$box/root/carried" "$site"
cp "$scratch"/carried/* "$box/root/carried/"
authority() { openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=The site's authority" -keyout "$site/ca.key" -out "$site/ca.crt"; }
certificate() { # NAME
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "$site/$1.key" -out "$site/$1.csr"
  openssl x509 -req -in "$site/$1.csr" -CA "$site/ca.crt" -CAkey "$site/ca.key" -CAcreateserial -days 2 -out "$site/$1.crt" \
    -extfile <(echo "subjectAltName=DNS:$1")
}
{ authority && certificate gitlab.site && certificate hearth.site && openssl genrsa -out "$site/signing.pem" 2048; } 2>/dev/null
inside bash -c 'echo "127.0.0.7 gitlab.site
127.0.0.1 hearth.site" >>/etc/hosts'
cp "$site/hearth.site.crt" "$site/hearth.site.key" "$site/ca.crt" "$box/root/carried/"
nsenter -t "$box_pid" -n python3 "$root/packaging/test/gitlab.py" serve 127.0.0.7 443 https://gitlab.site "$site/gitlab.site.crt" "$site/gitlab.site.key" "$site" &
others+=($!)
nsenter -t "$box_pid" -n tcpdump -i lo -nn -U -w "$scratch/lo.pcap" 'udp or tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn' 2>/dev/null &
others+=($!)
inside ip -br link | grep -v '^lo ' && fail "there is a network besides loopback"

echo "== the server: what the README says"
commands=0
started=$(date +%s)
typed() { # one command as a person types it
  commands=$((commands + 1))
  echo "# $1"
  inside bash -c "cd /root/carried && $1" >"$scratch/said" 2>&1 || fail "$1: $(cat "$scratch/said")"
  sed 's/^/  /' "$scratch/said" | tail -"${2:-3}"
}
typed 'tar -xf hearth.bundle --wildcards MANIFEST MANIFEST.minisig "hearth_*.deb"'
typed 'minisign -V -m MANIFEST -p site.pub'
typed 'sha256sum --ignore-missing -c MANIFEST'
typed 'apt-get install -y ./hearth_*.deb'
typed 'hearth bundle install hearth.bundle --key site.pub --accept-license'
typed 'install -m 640 -g hearth -t /etc/hearth/tls hearth.site.crt hearth.site.key ca.crt'
typed 'cat >/etc/hearth/conf.d/site.toml <<END
[server]
listen = "0.0.0.0:5052"
tls_cert = "/etc/hearth/tls/hearth.site.crt"
tls_key = "/etc/hearth/tls/hearth.site.key"
[gitlab]
url = "https://gitlab.site"
ca_file = "/etc/hearth/tls/ca.crt"
[[model]]
name = "our-model"
END'
typed 'hearth config check'
typed 'systemctl restart hearth'
typed 'hearth keys create gitlab --print'
key=$(grep -oE 'hearth_[A-Za-z0-9_]{20,}' "$scratch/said" | head -1)
[ -n "$key" ] || fail "keys create printed no key"
inside hearth doctor >"$scratch/doctor" 2>&1 || true
typed 'hearth doctor || true' 30
grep -q '^gitlab *ok' "$scratch/doctor" || fail "doctor does not find GitLab"
echo "== $commands commands, $(($(date +%s) - started)) seconds without the typing"

echo "== what it serves"
# A running server knows a new key within a second, and says so.
sleep 2
curl_at() { inside curl -fsS -m 60 --cacert /root/carried/ca.crt "$@"; }
completion() { curl_at https://hearth.site:5052/v1/completions -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{"model":"our-model","prompt":"def add(a, b):","max_tokens":8}'; }
duo() {
  curl_at https://hearth.site:5052/v2/code/completions -H "Authorization: Bearer $(python3 "$root/packaging/test/gitlab.py" token https://gitlab.site "$site")" \
    -H 'X-Gitlab-Authentication-Type: oidc' -H 'X-Gitlab-Instance-Id: 5f2a7c1e-8a55-4d5b-9f5e-0d8c2f1b7a10' \
    -H 'X-Gitlab-Realm: self-managed' -H 'X-Gitlab-Host-Name: gitlab.site' -H 'X-Gitlab-Version: 18.9.0' \
    -H 'X-Gitlab-Global-User-Id: gJ2Y0yI0W1m4fB8Qn3nQq5p7sB9c0d1e2f3g4h5i6j7=' -H 'Content-Type: application/json' \
    -d '{"prompt_version":1,"current_file":{"file_name":"test.rb","content_above_cursor":"def hello_world","content_below_cursor":""}}'
}
completion | grep -q '"model":"our-model"' || fail "no completion over TLS"
duo | grep -q '"choices"' || fail "no completion for GitLab"
inside curl -sS -m 10 --cacert /root/carried/ca.crt -o /dev/null -w '%{http_code}' https://hearth.site:5052/v1/models | grep -q 401 || fail "a stranger got in"
echo "a completion with the key and one with a token that GitLab signed, over TLS; a stranger gets 401"

echo "== connection attempts"
sleep 1
tcpdump -nn -r "$scratch/lo.pcap" 2>/dev/null | sed -E 's/^[^ ]+ IP6? [^ ]+ > ([^ ]+): .*/\1/' | sort | uniq -c | sort -rn >"$scratch/dialled"
cat "$scratch/dialled"
grep -q ' 127.0.0.7.443$' "$scratch/dialled" || fail "GitLab was not asked: the count sees nothing"
if grep -vE ' 127\.0\.0\.(1\.(5052|5053|8082)|7\.443)$' "$scratch/dialled"; then
  fail "something else was dialled"
fi
ip link add canary-out type veth peer name canary
ip link set canary netns "$box_pid"
ip link set canary-out up
inside bash -c 'sysctl -qw net.ipv6.conf.canary.disable_ipv6=1 2>/dev/null || true
  ip addr add 192.0.2.2/24 dev canary && ip link set canary up && ip route add default via 192.0.2.1
  ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev canary; ip neigh add 192.0.2.53 lladdr 02:00:00:00:00:53 dev canary
  echo nameserver 192.0.2.53 >/etc/resolv.conf'
tcpdump -i canary-out -nn -U -w "$scratch/canary.pcap" ip 2>/dev/null &
others+=($!)
sleep 1
seen() { tcpdump -nn -r "$scratch/canary.pcap" 2>/dev/null | wc -l; }
inside systemctl restart hearth
for _ in 1 2 3; do
  completion >/dev/null
  duo >/dev/null
done
inside hearth doctor >/dev/null 2>&1 || true
inside systemctl reload hearth
sleep 2
count=$(seen)
[ "$count" = 0 ] || fail "$count packets left: $(tcpdump -nn -r "$scratch/canary.pcap" 2>/dev/null | head -5)"
inside curl -sS -m 1 http://198.51.100.7/ >/dev/null 2>&1 || true
sleep 1
[ "$(seen)" -gt 0 ] || fail "the interface that leads nowhere shows nothing, not even a connection made on purpose"
echo "with a way out at hand: 0 packets leave in a start, completions, doctor and a reload; one made on purpose shows"
