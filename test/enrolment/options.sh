# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What options change about who joins, and what is told of those who do not. For run.sh.
#
# shellcheck disable=SC2153,SC2154 # variables are for and from the script that sources this

agent_again() { # [OPTION...]
	agent_ends TERM
	agent_up "$@"
	wait_for 10 status_is .enrolment.kubernetes.complete true
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

patch_status() { # NAMESPACE POD PATCH: as others than we write it
	cluster_patch "/api/v1/namespaces/$1/pods/$2/status" "$3" >/dev/null
}

says_enabled() { # NAMESPACE POD: Istio's agent
	patch_status "$1" "$2" "{\"metadata\":{\"annotations\":{\"$REDIRECTION\":\"enabled\"}}}"
}

# It has started without redirection, as its init container has found.
api_broken_pod() { # NAMESPACE POD
	POD_NAMESPACE=$1 api_pod "$2" '{}' "$SIDECAR_ANNOTATION" '{"initContainers": [
		{"name": "check", "image": "v"}], "containers": [
		{"name": "app", "image": "app"}, {"name": "istio-proxy", "image": "p"}]}'
	patch_status "$1" "$2" '{"status": {"phase": "Pending", "initContainerStatuses": [{
		"name": "check", "image": "v", "imageID": "x", "ready": false, "restartCount": 1,
		"state": {"waiting": {"reason": "CrashLoopBackOff"}},
		"lastState": {"terminated": {"exitCode": 7}}}]}}'
}

label_in() { # NAMESPACE POD LABEL VALUE
	[ "$(api GET "/api/v1/namespaces/$1/pods/$2" | jq -r --arg name "$3" '.metadata.labels[$name] // ""')" = "$4" ]
}

# Another agent, as Istio's, may have the pods that are none of ours. In both ways in which they are
# not; what is written about one of ours shows that the others' turn is over.
test_others_are_left_alone() {
	local namespace
	cluster_namespace excluded
	cluster_namespace unknown
	agent_again --exclude-namespaces excluded --repair label \
		--repair-container check --repair-exit-code 7 --repair-label mesh/broken=yes \
		--discovery-selectors '[{"matchLabels": {"kubernetes.io/metadata.name": "demo"}}]'
	for namespace in excluded unknown demo; do
		POD_NAMESPACE=$namespace api_pod other
		says_enabled "$namespace" other
		api_broken_pod "$namespace" broken
	done
	wait_for 10 annotation_is other "$REDIRECTION" ""
	wait_for 10 label_in demo broken mesh/broken yes
	for namespace in excluded unknown; do
		POD_NAMESPACE=$namespace annotation_is other "$REDIRECTION" enabled
		label_in "$namespace" broken mesh/broken ""
	done
	check_equal "$(status_field .enrolment.kubernetes.written.written)" 1 "what was written"
	for namespace in excluded unknown demo; do
		cluster_pod_delete "$namespace" other
		cluster_pod_delete "$namespace" broken
	done
	agent_again
}

test_kubelets_cgroup_is_its_own() {
	local options said status=0
	mapfile -t options <<<"$(agent_options)"
	said=$(timeout 10 "$BIN_DIR/sockmesh-agent" "${options[@]}" --kubelet-cgroup "$NODE_CGROUP" 2>&1) || status=$?
	check_equal "$status" 2 "exit code"
	check_has "$said" "the pods are in it" "what it says"
}

# What is known of a pod then is what its runtime says, and what the API server had said of its
# namespace. It is created, does not bypass ztunnel, and becomes what it is when the API says it.
test_add_without_the_api() {
	local pod
	label_namespace demo "$AMBIENT"
	# What is not written now is written some time after the API server is back.
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	wait_for 10 annotation_is two "$REDIRECTION" enabled
	cluster_kill apiserver
	wait_for 10 status_is .enrolment.kubernetes.current false
	for pod in asks presumed optout; do
		UID_OF["$pod"]=5f0a7a1c-0000-4000-8000-00000000000${#pod}
	done
	POD_SAID_UID='' with_plugin pod_add asks '{"sockmesh.io/redirection":"ambient"}'
	POD_SAID_UID='' with_plugin pod_add presumed
	POD_SAID_UID='' with_plugin pod_add optout
	for pod in asks presumed optout; do
		check_equal "$(pod_field $pod mode)" ambient "mode of $pod"
		ztunnel_was_told "${POD_ID[$pod]} $pod demo default"
	done
	cluster_apiserver_start
	api_pod asks '' '{"sockmesh.io/redirection":"ambient"}' '{"serviceAccountName":"shop"}'
	api_pod presumed
	api_pod optout '{"istio.io/dataplane-mode":"none"}'
	for pod in asks presumed optout; do
		pod_runs $pod
	done
	wait_for 40 status_is .enrolment.kubernetes.current true
	wait_for 10 mode_is optout none
	goes_direct optout
	wait_for 10 ztunnel_was_told "${UID_OF[asks]} asks demo shop"
	wait_for 10 annotation_is asks "$REDIRECTION" enabled
	wait_for 10 annotation_is presumed "$REDIRECTION" enabled
	ztunnel_comes presumed
	is_captured presumed
	label_namespace demo "$NOT_AMBIENT"
	wait_for 10 mode_is presumed none
	for pod in asks presumed optout; do
		end_pod $pod
	done
}

status_says() { # POD JQ-FILTER TEXT
	[[ $(api_annotation "$1" sockmesh.io/status | jq -r "$2") == *"$3"* ]]
}

# A pod that runs says why it is not in the mesh yet, one that is not created has an Event.
test_why_a_pod_waits_is_told() {
	local before
	zds_stop
	wait_for 10 status_is .enrolment.ztunnel.ready 0
	label_pod one "$AMBIENT"
	wait_for 10 annotation_is one "$REDIRECTION" pending
	wait_for 10 status_says one .reason "waits for ztunnel"
	api_pod unserved "$AMBIENT"
	before=$(status_field .enrolment.refused)
	check_fails with_plugin pod_add unserved '{}'
	check_equal "$(status_field .enrolment.refused)" $((before + 1)) "refused"
	wait_for 10 has_event unserved SockmeshRefused
	ip netns delete unserved
	cluster_pod_delete demo unserved
	label_pod one "$NOT_AMBIENT"
	wait_for 10 annotation_is one "$REDIRECTION" ""
	wait_for 10 annotation_is one sockmesh.io/status ""
	zds_start
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

# Also of a pod that was never in it; what is redirected meanwhile stays "enabled".
test_what_cannot_be_read_is_told_on_the_pod() {
	local illegible='{"ambient.istio.io/dns-capture":"perhaps"}'
	annotate_pod two "$illegible"
	label_pod two "$AMBIENT"
	wait_for 10 status_says two .reason dns-capture
	annotate_pod two '{"ambient.istio.io/dns-capture":null}'
	wait_for 10 mode_is two ambient
	wait_for 10 annotation_is two "$REDIRECTION" enabled
	annotate_pod two "$illegible"
	wait_for 10 status_says two .reason dns-capture
	check_equal "$(api_annotation two "$REDIRECTION")" enabled "of a pod that stays redirected"
	annotate_pod two '{"ambient.istio.io/dns-capture":null}'
	label_pod two "$NOT_AMBIENT"
	wait_for 10 mode_is two none
	wait_for 10 annotation_is two sockmesh.io/status ""
}

# Both selectors, in place of Istio's labels: which pods are ambient, and which namespaces the mesh
# is about, whose labels change.
test_selectors() {
	agent_again --enablement-selectors '[{"podSelector": {"matchExpressions": [
			{"key": "mesh", "operator": "In", "values": ["in", "on"]}]},
			"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "demo"}}}]' \
		--discovery-selectors '[{"matchExpressions": [{"key": "off", "operator": "DoesNotExist"}]}]'
	label_pod two "$AMBIENT"
	label_pod one '{"mesh":"on"}'
	wait_for 10 mode_is one ambient
	is_captured one
	wait_for 10 mode_is two none
	label_namespace demo '{"off":""}'
	wait_for 10 mode_is one none
	wait_for 10 annotation_is one "$REDIRECTION" ""
	goes_direct one
	label_namespace demo '{"off":null}'
	wait_for 10 mode_is one ambient
	label_pod one '{"mesh":null}'
	wait_for 10 mode_is one none
	label_pod two "$NOT_AMBIENT"
	agent_again
}

# Where a connection to port 53 ends: at ztunnel's port for DNS, or at the one for all others.
dns_goes_to() { # POD PORT
	[[ $(pod_run "$1" app "$APP_UID" "$PROGRAMS/dial" 10.88.0.1:53 2>&1) == *"local=127."*":$2" ]]
}

from_outside() { # POD WHOM
	[ "$(reached_from_node "${POD_IP4[$1]}:8080")" = "$2" ] && [ "$(reached_from_node "[${POD_IP6[$1]}]:8080")" = "$2" ]
}

test_settings_change() {
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
	from_outside one ztunnel
	dns_goes_to one 15053
	annotate_pod one '{"ambient.istio.io/bypass-inbound-capture":"true","ambient.istio.io/dns-capture":"false"}'
	wait_for 10 from_outside one server
	dns_goes_to one 15001
	is_captured one
	annotate_pod one '{"ambient.istio.io/bypass-inbound-capture":null,"sockmesh.io/dns-capture":"true"}'
	wait_for 10 from_outside one ztunnel
	dns_goes_to one 15053
	annotate_pod one '{"sockmesh.io/dns-capture":null}'
	wait_for 10 dns_goes_to one 15001
	annotate_pod one '{"ambient.istio.io/dns-capture":null}'
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
}

# A native sidecar is an init container that goes on; the ids of its processes are in the spec.
test_native_sidecar() {
	run_pod native '{}' "$SIDECAR_ANNOTATION" '{"initContainers": [{"name": "istio-proxy", "image": "p",
		"restartPolicy": "Always", "securityContext": {"runAsUser": 4321, "runAsGroup": 4322}}],
		"containers": [{"name": "app", "image": "app"}]}'
	wait_for 10 mode_is native sidecar
	check_equal "$(ctl pod demo/native -o json | jq -c '.lists | [.proxyUids, .proxyGids]')" "[[4321],[4322]]" "ids"
	wait_for 10 status_says native .mode sidecar
	end_pod native
}

zds_start_unwilling() { # TEXT
	zds_stop
	python3 -EsB test/enrolment/ztunnel.py --refuse "$1" "$NODE_DIR/ztunnel.sock" \
		"$NODE_DIR/ztunnel.pods" >"$NODE_DIR/zds.log" 2>&1 </dev/null &
	disown $!
	remember zds $!
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

test_ztunnel_refuses() {
	zds_start_unwilling "port 15001 is taken"
	label_pod one "$AMBIENT"
	wait_for 10 has_event one SockmeshRefused
	wait_for 10 annotation_is one "$REDIRECTION" pending
	wait_for 10 status_says one .reason "port 15001 is taken"
	goes_direct one
	api_pod unwanted "$AMBIENT"
	check_has "$(check_fails with_plugin pod_add unwanted '{}' 2>&1)" "port 15001 is taken" "the plugin's answer"
	wait_for 10 has_event unwanted SockmeshRefused
	ip netns delete unwanted
	cluster_pod_delete demo unwanted
	zds_stop
	zds_start
	wait_for 40 mode_is one ambient
	wait_for 10 annotation_is one "$REDIRECTION" enabled
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
}

# Each refusal is another text, and so another status: that it is written must not have ztunnel
# asked again at once.
test_ztunnel_is_not_asked_all_the_time() {
	local said before asked
	before=$(status_field .enrolment.ztunnel.counters.nacks)
	zds_start_unwilling "attempt %d"
	label_pod one "$AMBIENT"
	wait_for 10 status_says one .reason "attempt "
	said=$(api_annotation one sockmesh.io/status | jq -r .reason)
	wait_for 40 check_fails status_says one .reason "$said"
	pause 1
	asked=$(($(status_field .enrolment.ztunnel.counters.nacks) - before))
	echo "asked $asked times"
	[ "$asked" -lt 10 ]
	zds_stop
	zds_start
	wait_for 40 mode_is one ambient
	label_pod one "$NOT_AMBIENT"
	wait_for 10 mode_is one none
}

test_kernel_refuses() {
	agent_again --max-pods 1
	label_pod one "$AMBIENT"
	wait_for 10 mode_is one ambient
	label_pod two "$AMBIENT"
	wait_for 10 has_event two SockmeshRefused
	wait_for 10 status_says two .reason "max-pods"
	goes_direct two
	is_captured one
	label_pod one "$NOT_AMBIENT"
	wait_for 40 mode_is two ambient
	is_captured two
	label_pod two "$NOT_AMBIENT"
	wait_for 10 mode_is two none
	agent_again
}
