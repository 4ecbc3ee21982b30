#!/usr/bin/env bash
# A whole Debian machine with systemd for tests: a systemd-nspawn container with containerd, runc and
# nftables inside and no network but its own loopback.
#
# As a library: source it, then `machine_open DIR boot` creates and boots a machine that is destroyed when the
# shell exits. As a command: see usage.
set -euo pipefail

LAB_SUITE=bookworm
LAB_PACKAGES=systemd,systemd-sysv,dbus,iproute2,kmod,containerd,runc,nftables,curl,ca-certificates
LAB_CACHE=${TOFT_LAB_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/toft-lab}
LAB_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LAB_BOOT_SECONDS=60
LAB_COMMAND_SECONDS=${TOFT_LAB_COMMAND_SECONDS:-300}
LAB_READ_ONLY=()

usage() {
  cat <<EOF
usage: machine.sh COMMAND [DIR] [...]

  cache                    make the cached root file system if missing, print its path
  create DIR               make a machine whose files live under DIR
  boot DIR                 start it and wait until systemd has finished booting
  start DIR                start it without systemd: nothing runs inside but what is run
  run DIR COMMAND...       run a command inside as root, with its exit code and output
  copy DIR SOURCE TARGET   copy a file or folder of the host to an absolute path inside
  reboot DIR               reboot and wait
  poweroff DIR             shut down and wait
  destroy DIR              end it, with everything that was made for it

TOFT_LAB_CACHE (now $LAB_CACHE) holds the cached roots.
EOF
}

lab_say() { printf 'lab: %s\n' "$*" >&2; }
lab_die() { lab_say "$*"; return 1; }

# Waits until COMMAND succeeds, at most SECONDS: wait_for SECONDS COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# Where Debian packages come from on this host, so that debootstrap uses the same mirror as apt.
debian_mirror() {
  # shellcheck disable=SC2016 # apt expands these
  apt-get indextargets --format '$(CODENAME) $(SITE)' "Created-By: Packages" 2>/dev/null |
    awk -v suite="$LAB_SUITE" '$1 == suite { print $2; exit }'
}

# Writes what a machine needs beyond its packages: writable version 1 cgroups before containerd starts
# (systemd-nspawn mounts them read-only), a bounded shutdown, no login prompt on the console.
prepare_root() {
  local root=$1
  cat >"$root/usr/local/sbin/lab-cgroups" <<'EOF'
#!/bin/sh
findmnt --noheadings --list --types cgroup --output TARGET | while read -r target; do
  mount -o remount,bind,rw "$target"
done
EOF
  chmod 0755 "$root/usr/local/sbin/lab-cgroups"
  cat >"$root/etc/systemd/system/lab-cgroups.service" <<'EOF'
[Unit]
Description=Writable cgroups for containers
Before=containerd.service toft.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-cgroups

[Install]
WantedBy=multi-user.target
EOF
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/etc/systemd/system.conf.d"
  ln -s ../lab-cgroups.service "$root/etc/systemd/system/multi-user.target.wants/"
  ln -s /dev/null "$root/etc/systemd/system/console-getty.service"
  printf '[Manager]\nDefaultTimeoutStopSec=10s\n' >"$root/etc/systemd/system.conf.d/lab.conf"
  echo lab >"$root/etc/hostname"
  printf '127.0.0.1 localhost lab\n::1 localhost\n' >"$root/etc/hosts"
}

# Makes a root file system at a path.
make_root() {
  local root=$1 mirror
  mirror=$(debian_mirror)
  debootstrap --variant=minbase --include="$LAB_PACKAGES" "$LAB_SUITE" "$root" ${mirror:+"$mirror"} &&
    # The package of nft stays, so that a test without a network can install it anew.
    find "$root/var/cache/apt/archives" -name '*.deb' ! -name 'nftables_*' -delete &&
    prepare_root "$root"
}

# Names the cached root after everything that decides its content.
cache_key() {
  { echo "$LAB_SUITE $LAB_PACKAGES $(dpkg --print-architecture)"; declare -f make_root prepare_root; } |
    sha256sum | cut -c1-16
}

# Prints the path of the cached root file system, making it first if it is missing.
machine_cache() {
  local root log=$LAB_CACHE/debootstrap.log
  root=$LAB_CACHE/$LAB_SUITE-$(cache_key)
  mkdir -p "$LAB_CACHE"
  (
    flock 9
    [[ ! -d $root ]] || exit 0
    lab_say "making the root file system $root (about a minute)"
    rm -rf "$root.partial"
    make_root "$root.partial" >"$log" 2>&1 && mv "$root.partial" "$root" ||
      { tail -n 20 "$log" >&2; lab_die "no root file system, see $log"; }
  ) 9>"$LAB_CACHE/lock" || return 1
  echo "$root"
}

# Makes a machine under DIR: the cached root below an overlay, and a /var/lib of its own on the host's
# file system, because containerd's overlay snapshots cannot lie on an overlay.
machine_create() {
  local dir=$1 base
  [[ ! -e $dir/root ]] || lab_die "there is a machine in $dir already" || return 1
  base=$(machine_cache) || return 1
  mkdir -p "$dir"/{root,upper,work,var-lib} &&
    mount -t overlay -o "lowerdir=$base,upperdir=$dir/upper,workdir=$dir/work" toft-lab "$dir/root" &&
    cp -a "$base/var/lib/." "$dir/var-lib/"
}

# Prints where the hierarchy with this controller (none: version 2) is mounted.
cgroup_mount() {
  local target
  if [[ -z $1 ]]; then
    target=$(findmnt --noheadings --list --types cgroup2 --output TARGET)
  else
    target=$(findmnt --noheadings --list --types cgroup --options "${1%%,*}" --output TARGET)
  fi
  [[ -n $target ]] && head -n 1 <<<"$target"
}

# Prints the cgroup directories of a process, one for every hierarchy.
cgroups_of() {
  local controllers path mount
  while IFS=: read -r _ controllers path; do
    mount=$(cgroup_mount "$controllers") || continue
    echo "$mount${path%/}"
  done <"/proc/$1/cgroup"
}

# Moves this shell into the listed cgroups, making them first.
enter_cgroups() {
  local group file
  while read -r group; do
    mkdir -p "$group"
    for file in cpuset.cpus cpuset.mems; do
      [[ ! -e $group/$file || -n $(<"$group/$file") ]] || cat "${group%/*}/$file" >"$group/$file"
    done
    echo "$BASHPID" >"$group/cgroup.procs"
  done
}

# Removes the cgroups listed in a file, deepest first.
remove_cgroups() {
  local group
  while read -r group; do
    [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null ||
      lab_say "cgroup $group could not be removed"
  done <"$1"
}

# Prints the process id of systemd-nspawn if the machine runs.
machine_pid() {
  local pid
  pid=$(cat "$1/nspawn.pid" 2>/dev/null) || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == systemd-nspawn ]] && echo "$pid"
}

# Prints the process id, on the host, of a machine's first process.
machine_leader() {
  local pid
  pid=$(machine_pid "$1") || lab_die "the machine in $1 is not running" || return 1
  pgrep --oldest --parent "$pid" || lab_die "the machine in $1 has no first process"
}

# Runs a command in the namespaces of a machine's first process, outside of its units.
machine_enter() {
  local leader
  leader=$(machine_leader "$1") || return 1
  shift
  nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wd env -i "PATH=$LAB_PATH" "$@"
}

# Runs a command inside, in the machine's cgroups: as a unit of its own where systemd runs.
machine_run() {
  local dir=$1
  shift
  if [[ ! -e $dir/booted ]]; then
    (
      enter_cgroups < <(cgroups_of "$(machine_leader "$dir")")
      machine_enter "$dir" env HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        timeout "$LAB_COMMAND_SECONDS" "$@"
    )
    return
  fi
  machine_enter "$dir" systemd-run --quiet --pipe --wait --collect --property=RuntimeMaxSec="$LAB_COMMAND_SECONDS" \
    --setenv=PATH="$LAB_PATH" --setenv=HOME=/root --setenv=LC_ALL=C.UTF-8 --setenv=DEBIAN_FRONTEND=noninteractive \
    -- "$@"
}

machine_booted() {
  [[ $(machine_enter "$1" systemctl is-system-running 2>/dev/null) =~ ^(running|degraded)$ ]]
}

# Starts systemd-nspawn in the background, apart from the caller's session and cgroups: start_nspawn DIR WHAT...
start_nspawn() {
  local dir=$1 device
  local options=(--directory="$dir/root" --bind="$dir/var-lib:/var/lib" --machine="toft-lab-$(basename "$dir")"
    --hostname=lab --register=no --keep-unit --private-network --capability=all
    --system-call-filter="@privileged @mount bpf keyctl add_key" --console=pipe)
  for device in /dev/net/tun /dev/fuse; do
    [[ ! -e $device ]] || options+=(--bind="$device")
  done
  # Folders of the host that the sourcing script shows inside, each as SOURCE:TARGET.
  options+=("${LAB_READ_ONLY[@]/#/--bind-ro=}")
  cgroups_of self | sed "s|\$|/toft-lab-$(basename "$dir")|" >"$dir/cgroups"
  (
    enter_cgroups <"$dir/cgroups"
    exec setsid systemd-nspawn "${options[@]}" "${@:2}"
  ) </dev/null >>"$dir/console.log" 2>&1 9>&- &
  echo $! >"$dir/nspawn.pid"
}

machine_boot() {
  local dir=$1
  ! machine_pid "$dir" >/dev/null || lab_die "the machine in $dir is running already" || return 1
  touch "$dir/booted"
  start_nspawn "$dir" --boot
  wait_for "$LAB_BOOT_SECONDS" machine_booted "$dir" && return 0
  tail -n 20 "$dir/console.log" >&2
  lab_die "the machine in $dir did not boot in $LAB_BOOT_SECONDS seconds"
}

# Starts a machine on which systemd is not in charge, as on other distributions or in a rescue shell.
machine_start() {
  local dir=$1
  ! machine_pid "$dir" >/dev/null || lab_die "the machine in $dir is running already" || return 1
  rm -f "$dir/booted"
  start_nspawn "$dir" --as-pid2 sleep infinity
  wait_for "$LAB_BOOT_SECONDS" machine_enter "$dir" true && machine_run "$dir" lab-cgroups && return 0
  tail -n 20 "$dir/console.log" >&2
  lab_die "the machine in $dir did not start"
}

machine_stopped() { ! machine_pid "$1"; }

# Asks init for an orderly end and waits: machine_end DIR reboot|poweroff
machine_end() {
  machine_enter "$1" systemctl "$2" || true
  wait_for "$LAB_BOOT_SECONDS" machine_stopped "$1" || lab_die "the machine in $1 did not shut down"
}

machine_poweroff() { machine_end "$1" poweroff; }

# systemd-nspawn that belongs to no unit of the host ends at a reboot, so the machine is started again.
machine_reboot() {
  machine_end "$1" reboot && machine_boot "$1"
}

machine_copy() {
  mkdir -p "$1/root$(dirname "$3")"
  cp -a "$2" "$1/root$3"
}

# Ends a machine at once if it still runs and removes its mounts, cgroups and files.
machine_destroy() {
  local dir=$1 pid leader
  if pid=$(machine_pid "$dir"); then
    leader=$(pgrep --oldest --parent "$pid" || true)
    kill -KILL ${leader:+"$leader"} 2>/dev/null || true
    wait_for 5 machine_stopped "$dir" || kill -KILL "$pid" 2>/dev/null || true
    wait_for 5 machine_stopped "$dir" || lab_say "systemd-nspawn ($pid) of $dir does not end"
  fi
  ! mountpoint -q "$dir/root" || umount "$dir/root" || umount --lazy "$dir/root"
  [[ ! -e $dir/cgroups ]] || remove_cgroups "$dir/cgroups"
  rm -rf --one-file-system "$dir"
}

# Creates a machine that ends with this shell, however the shell ends: machine_open DIR boot|start
machine_open() {
  # shellcheck disable=SC2064 # the directory of now is meant
  trap "machine_destroy '$1'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  machine_create "$1" && "machine_$2" "$1"
}

machine_main() {
  [[ $EUID -eq 0 ]] || { lab_say "run as root"; exit 1; }
  case "${1-}:$#" in
    cache:1) machine_cache ;;
    create:2 | boot:2 | start:2 | reboot:2 | poweroff:2 | destroy:2) "machine_$1" "$2" ;;
    copy:4) machine_copy "$2" "$3" "$4" ;;
    run:[12]) usage >&2; exit 2 ;;
    run:*) machine_run "${@:2}" ;;
    --help:1 | -h:1) usage ;;
    *) usage >&2; exit 2 ;;
  esac
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  machine_main "$@"
fi
