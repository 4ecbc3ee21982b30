#!/usr/bin/env bash
# A made-up cluster (`toft dev`) for tools that ask over HTTP. Source it, then `made_up_start`: afterwards `made_up_url` is
# where it answers, `made_up_token` lets somebody in as admin, and `made_up_toft` runs a command. It ends with the shell.

made_up_url='' made_up_token='' made_up_folder='' made_up_pid='' made_up_binary=''

made_up_toft() { "$made_up_binary" --connect "unix://$made_up_folder/data/node-1/toft.sock" "$@"; }
made_up_ready() { [[ $(made_up_toft node ls --json | grep -c '"state": "ready"') == "$1" ]]; }

made_up_end() {
  [[ -z $made_up_pid ]] || kill "$made_up_pid" 2>/dev/null || true
  wait "$made_up_pid" 2>/dev/null || true
  rm -rf "$made_up_folder"
}

# Where tools are kept that came from elsewhere, beside what is built.
made_up_tools() {
  local target
  target=$(cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  mkdir -p "$target/tools"
  echo "$target/tools"
}

# Starts one: made_up_start NODES [TOFT]. Without TOFT, builds one.
made_up_start() {
  local nodes=$1 tries
  made_up_binary=${2-}
  if [[ -z $made_up_binary ]]; then
    cargo build --workspace --locked --quiet
    made_up_binary=$(dirname "$(made_up_tools)")/debug/toft
  fi
  made_up_folder=$(mktemp -d)
  trap made_up_end EXIT
  "$made_up_binary" dev --nodes "$nodes" --bind 127.0.0.1:0 --data-dir "$made_up_folder/data" 2>"$made_up_folder/log" &
  made_up_pid=$!
  for ((tries = 0; tries < 300; tries++)); do
    ! made_up_ready "$nodes" 2>/dev/null || break
    kill -0 "$made_up_pid" || { tail -n 20 "$made_up_folder/log" >&2; return 1; }
    sleep 0.2
  done
  made_up_ready "$nodes"
  made_up_url=$(<"$made_up_folder/data/node-1/toft.url")
  made_up_url=${made_up_url%/}
  made_up_toft user create tester --role admin --no-password >/dev/null
  # shellcheck disable=SC2034 # whoever sources this uses it
  made_up_token=$(made_up_toft user token create --user tester --role admin)
}

# Whether it lives and no part of it panicked.
made_up_is_well() {
  kill -0 "$made_up_pid" && ! grep -n 'panicked' "$made_up_folder/log"
}
