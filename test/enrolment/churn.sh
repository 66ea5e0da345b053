# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The agent among pods that change all the time, in a cluster where others do too, with clients that
# undo what it writes. For run.sh and load.sh; sets nothing but what begins with `churn`.
#
# shellcheck disable=SC2154 # variables are for and from the scripts that source this

# 5,000 pods, 250 of them here, 50 changes a second, half of them here; or a little of it.
churn_scale() {
	case ${SCALE:-ci} in
	full) churn_pods=250 churn_elsewhere=4750 churn_namespaces=500 churn_seconds=120 ;;
	*) churn_pods=30 churn_elsewhere=170 churn_namespaces=20 churn_seconds=10 ;;
	esac
	churn_seconds=${CHURN_SECONDS:-$churn_seconds} churn_pods=${CHURN_PODS:-$churn_pods}
}

test_churn() { # the agent's pid is in NODE_DIR/agent.pid; figures go to NODE_DIR/churn
	local other result
	churn_scale
	test/cluster/churn.py fill --node nobody --on-node 0 --pods "$churn_elsewhere" \
		--namespaces "$churn_namespaces" >"$NODE_DIR/churn-fill"
	test/cluster/churn.py change --rate 25 --seconds $((churn_seconds + 5)) \
		--log /dev/null >"$NODE_DIR/churn-elsewhere" &
	other=$!
	result=$(python3 -EsB test/enrolment/unrest.py --node "$TEST_NODE" \
		--cgroup "$NODE_CGROUP/kubepods" --agent "$(cat "$NODE_DIR/agent.pid")" \
		--run-dir "$NODE_RUN" --pods "$churn_pods" --rate 25 --seconds "$churn_seconds" \
		--namespace-every $((churn_seconds / 5 + 1)) \
		--patience $((60 * ${SOCKMESH_TEST_PATIENCE:-1})))
	wait "$other"
	echo "elsewhere: $(cat "$NODE_DIR/churn-elsewhere")" >>"$NODE_DIR/figures"
	echo "churn: $result" >>"$NODE_DIR/figures"
}
