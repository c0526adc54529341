#!/usr/bin/env bash
# Makes the container image from nothing but the binary, the loader and the C library that it was linked with, and the
# certificates that Debian trusts: no shell, no package manager.
#
#     packaging/image/build.sh BINARY IMAGE.tar
#
# The file is an OCI archive: podman load -i, docker load -i, skopeo copy oci-archive:..., ctr images import.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/needs.sh"
binary=$(realpath "$1")
image=$2
needs buildah buildah /etc/ssl/certs/ca-certificates.crt ca-certificates
version=$("$binary" --version | cut -d' ' -f2)
stamp=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}

scratch=$(mktemp -d)
tree=$scratch/tree
container=
tidy() {
  [ -z "$container" ] || buildah rm "$container" >/dev/null
  rm -rf "$scratch"
}
trap tidy EXIT

umask 022
libraries=usr/lib/x86_64-linux-gnu
mkdir "$tree"
mkdir -p "$tree"/{etc/ssl/certs,etc/hearth,usr/bin,usr/lib64,"$libraries",var/lib,run,tmp,models,proc,sys,dev}
ln -s usr/lib "$tree/lib"
ln -s usr/lib64 "$tree/lib64"
ln -s usr/bin "$tree/bin"
install -m 755 "$binary" "$tree/usr/bin/hearth"

# What it is linked with; and what the driver's libcuda is linked with, which comes into the container from its host.
loader=$(ldd "$binary" | sed -n 's,^[[:space:]]*\(/lib64/ld-linux[^ ]*\).*,\1,p')
install -m 755 "$(realpath "$loader")" "$tree/usr/lib64/$(basename "$loader")"
for library in $(ldd "$binary" | sed -n 's,.*=> \(/[^ ]*\) .*,\1,p') libdl.so.2 libpthread.so.0 librt.so.1; do
  [ -e "$library" ] || library=$(ldconfig -p | sed -n "s,.*$library (libc6\,x86-64.* => ,,p" | head -1)
  install -m 644 "$(realpath "$library")" "$tree/$libraries/$(basename "$library")"
done

install -m 644 "$(realpath /etc/ssl/certs/ca-certificates.crt)" "$tree/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0::/:/none\nhearth:x:10001:10001::/var/lib/hearth:/none\n' > "$tree/etc/passwd"
printf 'root:x:0:\nhearth:x:10001:\n' > "$tree/etc/group"
printf 'hosts: files dns\npasswd: files\ngroup: files\n' > "$tree/etc/nsswitch.conf"
chmod 1777 "$tree/tmp"

# As archives, which carry owners. Clusters that choose the user at random keep group 0.
pack() { tar --sort=name --numeric-owner --mtime="@$stamp" "$@"; }
pack --owner=0 --group=0 -C "$tree" -cf "$scratch/tree.tar" .
mkdir -p "$scratch/state"/{var/lib,run}/hearth
chmod 770 "$scratch/state"/{var/lib,run}/hearth
(cd "$scratch/state" && pack --owner=10001 --group=0 -cf ../state.tar var/lib/hearth run/hearth)
container=$(buildah from scratch)
buildah add --quiet "$container" "$scratch/tree.tar" / >/dev/null
buildah add --quiet "$container" "$scratch/state.tar" / >/dev/null
buildah config \
  --user 10001:10001 \
  --entrypoint '["/usr/bin/hearth"]' --cmd serve \
  --workingdir / --volume /var/lib/hearth --port 5052 --port 8082 --stop-signal SIGTERM \
  --env PATH=/usr/bin \
  --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
  --env HEARTH__SERVER__LISTEN=0.0.0.0:5052 \
  --env HEARTH__SERVER__STATE_DIR=/var/lib/hearth \
  --env HEARTH__LOG__FORMAT=json \
  --env NVIDIA_DRIVER_CAPABILITIES=compute,utility \
  --env LD_LIBRARY_PATH=/usr/lib64:/usr/lib/x86_64-linux-gnu:/usr/local/nvidia/lib64 \
  --label org.opencontainers.image.title=hearth \
  --label org.opencontainers.image.version="$version" \
  --label org.opencontainers.image.licenses=Apache-2.0 \
  --label "org.opencontainers.image.description=Inference appliance for GitLab Duo" \
  "$container"
rm -f "$image"
buildah commit --quiet --disable-compression=false --timestamp "$stamp" --rm "$container" "oci-archive:$image:hearth:$version" >/dev/null
container=
echo "$image: $(du -h "$image" | cut -f1), hearth:$version"
