#!/usr/bin/env bash
# Numbered checks for shell proofs: source it, call `check` for each, end with `checks_finish`.

CHECKS_PASSED=0
CHECKS_FAILED=0

# Runs a command as one check and reports it: check "what holds" COMMAND...
check() {
  local what=$1 output number=$((CHECKS_PASSED + CHECKS_FAILED + 1))
  shift
  if output=$("$@" 2>&1); then
    CHECKS_PASSED=$((CHECKS_PASSED + 1))
    printf 'ok %d - %s\n' "$number" "$what"
  else
    CHECKS_FAILED=$((CHECKS_FAILED + 1))
    printf 'not ok %d - %s\n' "$number" "$what"
    printf '# failed: %.200s\n' "${*//$'\n'/ }"
    [[ -z $output ]] || tail -n 40 <<<"$output" | sed 's/^/# /'
  fi
}

# Compares two texts and shows their difference: same BEFORE AFTER
same() {
  [[ $1 == "$2" ]] || { diff <(echo "$1") <(echo "$2"); return 1; }
}

not() { ! "$@"; }

# Prints the closing line and returns success if every check passed.
checks_finish() {
  printf '%d passed, %d failed\n' "$CHECKS_PASSED" "$CHECKS_FAILED"
  ((CHECKS_FAILED == 0 && CHECKS_PASSED > 0))
}
