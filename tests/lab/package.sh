#!/usr/bin/env bash
# Proves the Debian package on a whole machine: install, supervision, reboot, upgrade, remove and purge.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/machine.sh
source "$here/machine.sh"
# shellcheck source=tests/lab/checks.sh
source "$here/checks.sh"
# shellcheck source=tests/lab/observe.sh
source "$here/observe.sh"

# How often the daemon is killed and restarted under a running container.
ROUNDS=$((${TOFT_TEST_FULL:-0} ? 10 : 1))

usage() {
  cat <<'EOF'
usage: package.sh [DEB]

Installs DEB in a fresh machine and checks it. Without DEB, builds one with profile ci.
TOFT_TEST_FULL=1 kills and restarts the daemon ten times as often.
EOF
}

daemon_pid() { lab systemctl show --property MainPID --value toft; }
install_package() { lab apt-get install --yes --no-install-recommends "$@" /root/toft.deb; }

# Whether the daemon runs with another process id than before: replaced PID
replaced() {
  local pid
  pid=$(daemon_pid)
  [[ $pid != 0 && $pid != "$1" ]]
}

prove_install() {
  check "the package installs without a network" install_package
  check "the unit is active" lab systemctl is-active toft
  check "the unit is enabled" lab systemctl is-enabled toft
  check "/ready answers" ready
  check "/ready answers on the socket" answers --unix-socket /run/toft/toft.sock http://localhost/ready
  check "the data directory is for root only" mode_is /var/lib/toft 700
  check "the admin password is for root only" mode_is /var/lib/toft/admin-password 600
  check "the configuration is a conffile" lab grep --quiet /etc/toft/toft.toml /var/lib/dpkg/info/toft.conffiles
  check "completions for three shells are installed" lab test -s /usr/share/bash-completion/completions/toft \
    -a -s /usr/share/zsh/vendor-completions/_toft -a -s /usr/share/fish/vendor_completions.d/toft.fish
}

prove_workload() {
  check "the demo starts" lab toft run -n demo -p 18080:8080 toft/demo
  check "the demo answers on its published port" demo_answers
  check "the demo is listed" lab sh -c 'toft ps --json | grep demo'
  check "the demo runs in a container" has_containers
}

# Replaces the daemon by a command and checks that the containers did not notice: prove_replacement WHAT COMMAND...
prove_replacement() {
  local what=$1 before daemon
  shift
  before=$(containers)
  daemon=$(daemon_pid)
  check "$what" "$@"
  check "$what: a new daemon runs" wait_for 30 replaced "$daemon"
  check "$what: it gets ready" ready
  check "$what: every container kept its process" same "$before" "$(containers)"
  check "$what: the demo answers" demo_answers
}

prove_reload() {
  local daemon
  daemon=$(daemon_pid)
  check "a reload is accepted" lab systemctl reload toft
  check "a reload keeps the daemon" same "$daemon" "$(daemon_pid)"
  check "a reload keeps it ready" ready
}

prove_reboot() {
  check "the machine reboots" machine_reboot "$machine"
  check "the daemon comes back" ready
  check "the demo answers again by itself" demo_answers
}

# Makes an archive of an image that notes its starts in a file and then ignores SIGTERM: stubborn_image ARCHIVE
stubborn_image() {
  local folder layer script='echo start >>/starts; busybox wc -l </starts; exec busybox sleep 100000'
  folder=$(mktemp --directory)
  mkdir -p "$folder/layer/bin"
  cp /bin/busybox "$folder/layer/bin/busybox"
  ln -s busybox "$folder/layer/bin/sh"
  tar -C "$folder/layer" -cf "$folder/layer.tar" .
  layer=$(sha256sum "$folder/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sh","-c","%s"],"Env":["PATH=/bin"]},
    "rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(dpkg --print-architecture)" "$script" \
    "$layer" >"$folder/config.json"
  echo '[{"Config":"config.json","RepoTags":["stubborn:latest"],"Layers":["layer.tar"]}]' >"$folder/manifest.json"
  tar -C "$folder" -cf "$1" manifest.json config.json layer.tar
  rm -rf "$folder"
}

# Whether the machine shuts down within a time: shuts_down_within SECONDS
shuts_down_within() {
  local started=$SECONDS
  machine_poweroff "$machine"
  echo "it took $((SECONDS - started)) seconds"
  ((SECONDS - started <= $1))
}

stubborn_starts() { prints_last "$1" lab toft logs stubborn; }
prints_last() { [[ $("${@:2}" | tail -n 1) == "$1" ]]; }

# The machine's patience is 10 seconds (usually 90), so a container nobody ends would take that long at least.
prove_shutdown() {
  stubborn_image "$machine/stubborn.tar"
  machine_copy "$machine" "$machine/stubborn.tar" /root/stubborn.tar
  check "an image whose process ignores SIGTERM is imported" lab toft image import /root/stubborn.tar
  check "it starts" lab toft run -n stubborn --stop-timeout 2 stubborn
  check "its first start is noted" wait_for 20 stubborn_starts 1
  prove_replacement "restart beside it" lab systemctl restart toft
  check "it did not notice" stubborn_starts 1
  check "a shutdown does not wait for it" shuts_down_within 8
  check "the machine boots again" machine_boot "$machine"
  check "the daemon comes back after the shutdown" ready
  check "its files outlived the shutdown" wait_for 30 stubborn_starts 2
  check "it is removed" lab toft rm stubborn
}

prove_removal() {
  check "the package is removed" lab apt-get remove --yes toft
  check "removal leaves no daemon" no_process toft
  check "removal leaves no container" same "" "$(containers)"
  check "removal ends the demo" no_demo
  check "removal keeps the data" lab test -s /var/lib/toft/admin-password
  check "removal keeps the configuration" lab test -s /etc/toft/toft.toml
  check "the package installs again" install_package
  check "the kept data brings the demo back" demo_answers
}

prove_purge() {
  check "the package is purged" lab apt-get purge --yes toft
  check "purge leaves no daemon" no_process toft
  check "purge leaves no container" same "" "$(containers)"
  check "purge deletes the data" gone /var/lib/toft
  check "purge deletes the configuration" gone /etc/toft
  check "purge leaves nothing behind" same "$before_install" "$(traces)"
}

main() {
  local deb=${1-} round
  [[ $# -le 1 && $deb != -* ]] || { usage >&2; exit 2; }
  [[ -n $deb ]] || deb=$("$here/../../packaging/build-deb.sh" ci | tail -n 1)
  machine=$(mktemp --directory --tmpdir toft-package.XXXXXX)
  machine_open "$machine" boot
  machine_copy "$machine" "$deb" /root/toft.deb
  before_install=$(traces)

  prove_install
  prove_workload
  for ((round = 1; round <= ROUNDS; round++)); do
    prove_replacement "kill -9 ($round)" lab systemctl kill --kill-who=main --signal=KILL toft
    prove_replacement "restart ($round)" lab systemctl restart toft
  done
  prove_reload
  prove_reboot
  prove_shutdown
  prove_replacement "upgrade in place" install_package --reinstall
  prove_removal
  prove_purge
  ((CHECKS_FAILED == 0)) || lab journalctl --no-pager --unit toft --lines 60 || true
  checks_finish
}

main "$@"
