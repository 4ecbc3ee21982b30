#!/usr/bin/env bash
# Measures toft beside what people would use in its place, as root. See bench/README.md.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")

usage() {
  cat <<'END'
usage: bench/run.sh NAME [options]
       bench/run.sh --list

  --runs N         measured runs of each engine (start: 30, idle: 10, state: 3, pull: 3, dns: 5, density: 3,
                   mesh: 7, failover: 20); scale: new workloads (200)
  --seconds N      idle: length of the watch (60); length of each point (state: 5, dns: 3),
                   of each run (mesh: 5)
  --million        state: also write a million times
  --engines A,B    start: only these of toft, ctr, docker, podman, runc; pull: the same without runc;
                   density: toft, ctr and docker; failover: toft and swarm
  --losses A,B     failover: only these of machine (that which serves) and leader
  --profile NAME   Cargo profile of toft: release (default) or ci
  --toft FILE      measure this binary and build nothing
  --nodes N        scale: number of nodes (200)
  --instances N    scale: number of instances (10000)
  --traces FOLDER  schedule: the traces of the FGD paper (../shared/gpu-trace)
  --out FILE.json  write the numbers there too
END
}

list() {
  cat <<'END'
start   from a request to a process that runs, and whole runs, beside ctr, docker, podman and runc; and to the first
        answer through a published port, beside docker
density 100 starts, eight at a time, and the memory that each container keeps, beside ctr and docker
idle    memory, CPU and start of the daemons with 0 and 10 containers, beside dockerd with containerd
pull    images of 512 MiB from a registry on loopback, one layer and eight, gzip and zstd, beside ctr, docker and podman
dns     questions for a name of the zone from inside a container, beside dnsmasq
state   durable writes a second with 1, 16, 64 and 256 connections, one node and three, and a list, beside etcd
failover
        a machine of three loses its power: when that is known, when what ran there answers elsewhere, and when the others
        can write after their leader was lost, beside Docker Swarm
mesh    TCP between two network namespaces through a tunnel carried by toft, beside wireguard-go
scale   a leader with 200 nodes and 10,000 instances on made-up machines: CPU, memory, and how soon a new workload has a
        place; not as root
dashboard
        72 nodes with 204 GPUs and 1,000 workloads on made-up machines: server time of every page, bytes of a first look and
        of a change, CPU with 500 dashboards open; not as root
schedule
        GPUs filled by the placement policies and by the whole planner on the traces of the FGD paper, and decisions a
        second of both; not as root
END
}

fail() { echo "bench/run.sh: $1" >&2; exit 2; }

# Prints the packages that the benches need and that are not installed.
missing_packages() {
  local package
  sed -e 's/#.*//' -e '/^[[:space:]]*$/d' -e 's/[[:space:]]*$//' "$here/packages.txt" | while read -r package; do
    [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done
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
  ((${#missing[@]} > 0)) || return 0
  echo "installing ${missing[*]}" >&2
  apt-get update -qq >&2 || echo "not every package list could be refreshed" >&2
  without_services env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends "${missing[@]}" >&2
}

# Measures the placement engine and the planner around it, for which nothing has to run.
schedule() {
  local toft=$1 profile=$2 traces=$3 target
  shift 3
  (cd "$repository" && cargo build --quiet --locked --release --package toft-model \
    --example place_speed --example plan_speed) >&2
  target=$(cd "$repository" && cargo metadata --format-version 1 --no-deps --locked |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  python3 -B "$here/measure/schedule.py" --toft "$toft" --profile "$profile" --traces "$traces" \
    --speed "$target/release/examples/place_speed" --planner "$target/release/examples/plan_speed" "$@"
}

# Measures tunnels, in namespaces of their own.
mesh() {
  local profile=$1 work=$2 target folder
  shift 2
  folder=$profile
  [[ $profile != dev ]] || folder=debug
  (cd "$repository" && cargo build --quiet --locked --profile "$profile" --package toft-mesh --example mesh_peer) >&2
  target=$(cd "$repository" && cargo metadata --format-version 1 --no-deps --locked |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  unshare --net --mount --pid --fork --kill-child --mount-proc sh -c 'mount -t tmpfs bench /run && exec "$@"' sh \
    python3 -B "$here/measure/mesh.py" --work "$work" --toft "$target/$folder/examples/mesh_peer" --profile "$profile" "$@"
}

# Builds toft and prints where it is.
build_toft() {
  local target
  (cd "$repository" && cargo build --quiet --locked --profile "$1" --bin toft) >&2
  target=$(cd "$repository" && cargo metadata --format-version 1 --no-deps --locked |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  echo "$target/$1/toft"
}

# Everything the bench made outside its own namespaces: the directory and the control groups.
clean_up() {
  local name hierarchy
  # The namespaces end with the process that made them, and every process, mount and link in them.
  [[ -z ${inside:-} ]] || { kill -KILL "$inside" && wait "$inside"; } 2>/dev/null || true
  while read -r name; do
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
      [[ ! -d $hierarchy/$name ]] || find "$hierarchy/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
  done < <(cat "$work/cgroups" 2>/dev/null)
  rm -rf --one-file-system "$work"
}

main() {
  local name='' out='' profile=release toft='' traces=$repository/../shared/gpu-trace arguments=()
  while (($# > 0)); do
    case $1 in
      --list) list; return ;;
      --help | -h) usage; return ;;
      --runs | --seconds | --engines | --losses | --nodes | --instances) arguments+=("$1" "${2:?$1 wants a value}"); shift ;;
      --million) arguments+=("$1") ;;
      --profile) profile=${2:?--profile wants a name}; shift ;;
      --toft) toft=$(realpath -- "${2:?--toft wants a file}"); shift ;;
      --traces) traces=$(realpath -- "${2:?--traces wants a folder}"); shift ;;
      --out) out=$(realpath -- "${2:?--out wants a file}"); shift ;;
      -*) usage >&2; fail "unknown option \`$1\`" ;;
      *) [[ -z $name ]] || fail "one bench at a time"; name=$1 ;;
    esac
    shift
  done
  [[ " start idle pull dns density state failover mesh scale dashboard schedule " == *" $name "* && $name != '' ]] || { usage >&2; exit 2; }
  if [[ $name == schedule ]]; then
    if [[ -n $toft ]]; then profile=unknown; else toft=$(build_toft "$profile"); fi
    [[ -z $out ]] || arguments+=(--out "$out")
    schedule "$toft" "$profile" "$traces" "${arguments[@]}"
    return
  fi
  if [[ $name == scale || $name == dashboard ]]; then
    if [[ $name == scale ]] && ! command -v eatmydata >/dev/null; then
      ((EUID == 0)) || fail "eatmydata is missing: install it, or try once with sudo"
      install_packages
    fi
    if [[ -n $toft ]]; then profile=unknown; else toft=$(build_toft "$profile"); fi
    [[ -z $out ]] || arguments+=(--out "$out")
    work=$(mktemp -d /var/tmp/toft-bench.XXXXXX)
    trap clean_up EXIT
    python3 -B "$here/measure/$name.py" --work "$work" --toft "$toft" --profile "$profile" "${arguments[@]}"
    return
  fi
  ((EUID == 0)) || fail "only root can make containers: try again with sudo"
  install_packages
  if [[ $name == mesh ]]; then
    [[ -z $out ]] || arguments+=(--out "$out")
    work=$(mktemp -d /var/tmp/toft-bench.XXXXXX)
    trap clean_up EXIT
    mesh "$profile" "$work" "${arguments[@]}"
    return
  fi
  if [[ -n $toft ]]; then profile=unknown; else toft=$(build_toft "$profile"); fi

  # A short path: the engines put sockets under it.
  work=$(mktemp -d /var/tmp/toft-bench.XXXXXX)
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  cc -O2 -static -o "$work/stamp" "$here/stamp.c"
  : >"$work/result.json"
  unshare --net --mount --pid --fork --kill-child --mount-proc \
    "$here/inside.sh" "$work" python3 -B "$here/measure" "$name" --work "$work" --toft "$toft" --profile "$profile" \
    "${arguments[@]}" &
  inside=$!
  wait "$inside" || { inside=''; fail "the bench did not finish"; }
  inside=''
  [[ -z $out ]] || cp "$work/result.json" "$out"
}

main "$@"
