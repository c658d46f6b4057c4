#!/bin/sh
# Makes the root file system that all nodes of a lab share: rootfs.sh TARGET FILES (node.sh, daemon.json, sshd-node.conf).
# Root and mmdebstrap; packages come from the mirror this machine uses.
set -eu
target=$1 files=$2

. /etc/os-release
for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources /etc/apt/sources.list; do
    [ -s "$sources" ] && break
done

mmdebstrap --quiet --variant=minbase --include="$(sh "$files/node.sh" packages)" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --customize-hook='mkdir "$1/files"' \
    --customize-hook="copy-in $files/node.sh $files/daemon.json $files/sshd-node.conf /files" \
    --customize-hook='chroot "$1" sh /files/node.sh configure /files' \
    --customize-hook='rm -r "$1/files"' \
    "$VERSION_CODENAME" "$target" "$sources"

# What mmdebstrap copied from this machine, and what must differ from node to node, is made at a node's first boot.
rm -f "$target"/etc/ssh/ssh_host_*
for file in resolv.conf hostname machine-id; do : >"$target/etc/$file"; done
rm -rf "$target"/var/lib/apt/lists/* "$target"/var/cache/apt/* "$target"/var/log/*.log "$target/var/lib/dbus/machine-id"
