#!/usr/bin/env bash
# Proves that two machines with kernels of their own become one cluster over the kernel's WireGuard, and stay one when one of
# them loses its power and comes back under another address. The package is installed as users install it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/machine.sh
source "$here/machine.sh"
# shellcheck source=tests/lab/vm_machine.sh
source "$here/vm_machine.sh"
# shellcheck source=tests/lab/checks.sh
source "$here/checks.sh"

# The longest time for one step, in seconds: two emulated machines on two busy processors are slow.
STEP=300

usage() {
  cat <<EOF
usage: two_vms.sh [DEB]

Boots two Debian machines under qemu with a network between them and installs DEB on both; without DEB, a package is built
with profile ci. The first makes a token, the second joins, and what runs on one reaches what runs on the other by name, through
WireGuard in the kernel. Then the second loses its power, is started again with another address, and is a member as before.
EOF
}

# Makes an archive of an image that serves a page with its host name, and has a shell of ROOT that finds names: the busybox of
# Debian is linked so that it cannot. make_image ARCHIVE ROOT
make_image() {
  local folder layer file
  folder=$(mktemp --directory)
  mkdir -p "$folder/layer/bin" "$folder/layer/www" "$folder/layer/tmp"
  cp /bin/busybox "$folder/layer/bin/busybox"
  ln -s busybox "$folder/layer/bin/sh"
  for file in bin/bash lib64/ld-linux-x86-64.so.2 lib/x86_64-linux-gnu/{libc.so.6,libtinfo.so.6}; do
    install -D "$2/$file" "$folder/layer/$file"
  done
  tar -C "$folder/layer" -cf "$folder/layer.tar" .
  layer=$(sha256sum "$folder/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh","-c","%s"],"Env":["PATH=/bin"]},
    "rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    'busybox hostname >/www/index.html; exec busybox httpd -f -p 80 -h /www' "$layer" >"$folder/config.json"
  echo '[{"Config":"config.json","RepoTags":["page:latest"],"Layers":["layer.tar"]}]' >"$folder/manifest.json"
  tar -C "$folder" -cf "$1" manifest.json config.json layer.tar
  rm -rf "$folder"
}

# What both machines do first. The name of each is on its kernel's command line.
write_common() {
  cat <<'EOF'
say() { echo "lab: $*"; }
fail() { say "FAILED: $*"; exit 1; }
# until_so SECONDS WHAT COMMAND...
until_so() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + $1)); what=$2; shift 2
  until "$@" >/tmp/last 2>&1; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { cat /tmp/last; toft node ls; toft ps; toft events | tail -n 20; fail "$what"; }
    sleep 1
  done
  say "ok $what"
}
ready() { toft node ls | grep -q ready; }
cable=$(basename "$(dirname "$(ls -d /sys/class/net/*/device | head -n 1)")")
address() {
  ip address flush dev "$cable" && ip address add "$1/24" dev "$cable" && ip link set "$cable" up || fail "no address"
}
install_toft() {
  dpkg --install /srv/toft.deb >/tmp/install 2>&1 || { cat /tmp/install; fail "the package cannot be installed"; }
}
mkdir -p /root; export HOME=/root LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
modprobe wireguard || fail "the kernel has no WireGuard"
EOF
}

# The first machine: it leads and looks at everything.
write_first() {
  echo '#!/bin/bash'
  write_common
  cat <<EOF
step=$STEP
EOF
  cat <<'EOF'
address 10.77.0.1
hostname a
install_toft
until_so $step "a is ready" ready
toft image import /srv/page.tar >/tmp/import 2>&1 || fail "the image cannot be imported"
mkdir -p /run/share
toft token create --json >/run/share/token || fail "no token"
busybox httpd -p 10.77.0.1:8000 -h /run/share
both() { [ "$(toft node ls --json | grep -o '"state": *"ready"' | wc -l)" = 2 ]; }
until_so $step "both are ready" both
in_kernel() { ip -details link show toft-wg | grep -q wireguard; }
until_so 30 "the mesh is WireGuard of the kernel" in_kernel
direct() { toft mesh show | tee /tmp/mesh | grep -q direct; }
until_so $step "they reach each other directly" direct
cat /tmp/mesh
# starts NAME OPTION... starts a workload and waits until it runs.
runs() { toft ps 2>/dev/null | grep "^$1-0 " | grep -q running; }
starts() {
  name=$1; shift
  toft run --no-wait --pull never --name "$name" "$@" >/tmp/run 2>&1 || { cat /tmp/run; fail "$name is refused"; }
  until_so $step "$name runs" runs "$name"
}
starts pinned --node b page
starts web --affinity 'node.hostname == b weight 100' page
starts client --node a --entrypoint /bin/sh page -c 'exec busybox sleep 100000'
asks() {
  toft exec client -- busybox timeout 5 bash -c \
    'exec 3<>"/dev/tcp/$1/80" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && busybox cat <&3' ask "$1" | grep -q '200 OK'
}
until_so 60 "what runs on a reaches what runs on b by name" asks pinned
until_so 60 "so it does another" asks web
on() { toft ps 2>/dev/null | grep "^$1-0 " | grep -qw "$2"; }
until_so 10 "web runs on b" on web b
before=$(cat /sys/class/net/toft-wg/statistics/tx_bytes)
asks pinned >/dev/null
[ "$(cat /sys/class/net/toft-wg/statistics/tx_bytes)" -gt "$before" ] || fail "it did not go through the mesh"
say "ok it went through the mesh"

say "cut b"
lost() { toft node ls | grep '^b ' | grep -Eq 'down|fenced'; }
until_so $step "b counts as down" lost
until_so $step "web runs on a" on web a
until_so 60 "web answers again" asks web
say "start b"
until_so $step "b is back" both
until_so $step "pinned answers again" asks pinned
until_so 60 "web answers still" asks web
toft mesh show
toft mesh show | grep -q 10.77.0.22 || fail "b is not known at its new address"
say "ok b is known at its new address"
once() { [ "$(toft ps | grep -c '^web-')" = 1 ]; }
until_so 60 "web runs once" once
say "everything held"
say "end b"
EOF
}

# The second joins once; after its power was cut it finds the cluster by itself, under another address.
write_second() {
  echo '#!/bin/bash'
  write_common
  cat <<EOF
step=$STEP
EOF
  cat <<'EOF'
hostname b
if [ -e /var/lib/toft/cluster ]; then
  address 10.77.0.22
  until_so $step "b is ready again" ready
else
  address 10.77.0.2
  install_toft
  until_so $step "b is ready" ready
  fetch() {
    exec 3<>/dev/tcp/10.77.0.1/8000 && printf 'GET /token HTTP/1.0\r\n\r\n' >&3 && cat <&3 >/tmp/token && grep -q '"token"' /tmp/token
  }
  until_so $step "the token is there" fetch
  grep -o '"token": *"[^"]*"' /tmp/token | cut -d'"' -f4 >/tmp/secret
  toft image import /srv/page.tar >/tmp/import 2>&1 || fail "the image cannot be imported"
  toft join 10.77.0.1 --token-file /tmp/secret >/tmp/join 2>&1 || { cat /tmp/join; fail "b cannot join"; }
fi
say "b waits for its end"
sleep 100000
EOF
}

# make_disk DIR NAME: what the machine NAME is to run, with what it needs for it.
make_disk() {
  local payload=$1/payload-$2
  mkdir -p "$payload"
  cp "$1/toft.deb" "$1/page.tar" "$payload"
  case $2 in a) write_first ;; b) write_second ;; esac >"$payload/run"
  chmod 0755 "$payload/run"
  truncate --size 160M "$1/$2.payload"
  mke2fs -q -t ext4 -d "$payload" "$1/$2.payload"
  cp --sparse=always "$disk" "$1/$2.img"
}

# Boots machine NAME in the background and notes its process: boot DIR NAME LINK
boot() {
  local place=52:54:00:77:00:01
  [[ $2 == a ]] || place=52:54:00:77:00:02
  vm_command "$root"
  "${VM_COMMAND[@]}" -m 1536 -name "$2" -drive "file=$1/$2.img,format=raw,if=virtio,cache=writethrough" \
    -drive "file=$1/$2.payload,format=raw,if=virtio,readonly=on" \
    -netdev "$3" -device "virtio-net-pci,netdev=net,mac=$place" </dev/null >>"$1/$2.log" 2>&1 &
  echo $! >"$1/$2.pid"
}

# Takes the power from a machine: cut DIR NAME
cut_power() {
  local pid
  pid=$(cat "$1/$2.pid" 2>/dev/null) || return 0
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == qemu* ]] || return 0
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null || true
}

said() { tr -d '\r' <"$1/$2.log" | grep --quiet --fixed-strings "lab: $3"; }
ended() { [[ ! -e /proc/$(cat "$1/$2.pid") ]]; }
said_or_ended() { said "$@" || ended "$1" "$2"; }

# Waits until machine a says something: await DIR WORDS
await() {
  wait_for $((STEP * 4)) said_or_ended "$1" a "$2" && said "$1" a "$2"
}

main() {
  local deb='' port
  case "${1-}:$#" in
    :0) ;;
    -*) usage >&2; exit 2 ;;
    *:1) deb=$(realpath "$1") ;;
    *) usage >&2; exit 2 ;;
  esac
  [[ $EUID -eq 0 ]] || { echo "run as root" >&2; exit 1; }
  [[ $(uname -m) == x86_64 ]] || { echo "the machines are ones for x86-64" >&2; exit 1; }
  cd "$here/../.."
  [[ -n $deb ]] || deb=$(packaging/build-deb.sh ci | tail -n 1)
  dir=$(mktemp --directory --tmpdir toft-two-vms.XXXXXX)
  trap 'cut_power "$dir" a; cut_power "$dir" b; rm -rf "$dir"' EXIT
  choose_accelerator
  root=$(machine_cache)
  disk=$(vm_disk "$root")
  cp "$deb" "$dir/toft.deb"
  make_image "$dir/page.tar" "$root"
  make_disk "$dir" a
  make_disk "$dir" b
  # Each sends to the port of the other on loopback: a cable between them.
  port=$((20000 + RANDOM % 20000))
  local cable=dgram,id=net,local.type=inet,local.host=127.0.0.1,remote.type=inet,remote.host=127.0.0.1
  boot "$dir" a "$cable,local.port=$port,remote.port=$((port + 1))"
  boot "$dir" b "$cable,local.port=$((port + 1)),remote.port=$port"
  check "two machines are one cluster over the kernel's WireGuard" await "$dir" "cut b"
  cut_power "$dir" b
  check "what ran on the one that lost its power runs elsewhere" await "$dir" "start b"
  boot "$dir" b "$cable,local.port=$((port + 1)),remote.port=$port"
  check "it comes back under another address, with what is bound to it" await "$dir" "everything held"
  tr -d '\r' <"$dir/a.log" | grep '^lab: ' || true
  if ((CHECKS_FAILED > 0)); then
    tr -d '\r' <"$dir/a.log" | tail -n 60
    tr -d '\r' <"$dir/b.log" | tail -n 30
  fi
  checks_finish
}

main "$@"
