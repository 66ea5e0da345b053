#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Pods that CNI cannot see: a real API server with etcd, real namespaces and processes, and a
# ztunnel that takes whatever it is told of. Prints TAP, with figures as comments. Environment:
# ENGINE (auto), ONLY (regular expression of claims).
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=test/lib/node.sh
. test/lib/node.sh
# shellcheck source=test/lib/processes.sh
. test/lib/processes.sh
# shellcheck source=test/lib/cni.sh
. test/lib/cni.sh
# shellcheck source=test/lib/pod.sh
. test/lib/pod.sh
# shellcheck source=test/lib/tap.sh
. test/lib/tap.sh
# shellcheck source=test/cluster/cluster.sh
. test/cluster/cluster.sh
# shellcheck source=test/enrolment/lib.sh
. test/enrolment/lib.sh
# shellcheck source=test/enrolment/churn.sh
. test/enrolment/churn.sh
# shellcheck source=test/enrolment/options.sh
. test/enrolment/options.sh
# shellcheck source=test/enrolment/alone.sh
. test/enrolment/alone.sh

ENGINE=${ENGINE:-auto} ONLY=${ONLY:-}
AMBIENT='{"istio.io/dataplane-mode":"ambient"}'
NOT_AMBIENT='{"istio.io/dataplane-mode":null}'
REDIRECTION=ambient.istio.io/redirection
SERVERS=() # process groups

node_enter "$@"

agent_options() {
	printf '%s\n' --run-dir "$NODE_RUN" --bpffs-dir "$NODE_BPFFS/sockmesh" \
		--cgroup-root "$NODE_CGROUP" --kubeconfig "$NODE_DIR/kubeconfig" --node-name "$TEST_NODE" \
		--ztunnel-socket "$NODE_DIR/ztunnel.sock" --mode "$ENGINE" --reconcile-seconds 5
}

check() { # CLAIM FUNCTION [ARG...]
	[[ $1 =~ $ONLY ]] || return 0
	tap_test "$@"
}

close_all() {
	local file
	[ "$BASHPID" -eq $$ ] || return 0
	for file in "$NODE_DIR"/ztunnel-*.pid; do
		file=${file##*/ztunnel-}
		ztunnel_leaves "${file%.pid}"
	done
	for file in "${SERVERS[@]}"; do
		kill -KILL -- "-$file" 2>/dev/null || true
	done
	for file in "$NODE_DIR"/*.held; do
		[ ! -e "$file" ] || kill -KILL "$(cat "$file")" 2>/dev/null || true
	done
	zds_stop
	agent_ends KILL
	node_close
	cluster_close
}

# ---- live opt-in and opt-out -------------------------------------------------------------------

test_label_joins() {
	goes_direct one
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
	is_captured one
	check_equal "$(reached_from_node "${POD_IP4[one]}:8080")" ztunnel "from outside"
	check_equal "$(reached_from_node "[${POD_IP6[one]}]:8080")" ztunnel "from outside, IPv6"
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	check_equal "$(api_annotation one sockmesh.io/status | jq -r '"\(.v) \(.mode)"')" "1 ambient"
}

test_label_leaves() {
	mode_is one ambient
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	goes_direct one
	wait_for 10 annotation_is one "$REDIRECTION" ""
	wait_for 10 annotation_is one sockmesh.io/status ""
}

# What it is told to give up it cuts, and its peers go on asking it until they hear of the change.
test_ztunnel_goes_on_for_a_while() {
	local to
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	wait_for 10 annotation_is one "$REDIRECTION" ""
	for to in "${POD_IP4[one]}:8080" "[${POD_IP6[one]}]:8080"; do
		check_has "$(reached_for_client one "$to" 2>&1)" "label=server" "ztunnel to $to"
	done
	check_equal "$(status_field .enrolment.ztunnel.pods)" 1 "pods that ztunnel has"
	wait_for 10 status_is .enrolment.ztunnel.pods 0
	# Netfilter keeps them as long as it remembers the connections.
	! status_is .engine ebpf || wait_for 20 has_no_routes one
}

has_no_routes() { # POD: of those for the answers to ztunnel
	[ -z "$(ip -n "$1" rule show table 100)$(ip -n "$1" -6 rule show table 100)" ]
}

test_namespace_joins_and_leaves() {
	label_namespace demo "$AMBIENT"
	wait_for 10 mode_is one ambient
	wait_for 10 mode_is two ambient
	is_captured one
	label_namespace demo "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	wait_for 10 mode_is two none
	goes_direct one
}

test_own_annotation() {
	annotate_pod one '{"sockmesh.io/redirection":"ambient"}'
	wait_for 10 mode_is one ambient
	is_captured one
	annotate_pod one '{"sockmesh.io/redirection":null}'
	wait_for 10 mode_is one none
	goes_direct one
}

# Its cgroup has the hash of its manifest, by which kubelet and the runtime know it, and the API's
# object, its mirror, another uid.
test_static_pod() {
	local hash=d41d8cd98f00b204e9800998ecf8427e uid
	api_pod fixed "$AMBIENT" "{\"kubernetes.io/config.mirror\":\"$hash\"}"
	uid=${UID_OF[fixed]}
	UID_OF[fixed]=$hash
	pod_add fixed && pod_runs fixed
	ztunnel_comes fixed
	wait_for 10 mode_is fixed ambient
	is_captured fixed
	check_equal "$(pod_field fixed uid)" "$uid" "by which it is known"
	end_pod fixed
	wait_for 10 status_is .enrolment.ztunnel.pods 0
}

# ---- pods that a CNI plugin announces ----------------------------------------------------------

with_plugin() { # COMMAND...: pods made by it have our plugin in their chain
	POD_CONFLIST=$NODE_DIR/mesh.conflist "$@"
}

# A pod of an ambient namespace: what its plugin is told does not say so, the API does.
test_add_joins() {
	with_plugin run_pod added "$AMBIENT"
	check_equal "$(pod_field added mode)" ambient "at the end of ADD"
	ztunnel_comes added
	is_captured added
	wait_for 10 annotation_is added "$REDIRECTION" enabled
	end_pod added
	check_equal "$(pod_field added mode)" none "after DEL"
	wait_for 10 status_is .enrolment.ztunnel.pods 0
}

test_add_waits_for_the_api() {
	local uid=5f0a7a1c-0000-4000-8000-000000000001
	UID_OF[unknown]=$uid
	# Nobody knows this pod: it is not held up for longer than the API may take.
	local before=${EPOCHREALTIME/./}
	with_plugin pod_add unknown '{}'
	[ $((${EPOCHREALTIME/./} - before)) -lt 5000000 ]
	check_equal "$(pod_field unknown mode)" none "unknown to the API"
	pod_delete unknown
	unset "UID_OF[unknown]"
}

test_add_ends_when_the_api_knows() {
	UID_OF[late]=5f0a7a1c-0000-4000-8000-000000000003
	(wait_for 5 status_is .enrolment.waiting 1 && api_pod late "$AMBIENT") &
	POD_SAID_UID='' with_plugin pod_add late '{}'
	check_equal "$(pod_field late mode)" ambient "at the end of ADD"
	wait $!
	end_pod late
	wait_for 10 status_is .enrolment.ztunnel.pods 0
}

test_add_without_ztunnel_is_denied() {
	local said
	zds_stop
	wait_for 10 status_is .enrolment.ztunnel.ready 0
	api_pod denied "$AMBIENT"
	said=$(with_plugin pod_add denied '{}' 2>&1) && return 1
	check_has "$said" '"code":11' "the plugin's answer"
	check_has "$said" "ztunnel is not connected" "the plugin's answer"
	check_equal "$(pod_field denied mode)" none
	# What is not in the mesh does not need ztunnel.
	with_plugin run_pod plain
	end_pod plain
	zds_start
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	ip netns delete denied
	with_plugin pod_add denied '{}'
	check_equal "$(pod_field denied mode)" ambient "with ztunnel"
	end_pod denied
}

test_add_without_ztunnel_is_admitted() {
	agent_ends TERM
	agent_up --without-ztunnel admit
	zds_stop
	wait_for 10 status_is .enrolment.ztunnel.ready 0
	with_plugin run_pod admitted "$AMBIENT"
	check_equal "$(pod_field admitted mode)" none "without ztunnel"
	goes_direct admitted
	ztunnel_comes admitted
	wait_for 10 annotation_is admitted "$REDIRECTION" pending
	zds_start
	wait_for 10 mode_is admitted ambient
	is_captured admitted
	wait_for 10 annotation_is admitted "$REDIRECTION" enabled
	end_pod admitted
	agent_ends TERM
	agent_up
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

exempts() { # POD ADDRESS
	[[ $(nft list ruleset 2>/dev/null) == *"$2 comment \"netns $(pod_field "$1" cookie)\""* ]]
}

# With the netfilter engines it is by address that a pod's probes are exempt.
test_new_address() {
	local new=10.88.77.9
	agent_ends TERM
	agent_up --mode nftables --reconcile-seconds 1
	with_plugin run_pod readdressed "$AMBIENT"
	wait_for 10 exempts readdressed "${POD_IP4[readdressed]}"
	# One that the pod does not have is another sandbox's.
	cluster_pod_status demo readdressed Running "$new" >/dev/null
	wait_for 10 annotation_is readdressed "$REDIRECTION" enabled
	exempts readdressed "${POD_IP4[readdressed]}"
	ip -n readdressed address add "$new/16" dev eth0
	wait_for 10 exempts readdressed "$new"
	check_fails exempts readdressed "${POD_IP4[readdressed]}"
	end_pod readdressed
	agent_ends TERM
	agent_up
}

# ---- ends and restarts -------------------------------------------------------------------------

one_is_ambient() {
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
}

test_agent_killed() {
	one_is_ambient
	agent_ends KILL
	is_captured one
	agent_up
	check_equal "$(pod_field one mode)" ambient "after the restart"
	wait_for 10 status_is .enrolment.ztunnel.pods 1
	is_captured one
}

# With the label the agent's end comes, and its successor has no API server to ask.
killed_while_it_joins() { # POD before|after the state file is put into its place
	local killer
	rm -f "$NODE_DIR/killer"
	python3 -EsB test/lib/kill_at_rename.py "$(cat "$NODE_DIR/agent.pid")" "$2" state.json >"$NODE_DIR/killer" &
	killer=$!
	wait_for 10 grep -q watching "$NODE_DIR/killer"
	label_pod "$1" "$AMBIENT"
	wait "$killer"
	agent_ends KILL
	agent_up --kubernetes off
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

ztunnel_has_each() { # that is redirected, with a name or without one
	check_equal "$(status_field .enrolment.ztunnel.pods)" "$(status_field .pods.redirected)" \
		"pods that ztunnel is told of"
	check_equal "$(status_field .pods.orphaned)" 0 "pods without a name"
}

# A namespace that is redirected and whose pod nobody can name would be one that ztunnel, which ends
# its listeners in it, is not told of.
test_agent_killed_while_a_pod_joins() {
	run_pod cut
	ztunnel_comes cut
	killed_while_it_joins cut before
	ztunnel_has_each
	goes_direct cut
	label_pod cut "$NOT_AMBIENT"
	agent_ends TERM
	agent_up
	wait_for 10 status_is .enrolment.kubernetes.complete true
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	killed_while_it_joins cut after
	check_equal "$(pod_field cut mode)" ambient "what the next agent makes of it"
	is_captured cut
	ztunnel_has_each
	agent_ends TERM
	agent_up
	wait_for 10 status_is .enrolment.kubernetes.complete true
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	mode_is cut ambient
	is_captured cut
	end_pod cut
}

# What the annotations say already is not written again: a roll-out would be a patch for each pod.
test_restart_writes_nothing() {
	local before
	one_is_ambient
	with_plugin run_pod quiet "$AMBIENT"
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	wait_for 10 annotation_is quiet "$REDIRECTION" enabled
	before=$(api_annotation one sockmesh.io/status)$(api_annotation quiet sockmesh.io/status)
	agent_ends KILL
	agent_up
	wait_for 10 status_is .enrolment.kubernetes.complete true
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	# Whatever it had to say it says before it says this of another pod, as its last word.
	annotate_pod quiet '{"sockmesh.io/status":"{}"}'
	wait_for 10 status_is .enrolment.kubernetes.written.written 1
	check_equal "$(api_annotation one sockmesh.io/status)$(api_annotation quiet sockmesh.io/status)" \
		"$before" "the annotations"
	end_pod quiet
}

# No annotation has it: what is lost with the agent makes the pod's plan another one for a while.
test_environment_is_remembered() {
	one_is_ambient
	with_plugin run_pod environ '' "$SIDECAR_ANNOTATION" '{"containers": [
		{"name": "istio-proxy", "image": "p", "env": [{"name": "INVALID_DROP", "value": "true"}]}]}'
	mode_is environ sidecar
	agent_ends KILL
	agent_up
	wait_for 10 status_is .enrolment.kubernetes.complete true
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	check_equal "$(status_field .enrolment.changed)" 0 "changed"
	end_pod environ
}

test_agent_away_while_the_label_goes() {
	one_is_ambient
	agent_ends KILL
	label_pod one "$NOT_AMBIENT"
	is_captured one
	agent_up
	wait_for 10 mode_is one none
	goes_direct one
	wait_for 10 annotation_is one "$REDIRECTION" ""
}

test_agent_away_while_a_pod_goes() {
	run_pod gone "$AMBIENT"
	ztunnel_comes gone
	wait_for 10 mode_is gone ambient
	agent_ends KILL
	end_pod gone
	agent_up
	wait_for 10 status_is .enrolment.ztunnel.pods 0
	wait_for 10 status_is .pods.redirected 0
}

uid_is() { # POD UID
	[ "$(pod_field "$1" uid)" = "$2" ]
}

ztunnel_was_told() { # TEXT
	grep -q "^told .*$1" "$NODE_DIR/zds.log"
}

# Without the API server the agent knows neither the pod's service account nor, here, its uid, and
# names it to ztunnel by its sandbox.
test_agent_without_the_api() {
	local uid
	agent_ends TERM
	agent_up --kubernetes off
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	api_pod named '' '{"sockmesh.io/redirection":"ambient"}' '{"serviceAccountName":"shop"}'
	uid=${UID_OF[named]}
	POD_SAID_UID='' with_plugin pod_add named '{"sockmesh.io/redirection":"ambient"}'
	mode_is named ambient
	ztunnel_was_told "${POD_ID[named]} named demo default"
	pod_runs named
	agent_ends TERM
	agent_up
	wait_for 10 ztunnel_was_told "$uid named demo shop"
	wait_for 10 uid_is named "$uid"
	mode_is named ambient
	wait_for 10 status_is .enrolment.ztunnel.pods 1
	check_equal "$(ctl pods -o json | jq '[.pods[] | select(.name == "named")] | length')" 1 "entries"
	# ztunnel must not be given one namespace under two names. It forgets what it is not told of again
	# when it connects, as happens where the API server has answered before.
	awk -v old="${POD_ID[named]}" -v new="$uid" '/^connected/ { both = 0 } $2 == old { both = NF > 2 }
		$2 == new { exit both }' "$NODE_DIR/zds.log"
	end_pod named
	wait_for 10 status_is .enrolment.ztunnel.pods 0
}

# The same, of a pod whose uid was known, and so its name to ztunnel is right but for one part.
test_service_account_is_corrected() {
	agent_ends TERM
	agent_up --kubernetes off
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	api_pod account '' '{"sockmesh.io/redirection":"ambient"}' '{"serviceAccountName":"shop"}'
	with_plugin pod_add account '{"sockmesh.io/redirection":"ambient"}'
	ztunnel_was_told "${UID_OF[account]} account demo default"
	pod_runs account
	agent_ends TERM
	agent_up
	wait_for 10 ztunnel_was_told "${UID_OF[account]} account demo shop"
	wait_for 10 mode_is account ambient
	end_pod account
	wait_for 10 status_is .enrolment.ztunnel.pods 0
}

# What a plugin said of the pod leads nowhere any more, its processes do.
test_lost_path() {
	with_plugin run_pod lost "$AMBIENT"
	ztunnel_comes lost
	mode_is lost ambient
	touch "$NODE_DIR/lost"
	mount --bind /run/netns/lost "$NODE_DIR/lost"
	umount /run/netns/lost
	label_pod lost "$NOT_AMBIENT"
	wait_for 10 mode_is lost none
	mount --bind "$NODE_DIR/lost" /run/netns/lost
	wait_for 10 umount "$NODE_DIR/lost" # the agent may just be looking
	goes_direct lost
	end_pod lost
}

agent_wakes() { # how often it has until now
	sed -n 's/^voluntary_ctxt_switches:\t//p' "/proc/$(cat "$NODE_DIR/agent.pid")/status"
}

agent_rests() { # SECONDS: it has nothing to do for so long
	local before
	before=$(agent_wakes)
	pause "$1"
	[ "$(agent_wakes)" = "$before" ]
}

# Of a pod that was found nobody announces the end.
test_found_pod_ends() {
	local before
	agent_ends TERM
	agent_up --reconcile-seconds 600
	run_pod brief "$AMBIENT"
	wait_for 10 mode_is brief ambient
	before=$(status_field .enrolment.ztunnel.pods)
	cluster_pod_delete demo brief
	wait_for 10 status_is .enrolment.ztunnel.pods $((before - 1))
	mode_is brief ambient
	# It looks again, and later each time: the first few times it would not wait for so long.
	wait_for 30 agent_rests 1.5
	pod_delete brief
	wait_for 5 mode_is brief none
	unset "UID_OF[brief]"
	agent_ends TERM
	agent_up
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

both_sleep() { # POD: they have come into its namespace
	local pid n=0
	while read -r pid; do
		[ "$(cat "/proc/$pid/comm")" != sleep ] || n=$((n + 1))
	done <"$(pod_cgroup_dir "$1")/app/cgroup.procs"
	[ "$n" -eq 2 ]
}

# A pod whose namespace has no name is known by the process that it was found by. That one ends,
# others live on there, and a new ztunnel has to be given the namespace.
test_found_process_ends() {
	local found other
	run_pod moved
	pod_start other moved app "$APP_UID" sleep infinity
	wait_for 10 both_sleep moved
	umount /run/netns/moved
	label_pod moved "$AMBIENT"
	wait_for 10 mode_is moved ambient
	found=$(pod_field moved netns)
	found=${found#/proc/} found=${found%/ns/net}
	zds_stop
	kill -KILL "$found"
	wait_for 10 has_ended "$found"
	rm "$NODE_DIR/zds.log" # of the one before
	zds_start
	wait_for 10 ztunnel_was_told "${UID_OF[moved]} moved demo default"
	mode_is moved ambient
	read -r other <"$(pod_cgroup_dir moved)/app/cgroup.procs"
	mount --bind "/proc/$other/ns/net" /run/netns/moved
	end_pod moved
}

is_looking_for_processes() {
	grep -q sched_process_exec "/proc/$(cat "$NODE_DIR/agent.pid")/fdinfo"/*
}

# Nothing runs in it, so that it is not found; what is not wanted any more is not looked for.
test_search_ends() {
	wait_for 10 check_fails is_looking_for_processes
	api_pod lazy
	pod_add lazy
	cluster_pod_status demo lazy Running "${POD_IP4[lazy]}" "${POD_IP6[lazy]}" >/dev/null
	label_pod lazy "$AMBIENT"
	wait_for 10 is_looking_for_processes
	label_pod lazy "$NOT_AMBIENT"
	wait_for 10 check_fails is_looking_for_processes
	end_pod lazy
}

# A pod that says that it is in the mesh, and of which the kernel has nothing: a node that was
# rebooted looks like that, as far as the pod had not been made anew.
test_annotation_without_the_kernel() {
	one_is_ambient
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	agent_ends TERM
	agent_uninstall
	goes_direct one
	check_equal "$(api_annotation one "$REDIRECTION")" enabled "what is left of it"
	agent_up
	wait_for 10 mode_is one ambient
	is_captured one
}

test_ztunnel_restarts() {
	one_is_ambient
	zds_stop
	wait_for 10 status_is .enrolment.ztunnel.ready 0
	is_captured one
	zds_start
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	check_equal "$(pod_field one mode)" ambient
	is_captured one
}

test_api_server_restarts() {
	one_is_ambient
	cluster_kill apiserver
	is_captured one
	check_equal "$(pod_field one mode)" ambient "without the API server"
	# A sidecar pod is decided about by what its runtime says.
	UID_OF[sidecar]=5f0a7a1c-0000-4000-8000-000000000002
	with_plugin pod_add sidecar "$SIDECAR_ANNOTATION"
	check_equal "$(pod_field sidecar mode)" sidecar "without the API server"
	pod_delete sidecar
	unset "UID_OF[sidecar]"
	cluster_apiserver_start
	label_pod one "$NOT_AMBIENT"
	wait_for 40 mode_is one none
	goes_direct one
}

# That it has is what the API says: as long as its namespace lives nothing in it bypasses ztunnel.
test_pod_completes() {
	run_pod job "$AMBIENT"
	ztunnel_comes job
	wait_for 10 mode_is job ambient
	cluster_pod_status demo job Succeeded "${POD_IP4[job]}" "${POD_IP6[job]}" >/dev/null
	wait_for 10 annotation_is job "$REDIRECTION" ""
	wait_for 10 status_is .enrolment.ztunnel.pods 0
	is_captured job
	ztunnel_leaves job
	pod_delete job
	wait_for 10 mode_is job none
	wait_for 10 annotation_is job sockmesh.io/status ""
	cluster_pod_delete demo job
	unset "UID_OF[job]"
}

# Many ambient pods say that they want no sidecar, which is not what decides about this.
test_excluded_by_a_restart() {
	local engine engines=$ENGINE
	[ "$ENGINE" != auto ] || engines="ebpf nftables iptables"
	label_pod one '{"sidecar.istio.io/inject":"false"}'
	for engine in $engines; do
		agent_ends TERM
		agent_up --mode "$engine"
		one_is_ambient
		wait_for 10 annotation_is one "$REDIRECTION" enabled
		agent_ends TERM
		agent_up --mode "$engine" --exclude-namespaces demo
		wait_for 10 mode_is one none
		goes_direct one
		check_equal "$(reached_from_node "${POD_IP4[one]}:8080")" server "from outside"
		wait_for 10 annotation_is one "$REDIRECTION" ""
		check_has "$(reached_for_client one "${POD_IP4[one]}:8080" 2>&1)" "label=server" "ztunnel, which has it yet"
		wait_for 10 status_is .enrolment.ztunnel.pods 0
		label_pod one "$NOT_AMBIENT"
	done
	label_pod one '{"sidecar.istio.io/inject":null}'
	agent_ends TERM
	agent_up
}

# Nobody takes such a pod back while no API server is asked: ztunnel has to serve it.
test_excluded_without_the_api() {
	one_is_ambient
	agent_ends TERM
	agent_up --exclude-namespaces demo --kubernetes off
	check_equal "$(status_field .pods.orphaned)" 1
	wait_for 10 status_is .enrolment.ztunnel.pods 1
	is_captured one
	agent_ends TERM
	agent_up
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	goes_direct one
}

# The pod's spec, once it is known, counts before what its annotations said, whatever its labels.
test_mistaken_for_a_sidecar() {
	agent_ends TERM
	agent_up --kubernetes off
	with_plugin run_pod mistaken '{"sidecar.istio.io/inject":"true"}' "$SIDECAR_ANNOTATION"
	check_equal "$(pod_field mistaken mode)" sidecar "by its annotations"
	agent_ends TERM
	agent_up
	wait_for 10 mode_is mistaken none
	goes_direct mistaken
	end_pod mistaken
}

# What a process in the pod that has CAP_NET_ADMIN makes in the place of our table is its own.
test_heal_that_fails() {
	local pid
	agent_ends TERM
	agent_up --mode nftables --reconcile-seconds 1
	one_is_ambient
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	mkfifo "$NODE_DIR/nft"
	nsenter --net=/run/netns/one -- nft -i <"$NODE_DIR/nft" >/dev/null 2>&1 &
	pid=$!
	exec 7>"$NODE_DIR/nft"
	echo 'delete table inet sockmesh; add table inet sockmesh { flags owner; }' >&7
	wait_for 10 annotation_is one "$REDIRECTION" pending
	check_has "$(api_annotation one sockmesh.io/status | jq -r .reason)" "cannot be put right"
	check_has "$(pod_field one broken)" "cannot be put right"
	wait_for 10 has_event one SockmeshRefused
	[ "$(status_field .counters.healFailures)" -gt 0 ]
	exec 7>&-
	ended "$pid" 10
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	is_captured one
	check_equal "$(pod_field one broken)" none
	check_fails check_has "$(api_annotation one sockmesh.io/status | jq -r .reason)" "cannot be put right"
	[ "$(status_field .counters.healed)" -gt 0 ]
	agent_ends TERM
	agent_up
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
}

# Neither is it gone because nobody can read what the API says of it.
test_unreadable_after_a_restart() {
	local state=$NODE_DIR/run/state.json
	run_pod unread "$AMBIENT"
	ztunnel_comes unread
	wait_for 10 mode_is unread ambient
	agent_ends TERM
	jq -nc '{metadata: {annotations: {"istio.io/x": ("x" * 70000)}}}' >"$NODE_DIR/large.json"
	api PATCH /api/v1/namespaces/demo/pods/unread - <"$NODE_DIR/large.json" >/dev/null
	# Of a new pod a list that does not have it would prove nothing.
	jq -c '.pods[].since = 1000000000' "$state" >"$state.old"
	mv "$state.old" "$state"
	agent_up
	wait_for 10 status_is .enrolment.kubernetes.complete true
	wait_for 10 has_event unread SockmeshRefused
	# Pods are looked at one after the other, and this one comes last.
	label_pod two "$AMBIENT"
	wait_for 10 mode_is two ambient
	check_equal "$(status_field .enrolment.ztunnel.pods)" 2 "unread and two"
	is_captured unread
	label_pod two "$NOT_AMBIENT"
	annotate_pod unread '{"istio.io/x":null}'
	label_pod unread "$NOT_AMBIENT"
	wait_for 10 mode_is unread none
	wait_for 10 mode_is two none
	end_pod unread
}

# A node of which the API server has no pods is another one, as long as those that are here live.
test_wrong_node_name() {
	local state=$NODE_DIR/run/state.json TEST_NODE=elsewhere
	one_is_ambient
	agent_ends TERM
	# As above.
	jq -c '.pods[].since = 1000000000' "$state" >"$state.old"
	mv "$state.old" "$state"
	api_pod theirs "$NOT_AMBIENT"
	says_enabled demo theirs
	agent_up
	wait_for 10 status_is .enrolment.kubernetes.complete true
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	check_has "$(grep "^error .*node=elsewhere" "$NODE_DIR/agent.log")" "--node-name" "the log"
	check_equal "$(status_field .enrolment.ztunnel.pods)" 1 "pods that ztunnel has"
	is_captured one
	# Nor is anything written to the pods that it seems to be asked about.
	annotate_pod theirs '{"test/noise": "1"}'
	check_equal "$(status_field .enrolment.kubernetes.written.written)" 0 "what was written"
	annotation_is theirs "$REDIRECTION" enabled
	cluster_pod_delete demo theirs
	# That it is the right name is known from the first pod of it, and what is not there is gone.
	with_plugin run_pod here "$AMBIENT"
	mode_is here ambient
	wait_for 10 status_is .enrolment.ztunnel.pods 1
	end_pod here
	TEST_NODE=node-1
	agent_ends TERM
	agent_up
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	mode_is one ambient
	is_captured one
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
}

# ---- refusals ----------------------------------------------------------------------------------

has_event() { # POD REASON
	api GET "/api/v1/namespaces/demo/events?fieldSelector=involvedObject.name=$1,reason=$2" |
		jq -e '.items | length > 0'
}

test_bad_annotation_is_told() {
	label_pod two "$AMBIENT"
	wait_for 10 mode_is two ambient
	annotate_pod two '{"ambient.istio.io/dns-capture":"perhaps"}'
	wait_for 10 has_event two SockmeshRefused
	check_equal "$(pod_field two mode)" ambient "with an annotation that nobody can read"
	is_captured two
	annotate_pod two '{"ambient.istio.io/dns-capture":null}'
	label_pod two "$NOT_AMBIENT"
	wait_for 10 mode_is two none
}

# ---- sidecar pods that started without redirection ---------------------------------------------

# What the injector makes of a pod.
SIDECAR_SPEC='{"initContainers":[{"name":"istio-validation","image":"proxy"}],
	"containers":[{"name":"app","image":"app"},
		{"name":"istio-proxy","image":"proxy","securityContext":{"runAsUser":1337,"runAsGroup":1337}}]}'

# Kubelet's word of the container that tests the redirection, after its first end.
validation_ends() { # POD EXIT-CODE
	cluster_patch "/api/v1/namespaces/demo/pods/$1/status" "$(jq -nc --argjson code "$2" '{status:
		{initContainerStatuses: [{name: "istio-validation", image: "proxy", imageID: "", ready: false,
			restartCount: 0, state: {terminated: {exitCode: $code}}}]}}')" >/dev/null
}

# One whose test has failed, and one that somebody else has redirected, without our plugin.
sidecar_pods() { # NAME
	local pod
	for pod in "$1" "$1-well"; do
		api_pod "$pod" '{}' "$SIDECAR_ANNOTATION" "$SIDECAR_SPEC"
		[ "$pod" = "$1" ] || validation_ends "$pod" 0
		pod_add "$pod" "$SIDECAR_ANNOTATION"
		pod_runs "$pod"
	done
	validation_ends "$1" 126
}

# The uid, so that one of the same name is not taken for it.
pod_exists() { # POD
	[ "$(api GET "/api/v1/namespaces/demo/pods/$1" | jq -r .metadata.uid)" = "${UID_OF[$1]}" ]
}

label_of() { # POD LABEL
	api GET "/api/v1/namespaces/demo/pods/$1" | jq -r --arg name "$2" '.metadata.labels[$name] // ""'
}

label_is() { # POD LABEL VALUE
	[ "$(label_of "$@")" = "$3" ]
}

with_repair() { # HOW TEST
	agent_ends TERM
	agent_up --repair "$1"
	"$2"
	agent_ends TERM
	agent_up
}

repair_deletes() {
	cluster_bind_deletion
	sidecar_pods broken
	wait_for 10 check_fails pod_exists broken
	wait_for 10 has_event broken DeleteBrokenPod
	pod_exists broken-well
	end_pod broken
	end_pod broken-well
}

# The second role, for who wants this.
cluster_bind_deletion() {
	api POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings "$(jq -nc '{
		metadata: {name: "sockmesh-agent-delete-broken-pods"},
		roleRef: {apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole",
			name: "sockmesh-agent-delete-broken-pods"},
		subjects: [{kind: "ServiceAccount", namespace: "sockmesh-system", name: "sockmesh-agent"}]}')" >/dev/null
}

repair_labels() {
	sidecar_pods wrong
	wait_for 10 label_is wrong cni.istio.io/uninitialized true
	wait_for 10 has_event wrong LabelBrokenPod
	pod_exists wrong
	check_equal "$(label_of wrong-well cni.istio.io/uninitialized)" "" "label of a pod without fault"
	check_equal "$(pod_field wrong mode)" none "what is labelled is not redirected"
	end_pod wrong
	end_pod wrong-well
}

test_repair_redirects() {
	sidecar_pods late
	wait_for 10 mode_is late sidecar
	check_equal "$(pod_field late-well mode)" none "a pod that another has redirected"
	end_pod late
	end_pod late-well
}

# ---- connections from before -------------------------------------------------------------------

hold_start() { # NAME COMMAND...
	local said=$NODE_DIR/$1.said
	: >"$said" # what an earlier test had said there must not be taken for this
	"${@:2}" >"$said" 2>&1 </dev/null &
	disown $!
	wait_for 10 grep -q '^holds 2 .*, pid [0-9]' "$said" || {
		cat "$said"
		return 1
	}
	sed -n 's/.*, pid //p' "$said" >"$NODE_DIR/$1.held"
}

held_ends() { # NAME: what has become of its connections
	local pid
	pid=$(cat "$NODE_DIR/$1.held")
	kill -TERM "$pid" && wait_for 10 has_ended "$pid"
	rm "$NODE_DIR/$1.held"
	tail -n 1 "$NODE_DIR/$1.said"
}

# Out of the pod, into it, and within it, while it joins.
held_through_join() {
	local hold=("$PROGRAMS/hold" --idle 1 --busy 1)
	goes_direct one
	hold_start out pod_run one app "$APP_UID" "${hold[@]}" --label server 10.88.0.1:8090 '[fd88::1]:8090'
	hold_start in node_exec "${hold[@]}" --label app "${POD_IP4[one]}:8090" "[${POD_IP6[one]}]:8090"
	hold_start within pod_run one app "$APP_UID" "${hold[@]}" --label app 127.0.0.1:8090 "[${POD_IP6[one]}]:8090"
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	is_captured one
}

test_connections_stay() {
	local name
	held_through_join
	for name in out in within; do
		check_has "$(held_ends "$name")" "ok 2 connections" "$name"
	done
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
}

test_connections_are_cut() {
	agent_ends TERM
	agent_up --enrol-existing reset
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	held_through_join
	check_has "$(held_ends out)" "2 of 2 broken" out
	check_has "$(held_ends in)" "2 of 2 broken" in
	check_has "$(held_ends within)" "ok 2 connections" "within the pod"
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	agent_ends TERM
	agent_up
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

# ---- a proxy of the node in place of ztunnel -----------------------------------------------------

node_agent_up() {
	agent_up --ztunnel node --ztunnel-address "${POD_IP4[proxy]},${POD_IP6[proxy]}"
}

# Its own pod is ambient by its label, and must be left alone.
test_node_proxy() {
	[ "$(status_field .engine)" = ebpf ] || return 0 # no other one can
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
	is_captured one
	agent_ends KILL
	run_pod proxy "$AMBIENT"
	remember node-proxy "$(pod_run proxy istio-proxy "$PROXY_UID" "$PROGRAMS/reporter" node-proxy dual:15001)"
	node_agent_up
	is_taken_by one node-proxy
	check_equal "$(status_field .enrolment.ztunnel)" null "what is told of ztunnel"
	check_equal "$(reached_from_node "${POD_IP4[one]}:8080")" server "from outside"
	label_pod two "$AMBIENT"
	wait_for 10 mode_is two ambient
	is_taken_by two node-proxy
	wait_for 10 annotation_is two "$REDIRECTION" enabled
	label_pod two "$NOT_AMBIENT"
	wait_for 10 mode_is two none
	goes_direct two
	wait_for 10 annotation_is two "$REDIRECTION" ""
	with_plugin run_pod added "$AMBIENT"
	check_equal "$(pod_field added mode)" ambient "at the end of ADD, and no ztunnel was asked"
	is_taken_by added node-proxy
	wait_for 10 annotation_is added "$REDIRECTION" enabled
	end_pod added
	check_equal "$(pod_field proxy mode)" none "the proxy's own pod"
	is_taken_by proxy server
	agent_ends TERM
	is_taken_by one node-proxy
	agent_up
	is_captured one
	wait_for 10 status_is .enrolment.ztunnel.ready 1
	kill -KILL -- "-$(recall node-proxy)"
	end_pod proxy
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
	goes_direct one
}

# ---- main --------------------------------------------------------------------------------------

trap close_all EXIT
cluster_open
node_open enrolment
# With the rights that docs/ambient.md names, and no others.
cluster_apply test/cluster/rbac.json
cluster_token sockmesh-system sockmesh-agent >"$NODE_DIR/token"
cluster_kubeconfig_token agent "$NODE_DIR/token" >"$NODE_DIR/kubeconfig"
cluster_node "$TEST_NODE"
cluster_namespace demo
cni_conflist "$NODE_DIR/mesh.conflist" "$(cni_sockmesh_entry)"
POD_CONFLIST=$NODE_DIR/plain.conflist
cni_conflist "$POD_CONFLIST"
SERVERS+=("$(node_exec "$PROGRAMS/reporter" server dual:8080)")
agent_up
zds_start

run_pod one
run_pod two
SERVERS+=("$(node_exec "$PROGRAMS/reporter" --echo server dual:8090)")
SERVERS+=("$(nsenter --net=/run/netns/one -- "$PROGRAMS/reporter" --echo app dual:8090)")
for pod in one two; do
	ztunnel_comes "$pod"
	SERVERS+=("$(nsenter --net="/run/netns/$pod" -- "$PROGRAMS/reporter" server dual:8080)")
done

check "a label makes a running pod join, both ways and families" test_label_joins
check "without the label it leaves" test_label_leaves
check "ztunnel goes on with what it has of a pod that left, for a while" test_ztunnel_goes_on_for_a_while
check "a namespace's label moves all of its pods" test_namespace_joins_and_leaves
check "our own annotation does the same" test_own_annotation
check "a static pod joins, whose cgroup does not have its uid" test_static_pod
check "a pod joins while it is created, by what the API says" test_add_joins
check "a pod that the API does not know is created nevertheless" test_add_waits_for_the_api
check "one that it does not know yet waits a moment for it" test_add_ends_when_the_api_knows
check "without ztunnel an ambient pod is not created, others are" test_add_without_ztunnel_is_denied
check "or it is created, and joins when ztunnel comes" test_add_without_ztunnel_is_admitted
check "also where no API server is asked, and nothing is done while it waits" test_admitted_without_the_api
check "and when the agent has been restarted since" test_admitted_before_a_restart
check "or when its first attempt fails" test_admitted_and_refused_by_the_kernel
check "the address that the API names is the one whose probes are exempt" test_new_address
check "pods stay in the mesh while the agent is killed" test_agent_killed
check "or killed while one joins" test_agent_killed_while_a_pod_joins
check "the next agent writes no status that is written already" test_restart_writes_nothing
check "what a proxy's environment said is known after a restart" test_environment_is_remembered
check "a label that goes while no agent runs is noticed" test_agent_away_while_the_label_goes
check "so is a pod that goes" test_agent_away_while_a_pod_goes
check "a found pod that ends is forgotten soon" test_found_pod_ends
check "one whose process ends is reached by its others" test_found_process_ends
check "nothing is looked for when the pod is not wanted any more" test_search_ends
check "a pod whose path is lost is reached by its processes" test_lost_path
check "one that was named otherwise gets its name when the API says it" test_agent_without_the_api
check "and its service account" test_service_account_is_corrected
check "an annotation without anything in the kernel is healed" test_annotation_without_the_kernel
check "pods stay in the mesh while ztunnel is replaced" test_ztunnel_restarts
check "and while the API server is away" test_api_server_restarts
check "a pod that completes is taken from ztunnel, and bypasses nothing" test_pod_completes
check "a sidecar pod that started without redirection is redirected" test_repair_redirects
check "or deleted, when that is asked for and allowed, and no other pod" with_repair delete repair_deletes
check "or labelled" with_repair label repair_labels
check "connections from before a pod joins stay" test_connections_stay
check "or are cut, when that is asked for, but for those within the pod" test_connections_are_cut
check "an ambient pod that a restart excludes leaves" test_excluded_by_a_restart
check "without an API server it stays, and ztunnel serves it" test_excluded_without_the_api
check "a pod without a proxy is not redirected to one" test_mistaken_for_a_sidecar
check "a redirection that cannot be put right is told, until it is" test_heal_that_fails
check "a pod that cannot be read is not taken for one that is gone" test_unreadable_after_a_restart
check "with a wrong name of the node pods stay in the mesh" test_wrong_node_name
check "what cannot be read is told by an Event, and changes nothing" test_bad_annotation_is_told
check "what another agent may have is not written to, nor repaired" test_others_are_left_alone
check "a cgroup that holds the pods is not taken for kubelet's" test_kubelets_cgroup_is_its_own
check "pods are created while the API server is away, and none bypasses ztunnel" test_add_without_the_api
check "why a pod waits is told on it, why it is not created by an Event" test_why_a_pod_waits_is_told
check "what cannot be read is told on the pod, too" test_what_cannot_be_read_is_told_on_the_pod
check "selectors say which pods and namespaces, also when labels change" test_selectors
check "what a pod's annotations ask for changes while it runs" test_settings_change
check "a native sidecar is known by the ids that its container says" test_native_sidecar
check "that ztunnel refuses a pod is told" test_ztunnel_refuses
check "and does not have it asked all the time" test_ztunnel_is_not_asked_all_the_time
check "so is what the kernel has no room for" test_kernel_refuses
check "a proxy of the node takes ztunnel's place, and gives it back" test_node_proxy
# Last: it leaves pods behind.
SCALE=ci check "what is wanted comes true of pods that change, come and go all the time" test_churn
[ ! -e "$NODE_DIR/figures" ] || tap_comment <"$NODE_DIR/figures"
tap_done
