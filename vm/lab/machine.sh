#!/bin/sh
# One node of the lab: a network namespace on the switch, a private root file system, a PID 1. `matrix lab` starts it with:
#   NODE MAC         the node's name and hardware address
#   DIR ROOTFS GLUE  the node's own files; the shared root file system; the folder of this script
#   SWITCH NETNS PORT  names of the switch's and the node's network namespace and of the node's port on the switch
#   SUPERVISOR       the cgroup this script lives in
#   CGROUP_VERSION NODE_CGROUPS HIERARCHIES   1 or 2; the node's cgroups; for version 1 `mount point's name:mount options` each
# The node is on as long as this runs. Ends when the node was switched off ($DIR/off).
set -u

# Runs as the node's PID 1, in its namespaces, and becomes its init.
inner() {
    root=$DIR/root
    mkdir -p "$root" "$DIR/upper" "$DIR/work" "$DIR/docker"
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$ROOTFS,upperdir=$DIR/upper,workdir=$DIR/work" "$root" || exit 1
    cd "$root" || exit 1
    # the glue is not part of the cached file system: changing it does not build that again
    mkdir -p var/lib/docker etc/ssh .old
    install -m 755 "$GLUE/node-init" sbin/node-init
    install -m 755 "$GLUE/node-restart" sbin/reboot
    install -m 755 "$GLUE/node-restart" sbin/poweroff
    install -m 644 "$DIR/../../id_ed25519.pub" etc/ssh/authorized_keys

    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t tmpfs -o mode=755 dev dev
    for device in null zero full random urandom tty fuse; do
        [ -e "/dev/$device" ] && : >"dev/$device" && mount --bind "/dev/$device" "dev/$device"
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
    mount -t tmpfs -o mode=1777 shm dev/shm
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    ln -s /proc/self/fd/0 dev/stdin
    ln -s /proc/self/fd/1 dev/stdout
    ln -s /proc/self/fd/2 dev/stderr
    mount -t tmpfs -o mode=755 run run
    mount -t tmpfs -o mode=1777 tmp tmp
    # a real file system: the engine's overlays cannot stand on this root's overlay
    mount --bind "$DIR/docker" var/lib/docker
    if [ "$CGROUP_VERSION" = 2 ]; then
        mount -t cgroup2 cgroup2 sys/fs/cgroup
    else
        mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
        for hierarchy in $HIERARCHIES; do
            mkdir "sys/fs/cgroup/${hierarchy%%:*}"
            mount -t cgroup -o "${hierarchy#*:}" cgroup "sys/fs/cgroup/${hierarchy%%:*}"
        done
    fi
    echo "$NODE" >/proc/sys/kernel/hostname
    echo "$NODE" >etc/hostname
    pivot_root . .old || exit 1
    cd /
    umount -l /.old
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root container=matrix-lab \
        CGROUP_VERSION="$CGROUP_VERSION" tini -- /sbin/node-init </dev/null
}

# A fresh network namespace at each power-on, as a machine has: stale bridges and filter rules would refuse connections.
plug() {
    ip -n "$SWITCH" link del "$PORT" 2>/dev/null
    ip netns del "$NETNS" 2>/dev/null
    ip netns add "$NETNS" || return 1
    ip link add "$PORT" netns "$SWITCH" type veth peer name eth0 netns "$NETNS" address "$MAC" || return 1
    ip -n "$SWITCH" link set "$PORT" master br0 up
}

power_on() {
    # What the last power-on left. Of version 2 the node's own group too: it hands controllers down, and takes no process then.
    for cgroup in $NODE_CGROUPS; do
        find "$cgroup" -mindepth $((2 - CGROUP_VERSION)) -depth -type d -exec rmdir {} + 2>/dev/null
        mkdir -p "$cgroup"
    done
    mkdir -p "$DIR/upper/var/log"
    [ -e "$DIR/upper/var/log/docker.log" ] && mv "$DIR/upper/var/log/docker.log" "$DIR/upper/var/log/docker.log.1"
    plug || return 1
    (
        for cgroup in $NODE_CGROUPS; do echo 0 >"$cgroup/cgroup.procs" || exit 1; done
        exec nsenter --net="/run/netns/$NETNS" unshare --mount --uts --ipc --pid --cgroup --fork --kill-child \
            sh "$GLUE/machine.sh" inner
    ) &
    launcher=$!
    if [ "$CGROUP_VERSION" = 2 ]; then
        # A process left in the root of the node's cgroup would forbid it to hand controllers down.
        while kill -0 $launcher 2>/dev/null && ! pgrep -P $launcher >/dev/null; do sleep 0.01; done
        echo $launcher >"$SUPERVISOR/cgroup.procs"
    fi
    wait $launcher
}

case "${1:-}" in
inner) inner ;;
*)
    echo $$ >"$SUPERVISOR/cgroup.procs" || exit 1
    while ! [ -e "$DIR/off" ]; do
        echo "power on $(date '+%F %T')"
        power_on
        status=$?
        echo "ended with $status $(date '+%F %T')"
        # reboot(2) ends a PID namespace's init with SIGHUP (restart) or SIGINT (power off)
        [ $status = 130 ] && : >"$DIR/off"
        [ $status = 129 ] || sleep 0.3
    done
    ip -n "$SWITCH" link del "$PORT" 2>/dev/null
    ip netns del "$NETNS" 2>/dev/null
    ;;
esac
