# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Processes of tests that stand still: which there are, what they do, and waiting for one to end.
#
# Nothing here, and nothing that polls, uses <(...). When such a process ends right after it was
# made, bash 5.2 may take it for alive for ever. The next child that is given the same id is then
# not seen to end, and the shell waits for it until it is killed itself. A suite uses more ids than
# kernel.pid_max is by default.

# What never has anything to read.
processes_never=$(mktemp -u /tmp/sockmesh-never.XXXXXX)
mkfifo "$processes_never"
exec {processes_never_fd}<>"$processes_never"
rm "$processes_never"

pause() { # SECONDS
	read -rt "$1" -u "$processes_never_fd" || :
}

process_stat() { # PID: /proc/PID/stat after the name, which may be anything: "S PARENT ..."
	local line
	{ read -r line <"/proc/$1/stat"; } 2>/dev/null || return
	echo "${line##*) }"
}

processes_below() { # PID...: these and whatever they have started, one on a line
	local -A children=()
	local dir line parent tree=("$@") i
	for dir in /proc/[1-9]*; do
		{ read -r line <"$dir/stat"; } 2>/dev/null || continue
		read -r _ parent _ <<<"${line##*) }"
		children[$parent]+=" ${dir#/proc/}"
	done
	for ((i = 0; i < ${#tree[@]}; i++)); do
		# shellcheck disable=SC2206 # a list of numbers
		tree+=(${children[${tree[i]}]:-})
	done
	[ ${#tree[@]} -eq 0 ] || printf '%s\n' "${tree[@]}"
}

process_picture() { # PID
	local command state parent task
	command=$({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null)
	read -r state parent _ <<<"$(process_stat "$1")"
	[ -n "$state" ] || return 0
	echo "# process $1 of $parent, $state: ${command:-[$({ cat "/proc/$1/comm"; } 2>/dev/null)]}"
	for task in "/proc/$1/task"/*; do
		echo "#   in $({ cat "$task/wchan"; } 2>/dev/null), system call $({ cat "$task/syscall"; } 2>/dev/null)"
		{ sed 's/^/#     /' "$task/stack"; } 2>/dev/null
	done
}

# What each of them does at this moment, as comments of TAP.
processes_picture() { # PID...
	local pid
	for pid in "$@"; do
		process_picture "$pid"
	done
}

has_ended() { # PID: it is gone, or nobody has asked for its status yet
	local line
	{ read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
	[[ ${line##*) } = [XZ]* ]]
}

# wait, but not for ever: a process that has not ended by then is shown and killed, with what it
# has started, and this fails.
ended() { # PID SECONDS
	local deadline=$((${EPOCHREALTIME/./} + $2 * 1000000 * ${SOCKMESH_TEST_PATIENCE:-1})) late
	until has_ended "$1"; do
		[ "${EPOCHREALTIME/./}" -lt "$deadline" ] || {
			late=$(processes_below "$1")
			echo "# process $1 has not ended after $2 s:"
			# shellcheck disable=SC2086 # numbers
			processes_picture $late
			# shellcheck disable=SC2086
			kill -9 $late 2>/dev/null
			return 1
		}
		pause 0.005
	done
	wait "$1" 2>/dev/null || :
}
