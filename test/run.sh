#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the test suites and counts: test/run.sh [SUITE...], all of them by default, in the order
# below. `make test` builds everything first and calls this as root.
#
#   BUILD_DIR      what to test (build)
#   SCALE          ci or full, for the suites with long tests (ci)
#   STRICT=1       a skipped test is a failure
#   SUITE_TIMEOUT  seconds that one suite may take (by SCALE: 600, 7200)
#   SUITES_DIR     where the suites are (test), for testing this script
#
# A suite prints TAP. One that prints no plan, or another number of tests than it planned, that
# fails without saying which test, or that takes too long, counts as a failed test of its own.
# The last line is exactly "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

export BUILD_DIR=${BUILD_DIR:-build} SCALE=${SCALE:-ci}
SUITES_DIR=${SUITES_DIR:-test}
STRICT=${STRICT:-0}
ALL_SUITES=(unit plugin ctl agent kube zds contract enrolment restarts cluster accelerate proxies programs runtime)
case $SCALE in
ci) SUITE_TIMEOUT=${SUITE_TIMEOUT:-600} ;;
full) SUITE_TIMEOUT=${SUITE_TIMEOUT:-7200} ;;
*)
	echo "test/run.sh: SCALE \"$SCALE\" is neither ci nor full" >&2
	exit 2
	;;
esac

# shellcheck source=test/lib/processes.sh
. test/lib/processes.sh

passed=0
failed=0
skipped=0
failures=()
skips=()

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	bold=$'\033[1m' red=$'\033[31m' yellow=$'\033[33m' plain=$'\033[0m'
else
	bold='' red='' yellow='' plain=''
fi

fail() { # SUITE WHAT
	failed=$((failed + 1))
	failures+=("$1: $2")
}

# Ends a program that takes too long, once, when what it does at that moment has been shown.
end_late() { # PID
	local pids
	[ "$SECONDS" -ge "$tap_deadline" ] && [ "$tap_ended_late" -eq 0 ] || return 0
	tap_ended_late=1
	mapfile -t pids <<<"$(processes_below "$1")"
	echo "# It has taken $SUITE_TIMEOUT s, and now does this:"
	processes_picture "${pids[@]}"
	kill "$1" 2>/dev/null
}

# Reads a line into the caller's `line`. Fails at the end of file, or when the program is gone and
# something that it left behind still holds its output: that must not hold us up.
read_line() { # PID
	local part pending='' status
	while :; do
		end_late "$1"
		IFS= read -r -t 2 part
		status=$?
		line=$pending$part
		[ "$status" -le 128 ] && break
		pending=$line
		if ! kill -0 "$1" 2>/dev/null; then
			tap_left_open=1
			break
		fi
	done
	[ "$status" -eq 0 ] || [ -n "$line" ]
}

# Reads one program's TAP: copies it to the terminal and keeps count.
# Sets tap_seen, tap_planned (-1: no plan), tap_failed and tap_left_open.
read_tap() { # SUITE PID
	local suite=$1 pid=$2 line='' claim upper
	local result='^(not )?ok( +[0-9]+)?( +-)? *(.*)$' plan='^1\.\.([0-9]+)( *# *[Ss][Kk][Ii][Pp] *(.*))?$'
	tap_seen=0
	tap_planned=-1
	tap_failed=0
	tap_left_open=0
	while read_line "$pid"; do
		if [[ $line =~ $plan ]]; then
			tap_planned=${BASH_REMATCH[1]}
			printf '%s\n' "$line"
			# "1..0 # SKIP why": the whole suite.
			if [ "$tap_planned" -eq 0 ] && [ -n "${BASH_REMATCH[2]}" ]; then
				skipped=$((skipped + 1))
				skips+=("$suite: ${BASH_REMATCH[3]:-no reason given}")
				tap_planned=-2
			fi
		elif [[ $line =~ $result ]]; then
			claim=${BASH_REMATCH[4]}
			tap_seen=$((tap_seen + 1))
			upper=${claim^^}
			if [ -n "${BASH_REMATCH[1]}" ]; then
				tap_failed=$((tap_failed + 1))
				fail "$suite" "$claim"
				printf '%s%s%s\n' "$red" "$line" "$plain"
			elif [[ $upper == *"# SKIP"* ]]; then
				skipped=$((skipped + 1))
				skips+=("$suite: $claim")
				printf '%s%s%s\n' "$yellow" "$line" "$plain"
			else
				passed=$((passed + 1))
				printf '%s\n' "$line"
			fi
		else
			printf '%s\n' "$line"
		fi
	done
}

# Runs one program of a suite; what it writes to standard error goes where ours goes.
run_program() { # SUITE PROGRAM
	local suite=$1 program=$2 status pid start=$SECONDS
	local tap_deadline=$((SECONDS + SUITE_TIMEOUT)) tap_ended_late=0
	# A process substitution, so that read_tap counts in this shell and the status is not lost.
	# timeout makes a process group of the suite, and ends all of it when read_line ends timeout.
	exec {tap_fd}< <(exec timeout --kill-after=15 $((SUITE_TIMEOUT + 60)) "$program" </dev/null)
	pid=$!
	trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
	read_tap "$suite" "$pid" <&"$tap_fd"
	exec {tap_fd}<&-
	wait "$pid"
	status=$?
	trap - INT TERM

	[ "$tap_left_open" -eq 0 ] || fail "$suite" "$program left a process behind"
	if [ "$tap_ended_late" -eq 1 ]; then
		fail "$suite" "$program took more than $SUITE_TIMEOUT s (after $tap_seen tests)"
	elif [ "$tap_planned" -eq -1 ]; then
		fail "$suite" "$program ended with status $status and no plan, after $tap_seen tests"
	elif [ "$tap_planned" -ge 0 ] && [ "$tap_planned" -ne "$tap_seen" ]; then
		fail "$suite" "$program planned $tap_planned tests and ran $tap_seen"
	elif [ "$tap_planned" -eq 0 ]; then
		fail "$suite" "$program has no tests"
	elif [ "$status" -ne 0 ] && [ "$tap_failed" -eq 0 ]; then
		fail "$suite" "$program exited with status $status, though no test failed"
	elif [ "$status" -eq 0 ] && [ "$tap_failed" -ne 0 ]; then
		echo "# $program exited with status 0, though $tap_failed tests failed"
	fi
}

run_unit() {
	local program found=0
	for program in "$BUILD_DIR"/test/unit/*_test; do
		[ -x "$program" ] || continue
		found=1
		printf '# %s\n' "${program##*/}"
		run_program "unit/${program##*/}" "$program"
	done
	[ "$found" -eq 1 ] || fail unit "no $BUILD_DIR/test/unit/*_test: not built"
}

run_suite() { # SUITE
	local start=$SECONDS
	printf '\n%s== %s%s\n' "$bold" "$1" "$plain"
	if [ "$1" = unit ]; then
		run_unit
	elif [ -x "$SUITES_DIR/$1/run.sh" ]; then
		run_program "$1" "$SUITES_DIR/$1/run.sh"
	else
		fail "$1" "no $SUITES_DIR/$1/run.sh"
	fi
	printf '# %s: %d s\n' "$1" $((SECONDS - start))
}

list() { # HEADING ITEM...
	[ $# -gt 1 ] || return 0
	printf '\n%s%s%s\n' "$bold" "$1" "$plain"
	shift
	printf '  %s\n' "$@"
}

is_suite() { # NAME
	local suite
	for suite in "${ALL_SUITES[@]}"; do
		[ "$suite" = "$1" ] && return 0
	done
	return 1
}

if [ "$(id -u)" -ne 0 ]; then
	echo "test/run.sh: the tests make network namespaces and load BPF programs: run this as root" >&2
	exit 2
fi
for suite in "$@"; do
	is_suite "$suite" || {
		echo "test/run.sh: no suite \"$suite\"; there are: ${ALL_SUITES[*]}" >&2
		exit 2
	}
done

# In the fixed order, whatever the order of the arguments.
for suite in "${ALL_SUITES[@]}"; do
	case " ${*:-${ALL_SUITES[*]}} " in
	*" $suite "*) run_suite "$suite" ;;
	esac
done

list "Skipped:" "${skips[@]}"
list "Failed:" "${failures[@]}"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] || exit 1
[ "$skipped" -eq 0 ] || [ "$STRICT" != 1 ] || exit 1
