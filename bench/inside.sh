#!/usr/bin/env bash
# Inside the bench's own namespaces: gives the engines private places where they would use the machine's, then runs
# the command. As the first process it also buries what the engines leave behind. Usage: inside.sh WORK COMMAND...
set -euo pipefail

work=$1
shift
ip link set lo up
mkdir -p "$work/etc" "$work/etc-work"
for shared in /run /dev/shm; do
  mount -t tmpfs -o mode=755 bench "$shared"
done
mkdir -p /run/lock
mount -t overlay -o "lowerdir=/etc,upperdir=$work/etc,workdir=$work/etc-work" bench /etc
# Copies of the programs: those that others run would take a share of the memory that is measured.
mkdir "$work/bin"
for program in containerd containerd-shim-runc-v2 dockerd runc; do
  cp "$(command -v "$program")" "$work/bin/"
done
export PATH=$work/bin:$PATH
"$@"
