#!/usr/bin/env bash
# Proves packaging/bootstrap.sh on two whole machines, with systemd and without: a dry run, a first run, a
# second one, an upgrade, and both kinds of removal. With --build, on a bare one from a checkout.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/machine.sh
source "$here/machine.sh"
# shellcheck source=tests/lab/checks.sh
source "$here/checks.sh"
# shellcheck source=tests/lab/observe.sh
source "$here/observe.sh"

repository=${here%/tests/lab}

# What the machine of --build begins with, the user who calls sudo in it, and what bootstrap.sh must add.
BARE_PACKAGES=systemd,systemd-sysv,dbus,iproute2,kmod,curl,ca-certificates
BARE_USER=dev
BARE_CHECKOUT=/home/$BARE_USER/toft
MISSING_PACKAGES=(containerd runc nftables gcc libc6-dev make protobuf-compiler libprotobuf-dev)
BUILD_SECONDS=5400

usage() {
  cat <<'EOF'
usage: bootstrap.sh [DEB]
       bootstrap.sh --build

Runs packaging/bootstrap.sh with the binary of DEB beside it in fresh machines. Without DEB, builds one with
profile ci.

  --build   instead prove it from a clone of this repository's last commit, without any binary, in a machine
            that has a base system and cargo only (a release build: 10 to 30 minutes)
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
  check "it answers at its own address" answers https://127.0.0.1:7555/ready
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

# Prints where the toolchain of this host lies.
toolchain() {
  local sysroot
  sysroot=$(cd "$repository" && rustc --print sysroot) && [[ -x $sysroot/bin/cargo ]] && echo "$sysroot"
}

# Fills a folder with the packages that a bare machine lacks, with all they need, and their index.
collect_packages() {
  local folder=$1 base=$2
  mkdir -p "$folder/partial"
  apt-get --quiet=2 --yes --download-only --no-install-recommends -o Dir::State::status="$base/var/lib/dpkg/status" \
    -o Dir::Cache::archives="$folder" -o Debug::NoLocking=true install "${MISSING_PACKAGES[@]}" &&
    (cd "$folder" && rm -rf partial lock && dpkg-scanpackages --multiversion . >Packages) && chmod -R a+rX "$folder"
}

# Prepares the inside: the local packages as the only source, and a user with a toolchain and a clone.
prepare_bare_machine() {
  local home=/home/$BARE_USER
  lab sh -c "rm -rf /etc/apt/sources.list* /var/lib/apt/lists/* && mkdir -p /etc/apt/sources.list.d &&
    echo 'deb [trusted=yes] file:/srv/packages ./' >/etc/apt/sources.list &&
    useradd --shell /bin/bash $BARE_USER && mkdir -p $home/.cargo/bin &&
    ln -s /srv/toolchain/bin/* $home/.cargo/bin/ && cp -r /srv/registry $home/.cargo/registry &&
    printf '[net]\\noffline = true\\n' >$home/.cargo/config.toml" &&
    git clone --quiet --depth 1 "file://$repository" "$machine/root$BARE_CHECKOUT" &&
    lab chown -R "$BARE_USER:" "$home"
}

# As a user calls it, without the program sudo: that one only says who called.
bootstrap_checkout() { lab env SUDO_USER="$BARE_USER" "$BARE_CHECKOUT/packaging/bootstrap.sh" "$@"; }

lacks_packages() {
  local package
  for package in "${MISSING_PACKAGES[@]}"; do
    ! lab dpkg-query --show "$package" || return 1
  done
}

# Runs a command and keeps what it prints: recorded FILE COMMAND...
recorded() { "${@:2}" 2>&1 | tee "$1"; }
says() { grep --quiet --extended-regexp -- "$2" "$1"; }

# Prints every file that bears toft's name, apart from the checkout and the empty folders that containerd keeps.
toft_files() { lab sh -c "find /etc /usr /opt /run /var -xdev -name '*toft*' ! -path '/run/containerd/*' | sort"; }

prove_first_build() {
  local output=$1
  check "the machine has none of the packages" lacks_packages
  check "there is no binary beside the script" gone "$BARE_CHECKOUT/packaging/toft"
  check "a dry run names what it would install" prints protobuf-compiler bootstrap_checkout --dry-run
  check "a dry run installs nothing" lacks_packages
  check "it builds and runs" recorded "$output" bootstrap_checkout
  check "it shows progress while it builds" says "$output" '^building +[1-9][0-9]* of [1-9][0-9]* crates, [0-9]+:[0-9]{2}$'
  check "it says that the build is done" says "$output" '^built +in [0-9]+ seconds$'
  sed -n 's/^built/# &/p' "$output"
  check "the build belongs to the user who called" same "$BARE_USER" \
    "$(lab stat --format %U "$BARE_CHECKOUT/target/release/toft")"
  check "the binary that was built is installed" lab cmp "$BARE_CHECKOUT/target/release/toft" /usr/local/bin/toft
  check "/ready answers" ready
  check "the demo answers" demo_answers
  check "it prints the demo's URL" says "$output" "^ +demo +${DEMO_URL}$"
  check "it prints the dashboard's URL" says "$output" "^ +dashboard +${READY_URL%ready}$"
  check "it prints where the password is" says "$output" "^ +password +in /var/lib/toft/admin-password"
  check "the password is there" exists /var/lib/toft/admin-password
}

prove_second_build() {
  local daemon before
  daemon=$(daemon_pid)
  before=$(containers)
  check "a second run builds nothing" prints "built already" bootstrap_checkout
  check "a second run keeps the daemon" same "$daemon" "$(daemon_pid)"
  check "a second run keeps the containers" same "$before" "$(containers)"
  check "the demo still answers" demo_answers
}

prove_removal_of_build() {
  check "it uninstalls" bootstrap_checkout --uninstall
  check "nothing of toft runs any more" no_process toft
  check "no container runs any more" same "" "$(containers)"
  check "the data is kept" exists /var/lib/toft/admin-password
  check "it purges" bootstrap_checkout --uninstall --purge
  check "a purge leaves no file of toft" same "" "$(toft_files)"
  check "the checkout is left alone" exists "$BARE_CHECKOUT/target/release/toft"
}

# From a clone to a running appliance and back: prove_build
prove_build() {
  local sysroot part
  LAB_PACKAGES=$BARE_PACKAGES LAB_COMMAND_SECONDS=$BUILD_SECONDS
  sysroot=$(toolchain) || { echo "no Rust toolchain with cargo in it" >&2; return 1; }
  machine=$(mktemp --directory --tmpdir toft-bootstrap.XXXXXX)
  trap 'machine_destroy "$machine"' EXIT
  collect_packages "$machine/packages" "$(machine_cache)"
  cargo fetch --quiet --locked --manifest-path "$repository/Cargo.toml"
  LAB_READ_ONLY=("$machine/packages:/srv/packages" "$sysroot:/srv/toolchain")
  # Unpacked crates are left out: some belong to their reader only.
  for part in cache index; do
    LAB_READ_ONLY+=("${CARGO_HOME:-$HOME/.cargo}/registry/$part:/srv/registry/$part")
  done
  machine_open "$machine" boot
  prepare_bare_machine
  prove_first_build "$machine/output"
  prove_second_build
  prove_removal_of_build
  machine_destroy "$machine"
}

main() {
  local deb=${1-} unpacked
  if [[ $# -eq 1 && $deb == --build ]]; then
    prove_build
    checks_finish
    return
  fi
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
