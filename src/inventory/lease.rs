//! dnsmasq leases file.
