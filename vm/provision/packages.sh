#!/bin/sh
# Installs what is missing on a bare Debian or Ubuntu: packages.sh run (a lab, the demo) or packages.sh test (all tests too).
# Says nothing and takes no time when all is there. Services the packages bring do not start: a lab runs its own.
set -eu

lab="gcc libc6-dev tcc mmdebstrap dnsmasq-base iptables iproute2 util-linux mount procps openssh-client varnish docker-registry curl ca-certificates"
tests="openssh-server skopeo buildah podman openssl apache2-utils wrk jq chromium chromium-driver vagrant busybox-static"
# what other releases call them, or do not have
alternatives="chromium-driver:chromium-chromedriver chromium:chromium-browser"

case "${1:-}" in
run) wanted=$lab ;;
test) wanted="$lab $tests" ;;
*) echo "usage: $0 run|test" >&2; exit 2 ;;
esac

command -v cargo >/dev/null || {
    echo "error: cargo is missing" >&2
    echo "  hint: install Rust 1.90 or later from https://rustup.rs (the distribution's own is older)" >&2
    exit 1
}

# shellcheck disable=SC2086
missing() { dpkg-query -W -f '${db:Status-Status} ${Package}\n' $1 2>/dev/null | sed -n 's/^installed //p' | {
    there=" $(tr '\n' ' ')"
    for package in $1; do case "$there" in *" $package "*) ;; *) printf '%s ' "$package" ;; esac; done
}; }

absent=$(missing "$wanted")
[ -z "$absent" ] && exit 0

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo"
if [ -n "$as_root" ] && ! command -v sudo >/dev/null; then
    echo "error: root is needed to install: $absent" >&2
    echo "  hint: as root: apt-get install -y --no-install-recommends $absent" >&2
    exit 1
fi

$as_root apt-get -qq update
install=
for package in $absent; do
    candidate=$package
    if ! apt-cache policy "$package" | grep -q 'Candidate: [^(]'; then
        candidate=
        for pair in $alternatives; do
            [ "${pair%%:*}" = "$package" ] && apt-cache policy "${pair#*:}" | grep -q 'Candidate: [^(]' && candidate=${pair#*:}
        done
    fi
    if [ -n "$candidate" ]; then
        [ -z "$(missing "$candidate")" ] || install="$install $candidate"
    else
        case " $lab " in
        *" $package "*) echo "error: this distribution has no package $package" >&2; exit 1 ;;
        *) echo "warning: this distribution has no package $package; the tests that need it are left out" >&2 ;;
        esac
    fi
done
[ -z "$install" ] && exit 0
echo "installing$install"

# 101: a package's script may not start its service.
policy=/usr/sbin/policy-rc.d
if ! [ -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod 755 $policy
    # shellcheck disable=SC2064
    trap "$as_root rm -f $policy" EXIT
    trap 'exit 130' INT TERM
fi
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $install >/dev/null

# Nor at the next start of this machine, where they were not wanted before.
if [ -d /run/systemd/system ]; then
    for pair in varnish:varnish varnish:varnishncsa docker-registry:docker-registry openssh-server:ssh; do
        case " $install " in *" ${pair%:*} "*) $as_root systemctl -q disable --now "${pair#*:}" 2>/dev/null || true ;; esac
    done
fi
