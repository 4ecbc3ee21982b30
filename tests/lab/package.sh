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
  prove_replacement "upgrade in place" install_package --reinstall
  prove_removal
  prove_purge
  ((CHECKS_FAILED == 0)) || lab journalctl --no-pager --unit toft --lines 60 || true
  checks_finish
}

main "$@"
