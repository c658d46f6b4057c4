#!/bin/bash
# From nothing to a running cloud, and a node lost without anybody noticing: demo.sh MATRIX (the built program). Root.
# What it shows as `$ …` is what a user would type. Archives are kept in target/demo: a second run builds no base again.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:?the built program}")
began=$SECONDS
archives=target/demo
mkdir -p $archives

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
matrix() {
    echo "\$ matrix $*"
    "$binary" "$@"
}
# answers PATH COUNT: how many of so many requests are answered, and by how many instances
answers() {
    local good=0 answer who=""
    for _ in $(seq "$2"); do
        # nginx-site names its container in a header, hello in its page
        if answer=$(curl -sf -m 5 -i "$varnish$1"); then
            good=$((good + 1))
            who+=$(printf '%s' "$answer" | tr -d '\r' | sed -nE 's/^X-Instance: (.*)/\1/Ip; s|.*instance <b>(.*)</b>.*|\1|p')$'\n'
        fi
    done
    echo "$varnish$1: $good of $2 requests answered, by $(printf '%s' "$who" | sort -u | wc -l) instance(s)"
    [ $good = "$2" ]
}

step "A cloud of three nodes on this machine"
matrix lab --name demo up --nodes 3
eval "$("$binary" lab --name demo env)"
varnish=$("$binary" lab status --json | sed -n 's|^  "varnish": "\(.*\)/",*$|\1|p')
page=$("$binary" lab status --json | sed -n 's|^  "page": "\(.*\)",*$|\1|p')

step "Two images, made without an engine"
matrix create-image simplewebapp1 vm/apps/simplewebapp1 --output $archives/simplewebapp1.tar
[ -e $archives/web-base.tar ] ||
    matrix create-base web-base --packages nginx-light --output $archives/web-base.tar
matrix create-image nginx-site vm/apps/nginx-site --base $archives/web-base.tar --output $archives/nginx-site.tar
matrix install-image $archives/simplewebapp1.tar
matrix install-image $archives/nginx-site.tar

step "One plan"
grep -v '^#' plans/demo.toml | sed 's/^/  /'
matrix deploy plans/demo.toml
matrix status

step "Through the gateway"
answers /simplewebapp1/ 10
answers /nginx-site/ 10

victim=$("$binary" status --json | sed -nE 's/^ *"node": "([^"]*)",?$/\1/p' | sort | uniq -c | sort -rn | awk 'NR == 1 { print $2 }')
step "The power cord of $victim is pulled"
matrix lab poweroff "$victim"
answers /simplewebapp1/ 20
answers /nginx-site/ 20
matrix lab status

step "The cloud stays up ($((SECONDS - began)) s)"
cat <<END
  page       $page
  requests   $varnish/simplewebapp1/   $varnish/nginx-site/
  commands   eval "\$($binary lab --name demo env)"; matrix status
  the node   matrix lab --name demo boot $victim
  the end    make demo-down
END
