# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The agent's own client and watch, in test/kube/watch_rig, following a real API server. For run.sh,
# which sets CHURN, NODE, NODE_PODS and the agent's account.

RIG=$BUILD_DIR/test/kube/watch_rig

# ---- helpers -----------------------------------------------------------------------------------

# Starts one that is asked through a pipe. Its output goes to NAME.out; when it has seen which
# version of what, to NAME.seen.
rig_start() { # NAME [OPTION...]
	local name=$1
	shift
	mkfifo "$CLUSTER_DIR/$name.in"
	exec {RIG_IN}<>"$CLUSTER_DIR/$name.in"
	RIG_OUT=$CLUSTER_DIR/$name.out
	: >"$RIG_OUT"
	mkfifo "$CLUSTER_DIR/$name.lines"
	# shellcheck disable=SC2153
	"$CHURN" stamp --lines "$RIG_OUT" --seen "$CLUSTER_DIR/$name.seen" <"$CLUSTER_DIR/$name.lines" &
	cluster_background $!
	disown $!
	"$RIG" --backoff-base 100 --backoff-max 1000 "$@" <"$CLUSTER_DIR/$name.in" \
		>"$CLUSTER_DIR/$name.lines" 2>&1 &
	RIG_PID=$!
	cluster_background $!
	wait_for 20 grep -q '^state watching' "$RIG_OUT" || {
		cat "$RIG_OUT"
		return 1
	}
}

rig_end() {
	echo quit >&"$RIG_IN"
	ended "$RIG_PID" 10
	exec {RIG_IN}>&-
	rm "${RIG_OUT%.out}.in" "${RIG_OUT%.out}.lines"
}

rig_say() { # COMMAND: the answer's last line, without its first word
	local before
	before=$(wc -l <"$RIG_OUT")
	echo "$1" >&"$RIG_IN"
	wait_for 5 rig_answered "$before" "${1%% *}" || return 1
	tail -n +$((before + 1)) "$RIG_OUT" | grep "^${1%% *} " | tail -n1 | cut -d' ' -f2-
}

rig_answered() { # LINES-BEFORE WORD
	tail -n +$(($1 + 1)) "$RIG_OUT" | grep -q "^$2 "
}

rig_status() { # EXPRESSION of jq
	rig_say status | jq -r "$1"
}

rig_count() { # REGULAR-EXPRESSION
	grep -cE "$1" "$RIG_OUT" || true
}

# What it knows is what the API server has, version by version.
rig_agrees() { # PATH-AND-QUERY
	local before
	before=$(wc -l <"$RIG_OUT")
	echo dump >&"$RIG_IN"
	wait_for 5 rig_dumped "$before" || return 1
	tail -n +$((before + 1)) "$RIG_OUT" | sed -n 's/^dump \([^ ]* [0-9]*\)$/\1/p' | grep -v '^end ' |
		sort >"$RIG_OUT.has"
	api GET "$1" | jq -r '.items[].metadata | (if .namespace then .namespace + "/" else "" end)
		+ .name + " " + .resourceVersion' | sort >"$RIG_OUT.wants"
	cmp "$RIG_OUT.has" "$RIG_OUT.wants"
}

rig_dumped() { # LINES-BEFORE
	tail -n +$(($1 + 1)) "$RIG_OUT" | grep -q '^dump end '
}

check_rig_agrees() { # SECONDS PATH-AND-QUERY
	wait_for "$1" rig_agrees "$2" || {
		echo "it has (<), and should have (>):"
		diff "$RIG_OUT.has" "$RIG_OUT.wants" | head -n 20
		grep -v '^\(dump\|seen\|changed\) ' "$RIG_OUT" | tail -n 20
		return 1
	}
}

agent_kubeconfig() { # prints its name
	cluster_kubeconfig_token agent "$CLUSTER_DIR/token" >"$CLUSTER_DIR/agent.kubeconfig"
	echo "$CLUSTER_DIR/agent.kubeconfig"
}

rig_start_pods() { # NAME [OPTION...]
	rig_start "$1" --kubeconfig "$(agent_kubeconfig)" --path /api/v1/pods \
		--field-selector "spec.nodeName=$NODE" "${@:2}"
}

# ---- tests -------------------------------------------------------------------------------------

test_rig_follows() {
	rig_start_pods follows
	cluster_pod apps followed "$NODE" >/dev/null
	cluster_pod apps unseen node-b >/dev/null
	cluster_pod_patch apps followed '{"metadata":{"annotations":{"a":"b"}}}' >/dev/null
	cluster_pod_status apps followed Running 10.0.0.3 >/dev/null
	check_rig_agrees 10 "$NODE_PODS"
	cluster_pod_delete apps followed
	cluster_pod_delete apps unseen
	check_rig_agrees 10 "$NODE_PODS"
	check_equal "$(rig_count ' apps/unseen ')" 0 "lines about another node's pod"
	check_equal "$(rig_count '^deleted apps/followed ')" 1 deletions
	rig_end
}

test_rig_certificate() {
	rig_start certificate --kubeconfig "$CLUSTER_DIR/admin.kubeconfig" --path /api/v1/namespaces
	check_rig_agrees 10 /api/v1/namespaces
	rig_end
}

# As in a pod, with tokens that kubelet puts in place; the watch asks anew every few seconds.
test_rig_rotation() {
	local dir=$CLUSTER_DIR/account old
	old=$(cluster_token_signed "$AGENT_NAMESPACE" "$AGENT_ACCOUNT" 6)
	cluster_service_account_write "$dir" "$old" "$AGENT_NAMESPACE"
	rig_start rotation --service-account "$dir" --host 127.0.0.1 --port "$CLUSTER_PORT" \
		--path /api/v1/namespaces --watch-s 2
	cluster_service_account_write "$dir" \
		"$(cluster_token_signed "$AGENT_NAMESPACE" "$AGENT_ACCOUNT" 12)"
	wait_for 30 code_is 401 "$old" GET '/api/v1/namespaces?limit=1'
	cluster_namespace after-the-first
	wait_for 5 grep -q '^changed after-the-first ' "$RIG_OUT"
	rig_status .client
	check_equal "$(rig_status '.client.statuses["4xx"] // 0')" 0 "refusals while tokens were in time"

	# The second one is not replaced in time.
	wait_for 40 grep -q '^state waiting.*401' "$RIG_OUT"
	cluster_service_account_write "$dir" "$(token)"
	cluster_namespace after-the-second
	check_rig_agrees 10 /api/v1/namespaces
	rig_end
}

test_rig_restart() {
	local descriptors
	rig_start_pods restart
	descriptors=$(rig_say fds)
	cluster_kill apiserver
	wait_for 10 grep -q '^state waiting' "$RIG_OUT"
	cluster_apiserver_start
	cluster_pod apps restarted "$NODE" >/dev/null
	check_rig_agrees 10 "$NODE_PODS"
	cluster_pod_delete apps restarted
	check_rig_agrees 10 "$NODE_PODS"
	check_equal "$(rig_say fds)" "$descriptors" descriptors
	rig_end
}

# What COMMANDs change is forgotten before the watch has heard of it: 410, and a new list. First its
# connection ends, for what is in it would be heard.
rig_misses() { # COMMAND [ARG...]
	kill -STOP "$RIG_PID"
	cluster_kill apiserver
	cluster_apiserver_start
	"$@"
	cluster_forget
	kill -CONT "$RIG_PID"
}

replace_a_pod() {
	cluster_pod_delete apps vanishing
	cluster_pod apps appearing "$NODE" >/dev/null
}

test_rig_expired() {
	rig_start_pods expired
	cluster_pod apps vanishing "$NODE" >/dev/null
	check_rig_agrees 10 "$NODE_PODS"
	rig_misses replace_a_pod
	check_rig_agrees 15 "$NODE_PODS"
	check_equal "$(rig_status '.watch.expired > 0')" true "it was told 410"
	check_equal "$(rig_count '^gone apps/vanishing$')" 1 "what the new list did not have"
	cluster_pod_delete apps appearing
	check_rig_agrees 10 "$NODE_PODS"
	rig_end
}

test_rig_etcd_away() {
	rig_start_pods etcd
	cluster_kill etcd
	wait_for 20 check_fails api GET /readyz
	cluster_etcd_start
	wait_for 30 api GET /readyz
	cluster_pod apps afterwards "$NODE" >/dev/null
	check_rig_agrees 20 "$NODE_PODS"
	cluster_pod_delete apps afterwards
	rig_end
}

# All namespaces: first out of the API server's memory, then, after 410, in pages.
test_rig_namespaces() {
	local memory
	fill
	rig_start namespaces --kubeconfig "$(agent_kubeconfig)" --path /api/v1/namespaces --quiet
	check_rig_agrees 30 /api/v1/namespaces
	memory=$(rig_say memory)
	echo "namespaces: $(wc -l <"$RIG_OUT.wants") followed with ${memory% *} kB at most," \
		"$(grep '^end ' "$RIG_OUT")," \
		"loop held up for $(rig_say stall) ms at most" \
		>>"$CLUSTER_DIR/notes"
	rig_misses cluster_namespace while-away
	check_rig_agrees 30 /api/v1/namespaces
	check_equal "$(rig_status '.watch.expired > 0')" true "it was told 410"
	memory=$(rig_say memory)
	echo "namespaces: ${memory% *} kB at most after a list in pages," \
		"$(grep '^end ' "$RIG_OUT" | tail -n1)" >>"$CLUSTER_DIR/notes"
	rig_end
}

# Changes at the full rate; the API server is killed in between.
test_rig_churn() {
	local churn memory
	fill
	rig_start_pods churn
	check_rig_agrees 20 "$NODE_PODS"
	"$CHURN" change --rate 50 --seconds "$CHURN_SECONDS" --log "$CLUSTER_DIR/changes" |
		tee -a "$CLUSTER_DIR/notes"
	check_rig_agrees 5 "$NODE_PODS"
	"$CHURN" lag --changes "$CLUSTER_DIR/changes" --seen "$CLUSTER_DIR/churn.seen" --only-node "$NODE" |
		tee "$CLUSTER_DIR/lag" -a "$CLUSTER_DIR/notes"
	check_equal "$(jq .unseen "$CLUSTER_DIR/lag")" 0 "changes that were not seen"

	"$CHURN" change --rate 50 --seconds 10 --seed 2 --log "$CLUSTER_DIR/changes" >>"$CLUSTER_DIR/notes" &
	churn=$!
	wait_for 10 test -s "$CLUSTER_DIR/changes"
	cluster_kill apiserver
	cluster_apiserver_start
	wait "$churn"
	check_rig_agrees 10 "$NODE_PODS"
	memory=$(rig_say memory)
	echo "pods: $(wc -l <"$RIG_OUT.wants") followed under load with ${memory% *} kB at most" \
		>>"$CLUSTER_DIR/notes"
	rig_end
}
