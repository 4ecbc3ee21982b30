#!/usr/bin/env bash
# Looks at every page of a made-up cluster with Lighthouse, as a phone on a slow network sees it: performance, accessibility and
# best practices have to be 95 or more.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lab/made_up.sh
source "$here/made_up.sh"

VERSION=12.8.2
LEAST=95
CATEGORIES=performance,accessibility,best-practices
PAGES=(/ /workloads /workloads/llm /workloads/web/logs /workloads/web/history /workloads/web/edit /workloads/web/shell
  /workloads/web/remove /logs /run /events /nodes /nodes/node-1 /nodes/node-2/drain /gpus /gpus/node-1/0 /mesh /images /volumes
  /volumes/new /secrets /secrets/new /settings /account /users /audit '/find?q=w' /ca /login)

usage() {
  cat <<EOF
usage: lighthouse.sh [TOFT [PAGE...]]

Installs Lighthouse $VERSION beside what is built, then looks at TOFT (built if it is not given or empty): at every page, or at
those that are named. Prints $CATEGORIES, in points of 100; each has to have $LEAST.
EOF
}

# Prints the points of a report, and fails if some are too few: points PAGE REPORT
points() {
  # shellcheck disable=SC2016 # node reads it
  node -e '
    const [page, file, least] = process.argv.slice(1);
    const report = JSON.parse(require("fs").readFileSync(file));
    if (report.runtimeError) { console.log(`${page}: ${report.runtimeError.message}`); process.exit(1); }
    const all = Object.values(report.categories).map((one) => Math.round(one.score * 100));
    console.log(`${page.padEnd(26)} ${all.map((one) => String(one).padStart(4)).join(" ")}`);
    if (all.every((one) => one >= Number(least))) process.exit(0);
    for (const one of Object.values(report.audits))
      if (one.score !== null && one.score < 0.9 && one.scoreDisplayMode !== "informative")
        console.log(`  ${one.id}: ${one.score} ${one.displayValue ?? ""}`);
    process.exit(1);' "$1" "$2" "$LEAST"
}

# Now and then the browser's trace lacks the page's beginning, and Lighthouse asks to be run again.
look() {
  local page=$1 report=$2 tries
  for tries in 1 2 3; do
    # Its own name is a trusted one to browsers, and so may go without TLS.
    ! CHROME_PATH=$(command -v chromium) "$tools/node_modules/.bin/lighthouse" "$made_up_url$page" --quiet --output json \
      --output-path "$report" --only-categories "$CATEGORIES" --extra-headers "$headers" --max-wait-for-load 15000 \
      --no-enable-error-reporting --chrome-flags='--headless --no-sandbox --disable-dev-shm-usage --disable-gpu' || return 0
    printf '%s: no report, %d of 3\n' "$page" "$tries"
  done
  return 1
}

main() {
  case "${1-}" in -h | --help) usage; return ;; esac
  local tools headers page report failed=0
  tools=$(made_up_tools)/lighthouse-$VERSION
  if [[ ! -x $tools/node_modules/.bin/lighthouse ]]; then
    PUPPETEER_SKIP_DOWNLOAD=1 npm install --silent --no-save --no-audit --no-fund --prefix "$tools" "lighthouse@$VERSION"
  fi
  made_up_start 3 "${1-}"
  made_up_toft run --detach --name web --replicas 3 --publish 80 nginx:1.29 >/dev/null
  made_up_toft run --detach --name llm --replicas 2 --gpus 24GB..:1 ghcr.io/ggml-org/llama.cpp:server-cuda >/dev/null
  headers=$made_up_folder/headers.json report=$made_up_folder/report.json
  (umask 077 && printf '{"Authorization":"Bearer %s"}' "$made_up_token" >"$headers")
  shift $(($# ? 1 : 0))
  (($# > 0)) || set -- "${PAGES[@]}"
  for page in "$@"; do
    look "$page" "$report" && points "$page" "$report" || failed=$((failed + 1))
  done
  made_up_is_well
  printf '%d of %d pages have less than %d points\n' "$failed" "$#" "$LEAST"
  ((failed == 0))
}

main "$@"
