# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# An agent that asks no API server: what it knows of a pod is what its plugin has said. For run.sh.
#
# shellcheck disable=SC2034,SC2153,SC2154 # variables are for and from the script that sources this

SAYS_AMBIENT='{"sockmesh.io/redirection":"ambient"}'

alone_up() { # [OPTION...]
	agent_ends TERM
	agent_up --kubernetes off --without-ztunnel admit --reconcile-seconds 1 "$@"
}

add_alone() { # POD ANNOTATIONS
	UID_OF[$1]=5f0a7a1c-0000-4000-8000-0000000000a${#1}
	with_plugin pod_add "$1" "$2"
}

end_alone() { # POD
	ztunnel_leaves "$1"
	pod_delete "$1"
	unset "UID_OF[$1]"
}

agent_ticks() { # the processor time that it has used, in hundredths of a second
	local stat
	read -ra stat <<<"$(process_stat "$(cat "$NODE_DIR/agent.pid")")"
	echo $((stat[11] + stat[12]))
}

# Over a round of the reconciler.
agent_is_idle() {
	local before used
	before=$(agent_ticks)
	pause 1.6
	used=$(($(agent_ticks) - before))
	echo "used $used hundredths of a second"
	[ "$used" -lt 20 ]
}

test_admitted_without_the_api() {
	zds_stop
	alone_up
	add_alone alone "$SAYS_AMBIENT"
	check_equal "$(pod_field alone mode)" none "without ztunnel"
	agent_is_idle
	ztunnel_comes alone
	zds_start
	wait_for 10 mode_is alone ambient
	is_captured alone
	zds_stop
	wait_for 10 status_is .enrolment.ztunnel.ready 0
	is_captured alone
	end_alone alone
	zds_start
	agent_again
}

# What the agent before has not done for it nobody announces again.
test_admitted_before_a_restart() {
	zds_stop
	alone_up
	add_alone alone "$SAYS_AMBIENT"
	agent_ends KILL
	agent_up --kubernetes off --reconcile-seconds 600
	check_equal "$(pod_field alone mode)" none "without ztunnel"
	zds_start
	wait_for 10 mode_is alone ambient
	end_alone alone
	agent_again
}

# ztunnel has taken it, and the kernel has no room for it.
test_admitted_and_refused_by_the_kernel() {
	zds_stop
	alone_up --max-pods 1
	add_alone first "$SIDECAR_ANNOTATION"
	add_alone alone "$SAYS_AMBIENT"
	zds_start
	wait_for 10 status_is .enrolment.refused 1
	check_equal "$(pod_field alone mode)" none "while there is no room"
	end_alone first
	wait_for 20 mode_is alone ambient
	end_alone alone
	agent_again
}
