# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# TAP output for shell tests. A test is a function whose claim is its description:
#
#	tap_test "a refused connection stays refused" test_refused
#	tap_done
#
# The function runs with errexit in a subshell, so the first command that fails fails the test;
# what it prints is shown as diagnostics then.

TAP_RUN=0
TAP_FAILED=0
TAP_SKIPPED=0

tap_comment() {
	sed 's/^/# /'
}

tap_test() { # CLAIM FUNCTION [ARG...]
	local claim=$1 status=0 log
	shift
	TAP_RUN=$((TAP_RUN + 1))
	log=$(mktemp "${TMPDIR:-/tmp}/tap.XXXXXX")
	# Not in a condition: errexit would be off inside it.
	set +e
	(
		set -e
		"$@"
	) >"$log" 2>&1 </dev/null
	status=$?
	set -e
	if [ "$status" -eq 0 ]; then
		echo "ok $TAP_RUN - $claim"
	else
		TAP_FAILED=$((TAP_FAILED + 1))
		echo "not ok $TAP_RUN - $claim"
		echo "# $1 exited with $status"
		tap_comment <"$log"
	fi
	rm -f "$log"
}

tap_skip() { # CLAIM REASON
	TAP_RUN=$((TAP_RUN + 1))
	TAP_SKIPPED=$((TAP_SKIPPED + 1))
	echo "ok $TAP_RUN - $1 # SKIP $2"
}

tap_skip_all() { # REASON: ends the script
	echo "1..0 # SKIP $1"
	exit 0
}

# Prints the plan; the script's exit status is this function's.
tap_done() {
	echo "1..$TAP_RUN"
	[ "$TAP_FAILED" -eq 0 ]
}

# ---- checks inside tests -----------------------------------------------------------------------

check_equal() { # GOT WANTED [WHAT]
	[ "$1" = "$2" ] && return 0
	echo "${3:-value} is '$1', not '$2'"
	return 1
}

check_has() { # TEXT PART [WHAT]
	case $1 in
	*"$2"*) return 0 ;;
	esac
	echo "${3:-text} does not contain '$2':"
	printf '%s\n' "$1" | tail -n 20
	return 1
}

check_fails() { # COMMAND...
	if "$@"; then
		echo "succeeded, and must not: $*"
		return 1
	fi
}
