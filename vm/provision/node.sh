#!/bin/sh
# Makes a machine a node: an ssh server, an engine, a user who may use it. Nothing of matrix is installed here.
#
#   node.sh packages           the packages a node needs, comma-separated
#   node.sh configure FILES    what the packages do not bring; FILES holds daemon.json and sshd-node.conf
#   node.sh install FILES      both, on a running Debian or Ubuntu
set -eu

packages="openssh-server docker.io iproute2 iptables isc-dhcp-client ca-certificates procps tini busybox-static"

configure() {
    id cloud >/dev/null 2>&1 || useradd --create-home --shell /bin/bash cloud
    # '*', not the '!' of useradd: sshd refuses keys of a locked account.
    usermod --append --groups docker --password '*' cloud
    install -D -m 644 "$1/daemon.json" /etc/docker/daemon.json
    install -D -m 644 "$1/sshd-node.conf" /etc/ssh/sshd_config.d/matrix.conf
}

case "${1:-}" in
packages) echo "$packages" | tr ' ' ',' ;;
configure) configure "$2" ;;
install)
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    apt-get -qq update && apt-get -qq install --no-install-recommends -y $packages
    configure "$2"
    # Debian's unit passes -H fd://, which clashes with "hosts" of daemon.json.
    mkdir -p /etc/systemd/system/docker.service.d
    printf '[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd\n' >/etc/systemd/system/docker.service.d/matrix.conf
    systemctl daemon-reload
    systemctl restart docker ssh
    ;;
*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
