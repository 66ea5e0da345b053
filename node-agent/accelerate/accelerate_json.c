/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_private.h"
#include "scoped.h"

#include <stdlib.h>

static const char *const event_names[ACCEL_EVENTS] = {
	[ACCEL_ENTERED] = "entered",
	[ACCEL_NO_MEMORY] = "no-memory",
	[ACCEL_MAP_FULL] = "map-full",
	[ACCEL_NODE_FULL] = "node-full",
	[ACCEL_POD_FULL] = "pod-full",
	[ACCEL_SECOND_OWNER] = "second-owner",
	[ACCEL_INSERT_FAILED] = "insert-failed",
	[ACCEL_HAS_MOVED_DATA] = "has-moved-data",
	[ACCEL_BLOCKING] = "blocking",
	[ACCEL_ACCEPTOR_UNKNOWN] = "acceptor-unknown",
	[ACCEL_ACCEPTOR_BLOCKING] = "acceptor-blocking",
	[ACCEL_LEFT_ALONE] = "left-alone",
	[ACCEL_NO_OTHER_END] = "no-other-end",
	[ACCEL_AMBIGUOUS] = "ambiguous",
	[ACCEL_MPTCP] = "mptcp",
	[ACCEL_ULP] = "ulp",
	[ACCEL_ZEROCOPY] = "zerocopy",
	[ACCEL_LOWAT] = "lowat",
	[ACCEL_TURNED_BLOCKING] = "turned-blocking",
	[ACCEL_ENDED] = "ended",
	[ACCEL_ULP_REFUSED] = "ulp-refused",
	[ACCEL_NEVER_DRAINED] = "never-drained",
	[ACCEL_PEER_UNKNOWN] = "peer-unknown",
	[ACCEL_PEER_GONE] = "peer-gone",
	[ACCEL_SPILL_LIMIT] = "spill-limit",
	[ACCEL_SPILL_POD] = "spill-pod",
	[ACCEL_SPILL_NODE] = "spill-node",
	[ACCEL_SPILL_PRESSURE] = "spill-pressure",
	[ACCEL_STOPPED] = "stopped",
	[ACCEL_SLOWER] = "slower",
	[ACCEL_BUDGET_CARRIED] = "budget-carried",
	[ACCEL_SHORT_AT_ONCE] = "short-at-once",
	[ACCEL_SHORT_LATER] = "short-later",
};
_Static_assert(ACCEL_EVENTS == ACCEL_SHORT_LATER + 1, "a name for every event");

/* Only those that have happened, as elsewhere. */
static json_t *events_json(const struct accelerate *a)
{
	int cpus = libbpf_num_possible_cpus();
	scoped_free __u64 *values = calloc(cpus > 0 ? (size_t)cpus : 1, sizeof(*values));
	json_t *events = json_object();

	for (__u32 event = 1; values && a->skel && event < ACCEL_EVENTS; event++) {
		__u64 sum = 0;

		if (bpf_map_lookup_elem(bpf_map__fd(a->skel->maps.accel_counters), &event, values))
			continue;
		for (int cpu = 0; cpu < cpus; cpu++)
			sum += values[cpu];
		if (sum)
			json_object_set_new(events, event_names[event],
					    json_integer((json_int_t)sum));
	}
	return events;
}

static json_t *limits_json(const struct accelerate *a)
{
	const struct accelerate_config *cfg = &a->cfg;

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "sockets",
			 (json_int_t)(a->skel ? a->max_sockets : cfg->max_sockets), "socketsPerPod",
			 (json_int_t)cfg->max_sockets_per_pod, "bytes", (json_int_t)cfg->max_bytes,
			 "messages", (json_int_t)cfg->max_messages, "budget",
			 (json_int_t)cfg->budget, "podBudget", (json_int_t)cfg->pod_budget);
}

json_t *accelerate_json(struct accelerate *a)
{
	struct accel_usage usage = {0};
	__u64 node = 0;

	if (a->skel)
		bpf_map_lookup_elem(bpf_map__fd(a->skel->maps.accel_usage), &node, &usage);
	return json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:o, s:o}", "policy",
			 accelerate_policy_name(a->cfg.policy), "level",
			 accelerate_level_name(a->most), "reason", a->reason, "learning",
			 a->cfg.learning, "sockets", (json_int_t)usage.sockets, "claimed",
			 (json_int_t)usage.claimed, "retiring", (json_int_t)a->retiring, "limits",
			 limits_json(a), "events", events_json(a));
}

json_t *accelerate_probe_json(struct accelerate *a)
{
	return a->probed ? accelerate_probe_to_json(&a->probe) : NULL;
}
