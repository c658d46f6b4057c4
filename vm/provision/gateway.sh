#!/bin/sh
# Makes a Debian or Ubuntu machine the gateway: gateway.sh INTERFACE FILES
# INTERFACE is the one of the inside network; FILES holds the templates, the program `matrix` and its key id_ed25519.
set -eu
inside=$1 files=$2

# NAME=VALUE…: fills the places of a template
fill() {
    template=$1 target=$2
    shift 2
    for pair in "$@"; do set -- "$@" -e "s|{{ ${pair%%=*} }}|${pair#*=}|g"; shift; done
    mkdir -p "$(dirname "$target")"
    sed "$@" "$files/$template" >"$target"
    if grep -n '{{' "$target"; then echo "error: $template has places nobody fills" >&2; exit 1; fi
}

hostnamectl set-hostname matrix-manager
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends -y dnsmasq docker-registry varnish tcc gcc libc6-dev squid openssh-client >/dev/null

fill dnsmasq.conf /etc/dnsmasq.d/matrix.conf inside="$inside" leases=/var/lib/misc/dnsmasq.leases
fill registry.yml /etc/docker/registry/config.yml storage=/var/lib/docker-registry
install -D -m 644 "$files/docker-registry.service.conf" /etc/systemd/system/docker-registry.service.d/matrix.conf
install -m 644 "$files/squid.conf" /etc/squid/squid.conf
install -m 644 "$files/empty.vcl" /etc/varnish/matrix.vcl
# one -p each; a percent sign means something to systemd
parameters=$(sed -n 's/%/%%/g; s/^[a-z].*/-p "&"/p' "$files/varnishd.params" | tr '\n' ' ')
fill varnish.service.conf /etc/systemd/system/varnish.service.d/matrix.conf parameters="$parameters"

install -m 755 "$files/matrix" /usr/local/bin/matrix
install -D -m 644 "$files/matrix.service" /etc/systemd/system/matrix.service
mkdir -p -m 700 /etc/matrix
install -m 600 "$files/id_ed25519" /etc/matrix/id_ed25519
fill gateway.toml /etc/matrix/matrix.toml cloud=matrix state=/var/lib/matrix run=/run/matrix 'listen="0.0.0.0:8080"' \
    registry=http://127.0.0.1:5000 storage=/var/lib/docker-registry registry_config=/etc/docker/registry/config.yml \
    'restart="systemctl", "restart", "docker-registry"' \
    leases=/var/lib/misc/dnsmasq.leases identity=/etc/matrix/id_ed25519 varnish=/var/lib/varnish/matrix

systemctl daemon-reload
systemctl -q enable dnsmasq docker-registry varnish squid matrix
systemctl restart dnsmasq docker-registry varnish squid matrix
