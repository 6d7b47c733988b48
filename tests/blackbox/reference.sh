#!/bin/sh
# Builds the current reference plugins and cnitool into a cache outside the repository, for the black-box suite.
# Says what it did for each; a second run builds nothing. Needs Go; without it the distribution's plugins remain
# (Debian: containernetworking-plugins, /usr/lib/cni, of the 1.0 level: template bridge-1.1).
#
#   tests/blackbox/reference.sh [DIRECTORY]      default: ~/.cache/zlayer-cni/reference
set -eu

PLUGINS=v1.9.1
CNI=v1.3.0
GOBIN=${1:-${BLACKBOX_REFERENCE:-$HOME/.cache/zlayer-cni/reference}}
GOFLAGS=-mod=mod
export GOBIN GOFLAGS
PATH=$PATH:/usr/local/go/bin

if ! command -v go >/dev/null; then
    echo "reference: no Go here; found instead: $(ls /usr/lib/cni 2>/dev/null | tr '\n' ' ')" >&2
    exit 1
fi
mkdir -p "$GOBIN"

# name, package, version
build() {
    if [ -x "$GOBIN/$1" ] && go version -m "$GOBIN/$1" | grep -q "mod.*$3"; then
        echo "reference: $1 $3 is there"
        return
    fi
    echo "reference: building $1 $3"
    nice go install "$2@$3"
}

for plugin in main/bridge main/ptp main/loopback ipam/host-local meta/portmap meta/bandwidth meta/tuning meta/firewall; do
    build "${plugin#*/}" "github.com/containernetworking/plugins/plugins/$plugin" "$PLUGINS"
done
build cnitool github.com/containernetworking/cni/cnitool "$CNI"
echo "reference: $GOBIN"
