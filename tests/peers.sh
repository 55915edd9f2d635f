#!/usr/bin/env bash
# Installs what the tests in tests/interop need, and says where it is: system packages (as root only), and a Python with
# grpcio in ${WRIT_CACHE:-<repository>/.cache}/python. Twice is as once; what is there is not looked up again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${WRIT_CACHE:-$PWD/.cache}
packages=(curl iproute2 iptables nftables python3-venv tcpdump)
grpcio=1.85.1

main() {
  system_packages
  python
}

system_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    return
  fi
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not installed, and not mine to install here: ${missing[*]}" >&2
    return
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
}

python() {
  local python=$cache/python/bin/python
  if [[ $("$python" -c 'import grpc; print(grpc.__version__)' 2>/dev/null) != "$grpcio" ]]; then
    mkdir -p "$cache"
    python3 -m venv "$cache/python"
    "$python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: "grpcio==$grpcio"
  fi
  echo "$python: grpcio $grpcio"
}

main "$@"
