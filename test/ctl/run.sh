#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# sockmeshctl, the real binary, against an agent that says what each test wants.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
# shellcheck source=test/lib/tap.sh
. test/lib/tap.sh

CTL=${BUILD_DIR:-build}/bin/sockmeshctl
work=$(mktemp -d "${TMPDIR:-/tmp}/sockmesh-ctl.XXXXXX")
trap 'rm -rf "$work"' EXIT
unset SOCKMESH_RUN_DIR SOCKMESH_OUTPUT SOCKMESH_TIMEOUT_MS

# with_agent MODE ANSWER ARG...: runs sockmeshctl with ARGs against a fake agent of its own.
# Leaves its standard output in $out, its standard error in $errors, its status in $status and
# the request that the agent received in $request.
with_agent() {
	local mode=$1 answer=$2 dir agent_in agent_out line
	shift 2
	dir=$(mktemp -d "$work/run.XXXXXX")
	mkfifo "$dir/stdin" "$dir/stdout"
	"$here/fake_agent.py" "$dir" "$mode" "$answer" <"$dir/stdin" >"$dir/stdout" &
	local pid=$!
	exec {agent_in}>"$dir/stdin" {agent_out}<"$dir/stdout"
	read -r -t 10 line <&"$agent_out"
	check_equal "$line" ready "the fake agent"
	ctl --run-dir "$dir" "$@"
	request=$(cat "$dir/request" 2>/dev/null || true)
	exec {agent_in}>&- {agent_out}<&-
	wait "$pid"
}

ctl() {
	status=0
	out=$("$CTL" "$@" 2>"$work/errors") || status=$?
	errors=$(cat "$work/errors")
}

json() { # TEXT EXPRESSION: what Python makes of it, with the object as `o`
	python3 -c 'import json, sys; o = json.loads(sys.argv[1]); print(eval(sys.argv[2]))' "$1" "$2"
}

STATUS='{"v":1,"ok":true,"version":"0.1.0","engine":"ebpf","engineReason":"everything it needs is there","uptimeSeconds":3725,"pods":{"redirected":2,"skipped":1,"orphaned":0},"runDir":"/run/x","bpffsDir":"/sys/fs/bpf/x","cgroup":"/sys/fs/cgroup","mesh":"istio","counters":{"events":{"no-listener":3,"original-dst":0},"handovers":4,"limits":{},"engines":{"ebpf":2,"nftables":0,"iptables":0},"healed":0,"moves":0,"fallbacks":0}}'
STATUS_MOVED='{"v":1,"ok":true,"version":"0.1.0","engine":"ebpf","engineReason":"everything it needs is there","uptimeSeconds":3,"pods":{"redirected":5,"skipped":1,"orphaned":0,"engines":{"ebpf":3,"nftables":2,"iptables":0}},"counters":{"healed":0,"healFailures":4,"moves":7,"fallbacks":2}}'
PODS='{"v":1,"ok":true,"pods":[{"namespace":"shop","name":"web","uid":"u1","containerId":"c1","ifName":"eth0","decision":"redirect","reason":"has a sidecar","engine":"ebpf","ips":["10.0.0.2","fd00::2"],"since":"2026-01-02T03:04:05Z"},{"namespace":"default","name":"db","containerId":"c2","ifName":"eth0","decision":"skip","reason":"no sidecar","engine":"none","ips":["10.0.0.3"],"since":"2026-01-02T03:04:06Z"},{"containerId":"0123456789abcdef","ifName":"eth0","decision":"skip","reason":"not a pod","ips":[]}]}'
POD='{"v":1,"ok":true,"pod":{"namespace":"shop","name":"web","uid":"u1","containerId":"c1","ifName":"eth0","decision":"redirect","reason":"has a sidecar","engine":"ebpf","ips":["10.0.0.2"],"netns":"/run/netns/web","cookie":"4097","cgroup":"/kubepods/web","since":"2026-01-02T03:04:05Z"},"rules":[{"name":"out-port-excluded","sentence":"the port is excluded","direction":"outbound","verdict":"pass","port":0},{"name":"out-all","sentence":"everything else","direction":"outbound","verdict":"redirect","port":15001},{"name":"in-all","sentence":"all that comes in","direction":"inbound","verdict":"redirect","port":15006}],"lists":{"outboundExcludePorts":[9090,9091],"includePrefixes":[]},"counters":{"verdicts":{"out-all":17},"events":{"dns-overflow":2}}}'
EXPLAIN='{"v":1,"ok":true,"verdict":"redirect","port":15001,"rule":"out-all","sentence":"everything else goes to the proxy","inbound":false,"to":"[fd00::9]:443","protocol":"tcp","uid":1000,"gid":1001,"destinationIsLocal":true}'
PROBE='{"v":1,"ok":true,"probe":{"release":"6.1.0","ebpf":true,"summary":"everything required is there","cgroup":"/sys/fs/cgroup","facilities":[{"name":"BTF","how":"h","without":"no CO-RE","required":true,"found":true,"detail":"/sys/kernel/btf/vmlinux"},{"name":"iter/tcp","how":"h","without":"old listeners are not found","required":false,"found":false,"detail":"EPERM"}],"foreign":[{"attachType":"connect4","name":"cil_sock4","cgroup":"/sys/fs/cgroup","id":7,"runsBeforeOurs":false}]}}'

MOVED='{"v":1,"ok":true,"pod":{"namespace":"shop","name":"vm","containerId":"c9","ifName":"eth0","decision":"redirect","reason":"has a sidecar","engine":"nftables","engineReason":"rules about interfaces need netfilter","draining":["ebpf","iptables"],"ips":[]},"rules":[{"name":"in-all","sentence":"all that comes in","direction":"inbound","verdict":"tproxy","port":15006}],"lists":{"excludeInterfaces":["eth1","net1"]},"counters":{}}'
ENGINES='{"v":1,"ok":true,"engine":"nftables","engineReason":"--mode says so","kubelet":{"knownBy":"user","detail":"every process of user 0","cgroup":null,"pid":7,"uid":0},"probe":{"release":"6.1.0","ebpf":true,"summary":"s","cgroup":"/c","auto":"ebpf","engines":[{"name":"ebpf","usable":true,"summary":"all there"},{"name":"nftables","usable":true,"summary":"all there too"},{"name":"iptables","usable":false,"summary":"cannot run without iptables nat"}],"facilities":[{"name":"nft owner","engine":"nftables","how":"added a rule","without":"x","required":true,"found":true,"detail":""},{"name":"iptables nat","engine":"iptables","how":"h","without":"nothing can be redirected","required":true,"found":false,"detail":"no iptables that works"}],"foreign":[]}}'

ACCELERATE='{"v":1,"ok":true,"accelerate":{"policy":"auto","level":"proxy","reason":"the probe found nothing against it","learning":true,"sockets":12,"claimed":1572864,"retiring":0,"limits":{"sockets":32768},"events":{}},"pairs":[{"workload":"shop/web","peer":"shop/db","port":5432,"leg":"proxy-to-proxy","verdict":"short","trial":false,"connections":3,"closed":1,"messages":1000000,"bytes":67108864,"tcpMessages":2,"tcpBytes":128,"spills":0},{"workload":"shop/cron","peer":"shop/db","port":80,"leg":"proxy-to-proxy","verdict":"left-alone","trial":false,"why":"brief","until":"2026-01-02T03:04:05Z","messages":64,"bytes":900,"tcpMessages":64,"tcpBytes":900,"spills":2},{"workload":"shop/cron","peer":"(not on this node)","port":9,"leg":"app-to-proxy","verdict":"short","trial":true,"why":"bulk","messages":0,"bytes":0,"tcpMessages":0,"tcpBytes":0,"spills":0}]}'
WATCHING='{"v":1,"ok":true,"advice":{"state":"watching","workload":"shop/web","left":1}}'
ADVICE='{"v":1,"ok":true,"advice":{"state":"done","left":0,"ended":"2026-01-02T03:04:05Z","workload":"shop/web","seconds":30,"cleared":false,"refuted":true,"reason":"nginx calls splice() out of a socket","calls":4711,"sockets":12,"evidence":[{"call":"splice() out of a socket","count":17,"comm":"nginx","pid":42,"unsafe":true,"unknown":false,"means":"it sees only what came by TCP"},{"call":"recv()","count":4694,"comm":"nginx","pid":42,"unsafe":false,"unknown":false,"means":"served as by TCP"}]}}'

# ---- command line --------------------------------------------------------------------------------

help_goes_to_stdout() {
	ctl --help
	check_equal "$status" 0 status
	check_equal "$errors" "" stderr
	for word in status pods "pod NAMESPACE/NAME" explain probe accelerate --advise --run-dir SOCKMESH_RUN_DIR --timeout-ms; do
		check_has "$out" "$word"
	done
	local longest
	longest=$(printf '%s\n' "$out" | wc -L)
	[ "$longest" -le 80 ] || { echo "a line of $longest columns"; return 1; }
}

version_is_the_projects() {
	ctl --version
	check_equal "$status" 0 status
	check_equal "$out" "sockmeshctl $(cat VERSION)" version
}

usage_error() { # WANTED-MESSAGE ARG...
	local wanted=$1
	shift
	ctl "$@"
	check_equal "$status" 2 status
	check_equal "$out" "" stdout
	check_has "$errors" "$wanted"
}

bad_environment_names_the_variable() {
	SOCKMESH_TIMEOUT_MS=soon usage_error SOCKMESH_TIMEOUT_MS status
	SOCKMESH_OUTPUT=yaml usage_error SOCKMESH_OUTPUT status
}

environment_gives_way_to_the_flag() {
	export SOCKMESH_RUN_DIR=$work/nowhere
	with_agent text "$STATUS" status
	check_equal "$status" 0 status
	ctl status
	check_equal "$status" 3 status
	check_has "$errors" "$work/nowhere"
}

# ---- the agent is not there, or answers nonsense -------------------------------------------------

no_agent_is_3() {
	ctl --run-dir "$work/nowhere" status
	check_equal "$status" 3 status
	check_equal "$out" "" stdout
	check_has "$errors" "is sockmesh-agent running"
	ctl --run-dir "$work/nowhere" -o json probe
	check_equal "$status" 3 status
	check_equal "$(json "$out" '(o["v"], o["ok"], o["code"])')" "(1, False, 'unreachable')" json
}

hanging_agent_is_3_in_time() {
	local start=$SECONDS
	with_agent hang "" --timeout-ms 200 status
	check_equal "$status" 3 status
	[ $((SECONDS - start)) -le 5 ] || { echo "took $((SECONDS - start)) s"; return 1; }
}

dying_agent_is_3() {
	with_agent close "" status
	check_equal "$status" 3 status
}

bad_answer_is_4() { # ANSWER
	with_agent text "$1" status
	check_equal "$status" 4 status
	check_equal "$out" "" stdout
	[ -n "$errors" ]
}

refusal_is_4_with_its_message() {
	local refusal='{"v":1,"ok":false,"code":"kernel","message":"map is gone","retry":false}'
	with_agent text "$refusal" pods
	check_equal "$status" 4 status
	check_has "$errors" "map is gone"
	with_agent text "$refusal" -o json pods
	check_equal "$status" 4 status
	check_equal "$(json "$out" '(o["v"], o["code"], o["message"])')" "(1, 'kernel', 'map is gone')" json
}

# ---- verbs ---------------------------------------------------------------------------------------

json_is_the_whole_answer() { # ANSWER STATUS ARG...
	local answer=$1 wanted=$2
	shift 2
	with_agent text "$answer" -o json "$@"
	check_equal "$status" "$wanted" status
	check_equal "$(printf '%s\n' "$out" | wc -l)" 1 "number of lines"
	check_equal "$(json "$out" 'sorted(o.items(), key=str)')" \
		"$(json "$answer" 'sorted(o.items(), key=str)')" answer
}

status_for_people() {
	with_agent text "$STATUS" status
	check_equal "$status" 0 status
	check_equal "$(json "$request" '(o["v"], o["op"])')" "(1, 'status')" request
	for word in 0.1.0 ebpf "everything it needs is there" "1h 2m" "2 redirected, 1 skipped" \
		/run/x istio no-listener "4 under way"; do
		check_has "$out" "$word"
	done
	case $out in *original-dst*) echo "shows a counter of zero"; return 1 ;; esac
}

status_tells_engines_and_what_the_agent_did() {
	with_agent text "$STATUS_MOVED" status
	check_equal "$status" 0 status
	for word in "5 redirected, 1 skipped" "3 by ebpf" "2 by nftables" "7 moved" \
		"Since start" "2 given another engine" "4 attempts to heal"; do
		check_has "$out" "$word"
	done
	case $out in *"by iptables"* | *"healed after"*) echo "shows a count of zero"; return 1 ;; esac
	with_agent text "$STATUS" status
	case $out in *"by ebpf"* | *"Since start"*) echo "says what is no news"; return 1 ;; esac
}

status_without_engine_is_1() {
	with_agent text "${STATUS/'"ebpf"'/null}" status
	check_equal "$status" 1 status
	check_has "$out" "none: nothing can be redirected"
	with_agent text "${STATUS/'"ebpf"'/null}" -o json status
	check_equal "$status" 1 status
}

pods_are_sorted_and_aligned() {
	with_agent text "$PODS" pods
	check_equal "$status" 0 status
	check_equal "$(json "$request" 'o["op"]')" pods request
	check_equal "$(printf '%s\n' "$out" | awk 'NR == 1 { print $1 } NR > 2 { print $1 }' | tr '\n' ' ')" \
		"POD default/db shop/web " order
	check_has "$out" "container 0123456789ab "
	check_has "$out" "10.0.0.2, fd00::2"
	# Every row has its decision under the heading.
	printf '%s\n' "$out" | awk 'NR == 1 { at = index($0, "DECISION") }
		NR > 1 && substr($0, at, 4) !~ /^(redi|skip)/ { bad = 1; print "row " NR ": " $0 }
		END { exit bad }'
}

long_answers_come_in_parts() {
	local answer
	answer=$(python3 -c 'import json
print(json.dumps({"v": 1, "ok": True, "pods": [
    {"namespace": "n", "name": "p%04d" % i, "decision": "skip", "ips": ["10.0.0.1"]}
    for i in range(400)]}))')
	with_agent parts "$answer" pods
	check_equal "$status" 0 status
	check_equal "$(printf '%s\n' "$out" | wc -l)" 401 "number of lines"
	check_has "$out" n/p0399
}

pod_shows_rules_in_order() {
	with_agent text "$POD" pod shop/web
	check_equal "$status" 0 status
	check_equal "$(json "$request" '(o["op"], o["pod"]["namespace"], o["pod"]["name"])')" \
		"('pod', 'shop', 'web')" request
	for word in shop/web "has a sidecar" "to port 15001" "to port 15006" "everything else" 17 \
		"outboundExcludePorts: 9090, 9091" dns-overflow "cookie 4097" /kubepods/web; do
		check_has "$out" "$word"
	done
	case $out in *includePrefixes*) echo "shows an empty list"; return 1 ;; esac
	printf '%s\n' "$out" | awk '/out-port-excluded/ { a = NR } /out-all/ { b = NR }
		/in-all/ { c = NR } END { exit !(a && a < b && b < c) }'
}

pod_shows_its_engine_why_and_what_drains() {
	with_agent text "$MOVED" pod shop/vm
	check_equal "$status" 0 status
	for word in "nftables" "not the preferred one: rules about interfaces need netfilter" \
		"ebpf, iptables, for connections from before" "TPROXY to port 15006" \
		"excludeInterfaces: eth1, net1"; do
		check_has "$out" "$word"
	done
	with_agent text "$POD" pod shop/web
	case $out in *preferred* | *Draining*) echo "says what is no news"; return 1 ;; esac
}

pods_mark_other_engines() {
	local pods
	pods=$(python3 -c 'import json, sys
print(json.dumps({"v": 1, "ok": True, "pods": [json.loads(sys.argv[1])["pod"]]}))' "$MOVED")
	with_agent text "$pods" pods
	check_has "$out" "nftables* (ebpf, iptables drains)"
}

unknown_pod_is_1() { # ARG...
	with_agent text '{"v":1,"ok":false,"code":"not-found","message":"no pod a/b","retry":false}' "$@"
	check_equal "$status" 1 status
	check_has "$errors" "no pod a/b"
}

explain_asks_and_answers() {
	with_agent text "$EXPLAIN" explain --pod shop/web --to '[fd00::9]:443' --uid 1000
	check_equal "$status" 0 status
	check_equal "$(json "$request" '(o["op"], o["pod"]["name"], o["to"], o["uid"], "gid" in o)')" \
		"('explain', 'web', '[fd00::9]:443', 1000, False)" request
	for word in "shop/web" "[fd00::9]:443" TCP "uid 1000, gid 1001 (assumed)" "the pod itself" "port 15001" out-all \
		"everything else goes to the proxy"; do
		check_has "$out" "$word"
	done
}

explain_is_0_when_it_passes() {
	with_agent text '{"v":1,"ok":true,"verdict":"pass","port":0,"rule":"none","sentence":"no rule"}' \
		explain --udp --pod a/b --to 1.2.3.4:53
	check_equal "$status" 0 status
	check_equal "$(json "$request" '(o["to"], o["udp"])')" "('1.2.3.4:53', True)" request
	check_has "$out" UDP
	check_has "$out" "passes the proxy by"
}

explain_by_interface_and_tproxy() {
	with_agent text '{"v":1,"ok":true,"verdict":"tproxy","port":15006,"rule":"out-tproxy-self","sentence":"s"}' \
		explain --pod a/b --to 10.0.0.2:15008 --uid 1337 --interface net1
	check_equal "$status" 0 status
	check_equal "$(json "$request" 'o["interface"]')" net1 request
	check_has "$out" "by net1"
	check_has "$out" "goes to the proxy's inbound port 15006, addresses unchanged"
}

probe_tells_engines_and_the_choice() {
	with_agent text "$ENGINES" probe
	check_equal "$status" 0 status
	for word in "usable: all there too" "not usable: cannot run without iptables nat" \
		"would take ebpf" "nftables: --mode says so" \
		"known by its user: every process of user 0" "nothing can be redirected (no iptables"; do
		check_has "$out" "$word"
	done
	printf '%s\n' "$out" | grep -q "nft owner  *nftables  *found  *added a rule"
}

probe_tells_a_kubelet_that_is_not_known() {
	with_agent text "${ENGINES/'"knownBy":"user"'/'"knownBy":"nothing"'}" probe
	check_has "$out" "not known, its probes of ambient pods go to ztunnel: every process"
}

probe_tells_found_missing_and_consequence() {
	with_agent text "$PROBE" probe
	check_equal "$status" 0 status
	for word in 6.1.0 usable BTF found "old listeners are not found (EPERM)" cil_sock4 "after ours"; do
		check_has "$out" "$word"
	done
	with_agent text "${PROBE/'"ebpf":true'/'"ebpf":false'}" probe
	check_equal "$status" 1 status
	check_has "$out" "not usable"
}

accelerate_tells_the_node_and_each_pair() {
	with_agent text "$ACCELERATE" accelerate
	check_equal "$status" 0 status
	check_equal "$(json "$request" 'sorted(o)')" "['op', 'v']" request
	for word in auto proxy "nothing against it" "12 of at most 32768" "1.5 MB claimed"; do
		check_has "$out" "$word"
	done
	printf '%s\n' "$out" | grep -q "^shop/web  *shop/db  *5432  *proxy-to-proxy  *short  *64.0 MB  *1000000  *>99 %  *0  *-  *-$"
	printf '%s\n' "$out" | grep -q "^shop/cron  *shop/db  *80  *proxy-to-proxy  *left-alone  *900 B  *64  *50 %  *2  *2026-01-02T03:04:05Z  *connections too short"
	printf '%s\n' "$out" | grep -q "^shop/cron  *(not on this node)  *9  *app-to-proxy  *short, on trial  *0 B  *0  *-  *0  *-  *bulk"
	check_equal "$(printf '%s\n' "$out" | awk '/^shop/ { print $1 }' | xargs)" "shop/cron shop/cron shop/web" order
}

accelerate_off_is_1() {
	with_agent text "${ACCELERATE/'"level":"proxy"'/'"level":"off"'}" accelerate
	check_equal "$status" 1 status
	with_agent text '{"v":1,"ok":true,"accelerate":{"policy":"off","level":"off","reason":"--accelerate off"},"pairs":[]}' accelerate
	check_equal "$status" 1 status
	check_has "$out" "none yet"
}

advice_is_waited_for() {
	with_agent turns "$WATCHING"$'\n'"$ADVICE" accelerate --advise shop/web --seconds 30
	check_equal "$status" 1 "status: not cleared"
	check_equal "$(json "$request" '(o["op"], o["advise"], o["seconds"])')" "('accelerate', 'shop/web', 30)" request
	check_equal "$errors" "" "standard error, which is no terminal"
	for word in "not safe" "nginx calls splice()" "4711 calls on 12 sockets in 30 s" 2026-01-02T03:04:05Z "nginx (42)" unsafe "only what came by TCP"; do
		check_has "$out" "$word"
	done
	with_agent text "${ADVICE/'"cleared":false'/'"cleared":true'}" accelerate --advise shop/web
	check_equal "$status" 0 "status: cleared"
	check_has "$out" "safe, as far as was seen"
	check_equal "$(json "$request" '"seconds" in o')" False request
}

advice_as_json_is_one_object() {
	with_agent turns "$WATCHING"$'\n'"$ADVICE" -o json accelerate --advise shop/web
	check_equal "$status" 1 status
	check_equal "$(printf '%s\n' "$out" | wc -l)" 1 lines
	check_equal "$(json "$out" 'o["advice"]["state"]')" "done" state
}

advice_that_never_comes_is_4() {
	with_agent text "$WATCHING" --timeout-ms 500 accelerate --advise shop/web
	check_equal "$status" 4 status
	check_equal "$out" "" stdout
	check_has "$errors" "was to be done by now"
}

a_terminal_sees_what_is_waited_for() {
	local dir shown
	dir=$(mktemp -d "$work/run.XXXXXX")
	mkfifo "$dir/stdin" "$dir/stdout"
	"$here/fake_agent.py" "$dir" turns "$WATCHING"$'\n'"$ADVICE" <"$dir/stdin" >"$dir/stdout" &
	local pid=$! fd_in fd_out line
	exec {fd_in}>"$dir/stdin" {fd_out}<"$dir/stdout"
	read -r -t 10 line <&"$fd_out"
	check_equal "$line" ready "the fake agent"
	shown=$(script -qec "$CTL --run-dir $dir accelerate --advise shop/web" /dev/null) || true
	exec {fd_in}>&- {fd_out}<&-
	wait "$pid"
	check_has "$shown" "watching shop/web, 1 s left"
}

# ---- hostile text --------------------------------------------------------------------------------

control_characters_are_escaped() {
	local hostile
	hostile='{"v":1,"ok":true,"pods":[{"namespace":"a","name":"\u001b[2Jx\r\ny","decision":"skip","reason":"t\u202eb\u009bc\\n","ips":["\u0007"]}]}'
	with_agent text "$hostile" pods
	check_equal "$status" 0 status
	check_has "$out" 'a/\x1b[2Jx\x0d\x0ay'
	# shellcheck disable=SC1003
	check_has "$out" 't\u202eb\u009bc\\n'
	check_equal "$(printf '%s\n' "$out" | wc -l)" 2 "number of lines"
	check_equal "$(printf '%s' "$out" | LC_ALL=C tr -d '\n -~' | wc -c)" 0 "control characters"
}

hostile_refusal_is_escaped() {
	with_agent text '{"v":1,"ok":false,"code":"kernel","message":"a\u001b]0;x\u0007b","retry":false}' pods
	check_equal "$status" 4 status
	check_has "$errors" 'a\x1b]0;x\x07b'
}

no_colour_without_a_terminal() {
	with_agent text "$STATUS" status
	case $out in *$'\033'*) return 1 ;; esac
}

colour_on_a_terminal_unless_unwanted() {
	local dir plain painted
	dir=$(mktemp -d "$work/run.XXXXXX")
	mkfifo "$dir/stdin" "$dir/stdout"
	"$here/fake_agent.py" "$dir" text "$STATUS" <"$dir/stdin" >"$dir/stdout" &
	local pid=$! fd_in fd_out line
	exec {fd_in}>"$dir/stdin" {fd_out}<"$dir/stdout"
	read -r -t 10 line <&"$fd_out"
	check_equal "$line" ready "the fake agent"
	painted=$(env -u NO_COLOR script -qec "$CTL --run-dir $dir status" /dev/null)
	plain=$(NO_COLOR=1 script -qec "$CTL --run-dir $dir status" /dev/null)
	exec {fd_in}>&- {fd_out}<&-
	wait "$pid"
	check_has "$painted" $'\033[32mebpf\033[0m'
	case $plain in *$'\033'*) echo "NO_COLOR is ignored"; return 1 ;; esac
}

write_errors_are_not_silent() {
	local dir status=0
	dir=$(mktemp -d "$work/run.XXXXXX")
	"$CTL" --help >/dev/full 2>"$dir/errors" || status=$?
	check_equal "$status" 4 status
	check_has "$(cat "$dir/errors")" "No space left"
}

# --------------------------------------------------------------------------------------------------

tap_test "--help goes to standard output, in 80 columns" help_goes_to_stdout
tap_test "--version is the project's" version_is_the_projects
tap_test "usage: no command" usage_error "no command"
tap_test "usage: unknown command is named" usage_error '"frobnicate"' frobnicate
tap_test "usage: unknown long option is named" usage_error "--frob" status --frob
tap_test "usage: unknown short option is named" usage_error "-x" status -x
tap_test "usage: option without its value" usage_error "--run-dir needs a value" status --run-dir
tap_test "usage: output format is named" usage_error '"yaml"' -o yaml status
tap_test "usage: timeout of zero" usage_error '--timeout-ms "0"' --timeout-ms 0 status
tap_test "usage: surplus argument is named" usage_error '"extra"' status extra
tap_test "usage: pod without a name" usage_error "needs NAMESPACE/NAME" pod
tap_test "usage: pod without a namespace" usage_error '"web"' pod web
tap_test "usage: pod with two slashes" usage_error '"a/b/c"' pod a/b/c
tap_test "usage: explain without --to" usage_error "--to ADDR:PORT" explain --pod a/b
tap_test "usage: explain to a name" usage_error "--to" explain --pod a/b --to example.com:80
tap_test "usage: explain without a port" usage_error "--to" explain --pod a/b --to 1.2.3.4
tap_test "usage: uid that is no uid" usage_error '--uid "4294967295"' explain --uid 4294967295
tap_test "usage: --uid does not go with status" usage_error "--uid does not go with status" status --uid 1
tap_test "usage: --pod does not go with accelerate" usage_error "--pod does not go with accelerate" accelerate --pod a/b
tap_test "usage: --advise does not go with pods" usage_error "--advise does not go with pods" pods --advise a/b
tap_test "usage: --seconds without --advise" usage_error "--seconds goes with --advise" accelerate --seconds 5
tap_test "usage: seconds out of range" usage_error '--seconds "0"' accelerate --advise a/b --seconds 0
tap_test "usage: a workload without a namespace" usage_error 'workload "web"' accelerate --advise web
tap_test "a bad environment variable is named" bad_environment_names_the_variable
tap_test "the environment gives way to the flag" environment_gives_way_to_the_flag
tap_test "no agent: 3, with what to look at" no_agent_is_3
tap_test "an agent that hangs: 3, in time" hanging_agent_is_3_in_time
tap_test "an agent that dies: 3" dying_agent_is_3
tap_test "an answer that is no JSON: 4" bad_answer_is_4 "not json"
tap_test "an answer that is no object: 4" bad_answer_is_4 "[1]"
tap_test "an answer that is neither yes nor no: 4" bad_answer_is_4 '{"v":1}'
tap_test "a refusal: 4, with its message" refusal_is_4_with_its_message
tap_test "status for people" status_for_people
tap_test "status as JSON" json_is_the_whole_answer "$STATUS" 0 status
tap_test "status tells engines and what the agent did" status_tells_engines_and_what_the_agent_did
tap_test "status without an engine: 1" status_without_engine_is_1
tap_test "pods sorted and aligned" pods_are_sorted_and_aligned
tap_test "pods as JSON" json_is_the_whole_answer "$PODS" 0 pods
tap_test "a long answer comes in parts" long_answers_come_in_parts
tap_test "pod shows its rules in order" pod_shows_rules_in_order
tap_test "pod shows its engine, why, and what drains" pod_shows_its_engine_why_and_what_drains
tap_test "pods mark other engines" pods_mark_other_engines
tap_test "pod as JSON" json_is_the_whole_answer "$POD" 0 pod shop/web
tap_test "pod that is not there: 1" unknown_pod_is_1 pod a/b
tap_test "explain asks and answers" explain_asks_and_answers
tap_test "explain is 0 whatever the verdict" explain_is_0_when_it_passes
tap_test "explain as JSON" json_is_the_whole_answer "$EXPLAIN" 0 explain --pod a/b --to 1.2.3.4:80
tap_test "explain of a pod that is not there: 1" unknown_pod_is_1 explain --pod a/b --to 1.2.3.4:80
tap_test "probe tells found, missing and the consequence" probe_tells_found_missing_and_consequence
tap_test "explain by interface, and TPROXY" explain_by_interface_and_tproxy
tap_test "probe tells engines and the choice" probe_tells_engines_and_the_choice
tap_test "probe tells that kubelet is not known" probe_tells_a_kubelet_that_is_not_known
tap_test "probe with engines as JSON" json_is_the_whole_answer "$ENGINES" 0 probe
tap_test "probe as JSON" json_is_the_whole_answer "$PROBE" 0 probe
tap_test "accelerate tells the node and each pair" accelerate_tells_the_node_and_each_pair
tap_test "accelerate as JSON" json_is_the_whole_answer "$ACCELERATE" 0 accelerate
tap_test "accelerate where nothing may: 1" accelerate_off_is_1
tap_test "advice is waited for" advice_is_waited_for
tap_test "advice as JSON is one object" advice_as_json_is_one_object
tap_test "advice of a workload that is not there: 1" unknown_pod_is_1 accelerate --advise a/b
tap_test "advice that never comes: 4, in time" advice_that_never_comes_is_4
tap_test "a terminal sees what is waited for" a_terminal_sees_what_is_waited_for
tap_test "control characters from pods are escaped" control_characters_are_escaped
tap_test "control characters of a refusal are escaped" hostile_refusal_is_escaped
tap_test "no colour without a terminal" no_colour_without_a_terminal
tap_test "colour on a terminal, not with NO_COLOR" colour_on_a_terminal_unless_unwanted
tap_test "a failed write is not silent" write_errors_are_not_silent
tap_done
