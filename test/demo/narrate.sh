# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# How the demo speaks: headings, commands with their real output, claims that were checked.
# Colours on a terminal only, and not where NO_COLOR is set.

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
	BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' BLUE=$'\e[34m' PLAIN=$'\e[0m'
else
	BOLD='' DIM='' GREEN='' RED='' BLUE='' PLAIN=''
fi

SHOWN=''	# output of the command shown last
SHOWN_STATUS=0

heading() { # TEXT
	printf '\n%s%s== %s%s\n' "$BOLD" "$BLUE" "$1" "$PLAIN"
}

say() { # TEXT...
	printf '%s\n' "$*" | fold -s -w 98 | sed 's/ *$//'
}

finish() { # TEXT
	printf '\n%s%s%s%s\n' "$BOLD" "$GREEN" "$1" "$PLAIN"
}

fail() { # WHAT
	printf '%s%s  FAILED  %s%s\n' "$BOLD" "$RED" "$1" "$PLAIN"
	[ ! -s "$NODE_DIR/agent.log" ] || {
		echo "The agent's log ends with:"
		tail -n 15 "$NODE_DIR/agent.log" | show_indented
	}
	exit 1
}

show_indented() {
	sed 's/^/    /'
}

show_text() { # TEXT...
	printf '%s\n' "$@" | show_indented
}

# Runs a command and shows it as TEXT with its output; its failure ends the demo. In this shell,
# not a subshell: what it starts and sets stays.
show_as() { # TEXT COMMAND...
	show_command "$@"
	[ "$SHOWN_STATUS" -eq 0 ] || fail "$1: exit status $SHOWN_STATUS"
}

# The same for a command that is meant to fail.
show_fails_as() { # TEXT COMMAND...
	show_command "$@"
	[ "$SHOWN_STATUS" -ne 0 ] || fail "$1 succeeded, and must not"
}

show_command() { # TEXT COMMAND...
	printf '%s  $ %s%s\n' "$DIM" "$1" "$PLAIN"
	shift
	SHOWN_STATUS=0
	"$@" >"$NODE_DIR/shown" 2>&1 || SHOWN_STATUS=$?
	SHOWN=$(cat "$NODE_DIR/shown")
	[ -z "$SHOWN" ] || show_text "$SHOWN"
}

show() { # sockmeshctl VERB...
	local program=$1
	shift
	show_as "$program $*" ctl "$@"
}

# A claim and the command that checks it.
expect() { # CLAIM COMMAND...
	local claim=$1
	shift
	"$@" >"$NODE_DIR/expect.log" 2>&1 || {
		show_indented <"$NODE_DIR/expect.log"
		fail "$claim"
	}
	printf '%s  ok%s  %s\n' "$GREEN" "$PLAIN" "$claim"
}

has() { # TEXT PART
	case $1 in
	*"$2"*) return 0 ;;
	esac
	return 1
}

absent() { # TEXT FILE
	! grep -qF "$1" "$2"
}
