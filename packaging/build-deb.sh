#!/usr/bin/env bash
# Builds the Debian package and prints its path as the last line of stdout; everything else goes to stderr.
set -euo pipefail

CARGO_DEB_VERSION=3.8.0

usage() {
  cat <<'EOF'
usage: build-deb.sh [--no-build] [release|ci|dev]

  release, ci, dev  the cargo profile to build with (default: release)
  --no-build        package the binary that lies in the target directory already
EOF
}

# Where cargo puts what it builds: CARGO_TARGET_DIR, cargo's configuration or ./target.
target_directory() {
  cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Installs the pinned cargo-deb below the target directory unless it is there.
install_cargo_deb() {
  local tools=$1
  [[ $("$tools/bin/cargo-deb" --version 2>/dev/null) == "cargo-deb $CARGO_DEB_VERSION" ]] ||
    cargo install cargo-deb --version "$CARGO_DEB_VERSION" --locked --root "$tools" >&2
}

# Writes the shell completions beside the binary, where the package's list of files expects them.
write_completions() {
  local products=$1
  mkdir -p "$products/completions"
  "$products/toft" completion bash >"$products/completions/toft.bash"
  "$products/toft" completion zsh >"$products/completions/_toft"
  "$products/toft" completion fish >"$products/completions/toft.fish"
}

main() {
  local profile=release build=yes target folder compression=()
  while (($#)); do
    case $1 in
      release | ci | dev) profile=$1 ;;
      --no-build) build=no ;;
      -h | --help) usage; return ;;
      *) usage >&2; exit 2 ;;
    esac
    shift
  done
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  target=$(target_directory)
  folder=$profile
  [[ $profile != dev ]] || folder=debug
  install_cargo_deb "$target/tools"
  [[ $build == no ]] || cargo build --locked --profile "$profile" --bin toft >&2
  write_completions "$target/$folder"
  [[ $profile == release ]] || compression=(--fast)
  "$target/tools/bin/cargo-deb" --quiet --locked --no-build --profile "$profile" "${compression[@]}" \
    --output "$target/debian/"
}

main "$@"
