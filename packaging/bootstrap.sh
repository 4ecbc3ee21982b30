#!/usr/bin/env bash
# Makes this machine a toft appliance: packages, binary, unit, a running daemon and a demo. Again is harmless.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin

BINARY=/usr/local/bin/toft
UNIT=/etc/systemd/system/toft.service
EXAMPLE=/etc/toft/toft.toml
LOG=/var/log/toft.log
DEMO_NAME=demo
DEMO_PORT=18080
READY_SECONDS=60
PLAIN_PROGRESS_SECONDS=15

action=install dry_run=no purge=no demo=yes data_dir='' bind=''
changed=no builder=root background_pid=''

usage() {
  cat <<'EOF'
usage: sudo packaging/bootstrap.sh [OPTIONS]

Installs what toft needs, installs toft, starts it and runs a demo workload.
Uses a toft binary beside this script, else builds one with cargo.

  --no-demo        do not run the demo workload
  --data-dir DIR   keep everything of the appliance below DIR (default: /var/lib/toft)
  --bind ADDR      address and port of dashboard and API (default: 127.0.0.1:7443)
  --dry-run        print each step and change nothing
  --uninstall      stop toft and its containers and remove it; keeps the data
  --purge          with --uninstall: delete data, images and configuration as well
  -h, --help       print this
EOF
}

# --- Saying and doing ---------------------------------------------------------------------------------------

if [[ -t 1 ]]; then
  bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
else
  bold='' green='' red='' dim='' plain=''
fi

# Reports one step: say LABEL TEXT
say() { printf '%s%-11s%s %s\n' "$green" "$1" "$plain" "$2"; }

# Ends with an error and what to do about it: die TEXT [HINT]
die() {
  printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
  [[ -z ${2-} ]] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# Runs a command that changes the machine; a dry run only prints it.
perform() {
  if [[ $dry_run == yes ]]; then
    printf '%-11s %swould run:%s %s\n' '' "$dim" "$plain" "$*"
  else
    "$@"
  fi
}

# The same for a command whose output only matters when it fails.
perform_quietly() {
  local log
  [[ $dry_run == no ]] || { perform "$@"; return; }
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

# Waits until COMMAND succeeds, at most SECONDS: wait_for SECONDS COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

has() { command -v "$1" >/dev/null 2>&1; }
has_systemd() { [[ -d /run/systemd/system ]]; }

# Whether a plain GET is answered with 200, without any tool but bash: answers HOST PORT PATH
answers() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"
    printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$2" "$0" >&3
    read -r _ status _ <&3
    [[ $status == 200 ]]' "$1" "$2" "$3" 2>/dev/null
}

# --- What is asked for --------------------------------------------------------------------------------------

parse_arguments() {
  while (($#)); do
    case $1 in
      --no-demo) demo=no ;;
      --data-dir) data_dir=${2-}; shift ;;
      --data-dir=*) data_dir=${1#*=} ;;
      --bind) bind=${2-}; shift ;;
      --bind=*) bind=${1#*=} ;;
      --dry-run) dry_run=yes ;;
      --uninstall) action=uninstall ;;
      --purge) purge=yes ;;
      -h | --help) usage; exit 0 ;;
      *) refuse "unknown option: $1" ;;
    esac
    shift || refuse "an option lacks its value"
  done
  [[ $purge == no || $action == uninstall ]] || refuse "--purge goes with --uninstall"
  [[ -z $data_dir || $data_dir =~ ^/[^[:space:]]+$ ]] || refuse "--data-dir wants an absolute path without blanks"
  [[ -z $bind || $bind =~ ^[^[:space:]]+:[0-9]+$ ]] || refuse "--bind wants ADDRESS:PORT"
}

refuse() {
  printf '%s\n\n' "$1" >&2
  usage >&2
  exit 2
}

# A flag given at an earlier run, from the unit that run wrote: remembered FLAG
remembered() { sed -n "s/^ExecStart=.* $1 \([^ ]*\).*/\1/p" "$UNIT" 2>/dev/null || true; }

# Settles the flags of `toft up` and the places that follow from them.
settle() {
  data_dir=${data_dir:-$(remembered --data-dir)}
  data_dir=${data_dir:-/var/lib/toft}
  bind=${bind:-$(remembered --bind)}
  run_dir=/run/toft
  data_flag=()
  if [[ $data_dir != /var/lib/toft ]]; then
    run_dir=$data_dir
    data_flag=(--data-dir "$data_dir")
  fi
  up_flags=("${data_flag[@]}" ${bind:+--bind "$bind"})
  export TOFT_CONNECT=unix://$run_dir/toft.sock
}

# --- Packages -----------------------------------------------------------------------------------------------

# Prints the package manager of this distribution.
package_manager() {
  local ID='' ID_LIKE=''
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || source /etc/os-release
  case " $ID $ID_LIKE " in
    *" debian "* | *" ubuntu "*) echo apt-get ;;
    *" fedora "* | *" rhel "* | *" centos "*) echo dnf ;;
    *suse*) echo zypper ;;
    *" arch "*) echo pacman ;;
    *) return 1 ;;
  esac
}

# Prints the packages that bring a tool: packages_for MANAGER TOOL
packages_for() {
  case $1:$2 in
    *:containerd | *:runc | *:make | *:gcc) echo "$2" ;;
    *:nft) echo nftables ;;
    apt-get:protoc) echo protobuf-compiler libprotobuf-dev ;;
    dnf:protoc) echo protobuf-compiler protobuf-devel ;;
    zypper:protoc) echo protobuf-devel ;;
    pacman:protoc) echo protobuf ;;
    apt-get:libc-headers) echo libc6-dev ;;
    pacman:libc-headers) echo glibc ;;
    *:libc-headers) echo glibc-devel ;;
  esac
}

# Whether a tool is there; `libc-headers` stands for the C library's development files.
tool_present() {
  case $1 in
    libc-headers) [[ -e /usr/include/stdio.h ]] ;;
    protoc) has protoc && [[ -e /usr/include/google/protobuf/any.proto ]] ;;
    *) has "$1" ;;
  esac
}

# Installs packages with the distribution's manager: install_packages MANAGER PACKAGE...
install_packages() {
  local manager=$1
  shift
  case $manager in
    apt-get)
      perform_quietly apt-get update || say packages "not every package list could be refreshed, going on with what is there"
      perform_quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
      ;;
    dnf) perform_quietly dnf install -y "$@" ;;
    zypper) perform_quietly zypper --non-interactive install --no-recommends "$@" ;;
    pacman) perform_quietly pacman -S --noconfirm --needed "$@" ;;
  esac
}

# Names and installs what is missing of a list of tools: require_tools TOOL...
require_tools() {
  local tool manager names packages=() missing=()
  for tool in "$@"; do
    tool_present "$tool" || missing+=("$tool")
  done
  if ((${#missing[@]} == 0)); then
    say packages "there already: $*"
    return
  fi
  manager=$(package_manager) || die "this distribution is not known, and these are missing: ${missing[*]}" \
    "install them with your package manager, then run this again"
  for tool in "${missing[@]}"; do
    read -ra names < <(packages_for "$manager" "$tool")
    packages+=("${names[@]}")
  done
  say packages "installing with $manager: ${packages[*]}"
  install_packages "$manager" "${packages[@]}" || die "could not install ${packages[*]}" \
    "install them by hand, then run this again; containerd.io of Docker's repository serves as well"
}

# --- The binary ---------------------------------------------------------------------------------------------

# Whether a built binary is newer than all it was made from.
is_fresh() {
  [[ -x $1 ]] && [[ -z $(cd "$source_tree" && find Cargo.toml Cargo.lock build.rs build src crates templates static \
    -type f -newer "$1" -print -quit 2>/dev/null) ]]
}

# Runs a command as the user who called sudo, whose cargo and caches are meant.
as_builder() {
  local home
  home=$(getent passwd "$builder" | cut -d: -f6)
  if [[ $builder == "$(id -un)" ]]; then
    PATH=$home/.cargo/bin:$PATH "$@"
  else
    runuser -u "$builder" -- env HOME="$home" USER="$builder" PATH="$home/.cargo/bin:$PATH" "$@"
  fi
}

# Checks that cargo is there and new enough for this source tree.
require_cargo() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$source_tree/Cargo.toml" | head -n 1)
  found=$(as_builder cargo --version 2>/dev/null | cut -d' ' -f2) || true
  [[ -n $found ]] || die "no cargo for user $builder, and no toft binary beside this script" \
    "install Rust $wanted or newer with rustup (https://rustup.rs) as $builder, or put a toft binary into $here"
  [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]] ||
    die "cargo $found is too old, toft needs $wanted" "run \`rustup update stable\` as $builder"
  say rust "cargo $found of user $builder"
}

# How many crates a build from nothing compiles.
crates_to_build() {
  as_builder cargo tree --locked --edges normal,build --prefix none --format '{p}' \
    --manifest-path "$source_tree/Cargo.toml" 2>/dev/null | sed 's/ (\*)$//' | sort -u | wc -l
}

# Shows how far a build is: one line that renews itself on a terminal, a plain line now and then elsewhere.
show_progress() {
  local log=$1 total=$2 elapsed=$3 text
  text=$(printf '%d of %d crates, %d:%02d' "$(grep -c '^ *Compiling ' "$log" || true)" "$total" \
    $((elapsed / 60)) $((elapsed % 60)))
  if [[ -t 1 ]]; then
    printf '\r\e[K%s%-11s%s %s' "$green" building "$plain" "$text"
  elif ((elapsed > 0 && elapsed % PLAIN_PROGRESS_SECONDS == 0)); then
    say building "$text"
  fi
}

# Builds the release binary as the invoking user.
build() {
  local log total started=$SECONDS pid
  say building "cargo build --release --locked, several minutes the first time"
  [[ $dry_run == no ]] || return 0
  log=$(mktemp)
  total=$(crates_to_build)
  as_builder cargo build --release --locked --bin toft --target-dir "$source_tree/target" \
    --manifest-path "$source_tree/Cargo.toml" >"$log" 2>&1 &
  pid=$!
  # shellcheck disable=SC2064 # the process of now is meant
  trap "kill $pid 2>/dev/null; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    show_progress "$log" "$total" $((SECONDS - started))
    sleep 1
  done
  trap - INT TERM
  [[ ! -t 1 ]] || printf '\r\e[K'
  wait "$pid" || { tail -n 30 "$log" >&2; die "the build failed" "the whole output is in $log"; }
  rm -f "$log"
  say built "in $((SECONDS - started)) seconds"
}

# Settles which binary to install, building it if need be; sets new_binary.
obtain_binary() {
  if [[ -x $here/toft ]]; then
    new_binary=$here/toft
    say binary "$new_binary"
    return
  fi
  source_tree=${here%/*}
  new_binary=$source_tree/target/release/toft
  [[ -f $source_tree/Cargo.toml ]] || die "no toft binary beside this script, and no source tree around it" \
    "put the toft binary into $here"
  if is_fresh "$new_binary"; then
    say binary "$new_binary, built already"
    return
  fi
  builder=${SUDO_USER:-$(id -un)}
  require_cargo
  require_tools gcc libc-headers make protoc
  build
}

# Puts a file into its place in one move unless it is there already, and remembers that something changed.
place() {
  local from=$1 to=$2 mode=$3
  if cmp -s "$from" "$to"; then
    say installed "$to is up to date"
    return
  fi
  perform mkdir -p "${to%/*}"
  perform install -m "$mode" "$from" "$to.new"
  perform mv -f "$to.new" "$to"
  say installed "$to"
  changed=yes
}

# Prints the unit with the command line that was asked for.
render_unit() {
  local unit=$here/../systemd/toft.service
  [[ -f $unit ]] || unit=$here/toft.service
  [[ -f $unit ]] || die "toft.service is missing" "run this script from an unpacked release or a source tree"
  sed -e "s|^ExecStart=.*|ExecStart=$BINARY up${up_flags[*]:+ ${up_flags[*]}}|" \
    -e "s|^ExecStopPost=.*|ExecStopPost=-$BINARY down --at-shutdown${data_flag[*]:+ ${data_flag[*]}}|" "$unit"
}

install_files() {
  local rendered
  place "$new_binary" "$BINARY" 0755
  if has_systemd; then
    rendered=$(mktemp)
    render_unit >"$rendered"
    place "$rendered" "$UNIT" 0644
    rm -f "$rendered"
  fi
  if [[ $run_dir == /run/toft && ! -e $EXAMPLE ]]; then
    perform mkdir -p "${EXAMPLE%/*}/toft.d"
    perform install -m 0644 "$here/toft.toml" "$EXAMPLE"
    say installed "$EXAMPLE, an example with all defaults"
  fi
}

# --- The daemon ---------------------------------------------------------------------------------------------

# Prints the process id of a running daemon of this appliance.
daemon_pid() {
  local pid
  pid=$(cat "$run_dir/toft.pid" 2>/dev/null) || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == toft ]] && echo "$pid"
}

daemon_gone() { ! daemon_pid >/dev/null; }

# Ends a daemon that no systemd looks after; its containers go on.
stop_background() {
  local pid
  pid=$(daemon_pid) || return 0
  perform kill -TERM "$pid"
  [[ $dry_run == yes ]] || wait_for 30 daemon_gone || die "the running daemon ($pid) does not end" "see $LOG"
}

start_with_systemd() {
  perform systemctl daemon-reload
  perform systemctl enable --quiet --now containerd.service || say containerd "has no unit here, toft starts one of its own"
  perform systemctl enable --quiet toft.service
  # A failure shows in the wait for /ready, with the log.
  if [[ $changed == yes ]]; then
    perform systemctl restart toft.service || true
  else
    perform systemctl start toft.service || true
  fi
}

# Starts the daemon apart from this shell.
start_apart() {
  setsid "$BINARY" up "${up_flags[@]}" </dev/null >>"$LOG" 2>&1 &
  background_pid=$!
}

start_in_background() {
  [[ $changed == no ]] || stop_background
  if [[ $dry_run == yes ]] || daemon_gone; then
    perform start_apart
  fi
}

start() {
  if has_systemd; then
    say starting "with systemd: toft.service"
    start_with_systemd
  else
    say starting "in the background, output in $LOG"
    start_in_background
  fi
}

last_log_lines() {
  if has_systemd; then
    journalctl --no-pager --quiet --unit toft --lines 20
  else
    tail -n 20 "$LOG"
  fi
}

# Prints where a running daemon says that it listens, as https://ADDRESS:PORT/, or http:// when it was told to do without TLS.
daemon_url() { cat "$run_dir/toft.url" 2>/dev/null; }

is_ready() {
  local url
  url=$(daemon_url) || return 1
  if [[ $url =~ ^http://\[?([^]/]+)\]?:([0-9]+)/$ ]]; then
    answers "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" /ready
  else
    [[ $url == https://* ]] && "$BINARY" ls >/dev/null 2>&1
  fi
}

has_ended() { [[ -n $background_pid ]] && ! kill -0 "$background_pid"; }
is_ready_or_ended() { is_ready || has_ended; }

wait_until_ready() {
  [[ $dry_run == no ]] || { say ready "would wait until toft is ready"; return; }
  if ! wait_for "$READY_SECONDS" is_ready_or_ended || has_ended; then
    last_log_lines >&2 || true
    die "toft did not get ready" "its last log lines are above; mend their cause, then run this again"
  fi
  say ready "$("$BINARY" --version 2>/dev/null || echo toft) answers on $(daemon_url)"
}

# Runs the demo workload unless there is one, and sees that it answers.
run_demo() {
  if [[ $dry_run == no ]] && "$BINARY" inspect "$DEMO_NAME" >/dev/null 2>&1; then
    say demo "there already"
  else
    perform_quietly "$BINARY" run -n "$DEMO_NAME" -p "$DEMO_PORT:8080" toft/demo ||
      die "the demo workload did not start" "see \`toft inspect $DEMO_NAME\`, or run this again with --no-demo"
  fi
  [[ $dry_run == no ]] || return 0
  wait_for 30 answers 127.0.0.1 "$DEMO_PORT" / ||
    die "the demo does not answer on port $DEMO_PORT" "see \`toft inspect $DEMO_NAME\` and \`toft logs $DEMO_NAME\`"
  say demo "answers on port $DEMO_PORT"
}

summary() {
  local logs=$LOG
  ! has_systemd || logs='journalctl -u toft'
  printf '\n%stoft is running%s\n\n' "$bold" "$plain"
  [[ $demo == no ]] || printf '  %-10s %s\n' demo "http://127.0.0.1:$DEMO_PORT/"
  printf '  %-10s %s\n' dashboard "$(daemon_url)" \
    password "in $data_dir/admin-password, for root only; the user is admin" \
    logs "$logs" \
    remove "sudo $here/bootstrap.sh --uninstall"
  [[ $run_dir == /run/toft ]] || printf '  %-10s %s\n' 'toft with' "TOFT_CONNECT=$TOFT_CONNECT"
}

install_appliance() {
  [[ ! -x /usr/bin/toft ]] || die "toft is installed as a package already (/usr/bin/toft)" \
    "upgrade it with your package manager, or remove it first"
  require_tools containerd runc nft
  obtain_binary
  install_files
  start
  wait_until_ready
  [[ $demo == no ]] || run_demo
  if [[ $dry_run == yes ]]; then
    printf '\nNothing was changed.\n'
  else
    summary
  fi
}

# --- Uninstalling -------------------------------------------------------------------------------------------

# Stops the containers, then the daemon.
stop_appliance() {
  if [[ -x $BINARY ]]; then
    say stopping "the containers and the daemon"
    perform_quietly timeout 180 "$BINARY" down "${data_flag[@]}" ||
      say stopping "\`toft down\` failed, some containers may still run"
  fi
  if has_systemd && [[ -e $UNIT ]]; then
    perform systemctl disable --quiet --now toft.service || true
  fi
  stop_background
}

# Deletes what toft keeps in the machine's containerd: its namespace with images and snapshots.
forget_images() {
  local kind names pass
  [[ -S /run/containerd/containerd.sock ]] && has ctr && ctr namespaces list --quiet 2>/dev/null | grep -qx toft || return 0
  say deleting "the images in containerd's namespace toft"
  [[ $dry_run == no ]] || return 0
  for kind in images leases content; do
    ctr --namespace toft "$kind" list --quiet | xargs -r ctr --namespace toft "$kind" remove
  done >/dev/null 2>&1 || true
  # A snapshot goes only after those that build on it, and no image has more than 127 layers.
  for ((pass = 0; pass < 128; pass++)); do
    names=$(ctr --namespace toft snapshots list | awk 'NR > 1 { print $1 }')
    [[ -n $names ]] || break
    xargs -n 1 ctr --namespace toft snapshots remove <<<"$names" >/dev/null 2>&1 || true
  done
  ctr namespaces remove toft >/dev/null 2>&1 || say left "containerd's namespace toft"
}

# Deletes the data directory, but never a directory that toft did not make.
delete_data() {
  [[ -e $data_dir ]] || return 0
  if [[ $data_dir != /var/lib/toft && ! -e $data_dir/admin-password ]]; then
    say left "$data_dir, which does not look like toft's"
    return
  fi
  perform rm -rf --one-file-system "$data_dir"
}

remove_files() {
  perform rm -f "$BINARY" "$UNIT"
  ! has_systemd || perform systemctl daemon-reload
  if [[ $run_dir == /run/toft ]]; then
    perform rm -rf --one-file-system /run/toft
  elif [[ -d /run/toft ]]; then
    perform rmdir --ignore-fail-on-non-empty /run/toft
  fi
  if [[ $purge == yes ]]; then
    [[ $run_dir != /run/toft ]] || forget_images
    delete_data
    perform rm -rf --one-file-system "${EXAMPLE%/*}" "$LOG"
  elif cmp -s "$here/toft.toml" "$EXAMPLE"; then
    perform rm -f "$EXAMPLE"
    perform rmdir --ignore-fail-on-non-empty "${EXAMPLE%/*}/toft.d" "${EXAMPLE%/*}"
  fi
}

# Names what a removal leaves on the machine.
say_left() {
  local path
  for path in "$data_dir" "$EXAMPLE" "$LOG"; do
    [[ ! -e $path ]] || say left "$path (--uninstall --purge deletes it)"
  done
  say left "the packages containerd, runc and nftables"
}

uninstall_appliance() {
  [[ ! -x /usr/bin/toft ]] || die "this toft was installed as a package" "remove it with your package manager"
  stop_appliance
  remove_files
  if [[ $dry_run == yes ]]; then
    printf '\nNothing was changed.\n'
  else
    say_left
  fi
}

main() {
  parse_arguments "$@"
  [[ $dry_run == yes || $EUID -eq 0 ]] || die "this needs root" "run \`sudo $0${*:+ $*}\`"
  settle
  "${action}_appliance"
}

main "$@"
