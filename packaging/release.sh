#!/usr/bin/env bash
# Makes everything that is released, from a clean checkout on Debian 12 or later with a Rust toolchain:
#
#     packaging/release.sh                 all of it, into target/package/out
#     packaging/release.sh --cpu           without CUDA: no nvcc is fetched, the binary serves on processors only
#     packaging/release.sh --binary FILE   packages a binary that is there already
#
#     PROFILE   cargo profile, default dist (link-time optimisation; `release` is quicker to make)
#
# The binary of the package and of the image is one, for hosts with and without a GPU. Every file's SHA-256 is in
# SHA256SUMS; `hearth bundle create` signs and carries them together with models.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. packaging/needs.sh

profile=${PROFILE:-dist} cuda=yes binary=
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) cuda=no ;;
    --binary)
      binary=$(realpath "${2:?error: --binary names a file}")
      shift
      ;;
    *)
      sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
  shift
done

needs gcc gcc python3 python3 buildah buildah dpkg-shlibdeps dpkg-dev file file
cargo_tool cargo-deb 3.8.0
cargo_tool cargo-cyclonedx 0.5.9
cargo_tool cargo-auditable 0.7.7

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# Times in packages are the last commit's: the same commit makes the same files.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
made=$root/target/package
out=$made/out
rm -rf "$made"
mkdir -p "$made/man" "$made/completions" "$out"

echo "== binary"
features=()
if [ -z "$binary" ]; then
  [ $cuda = no ] || features=(--features cuda)
  if [ $cuda = yes ] && [ -z "${CUDA_HOME:-}" ]; then
    exports=$(packaging/cuda/toolchain.sh)
    eval "$exports"
    export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
  fi
  # The list of crates goes into the binary too, where scanners look for it.
  cargo auditable build --locked --profile "$profile" -p hearth --bin hearth "${features[@]}"
  binary=${CARGO_TARGET_DIR:-target}/$profile/hearth
else
  features=(--features cuda)
fi
# Where cargo-deb looks for what it packages.
mkdir -p "$made/target/release"
cp "$binary" "$made/target/release/hearth"
strip --strip-all "$made/target/release/hearth"
binary=$made/target/release/hearth
packaging/cuda/check.sh "$binary"

echo "== manual and completions"
"$binary" man --to "$made/man"
"$binary" completions bash > "$made/completions/hearth.bash"
"$binary" completions zsh > "$made/completions/_hearth"
"$binary" completions fish > "$made/completions/hearth.fish"

echo "== notices and bill of materials"
python3 packaging/notice.py "${features[@]}" > "$made/NOTICE"
cargo cyclonedx --quiet --format json --target x86_64-unknown-linux-gnu --manifest-path Cargo.toml "${features[@]}"
mv hearth.cdx.json "$made/sbom.cdx.json"
rm -f models/*.cdx.json kernels/*.cdx.json
for file in NOTICE sbom.cdx.json; do
  gzip -9nk "$made/$file"
  cp "$made/$file" "$out/"
done

echo "== package"
CARGO_TARGET_DIR=$made/target cargo deb --locked --no-build --no-strip --quiet -o "$made/" >/dev/null
# cargo-deb leaves out the sums with which `dpkg --verify hearth` finds a file that was changed.
deb=$(basename "$made"/hearth_*.deb)
dpkg-deb -R "$made/$deb" "$made/deb"
(cd "$made/deb" && find . -type f -not -path './DEBIAN/*' -not -path './etc/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
dpkg-deb --root-owner-group -Zxz -b "$made/deb" "$out/$deb" >/dev/null
rm -r "$made/deb"

echo "== image"
packaging/image/build.sh "$binary" "$out/hearth-$version-image.tar"

echo "== chart and manifests"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C packaging \
  --transform 's,^chart,hearth,' -czf "$out/hearth-$version.tgz" chart
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C packaging \
  -czf "$out/hearth-$version-kustomize.tgz" kustomize

cp README.md LICENSE "$out/"
(cd "$out" && sha256sum -- * > SHA256SUMS)
echo "== $out"
ls -l "$out"
