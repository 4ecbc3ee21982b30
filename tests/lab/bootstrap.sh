#!/usr/bin/env bash
# Proves packaging/bootstrap.sh on two whole machines, with systemd and without: a dry run, a first run, a
# second one, an upgrade, and both kinds of removal.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/machine.sh
source "$here/machine.sh"
# shellcheck source=tests/lab/checks.sh
source "$here/checks.sh"
# shellcheck source=tests/lab/observe.sh
source "$here/observe.sh"

repository=${here%/tests/lab}

usage() {
  cat <<'EOF'
usage: bootstrap.sh [DEB]

Runs packaging/bootstrap.sh with the binary of DEB beside it in fresh machines. Without DEB, builds one with
profile ci.
EOF
}

bootstrap() { lab /root/toft/packaging/bootstrap.sh "$@"; }
daemon_pid() { process_ids toft | head -n 1; }
exit_code_is() { local wanted=$1 code=0; shift; "$@" || code=$?; [[ $code == "$wanted" ]]; }
prints() { local text=$1; shift; grep --quiet --fixed-strings -- "$text" <<<"$("$@" 2>&1)"; }

# Puts a release as a user unpacks it into the machine: the script, its files and the binary.
copy_release() {
  machine_copy "$machine" "$repository/packaging" /root/toft/packaging
  machine_copy "$machine" "$repository/systemd" /root/toft/systemd
  machine_copy "$machine" "$1" /root/toft/packaging/toft
}

prove_refusals() {
  check "an unknown option is a usage error" exit_code_is 2 bootstrap --bogus
  check "--purge alone is a usage error" exit_code_is 2 bootstrap --purge
  check "without root it says so" prints "needs root" lab sh -c \
    'mkdir -p /srv/toft && cp -a /root/toft/packaging /srv/toft/ && runuser -u nobody -- /srv/toft/packaging/bootstrap.sh'
}

# A missing package is named by a dry run, which changes nothing, and installed by the first run.
prove_dry_run() {
  lab apt-get remove --yes nftables >/dev/null
  before_dry_run=$(traces)
  check "a dry run names the missing package" prints "nftables" bootstrap --dry-run
  check "a dry run changes nothing" same "$before_dry_run" "$(traces)"
  check "a dry run starts nothing" no_process toft
}

prove_first_run() {
  check "it runs" bootstrap
  check "it installed the missing package" lab sh -c 'command -v nft'
  check "/ready answers" ready
  check "the demo answers" demo_answers
  check "the example configuration is there" exists /etc/toft/toft.toml
}

prove_second_run() {
  local daemon before
  daemon=$(daemon_pid)
  before=$(containers)
  check "it runs again" bootstrap
  check "a second run keeps the daemon" same "$daemon" "$(daemon_pid)"
  check "a second run keeps the containers" same "$before" "$(containers)"
}

prove_upgrade() {
  local daemon before
  daemon=$(daemon_pid)
  before=$(containers)
  lab sh -c 'echo >>/root/toft/packaging/toft'
  check "it runs with another binary" bootstrap
  check "the new binary is installed" lab cmp /root/toft/packaging/toft /usr/local/bin/toft
  check "an upgrade replaces the daemon" not same "$daemon" "$(daemon_pid)"
  check "an upgrade keeps the containers" same "$before" "$(containers)"
  check "the demo answers after the upgrade" demo_answers
}

prove_removal() {
  check "a dry removal runs" bootstrap --uninstall --dry-run
  check "a dry removal removes nothing" demo_answers
  check "it uninstalls" bootstrap --uninstall
  check "nothing of toft runs any more" no_process toft
  check "no container runs any more" same "" "$(containers)"
  check "the binary is gone" gone /usr/local/bin/toft
  check "the data is kept" exists /var/lib/toft/admin-password
  check "it runs after a removal" bootstrap --no-demo
  check "the kept data brings the demo back" demo_answers
}

prove_purge() {
  check "it purges" bootstrap --uninstall --purge
  check "a purge leaves no process" no_process toft
  check "a purge leaves no container" same "" "$(containers)"
  check "a purge leaves nothing behind" same "$before_install" "$(traces)"
  check "a second purge is harmless" bootstrap --uninstall --purge
}

# An appliance with a directory and an address of its own, remembered by its unit.
prove_own_directory() {
  local flags=(--data-dir /var/lib/elsewhere --bind 127.0.0.1:7555)
  check "it runs with a data directory of its own" bootstrap "${flags[@]}"
  check "it answers at its own address" answers http://127.0.0.1:7555/ready
  check "its data lies there" exists /var/lib/elsewhere/admin-password
  check "nothing lies in the usual place" gone /var/lib/toft
  check "its demo answers" demo_answers
  check "it purges its own directory" bootstrap --uninstall --purge "${flags[@]:0:2}"
  check "its directory is gone" gone /var/lib/elsewhere
  check "its removal leaves nothing behind" same "$before_install" "$(traces)"
}

# Everything on one machine: prove_machine boot|start BINARY
prove_machine() {
  printf '# bootstrap, machine: %s\n' "$1"
  machine=$(mktemp --directory --tmpdir toft-bootstrap.XXXXXX)
  machine_open "$machine" "$1"
  copy_release "$2"
  before_install=$(traces)
  prove_refusals
  prove_dry_run
  prove_first_run
  if [[ $1 == boot ]]; then
    check "the unit is enabled" lab systemctl is-enabled toft
    check "the unit is active" lab systemctl is-active toft
  fi
  prove_second_run
  prove_upgrade
  prove_removal
  prove_purge
  prove_own_directory
  machine_destroy "$machine"
}

main() {
  local deb=${1-} unpacked
  [[ $# -le 1 && $deb != -* ]] || { usage >&2; exit 2; }
  [[ -n $deb ]] || deb=$("$repository/packaging/build-deb.sh" ci | tail -n 1)
  unpacked=$(mktemp --directory --tmpdir toft-unpacked.XXXXXX)
  dpkg-deb --extract "$deb" "$unpacked"
  machine=''
  prove_machine boot "$unpacked/usr/bin/toft"
  prove_machine start "$unpacked/usr/bin/toft"
  rm -rf "$unpacked"
  checks_finish
}

main "$@"
