#!/bin/sh
# Puts a virtual machine on the inside network only: inside.sh INTERFACE. Its other interface (Vagrant's own way in) stays,
# without a way out: packages come through the gateway.
set -eu
inside=$1

cat >/etc/network/interfaces.d/matrix <<END
auto $inside
iface $inside inet dhcp
END
# The resolver and the default route are the inside network's.
cat >/etc/dhcp/dhclient-enter-hooks.d/matrix <<END
if [ "\$interface" != "$inside" ]; then unset new_routers new_domain_name_servers new_domain_name; fi
END
cat >/etc/apt/apt.conf.d/00matrix <<'END'
Acquire::http::Proxy "http://10.10.10.1:3128";
Acquire::https::Proxy "http://10.10.10.1:3128";
END
# A cloned machine must not bring its template's identity.
rm -f /etc/machine-id /var/lib/dbus/machine-id
systemd-machine-id-setup

ip route del default 2>/dev/null || true
ifdown "$inside" 2>/dev/null || true
ifup "$inside"
for _ in $(seq 50); do ip -4 addr show dev "$inside" | grep -q 'inet 10\.10\.10\.' && exit 0; sleep 0.2; done
echo "error: no address from the gateway on $inside: is the gateway up?" >&2
exit 1
