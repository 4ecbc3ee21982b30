#!/usr/bin/env bash
# What can be seen of an appliance in a machine without asking it. Source it after machine.sh; the path of
# the machine is in `machine`.

DEMO_URL=http://127.0.0.1:18080/
READY_URL=https://127.0.0.1:7443/ready

lab() { machine_run "${machine:?}" "$@"; }
# The certificate is the cluster's own.
answers() { lab curl --insecure --fail --silent --show-error --max-time 5 --output /dev/null "$@"; }
ready() { wait_for 60 answers "$READY_URL"; }
demo_answers() { wait_for 60 answers "$DEMO_URL"; }
no_demo() { ! answers "$DEMO_URL"; }

exists() { lab test -e "$1"; }
gone() { ! exists "$1"; }
mode_is() { [[ $(lab stat --format %a "$1") == "$2" ]]; }
# Prints the ids of the processes with a name: process_ids NAME
process_ids() {
  # shellcheck disable=SC2016 # expanded inside
  lab sh -c 'grep --files-with-matches --line-regexp "$0" /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3' "$1"
}

no_process() { same "" "$(process_ids "$1")"; }

# Prints every process that lives in a pid namespace of its own, with its start time: the containers.
containers() {
  # shellcheck disable=SC2016 # expanded inside
  lab sh -c '
    own=$(readlink /proc/self/ns/pid)
    for process in /proc/[0-9]*; do
      space=$(readlink "$process/ns/pid" 2>/dev/null) || continue
      [ "$space" = "$own" ] || echo "${process#/proc/} started $(cut -d" " -f22 "$process/stat")"
    done | sort'
}

has_containers() { [[ -n $(containers) ]]; }

# Prints what an installation may leave behind: files, mounts, links, firewall rules, containerd namespaces.
# The folders that containerd makes for itself when it starts do not count.
traces() {
  lab sh -c '
    find /etc /usr /opt /var/lib/toft /run/toft -xdev 2>/dev/null | grep -v -e /ld.so.cache -e ^/opt/containerd -e ^/etc/cni | sort
    findmnt --noheadings --list --output TARGET | grep -v -e ^/run/credentials -e ^/proc/sys | sort
    ip -brief link | cut -d" " -f1 | sort
    nft list ruleset 2>/dev/null
    [ ! -S /run/containerd/containerd.sock ] || ctr namespaces list --quiet
    ls -d /sys/fs/cgroup/*/toft* 2>/dev/null || true'
}
