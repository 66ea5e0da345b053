# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# A real kube-apiserver with etcd, on loopback, with certificates of its own, RBAC and no anonymous
# access: what a node agent talks to, without kubelets, controllers or a scheduler. Whatever a pod
# is to look like, a test writes. Several clusters run side by side; nothing stays when one ends.
#
#	. test/lib/node.sh; . test/lib/processes.sh; . test/cluster/cluster.sh
#	cluster_open		# sets CLUSTER_*, starts both, waits until they are ready
#	trap cluster_close EXIT
#
# Where another netns is to see it, run the script that calls this there.
#
#   KUBERNETES              newest or oldest: see build.sh
#   KUBE_APISERVER          a program to run instead of the one that build.sh makes
#   ETCD                    the etcd to run (Debian's, in PATH)
#   CLUSTER_READY_SECONDS   how long the API server may take to be ready (60)

CLUSTER_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CLUSTER_READY_SECONDS=${CLUSTER_READY_SECONDS:-60}
KUBE_APISERVER=${KUBE_APISERVER:-} ETCD=${ETCD:-etcd}

# CLUSTER_DIR: logs, keys, kubeconfigs. CLUSTER_SERVER: the API's address.
CLUSTER_DIR='' CLUSTER_SERVER='' CLUSTER_PORT='' CLUSTER_ETCD_PORT=''
CLUSTER_PEER_PORT='' CLUSTER_ETCD_DATA=''
CLUSTER_ISSUER=https://kubernetes.default.svc
# Further options of kube-apiserver, for a test that needs them.
CLUSTER_APISERVER_OPTIONS=()
# Milliseconds that the last start of each took.
CLUSTER_ETCD_MS='' CLUSTER_APISERVER_MS=''

# ---- certificates ------------------------------------------------------------------------------

cluster_certificate() { # NAME SUBJECT [EXTENSION...]: NAME.crt and NAME.key, signed by the CA
	local pki=$CLUSTER_DIR/pki name=$1 subject=$2 extension options=()
	shift 2
	for extension in "$@"; do
		options+=(-addext "$extension")
	done
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "$subject" \
		-CA "$pki/ca.crt" -CAkey "$pki/ca.key" -addext basicConstraints=critical,CA:false \
		"${options[@]}" -keyout "$pki/$name.key" -out "$pki/$name.crt" 2>>"$CLUSTER_DIR/openssl.log"
}

cluster_pki() {
	local pki=$CLUSTER_DIR/pki
	mkdir -m 0700 "$pki"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
		-subj /CN=test-ca -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>>"$CLUSTER_DIR/openssl.log" &&
		cluster_certificate serving /CN=kube-apiserver extendedKeyUsage=serverAuth \
			subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost,DNS:kubernetes.default.svc &&
		cluster_certificate admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth &&
		openssl genrsa -out "$pki/tokens.key" 2048 2>>"$CLUSTER_DIR/openssl.log" &&
		openssl rsa -in "$pki/tokens.key" -pubout -out "$pki/tokens.pub" 2>>"$CLUSTER_DIR/openssl.log"
}

# ---- processes ---------------------------------------------------------------------------------

# Ports that nobody listens on, below those that outgoing connections take: the API server has to
# find its own free again after it was killed.
cluster_free_ports() { # COUNT
	local used port found=0
	used=" $(ss -Htln | awk '{ sub(/.*:/, "", $4); printf "%s ", $4 }')"
	while [ "$found" -lt "$1" ]; do
		port=$((20000 + RANDOM % 12000))
		[[ $used != *" $port "* ]] || continue
		used+="$port "
		found=$((found + 1))
		echo "$port"
	done
}

# Waits for a condition; fails at once when the process has gone.
cluster_wait() { # SECONDS PID COMMAND...
	local end=$((${EPOCHREALTIME/./} + $1 * 1000000)) pid=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		! has_ended "$pid" || return 1
		[ "${EPOCHREALTIME/./}" -lt "$end" ] || return 1
		pause 0.05
	done
}

cluster_log_tail() { # NAME
	echo "$1 does not start; the end of its log:" >&2
	tail -n 20 "$CLUSTER_DIR/$1.log" >&2
}

cluster_etcd_start() {
	local start=${EPOCHREALTIME/./} client=http://127.0.0.1:$CLUSTER_ETCD_PORT
	local peer=http://127.0.0.1:$CLUSTER_PEER_PORT
	"$ETCD" --data-dir "$CLUSTER_ETCD_DATA" --name test --logger zap --log-level warn \
		--listen-client-urls "$client" --advertise-client-urls "$client" \
		--listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
		--initial-cluster "test=$peer" >>"$CLUSTER_DIR/etcd.log" 2>&1 </dev/null &
	echo $! >"$CLUSTER_DIR/etcd.pid"
	disown $!
	if ! cluster_wait 30 $! cluster_etcd_healthy; then
		cluster_log_tail etcd
		return 1
	fi
	CLUSTER_ETCD_MS=$(((${EPOCHREALTIME/./} - start) / 1000))
}

cluster_etcd_healthy() {
	curl -sf --max-time 2 "http://127.0.0.1:$CLUSTER_ETCD_PORT/health" | grep -q '"true"'
}

# Everything that leaves this machine or needs a cluster's network is off; compaction is the tests'.
cluster_apiserver_options() {
	local pki=$CLUSTER_DIR/pki
	printf '%s\n' --bind-address 127.0.0.1 --secure-port "$CLUSTER_PORT" \
		--advertise-address 127.0.0.1 --endpoint-reconciler-type none \
		--etcd-servers "http://127.0.0.1:$CLUSTER_ETCD_PORT" --etcd-compaction-interval 0 \
		--tls-cert-file "$pki/serving.crt" --tls-private-key-file "$pki/serving.key" \
		--client-ca-file "$pki/ca.crt" --cert-dir "$CLUSTER_DIR/certificates" \
		--service-account-issuer "$CLUSTER_ISSUER" \
		--service-account-key-file "$pki/tokens.pub" \
		--service-account-signing-key-file "$pki/tokens.key" \
		--service-account-extend-token-expiration=false \
		--service-cluster-ip-range 10.96.0.0/16 \
		--authorization-mode RBAC --anonymous-auth=false \
		--disable-admission-plugins ServiceAccount,DefaultStorageClass,ResourceQuota \
		--profiling=false
}

cluster_apiserver_start() {
	local start=${EPOCHREALTIME/./} options
	options=$(cluster_apiserver_options)
	mapfile -t options <<<"$options"
	"$KUBE_APISERVER" "${options[@]}" "${CLUSTER_APISERVER_OPTIONS[@]}" \
		>>"$CLUSTER_DIR/apiserver.log" 2>&1 </dev/null &
	echo $! >"$CLUSTER_DIR/apiserver.pid"
	disown $!
	if ! cluster_wait "$CLUSTER_READY_SECONDS" $! api GET /readyz; then
		cluster_log_tail apiserver
		return 1
	fi
	CLUSTER_APISERVER_MS=$(((${EPOCHREALTIME/./} - start) / 1000))
}

# Which process it is stands in a file, for tests run in subshells and may start another one. Its
# port must be free again: when one thread of a process has ended, others may still be about to.
cluster_kill() { # etcd | apiserver: as a crash does
	local pid port=$CLUSTER_PORT
	[ "$1" != etcd ] || port=$CLUSTER_ETCD_PORT
	{ read -r pid <"$CLUSTER_DIR/$1.pid"; } 2>/dev/null || return 0
	if tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF ":$CLUSTER_ETCD_PORT"; then
		kill -KILL "$pid" 2>/dev/null || true
		ended "$pid" 10
	fi
	rm -f "$CLUSTER_DIR/$1.pid"
	wait_for 10 cluster_port_free "$port"
}

cluster_port_free() { # PORT
	[ -z "$(ss -Htln "sport = :$1")" ]
}

cluster_open() {
	local ports memory=/dev/shm
	if [ -z "$KUBE_APISERVER" ]; then
		KUBE_APISERVER=$("$CLUSTER_LIB/build.sh" ${KUBERNETES:+"$KUBERNETES"}) || return 1
	fi
	CLUSTER_DIR=$(mktemp -d /tmp/sockmesh-cluster.XXXXXX)
	# etcd waits for its disk at every write; what it keeps here is not worth waiting for.
	[ -w "$memory" ] || memory=$CLUSTER_DIR
	CLUSTER_ETCD_DATA=$(mktemp -d "$memory/sockmesh-etcd.XXXXXX")
	ports=$(cluster_free_ports 3)
	mapfile -t ports <<<"$ports"
	CLUSTER_PORT=${ports[0]} CLUSTER_ETCD_PORT=${ports[1]} CLUSTER_PEER_PORT=${ports[2]}
	CLUSTER_SERVER=https://127.0.0.1:$CLUSTER_PORT
	export CLUSTER_DIR CLUSTER_SERVER CLUSTER_ETCD_MS CLUSTER_APISERVER_MS
	cluster_pki && cluster_etcd_start && cluster_apiserver_start || return 1
	cluster_kubeconfig admin >"$CLUSTER_DIR/admin.kubeconfig"
}

# What was started in the background, knows the directory, and must not outlive it.
cluster_background() { # PID
	echo "$1" >>"$CLUSTER_DIR/background"
}

cluster_end_background() {
	local pid
	[ -e "$CLUSTER_DIR/background" ] || return 0
	while read -r pid; do
		if grep -qF "$CLUSTER_DIR" "/proc/$pid/cmdline" 2>/dev/null; then
			kill -KILL "$pid" 2>/dev/null
		fi
	done <"$CLUSTER_DIR/background"
}

# Safe to call twice, and when cluster_open got only half way.
cluster_close() {
	local status=$?
	[ "$BASHPID" -eq $$ ] || return "$status"
	set +e
	if [ -n "$CLUSTER_DIR" ]; then
		cluster_end_background
		cluster_kill apiserver
		cluster_kill etcd
	fi
	[ -z "$CLUSTER_ETCD_DATA" ] || rm -rf "$CLUSTER_ETCD_DATA"
	if [ -n "$CLUSTER_DIR" ] && [ -z "${KEEP_CLUSTER_DIR:-}" ]; then
		rm -rf "$CLUSTER_DIR"
	fi
	CLUSTER_DIR='' CLUSTER_ETCD_DATA=''
	return "$status"
}

# ---- etcd --------------------------------------------------------------------------------------

cluster_etcdctl() { # ARG...
	ETCDCTL_API=3 etcdctl --endpoints "http://127.0.0.1:$CLUSTER_ETCD_PORT" "$@"
}

cluster_compact() {
	local revision
	revision=$(cluster_etcdctl endpoint status -w json | jq '.[0].Status.header.revision') || return 1
	cluster_etcdctl compaction --physical "$revision"
}

# Leaves nothing but the present: a list that goes on from an older version, or a watch, is answered
# with 410. Compaction alone is not enough, for the API server answers from its memory.
cluster_forget() {
	cluster_kill apiserver
	cluster_compact
	cluster_apiserver_start
}

# ---- requests ----------------------------------------------------------------------------------

cluster_curl() { # METHOD PATH BODY CURL-OPTION...: the body "-" is standard input
	local method=$1 path=$2 body=$3 type=application/json
	shift 3
	[ "$method" != PATCH ] || type=application/merge-patch+json
	[ -z "$body" ] || set -- "$@" -H "Content-Type: $type"
	case $body in
	'') ;;
	-) set -- "$@" --data-binary @- ;;
	*) set -- "$@" --data-binary "$body" ;;
	esac
	curl -sS --max-time 30 --cacert "$CLUSTER_DIR/pki/ca.crt" -X "$method" "$@" "$CLUSTER_SERVER$path"
}

# As the administrator. Prints the answer; fails, with the answer, where that is an error.
api() { # METHOD PATH [BODY]
	cluster_curl "$1" "$2" "${3:-}" --fail-with-body \
		--cert "$CLUSTER_DIR/pki/admin.crt" --key "$CLUSTER_DIR/pki/admin.key"
}

api_as() { # TOKEN METHOD PATH [BODY]
	cluster_curl "$2" "$3" "${4:-}" --fail-with-body -H "Authorization: Bearer $1"
}

# The status code of what is asked under a token, or without any where that is empty.
api_code() { # TOKEN METHOD PATH [BODY]
	local header=()
	[ -z "$1" ] || header=(-H "Authorization: Bearer $1")
	cluster_curl "$2" "$3" "${4:-}" -o /dev/null -w '%{http_code}' "${header[@]}"
}

# Creates what a manifest holds, or changes it to that: one object, or a List of them, in JSON.
cluster_apply() { # FILE
	local object path objects
	objects=$(jq -c 'if .kind == "List" then .items[] else . end' "$1") || return 1
	while read -r object; do
		path=$(jq -r '
			(if .apiVersion == "v1" then "/api/v1" else "/apis/" + .apiVersion end)
			+ (if .metadata.namespace then "/namespaces/" + .metadata.namespace else "" end)
			+ "/" + ({ServiceAccount: "serviceaccounts", Namespace: "namespaces", Node: "nodes",
				Pod: "pods", ClusterRole: "clusterroles", ClusterRoleBinding: "clusterrolebindings",
				Role: "roles", RoleBinding: "rolebindings"}[.kind] // error("unknown kind \(.kind)"))
			+ "/" + .metadata.name' <<<"$object") || return 1
		# Server-side apply takes any JSON, for JSON is YAML.
		cluster_curl PATCH "$path?fieldManager=test&force=true" '' --fail-with-body -o /dev/null \
			-H 'Content-Type: application/apply-patch+yaml' --data-binary "$object" \
			--cert "$CLUSTER_DIR/pki/admin.crt" --key "$CLUSTER_DIR/pki/admin.key" || return 1
	done <<<"$objects"
}

# ---- objects -----------------------------------------------------------------------------------

cluster_namespace() { # NAME [LABELS]
	api POST /api/v1/namespaces "$(jq -nc --arg name "$1" --argjson labels "${2:-{\}}" \
		'{metadata: {$name, $labels}}')" >/dev/null
}

cluster_node() { # NAME
	api POST /api/v1/nodes "$(jq -nc --arg name "$1" '{metadata: {$name}}')" >/dev/null
}

# A pod as the scheduler leaves it, on a node. METADATA and SPEC are merged into it.
cluster_pod() { # NAMESPACE NAME NODE [METADATA [SPEC]]: prints its uid
	api POST "/api/v1/namespaces/$1/pods" "$(jq -nc --arg name "$2" --arg node "$3" \
		--argjson metadata "${4:-{\}}" --argjson spec "${5:-{\}}" \
		'{metadata: ({$name} * $metadata),
		  spec: ({nodeName: $node, terminationGracePeriodSeconds: 0,
			containers: [{name: "app", image: "app"}]} * $spec)}')" | jq -r .metadata.uid
}

cluster_patch() { # PATH PATCH: a merge patch; prints the new resourceVersion
	api PATCH "$1" "$2" | jq -r .metadata.resourceVersion
}

cluster_pod_patch() { # NAMESPACE NAME PATCH
	cluster_patch "/api/v1/namespaces/$1/pods/$2" "$3"
}

# What kubelet writes.
cluster_pod_status() { # NAMESPACE NAME PHASE [IP...]
	local namespace=$1 name=$2 phase=$3
	shift 3
	cluster_patch "/api/v1/namespaces/$namespace/pods/$name/status" "$(jq -nc --arg phase "$phase" \
		'{status: ({$phase} + if $ARGS.positional == [] then {} else
			{podIP: $ARGS.positional[0], podIPs: [$ARGS.positional[] | {ip: .}]} end)}' --args -- "$@")"
}

# At once: no kubelet is there to confirm that the containers have ended.
cluster_pod_delete() { # NAMESPACE NAME
	api DELETE "/api/v1/namespaces/$1/pods/$2?gracePeriodSeconds=0" >/dev/null
}

# ---- service accounts --------------------------------------------------------------------------

# By the API: 600 seconds is the least that it gives.
cluster_token() { # NAMESPACE NAME [SECONDS]
	api POST "/api/v1/namespaces/$1/serviceaccounts/$2/token" "$(jq -nc --argjson seconds "${3:-3600}" \
		'{spec: {expirationSeconds: $seconds}}')" | jq -r .status.token
}

cluster_base64url() {
	base64 -w0 | tr '+/' '-_' | tr -d '='
}

# One that is good for as long as a test wants, signed with the API server's own key. The API server
# allows for a minute's difference between clocks, and asks again about a token that it has trusted
# only after ten seconds.
cluster_token_signed() { # NAMESPACE NAME SECONDS
	local uid claims
	uid=$(api GET "/api/v1/namespaces/$1/serviceaccounts/$2" | jq -r .metadata.uid) || return 1
	claims=$(jq -nc --arg issuer "$CLUSTER_ISSUER" --arg namespace "$1" --arg name "$2" --arg uid "$uid" \
		--argjson now "$EPOCHSECONDS" --argjson seconds "$3" \
		'{iss: $issuer, aud: [$issuer], sub: "system:serviceaccount:\($namespace):\($name)",
		  iat: ($now - 3600), nbf: ($now - 3600), exp: ($now + $seconds - 60),
		  "kubernetes.io": {$namespace, serviceaccount: {$name, $uid}}}')
	claims=$(cluster_base64url <<<'{"alg":"RS256","typ":"JWT"}').$(cluster_base64url <<<"$claims")
	echo "$claims.$(printf %s "$claims" | openssl dgst -sha256 -sign "$CLUSTER_DIR/pki/tokens.key" | cluster_base64url)"
}

# As kubelet writes a projected volume: a new directory, then one rename that switches to it.
cluster_service_account_write() { # DIR TOKEN [NAMESPACE]
	local new=..$EPOCHREALTIME name
	mkdir -p "$1/$new"
	printf %s "$2" >"$1/$new/token"
	printf %s "${3:-default}" >"$1/$new/namespace"
	cp "$CLUSTER_DIR/pki/ca.crt" "$1/$new/ca.crt"
	ln -sfn "$new" "$1/..data_tmp"
	mv -T "$1/..data_tmp" "$1/..data"
	for name in token namespace ca.crt; do
		[ -L "$1/$name" ] || ln -s "..data/$name" "$1/$name"
	done
	find "$1" -mindepth 1 -maxdepth 1 -type d ! -name "$new" -exec rm -rf {} +
}

# ---- kubeconfigs -------------------------------------------------------------------------------

cluster_kubeconfig_head() { # NAME
	cat <<-END
		apiVersion: v1
		kind: Config
		current-context: $1@test
		contexts:
		- name: $1@test
		  context:
		    cluster: test
		    user: $1
		clusters:
		- name: test
		  cluster:
		    server: $CLUSTER_SERVER
		    certificate-authority-data: $(base64 -w0 "$CLUSTER_DIR/pki/ca.crt")
		users:
		- name: $1
		  user:
	END
}

# For a client certificate of cluster_certificate.
cluster_kubeconfig() { # NAME
	cluster_kubeconfig_head "$1"
	cat <<-END
		    client-certificate-data: $(base64 -w0 "$CLUSTER_DIR/pki/$1.crt")
		    client-key-data: $(base64 -w0 "$CLUSTER_DIR/pki/$1.key")
	END
}

# For a token that is read from a file, again and again.
cluster_kubeconfig_token() { # NAME TOKEN-FILE
	cluster_kubeconfig_head "$1"
	echo "    tokenFile: $2"
}
