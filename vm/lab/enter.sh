#!/bin/sh
# enter.sh CGROUP NETNS HOSTNAME RESOLV KEEP COMMAND…: runs a command on a machine of the lab that is only a network namespace.
# KEEP is `once`, or `keep`: it is started again whenever it ends. Not `ip netns exec`: that hides /sys/fs/cgroup.
[ "${1:-}" = --inside ] && {
    shift
    echo "$1" >/proc/sys/kernel/hostname
    # a symbolic link (systemd-resolved) is followed; without the file, names are not resolved
    [ -e /etc/resolv.conf ] && mount --bind "$2" /etc/resolv.conf
    keep=$3
    shift 3
    [ "$keep" = once ] && exec "$@"
    while :; do
        started=$(date +%s)
        "$@"
        echo "supervisor: $1 ended with $?, again at once"
        # something that cannot start at all is not tried five times a second
        [ $(($(date +%s) - started)) -ge 2 ] && sleep 0.1 || sleep 0.5
    done
}
echo $$ >"$1/cgroup.procs" || exit 1
netns=$2
shift 2
exec nsenter --net="/run/netns/$netns" unshare --mount --uts sh "$0" --inside "$@"
