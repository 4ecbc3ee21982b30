#!/usr/bin/env bash
# Runs the core of the tests on a kernel of its own that has control groups version 2 only: a Debian machine
# under qemu, with nothing emulated but its processor, and that only where there is no KVM.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/machine.sh
source "$here/machine.sh"
# shellcheck source=tests/lab/vm_machine.sh
source "$here/vm_machine.sh"
# shellcheck source=tests/lab/checks.sh
source "$here/checks.sh"

VM_SECONDS=2400

# What the machine is asked to prove: limits, kills for want of memory, usage, processes in containers, volumes, also
# those on servers, which the kernel here has clients for, networking with published ports, names, health, and that nothing is left behind.
CORE=(
  runtime_containerd::limits_and_control_groups_are_in_force
  process::counts_and_reservations_are_those_of_the_control_group
  process::want_of_memory_is_told_apart_from_other_ends
  stats::what_is_used_is_what_the_processes_do
  stats::traffic_is_counted_for_who_has_a_network_of_its_own
  stats::processes_are_told_with_what_they_are
  exec::a_command_gives_its_output_its_errors_and_its_code
  exec::a_shell_on_a_terminal_feels_like_one
  volumes::data_outlives_containers_and_goes_when_it_is_asked_for
  volumes::mounts_are_as_asked_and_lead_nowhere_else
  volumes_served::nfs_is_shared_by_workloads_and_outlives_them_and_toft
  volumes_served::a_server_that_is_away_keeps_only_those_waiting_who_need_it
  volumes_served::smb_takes_its_password_from_a_secret_and_tells_it_nobody
  network::a_published_port_answers_from_everywhere
  network::a_container_goes_out_under_the_hosts_address
  names::containers_find_and_reach_those_they_share_a_network_with
  health::every_kind_of_check_finds_out_whether_a_container_works
  lifecycle::restarting_replaces_the_process_and_keeps_the_instance
  lifecycle::removing_leaves_nothing_behind
)

# Tests of the mesh, whose kernel's device the kernel here has not; a program of their own.
MESH=(kernel)

usage() {
  cat <<EOF
usage: vm.sh [DEB] [TEST...]

Boots a Debian machine with cgroup v2 under qemu and runs integration tests in it, by default the core:
limits, memory, usage, exec, volumes, networking, names, health, and the mesh carried by the kernel. They run the toft of DEB; without DEB, a
package is built with profile ci. The test program itself is built with profile dev.

TOFT_LAB_ACCELERATOR is qemu's -accel: kvm where it works, else an emulated processor, which takes 40 minutes.
EOF
}

# Builds integration tests as all are built, so that nothing is built twice, and prints where they are: test_program NAME
test_program() {
  cargo test --workspace --no-run --locked --message-format=json |
    sed -n 's/.*"name":"'"$1"'".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# Where the test program looks for toft.
toft_path() {
  echo "$(cargo metadata --format-version 1 --no-deps --locked |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug/toft"
}

# Makes the disk with what is to be run: make_payload DIR DEB TEST...
make_payload() {
  local dir=$1 deb=$2 program mesh path
  shift 2
  program=$(test_program it)
  mesh=$(test_program mesh)
  path=$(toft_path)
  [[ -x $program && -x $mesh ]] || { echo "the tests could not be built" >&2; return 1; }
  mkdir -p "$dir/payload" "$dir/deb"
  dpkg-deb --extract "$deb" "$dir/deb"
  cp "$dir/deb/usr/bin/toft" "$dir/payload/toft"
  objcopy --strip-debug "$program" "$dir/payload/it"
  objcopy --strip-debug "$mesh" "$dir/payload/mesh"
  cat >"$dir/payload/run" <<EOF
#!/bin/sh
set -eu
[ "\$(stat --file-system --format %T /sys/fs/cgroup)" = cgroup2fs ]
mkdir -p '${path%/*}'
ln -s /srv/toft '$path'
cd /tmp
export HOME=/root RUST_BACKTRACE=0 TOFT_TEST_SLOWNESS=$VM_SLOWNESS
modprobe wireguard
/srv/mesh --color=never --include-ignored --nocapture --test-threads=1 ${MESH[*]}
exec /srv/it --color=never --include-ignored --nocapture --test-threads=1 $*
EOF
  chmod 0755 "$dir/payload/run"
  truncate --size 640M "$dir/payload.img"
  mke2fs -q -t ext4 -d "$dir/payload" "$dir/payload.img"
}

# Boots the machine and waits for its end; what it says goes to standard output: run_vm ROOT DISK PAYLOAD
run_vm() {
  vm_command "$1"
  timeout --kill-after=10 "$VM_SECONDS" "${VM_COMMAND[@]}" -m 3072 -drive "file=$2,format=raw,if=virtio,snapshot=on" \
    -drive "file=$3,format=raw,if=virtio,readonly=on" </dev/null |
    stdbuf -oL tr -d '\r'
}

succeeded() { grep --quiet --line-regexp 'lab: the payload ended with 0' "$1"; }

# Whether at least so many tests passed: many_passed LOG COUNT
many_passed() {
  local passed
  passed=$(sed -n 's/^test result: .*\. \([0-9]*\) passed.*/\1/p' "$1" | tail -n 1)
  ((${passed:-0} >= $2))
}

main() {
  local deb='' root disk dir
  case "${1-}" in
    -h | --help) usage; return ;;
    -*) usage >&2; exit 2 ;;
    *.deb) deb=$1; shift ;;
  esac
  [[ $EUID -eq 0 ]] || { echo "run as root" >&2; exit 1; }
  [[ $(uname -m) == x86_64 ]] || { echo "the machine is one for x86-64" >&2; exit 1; }
  (($# == 0)) || CORE=("$@")
  [[ -z $deb ]] || deb=$(realpath "$deb")
  cd "$here/../.."
  [[ -n $deb ]] || deb=$(packaging/build-deb.sh ci | tail -n 1)
  dir=$(mktemp --directory --tmpdir toft-vm.XXXXXX)
  # shellcheck disable=SC2064 # the directory of now is meant
  trap "rm -rf '$dir'" EXIT
  choose_accelerator
  root=$(machine_cache)
  disk=$(vm_disk "$root")
  make_payload "$dir" "$deb" "${CORE[@]}"
  run_vm "$root" "$disk" "$dir/payload.img" | tee "$dir/log" || true
  check "the core of the tests passes on cgroup v2" succeeded "$dir/log"
  check "each of them ran" many_passed "$dir/log" "${#CORE[@]}"
  checks_finish
}

main "$@"
