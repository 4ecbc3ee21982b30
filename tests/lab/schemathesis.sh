#!/usr/bin/env bash
# Sends what schemathesis makes of the served OpenAPI document to a made-up cluster: no answer may be a fault of ours, and each
# must be as the document says.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/made_up.sh
source "$here/made_up.sh"

VERSION=4.32.5
# Examples of each operation in each of two rounds.
EXAMPLES=$((${TOFT_TEST_FULL:-0} ? 50 : 12))
# The node would leave, be removed or go to another cluster; answers that never end; what is no HTTP after its first line.
NOT_ASKED='post_cluster_leave|post_cluster_join|delete_nodes_name|get_stats_stream|get_instances_name_(exec|attach)'
# Answers that wait, for as long as they are asked to, for what is there to write or to go.
WAITS='get_workloads_name_(logs|wait)'
CHECKS=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance

usage() {
  cat <<EOF
usage: schemathesis.sh [TOFT]

Installs schemathesis $VERSION beside what is built, then asks TOFT (built if it is not given) twice, with $EXAMPLES examples of each
operation: with names that it makes up, and with names of what is there. TOFT_TEST_FULL=1 takes 50.
EOF
}

main() {
  case "${1-}" in -h | --help) usage; return ;; esac
  local tools
  tools=$(made_up_tools)/schemathesis-$VERSION
  if [[ ! -x $tools/bin/schemathesis ]]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$VERSION"
  fi
  made_up_start 2 "${1-}"
  made_up_toft run --detach --name web --replicas 2 nginx:1.29 >/dev/null
  made_up_toft volume create data >/dev/null
  # What fails is kept nowhere: each run looks anew.
  ask() {
    local not_asked=$1
    shift
    PYTHONPATH=$here/schemathesis SCHEMATHESIS_HOOKS=archives "$tools/bin/schemathesis" "$@" \
      --header "Authorization: Bearer $made_up_token" --exclude-operation-id-regex "^($not_asked)\$" --checks "$CHECKS" \
      --phases examples,coverage,fuzzing --max-examples "$EXAMPLES" --seed 20261122 --workers 2 --request-timeout 20 \
      --generation-database none --no-color --continue-on-failure --warnings off
  }
  ask "$NOT_ASKED" run "$made_up_url/api/v1/openapi.json"
  ask "$NOT_ASKED|$WAITS" --config-file "$here/schemathesis/known.toml" run "$made_up_url/api/v1/openapi.json"
  made_up_is_well
}

main "$@"
