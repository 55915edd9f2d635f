#!/usr/bin/env bash
# Runs the README's two commands on a machine that has a Rust toolchain and a C compiler and nothing else: a minimal Debian
# in a folder of its own, entered by chroot. Needs root and debootstrap (installed if missing); takes some 20 minutes.
#   tests/fresh-machine.sh [FOLDER]     keeps the Debian in FOLDER (default .cache/fresh) and the last commit's checkout in it
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(realpath -m "${1:-.cache/fresh}")
[[ $(id -u) == 0 ]] || { echo "chroot needs root" >&2; exit 1; }

command -v debootstrap >/dev/null || {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends debootstrap >/dev/null
}
if [[ ! -e $root/.made ]]; then
  echo "== a minimal Debian"
  debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$root" >/dev/null
  cp -aL "$(rustc --print sysroot)" "$root/opt/rust"
  echo '127.0.0.1 localhost' >"$root/etc/hosts"
  touch "$root/.made"
fi

echo "== a checkout of $(git log --oneline -1)"
rm -rf "$root/writ"
git clone --quiet --no-hardlinks . "$root/writ"
# Crates come from where this machine has them, so that none but the toolchain's own needs are tried.
cargo fetch --locked --quiet
mkdir -p "$root/cargo"
cp -a "${CARGO_HOME:-$HOME/.cargo}/registry" "$root/cargo/"

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"
trap 'umount "$root/proc"; umount -R "$root/dev"' EXIT

inside() {
  echo "== $*"
  local started=$SECONDS
  chroot "$root" /usr/bin/env -i HOME=/root PATH=/opt/rust/bin:/usr/bin:/bin CARGO_HOME=/cargo CARGO_NET_OFFLINE=true \
    /bin/sh -c "cd /writ && $*"
  echo "== $*: $((SECONDS - started)) s"
}
inside "! command -v make && ! command -v cmake && ! command -v go && ! command -v perl5"
inside cargo run --release -- demo --once
inside cargo test --workspace
