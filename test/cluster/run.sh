#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A real API server: what the agent may do there and needs to, and how the API server behaves in the
# moments that an agent must survive. TAP.
#
#   ONLY         a regular expression: the tests whose functions match it, below
#   SCALE=full   5,000 namespaces and 5,000 pods, 250 of them on the node (ci: 500 and 500)
set -euo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/lib/tap.sh
. test/lib/node.sh
. test/lib/processes.sh
. test/cluster/cluster.sh

NODE=node-a
AGENT_NAMESPACE=sockmesh-system
AGENT_ACCOUNT=sockmesh-agent
ROLE=/apis/rbac.authorization.k8s.io/v1/clusterroles/sockmesh-agent
NODE_PODS="/api/v1/pods?fieldSelector=spec.nodeName%3D$NODE"
RBAC=test/cluster/rbac.json
CHURN=$PWD/test/cluster/churn.py
ONLY=${ONLY:-}
case ${SCALE:-ci} in
full) LOAD=(--namespaces 5000 --pods 5000 --on-node 250) CHURN_SECONDS=120 ;;
*) LOAD=(--namespaces 500 --pods 500 --on-node 25) CHURN_SECONDS=20 ;;
esac

# ---- helpers -----------------------------------------------------------------------------------

token() {
	cat "$CLUSTER_DIR/token"
}

# A watch under the agent's token, into a file, for a bounded time. Sets WATCH_PID.
watch_start() { # FILE PATH-AND-QUERY SECONDS
	cluster_curl GET "$2&watch=1&timeoutSeconds=$3" '' --max-time $(($3 + 10)) -N \
		-H "Authorization: Bearer $(token)" -o "$1" &
	WATCH_PID=$!
	cluster_background $!
}

watch_end() {
	kill "$WATCH_PID" 2>/dev/null || true
	wait "$WATCH_PID" 2>/dev/null || true
}

# The watch's events as "TYPE NAME", without bookmarks, on one line.
watched() { # FILE
	jq -r 'select(.type != "BOOKMARK") | "\(.type) \(.object.metadata.name)"' "$1" 2>/dev/null | paste -sd' '
}

watched_is() { # FILE EVENTS
	[ "$(watched "$1")" = "$2" ]
}

check_watched() { # FILE EVENTS
	wait_for 10 watched_is "$1" "$2" || check_equal "$(watched "$1")" "$2" events
}

file_has() { # FILE PART
	grep -qF -- "$2" "$1" 2>/dev/null
}

code_is() { # CODE TOKEN METHOD PATH [BODY]
	local code
	code=$(api_code "${@:2}") && [ "$code" = "$1" ]
}

check_code() { # CODE TOKEN METHOD PATH [BODY]
	check_equal "$(api_code "${@:2}")" "$1" "status of $3 $4"
}

resource_version() { # PATH-AND-QUERY of a list
	api GET "$1" | jq -r .metadata.resourceVersion
}

# ---- who may what ------------------------------------------------------------------------------

# What the agent asks for: RESOURCE VERB METHOD PATH [BODY].
needs() {
	local annotation='{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}'
	local involved='"involvedObject":{"kind":"Pod","namespace":"apps","name":"mine"}'
	local pods=/api/v1/namespaces/apps/pods
	local events=/api/v1/namespaces/apps/events
	cat <<-END
		pods list GET $NODE_PODS&limit=10
		pods watch GET $NODE_PODS&watch=1&timeoutSeconds=1
		namespaces list GET /api/v1/namespaces?limit=10
		namespaces watch GET /api/v1/namespaces?watch=1&timeoutSeconds=1
		pods/status patch PATCH $pods/mine/status $annotation
		events create POST $events {"metadata":{"generateName":"sockmesh-"},$involved,"reason":"Refused","type":"Warning"}
	END
}

# What it must not be able to do, though a node agent with more rights might: METHOD PATH [BODY].
refusals() {
	local pods=/api/v1/namespaces/apps/pods
	cat <<-END
		GET /api/v1/nodes
		GET /api/v1/secrets
		GET /api/v1/configmaps
		GET /api/v1/events
		GET $pods/mine
		GET /api/v1/namespaces/apps
		PATCH /api/v1/namespaces/apps/events/kept {"count":2}
		PATCH /api/v1/namespaces/apps {"metadata":{"labels":{"a":"b"}}}
		POST $pods {"metadata":{"name":"more"},"spec":{"containers":[{"name":"app","image":"app"}]}}
		PATCH $pods/mine {"metadata":{"labels":{"a":"b"}}}
		PUT $pods/mine/status {}
		DELETE $pods/mine
		POST $pods/mine/eviction {}
		POST /api/v1/namespaces/$AGENT_NAMESPACE/serviceaccounts/$AGENT_ACCOUNT/token {}
	END
}

test_needs() {
	local resource verb method path body
	while read -r resource verb method path body; do
		check_equal "$(api_code "$(token)" "$method" "$path" "$body" | cut -c1)" 2 "$verb $resource" || return 1
	done <<<"$(needs)"
}

test_refusals() {
	local method path body
	while read -r method path body; do
		check_code 403 "$(token)" "$method" "$path" "$body"
	done <<<"$(refusals)"
}

# The role's rules without one verb of one resource.
rules_without() { # RESOURCE VERB
	jq -c --arg resource "$1" --arg verb "$2" '.items[]
		| select(.kind == "ClusterRole" and .metadata.name == "sockmesh-agent")
		| {rules: [.rules[] | if .resources == [$resource] then .verbs -= [$verb] else . end
			| select(.verbs != [])]}' "$RBAC"
}

test_each_verb() {
	local resource verb method path body granted
	granted=$(jq -r '.items[] | select(.metadata.name == "sockmesh-agent") | .rules[]?
		| .resources[] + " " + .verbs[]' "$RBAC" | sort)
	check_equal "$granted" "$(needs | cut -d' ' -f1,2 | sort)" "what the role grants"
	while read -r resource verb method path body; do
		cluster_patch "$ROLE" "$(rules_without "$resource" "$verb")" >/dev/null
		wait_for 10 code_is 403 "$(token)" "$method" "$path" "$body" || {
			echo "without $verb of $resource: $(api_code "$(token)" "$method" "$path" "$body")"
			return 1
		}
	done <<<"$(needs)"
	cluster_apply "$RBAC"
	wait_for 10 test_needs
}

test_strangers() {
	check_code 401 '' GET /api/v1/pods
	check_code 401 not.a.token GET /api/v1/pods
	check_code 403 "$(cluster_token apps stranger)" GET /api/v1/pods
}

test_repair_role() {
	local binding=/apis/rbac.authorization.k8s.io/v1/clusterrolebindings
	local pod=/api/v1/namespaces/apps/pods/broken uid
	cluster_pod apps broken "$NODE" >/dev/null
	check_code 403 "$(token)" DELETE "$pod"
	api POST "$binding" "$(jq -nc --arg namespace "$AGENT_NAMESPACE" --arg name "$AGENT_ACCOUNT" '{
		metadata: {name: "sockmesh-agent-delete-broken-pods"},
		roleRef: {apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole",
			name: "sockmesh-agent-delete-broken-pods"},
		subjects: [{kind: "ServiceAccount", $namespace, $name}]}')" >/dev/null
	# One that has meanwhile been made again under the same name is not deleted.
	wait_for 10 code_is 409 "$(token)" DELETE "$pod" '{"preconditions":{"uid":"another"}}'
	uid=$(api GET "$pod" | jq -r .metadata.uid)
	check_code 200 "$(token)" DELETE "$pod" "{\"preconditions\":{\"uid\":\"$uid\"}}"
	api DELETE "$binding/sockmesh-agent-delete-broken-pods" >/dev/null
}

# ---- list and watch ----------------------------------------------------------------------------

test_node_selector() {
	local out=$CLUSTER_DIR/watch.node query=$NODE_PODS names events
	names=$(api_as "$(token)" GET "$query" | jq -r '[.items[].metadata.name] | join(" ")')
	check_equal "$names" mine "pods of the node"

	watch_start "$out" "$query&resourceVersion=$(resource_version "$query")" 20
	cluster_pod apps elsewhere node-b >/dev/null
	cluster_pod apps later '' >/dev/null
	cluster_pod apps second "$NODE" '{"labels":{"a":"b"}}' >/dev/null
	cluster_pod_patch apps elsewhere '{"metadata":{"labels":{"a":"c"}}}' >/dev/null
	cluster_pod_patch apps second '{"metadata":{"labels":{"a":"c"}}}' >/dev/null
	cluster_pod_status apps second Running 10.0.0.2 fd00::2 >/dev/null
	# The scheduler binds: only now does the pod exist for the node.
	api POST /api/v1/namespaces/apps/pods/later/binding \
		"{\"metadata\":{\"name\":\"later\"},\"target\":{\"kind\":\"Node\",\"name\":\"$NODE\"}}" >/dev/null
	cluster_pod_delete apps second
	cluster_pod_delete apps later
	cluster_pod_delete apps elsewhere
	events='ADDED second MODIFIED second MODIFIED second ADDED later'
	events+=' MODIFIED second DELETED second MODIFIED later DELETED later'
	check_watched "$out" "$events"
	watch_end
}

test_paging() {
	local path="/api/v1/namespaces?limit=100" token='' count=0 pages=0 answer total
	total=$(api GET /api/v1/namespaces | jq '.items | length')
	while :; do
		answer=$(api_as "$(token)" GET "$path&continue=$token")
		count=$((count + $(jq '.items | length' <<<"$answer")))
		pages=$((pages + 1))
		token=$(jq -r '.metadata.continue // ""' <<<"$answer")
		[ -n "$token" ] || break
	done
	check_equal "$count" "$total" "namespaces in $pages pages"
	check_equal "$pages" $(((total + 99) / 100)) pages
}

# A version that is not too old to resume from, though nothing of the node's own has changed.
test_bookmarks() {
	local out=$CLUSTER_DIR/watch.bookmarks version
	version=$(resource_version "$NODE_PODS")
	watch_start "$out" "$NODE_PODS&allowWatchBookmarks=true&resourceVersion=$version" 6
	cluster_pod apps elsewhere node-b >/dev/null
	version=$(api GET /api/v1/namespaces/apps/pods/elsewhere | jq -r .metadata.resourceVersion)
	cluster_pod_delete apps elsewhere
	wait_for 10 has_ended "$WATCH_PID"
	cat "$out"
	jq -se --argjson version "$version" \
		'(map(.type) | unique) == ["BOOKMARK"]
			and (.[-1].object.metadata.resourceVersion | tonumber) >= $version' "$out"
}

test_status_is_not_the_pod() {
	local status=/api/v1/namespaces/apps/pods/mine/status
	api_as "$(token)" PATCH "$status" \
		'{"metadata":{"annotations":{"sockmesh.io/status":"{}"}},"spec":{"nodeName":"node-b"}}' >/dev/null
	check_equal "$(api GET "${status%/status}" | jq -r \
		'.metadata.annotations["sockmesh.io/status"] + " " + .spec.nodeName')" "{} $NODE"
}

test_stale_write() {
	local path=/api/v1/namespaces/apps/pods/mine stale
	stale=$(api GET "$path" | jq -c .)
	cluster_pod_patch apps mine '{"metadata":{"labels":{"moved":"on"}}}' >/dev/null
	check_equal "$(cluster_curl PUT "$path" - -o /dev/null -w '%{http_code}' \
		--cert "$CLUSTER_DIR/pki/admin.crt" --key "$CLUSTER_DIR/pki/admin.key" <<<"$stale")" 409
	# The same for a patch that names the version it is based on.
	check_code 409 "$(token)" PATCH "$path/status" "$(jq -c '{metadata: {
		resourceVersion: .metadata.resourceVersion, annotations: {a: "b"}}}' <<<"$stale")"
}

test_conflicting_writers() {
	local out=$CLUSTER_DIR/conflict.json
	"$CHURN" conflict --pod apps/mine --writers 2 --count 25 | tee "$out"
	jq -e '[.conflicts | to_entries[] | select(.key | startswith("put")) | .value] | add > 0' "$out"
}

# ---- tokens ------------------------------------------------------------------------------------

test_token_expires() {
	local out=$CLUSTER_DIR/watch.token short
	short=$(cluster_token_signed "$AGENT_NAMESPACE" "$AGENT_ACCOUNT" 4)
	cluster_curl GET '/api/v1/namespaces?watch=1&timeoutSeconds=25&resourceVersion=0' '' -N \
		-H "Authorization: Bearer $short" -o "$out" &
	WATCH_PID=$!
	cluster_background $!
	wait_for 10 file_has "$out" ADDED
	wait_for 20 code_is 401 "$short" GET '/api/v1/namespaces?limit=1'
	check_code 200 "$(token)" GET '/api/v1/namespaces?limit=1'
	cluster_namespace after-the-token
	wait_for 10 file_has "$out" after-the-token
	watch_end
}

# ---- when things break -------------------------------------------------------------------------

# A watch whose last version is older than what the API server knows: what the answer says.
watch_gone() { # VERSION
	cluster_curl GET "/api/v1/pods?watch=1&timeoutSeconds=5&resourceVersion=$1" '' \
		-H "Authorization: Bearer $(token)" |
		jq -r 'if .kind == "Status" then .code else .object.code end' | head -n1
}

test_restart() {
	local out=$CLUSTER_DIR/watch.restart version
	version=$(resource_version '/api/v1/namespaces?limit=1')
	watch_start "$out" "/api/v1/namespaces?resourceVersion=$version" 60
	cluster_namespace before-the-crash
	wait_for 10 file_has "$out" before-the-crash
	cluster_kill apiserver
	wait_for 10 has_ended "$WATCH_PID"
	check_fails api GET /readyz
	cluster_apiserver_start
	echo "# ready again after $CLUSTER_APISERVER_MS ms" >>"$CLUSTER_DIR/notes"
	api GET /api/v1/namespaces/before-the-crash >/dev/null
	check_code 200 "$(token)" GET '/api/v1/pods?limit=1'
}

test_compaction_ends_paging() {
	local next
	next=$(api GET '/api/v1/namespaces?limit=1' | jq -r .metadata.continue)
	cluster_namespace compacted
	cluster_forget
	check_code 410 "$(token)" GET "/api/v1/namespaces?limit=1&continue=$next"
}

test_compaction_ends_resume() {
	local version
	version=$(resource_version '/api/v1/pods?limit=1')
	cluster_pod apps gone "$NODE" >/dev/null
	cluster_pod_delete apps gone
	# Who was away all that time asks for what came after `version`.
	cluster_forget
	check_equal "$(watch_gone "$version")" 410
}

test_etcd_away() {
	cluster_kill etcd
	wait_for 20 check_fails api GET /readyz
	cluster_etcd_start
	wait_for 30 api GET /readyz
	check_code 200 "$(token)" GET '/api/v1/pods?limit=1'
}

# ---- load --------------------------------------------------------------------------------------

fill() { # once
	[ ! -e "$CLUSTER_DIR/filled" ] || return 0
	"$CHURN" fill --node "$NODE" "${LOAD[@]}" | tee "$CLUSTER_DIR/filled" -a "$CLUSTER_DIR/notes"
}

test_load() {
	local out=$CLUSTER_DIR/watch.load
	fill
	watch_start "$out" "$NODE_PODS&resourceVersion=$(resource_version '/api/v1/pods?limit=1')" \
		$((CHURN_SECONDS + 60))
	"$CHURN" change --rate 50 --seconds "$CHURN_SECONDS" --log "$CLUSTER_DIR/changes" | tee -a "$CLUSTER_DIR/notes"
	jq -r --arg node "$NODE" 'select(.node == $node) | "\(.uid) \(.resourceVersion)"' "$CLUSTER_DIR/changes" |
		sort >"$CLUSTER_DIR/wanted"
	[ -s "$CLUSTER_DIR/wanted" ]
	wait_for 10 load_watched
	watch_end
}

# The watch saw every change of a pod of the node, and none of another.
load_watched() {
	jq -r '"\(.object.metadata.uid) \(.object.metadata.resourceVersion)"' "$CLUSTER_DIR/watch.load" |
		sort | cmp - "$CLUSTER_DIR/wanted"
}

# shellcheck source=test/cluster/watch.sh
. test/cluster/watch.sh

# ---- the tests ---------------------------------------------------------------------------------

run() { # CLAIM FUNCTION
	[[ $2 =~ $ONLY ]] || return 0
	tap_test "$@"
}

trap cluster_close EXIT
cluster_open
echo "# Kubernetes $(api GET /version | jq -r .gitVersion)," \
	"etcd $(curl -s "http://127.0.0.1:$CLUSTER_ETCD_PORT/version" | jq -r .etcdserver)," \
	"ready after $CLUSTER_ETCD_MS + $CLUSTER_APISERVER_MS ms"

cluster_node "$NODE"
cluster_namespace apps
api POST /api/v1/namespaces/apps/serviceaccounts '{"metadata":{"name":"stranger"}}' >/dev/null
api POST /api/v1/namespaces/apps/events \
	'{"metadata":{"name":"kept"},"involvedObject":{"kind":"Pod","namespace":"apps","name":"mine"}}' >/dev/null
cluster_pod apps mine "$NODE" >/dev/null
cluster_apply "$RBAC"
cluster_token "$AGENT_NAMESPACE" "$AGENT_ACCOUNT" >"$CLUSTER_DIR/token"
wait_for 10 code_is 200 "$(token)" GET /api/v1/pods || die "the role has no effect"

run "nobody without a token, and no other account, gets in" test_strangers
run "the role allows what the agent does" test_needs
run "the role allows nothing else" test_refusals
run "each verb in the role is needed" test_each_verb
run "deleting broken pods takes a second role, and spares a namesake" test_repair_role
run "list and watch by node name show the node's pods and no others" test_node_selector
run "a bookmark brings a watch past what changed on other nodes" test_bookmarks
run "through the status subresource an annotation is written, and the spec is not" test_status_is_not_the_pod
run "a write that is based on an old version is refused" test_stale_write
run "of several writers of one pod none loses a write" test_conflicting_writers
run "a token is refused when its time is over, and the watch that it opened goes on" test_token_expires
run "the API server keeps everything when it is killed and started again" test_restart
run "compaction ends a list that is under way with 410" test_compaction_ends_paging
run "a watch that resumes too late is answered with 410" test_compaction_ends_resume
run "the API server is ready again when etcd was away" test_etcd_away
run "under load a watch sees every change of the node's pods, and no other" test_load
run "a list in pages is complete" test_paging
run "the agent's watch follows the pods of its node" test_rig_follows
run "the agent's client reads a kubeconfig with a client certificate" test_rig_certificate
run "the agent's client takes up new tokens, in time or late" test_rig_rotation
run "the agent's watch survives an API server that is killed and started again" test_rig_restart
run "the agent's watch lists anew when what it missed is forgotten" test_rig_expired
run "the agent's watch survives a time without etcd" test_rig_etcd_away
run "the agent's watch knows every namespace, before and after a list in pages" test_rig_namespaces
run "under load the agent's watch sees every change of the node's pods" test_rig_churn
[ ! -e "$CLUSTER_DIR/notes" ] || tap_comment <"$CLUSTER_DIR/notes"
tap_done
