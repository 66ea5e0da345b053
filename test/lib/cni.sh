# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# A small CNI runtime: it runs the plugins of a conflist as the specification says (environment,
# prevResult, capabilities), in the node's network namespace. Needs node.sh and jq.
#
# What a runtime knows of an attachment is in CNI_POD_NAMESPACE, CNI_POD_NAME, CNI_POD_UID,
# CNI_POD_ANNOTATIONS (a JSON object) and CNI_POD_CGROUP.

# The node's network: a bridge with addresses of both families, then whatever plugins follow.
cni_conflist() { # FILE [PLUGIN-JSON...]
	local file=$1
	shift
	jq -n --arg dir "$NODE_DIR/ipam" '{
		cniVersion: "1.0.0", name: "sockmesh-test",
		plugins: ([{
			type: "bridge", bridge: "cni0", isGateway: true, ipMasq: false,
			ipam: {
				type: "host-local", dataDir: $dir,
				ranges: [[{subnet: "10.88.0.0/16"}], [{subnet: "fd88::/64"}]],
				routes: [{dst: "0.0.0.0/0"}, {dst: "::/0"}]
			}
		}] + $ARGS.positional)
	}' --jsonargs "$@" >"$file"
}

# Our plugin's entry, as docs/configuration.md shows it.
cni_sockmesh_entry() {
	jq -nc --arg run "$NODE_RUN" '{
		type: "sockmesh-cni", runDir: $run, logLevel: "info",
		capabilities: {"io.kubernetes.cri.pod-annotations": true, cgroupPath: true}
	}'
}

# The configuration that plugin number INDEX of the list gets on its standard input.
cni_plugin_conf() { # CONFLIST INDEX PREV-RESULT|null
	jq -c --argjson i "$2" --argjson prev "$3" \
		--argjson annotations "${CNI_POD_ANNOTATIONS:-null}" \
		--arg cgroup "${CNI_POD_CGROUP:-}" '
		({"io.kubernetes.cri.pod-annotations": $annotations,
		  cgroupPath: (if $cgroup == "" then null else $cgroup end)}
		 | with_entries(select(.value != null))) as $runtime
		| . as $list | .plugins[$i] | (.capabilities // {}) as $can
		| .name = $list.name | .cniVersion = $list.cniVersion
		| .runtimeConfig = ($runtime | with_entries(select($can[.key] == true)))
		| del(.capabilities) | if .runtimeConfig == {} then del(.runtimeConfig) else . end
		| if $prev == null then . else .prevResult = $prev end' "$1"
}

cni_call() { # VERB CONFLIST INDEX PREV-RESULT|null CONTAINER-ID NETNS-PATH
	local type
	type=$(jq -r --argjson i "$3" '.plugins[$i].type' "$2")
	cni_plugin_conf "$2" "$3" "$4" |
		CNI_COMMAND=$1 CNI_CONTAINERID=$5 CNI_NETNS=$6 CNI_IFNAME=eth0 \
			CNI_PATH=$BIN_DIR:$CNI_PLUGIN_DIR \
			CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=${CNI_POD_NAMESPACE:-default};K8S_POD_NAME=${CNI_POD_NAME:-pod};K8S_POD_INFRA_CONTAINER_ID=$5;K8S_POD_UID=${CNI_POD_UID:-}" \
			node_exec "$(cni_find "$type")"
}

cni_find() { # TYPE
	local dir
	for dir in "$BIN_DIR" "$CNI_PLUGIN_DIR"; do
		if [ -x "$dir/$1" ]; then
			echo "$dir/$1"
			return 0
		fi
	done
	echo "no CNI plugin $1 in $BIN_DIR or $CNI_PLUGIN_DIR" >&2
	return 1
}

cni_plugin_count() { # CONFLIST
	jq '.plugins | length' "$1"
}

# Prints the chain's result and keeps it for DEL and CHECK. A plugin that fails: its error on
# standard error, its status returned, what was added taken back as a runtime does.
cni_add() { # CONFLIST CONTAINER-ID NETNS-PATH
	local conflist=$1 id=$2 netns=$3 result=null i n
	n=$(cni_plugin_count "$conflist")
	mkdir -p "$NODE_DIR/results"
	for ((i = 0; i < n; i++)); do
		if ! result=$(cni_call ADD "$conflist" "$i" "$result" "$id" "$netns"); then
			printf '%s\n' "$result" >&2
			cni_del "$conflist" "$id" "$netns" || true
			return 1
		fi
	done
	printf '%s\n' "$result" | tee "$NODE_DIR/results/$id"
}

# Backwards through the list, every plugin, whatever an earlier one said.
cni_del() { # CONFLIST CONTAINER-ID NETNS-PATH
	local conflist=$1 id=$2 netns=$3 result=null failed=0 i n
	n=$(cni_plugin_count "$conflist")
	[ ! -e "$NODE_DIR/results/$id" ] || result=$(cat "$NODE_DIR/results/$id")
	for ((i = n - 1; i >= 0; i--)); do
		cni_call DEL "$conflist" "$i" "$result" "$id" "$netns" >&2 || failed=1
	done
	rm -f "$NODE_DIR/results/$id"
	return "$failed"
}

cni_check() { # CONFLIST CONTAINER-ID NETNS-PATH
	local result i n
	n=$(cni_plugin_count "$1")
	result=$(cat "$NODE_DIR/results/$2")
	for ((i = 0; i < n; i++)); do
		cni_call CHECK "$1" "$i" "$result" "$2" "$3" || return 1
	done
}
