#!/usr/bin/env bash
# Runs every test of the project, as root. A part that cannot run is a failure.
set -euo pipefail

CARGO_DENY_VERSION=0.20.2

usage() {
  cat <<'EOF'
usage: tests/run.sh [--full]

Installs what tests/packages.txt names, then: format, lint, cargo tests, Debian package, and the package and
the bootstrap in whole machines.

  --full   package optimised code, and also run the tests' core on a kernel of its own with cgroup v2, join two such
           machines over the kernel's WireGuard, check licences and dependencies, prove the bootstrap from a checkout
           with a release build in a bare machine, let schemathesis look for faults of the API and Lighthouse for
           those of pages, and run the proofs ten times longer (TOFT_TEST_FULL=1)
EOF
}

# Prints the packages that the tests need.
needed_packages() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' -e 's/[[:space:]]*$//' tests/packages.txt; }

# Prints those of them that are not installed. A program of that name may come from elsewhere, as npm often does.
missing_packages() {
  local package
  while read -r package; do
    [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      command -v "$package" >/dev/null || echo "$package"
  done < <(needed_packages)
}

# Runs a command while no package may start a service on this machine.
without_services() (
  policy=/usr/sbin/policy-rc.d
  [[ ! -e $policy ]] || mv "$policy" "$policy.saved"
  trap 'rm -f "$policy"; [[ ! -e $policy.saved ]] || mv "$policy.saved" "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 0755 "$policy"
  "$@"
)

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]} > 0)) || { echo "all there"; return; }
  echo "installing ${missing[*]}"
  apt-get update -qq || echo "not every package list could be refreshed"
  without_services env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends "${missing[@]}"
}

check_format() { cargo fmt --all --check; }

check_lint() {
  local scripts
  mapfile -t scripts < <(git ls-files '*.sh' .ci/run packaging/debian/p*)
  shellcheck --external-sources "${scripts[@]}" &&
    cargo clippy --workspace --all-targets --locked -- -D warnings
}

# A failure ends nothing: what else fails is worth knowing.
run_cargo_tests() { cargo test --workspace --locked --no-fail-fast; }

# What the tests ran is packaged; optimised code is built where somebody has the ten minutes.
build_package() {
  local what=(--no-build dev)
  [[ $full == no ]] || what=(ci)
  packaging/build-deb.sh "${what[@]}" | tee "$deb_path"
}

# The package that the phase before built: the last line it printed.
prove_package() { tests/lab/package.sh "$(tail -n 1 "$deb_path")"; }
prove_bootstrap() { tests/lab/bootstrap.sh "$(tail -n 1 "$deb_path")"; }
prove_vm() { tests/lab/vm.sh "$(tail -n 1 "$deb_path")"; }
prove_two_vms() { tests/lab/two_vms.sh "$(tail -n 1 "$deb_path")"; }
prove_build() { tests/lab/bootstrap.sh --build; }
prove_api() { tests/lab/schemathesis.sh; }
prove_pages() { tests/lab/lighthouse.sh; }

check_dependencies() {
  local tools
  tools=$(cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/tools
  [[ $("$tools/bin/cargo-deny" --version 2>/dev/null) == "cargo-deny $CARGO_DENY_VERSION" ]] ||
    cargo install cargo-deny --version "$CARGO_DENY_VERSION" --locked --root "$tools" || return
  "$tools/bin/cargo-deny" --locked check licenses bans sources
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Runs one part with a header, the time and an entry in the summary: phase NAME COMMAND...
phase() {
  local name=$1 started=$SECONDS outcome=passed
  shift
  printf '\n=== %s (%s since the start)\n' "$name" "$(clock "$SECONDS")"
  if "$@"; then
    passed=$((passed + 1))
  else
    outcome=FAILED
    failed=$((failed + 1))
  fi
  summary+=$(printf '%-12s %-7s %s' "$name" "$outcome" "$(clock $((SECONDS - started)))")$'\n'
  [[ $outcome == passed ]]
}

main() {
  local full=no
  case "${1-}:$#" in
    :0) ;;
    --full:1) full=yes ;;
    -h:1 | --help:1) usage; return ;;
    *) usage >&2; exit 2 ;;
  esac
  [[ $EUID -eq 0 ]] || { echo "the tests need root" >&2; exit 1; }
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  passed=0 failed=0 summary=''
  deb_path=$(mktemp)
  trap 'rm -f "$deb_path"' EXIT
  [[ $full == no ]] || export TOFT_TEST_FULL=1

  if phase packages install_packages; then
    phase format check_format || true
    phase lint check_lint || true
    phase tests run_cargo_tests || true
    if phase deb build_package; then
      phase package prove_package || true
      phase bootstrap prove_bootstrap || true
      if [[ $full == yes ]]; then
        phase vm prove_vm || true
        phase two-vms prove_two_vms || true
      fi
    fi
    if [[ $full == yes ]]; then
      phase checkout prove_build || true
      phase api prove_api || true
      phase pages prove_pages || true
      phase dependencies check_dependencies || true
    fi
  fi
  printf '\n=== summary (%s)\n%s\n%d passed, %d failed\n' "$(clock "$SECONDS")" "$summary" "$passed" "$failed"
  ((failed == 0))
}

main "$@"
