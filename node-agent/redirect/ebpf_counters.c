/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "scoped.h"

#include <bpf/bpf.h>
#include <stdlib.h>
#include <string.h>

static const char *const event_names[EVENT_COUNTERS] = {
	[EVENT_RECORD_FAILED] = "record-failed",
	[EVENT_HANDOVER_NODE_LIMIT] = "handover-node-limit",
	[EVENT_HANDOVER_POD_LIMIT] = "handover-pod-limit",
	[EVENT_HANDOVER_LOST] = "handover-lost",
	[EVENT_HANDOVER_MISS] = "handover-miss",
	[EVENT_NO_LISTENER] = "no-listener",
	[EVENT_LISTENER_SLOTS_FULL] = "listener-slots-full",
	[EVENT_LISTENER_FAILED] = "listener-failed",
	[EVENT_LISTENER_NOT_PROXY] = "listener-not-proxy",
	[EVENT_SOURCE_NOT_BOUND] = "source-not-bound",
	[EVENT_DNS_OVERFLOW] = "dns-overflow",
	[EVENT_ORIGINAL_DST] = "original-dst-answered",
	[EVENT_NO_PROXY_ADDRESS] = "no-proxy-address",
	[EVENT_HANDOVER_UNTAKEN] = "handover-untaken",
};

const char *ebpf_event_name(unsigned event)
{
	return event_names[event];
}

static bool read_counters(int fd, const void *key, struct counters *ret)
{
	int cpus = libbpf_num_possible_cpus();
	scoped_free struct counters *each = calloc(cpus > 0 ? (size_t)cpus : 1, sizeof(*each));

	if (!each || bpf_map_lookup_elem(fd, key, each))
		return false;
	memset(ret, 0, sizeof(*ret));
	for (int cpu = 0; cpu < cpus; cpu++) {
		for (size_t i = 0; i < RULE_COUNTERS; i++)
			ret->rule[i] += each[cpu].rule[i];
		for (size_t i = 0; i < EVENT_COUNTERS; i++)
			ret->event[i] += each[cpu].event[i];
	}
	return true;
}

static json_t *events_json(const struct counters *c)
{
	json_t *events = json_object();

	for (size_t i = 0; events && i < EVENT_COUNTERS; i++)
		json_object_set_new(events, event_names[i], json_integer((json_int_t)c->event[i]));
	return events;
}

json_t *ebpf_pod_counters(void *state, uint64_t cookie, int netns_fd)
{
	struct ebpf *e = state;
	struct counters c;
	json_t *verdicts;

	(void)netns_fd;
	if (!read_counters(bpf_map__fd(e->datapath->maps.pod_counters), &cookie, &c))
		return NULL;
	verdicts = json_object();
	for (int i = 0; verdicts && i < RULE_ID_COUNT_; i++)
		if (c.rule[i])
			json_object_set_new(verdicts, plan_rule_name((enum plan_rule_id)i),
					    json_integer((json_int_t)c.rule[i]));
	return json_pack("{s:o, s:o}", "verdicts", verdicts, "events", events_json(&c));
}

static void add_counters(struct counters *sum, const struct counters *c)
{
	for (size_t i = 0; i < RULE_COUNTERS; i++)
		sum->rule[i] += c->rule[i];
	for (size_t i = 0; i < EVENT_COUNTERS; i++)
		sum->event[i] += c->event[i];
}

void ebpf_counters_retire(struct ebpf *e, uint64_t cookie)
{
	struct counters c;

	if (read_counters(bpf_map__fd(e->datapath->maps.pod_counters), &cookie, &c))
		add_counters(&e->retired, &c);
}

/* Of the node, of every pod that there is and of those that have gone. */
static json_t *totals_json(struct ebpf *e, const struct counters *node)
{
	int fd = bpf_map__fd(e->datapath->maps.pod_counters);
	struct counters sum = e->retired, c;
	json_t *verdicts = json_object();
	__u64 cookie;

	add_counters(&sum, node);
	for_each_map_key (fd, &cookie)
		if (read_counters(fd, &cookie, &c))
			add_counters(&sum, &c);
	for (int i = RULE_NONE + 1; verdicts && i < RULE_ID_COUNT_; i++)
		json_object_set_new(verdicts, plan_rule_name((enum plan_rule_id)i),
				    json_integer((json_int_t)sum.rule[i]));
	return json_pack("{s:o, s:o}", "verdicts", verdicts, "events", events_json(&sum));
}

static json_int_t probe_count(struct ebpf *e, enum probe_event event)
{
	int cpus = libbpf_num_possible_cpus();
	scoped_free __u64 *each = calloc(cpus > 0 ? (size_t)cpus : 1, sizeof(*each));
	__u32 key = event;
	__u64 sum = 0;

	if (!each || bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.probe_counters), &key, each))
		return 0;
	for (int cpu = 0; cpu < cpus; cpu++)
		sum += each[cpu];
	return (json_int_t)sum;
}

static json_t *probes_json(struct ebpf *e)
{
	return json_pack("{s:I, s:I, s:I, s:I}", "probe-announced", probe_count(e, PROBE_ANNOUNCED),
			 "probe-recognised", probe_count(e, PROBE_RECOGNISED),
			 "probe-not-recognised", probe_count(e, PROBE_NOT_RECOGNISED),
			 "probe-no-room", probe_count(e, PROBE_NO_ROOM));
}

json_t *ebpf_node_counters(void *state)
{
	struct ebpf *e = state;
	struct gauge gauge = {0};
	struct counters c;
	__u64 node = 0;
	__u32 zero = 0;

	if (!read_counters(bpf_map__fd(e->datapath->maps.node_counters), &zero, &c))
		return NULL;
	bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.gauges), &node, &gauge);
	return json_pack("{s:o, s:o, s:o, s:I, s:{s:I, s:I, s:I, s:I}}", "events", events_json(&c),
			 "totals", totals_json(e, &c), "kubelet", probes_json(e), "handovers",
			 (json_int_t)gauge.handovers, "limits", "pods",
			 (json_int_t)e->cfg->max_pods, "handovers",
			 (json_int_t)e->cfg->max_handovers, "handoversPerPod",
			 (json_int_t)e->cfg->max_handovers_per_pod, "ruleEntries",
			 (json_int_t)e->cfg->max_rule_entries);
}
