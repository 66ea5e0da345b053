/* SPDX-License-Identifier: Apache-2.0 */
#include "queries.h"

#include "accelerate.h"
#include "agent_protocol.h"
#include "enrolment.h"
#include "error.h"
#include "json.h"
#include "kernel_probe.h"
#include "netfilter_probe.h"
#include "options.h"
#include "own_programs.h"
#include "pod_state.h"
#include "pod_table.h"
#include "redirect.h"
#include "registration.h"
#include "scoped.h"
#include "workload_advice.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Takes over the extra members. */
static json_t *answer(json_t *extra)
{
	json_t *reply = extra ? agent_reply_ok(extra) : NULL;

	json_decref(extra);
	return reply;
}

static json_t *object_or_empty(json_t *counters)
{
	return counters ? counters : json_object();
}

/* ---- status --------------------------------------------------------------------------------- */

static json_t *status(const struct queries *q)
{
	json_t *counters = object_or_empty(redirect_node_counters(q->redirect));
	struct registration_counts counts;
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	registration_count(q->registration, &counts);
	return answer(json_pack("{s:s, s:s, s:s, s:I, s:{s:I, s:I, s:I, s:O?}, s:s, s:s, s:s, s:s, "
				"s:o, s:o, s:o}",
				"version", SOCKMESH_VERSION, "engine", redirect_engine(q->redirect),
				"engineReason", redirect_reason(q->redirect), "uptimeSeconds",
				(json_int_t)(now.tv_sec - q->started_s), "pods", "redirected",
				(json_int_t)counts.redirected, "skipped",
				(json_int_t)counts.skipped, "orphaned", (json_int_t)counts.orphaned,
				"engines", json_object_get(counters, "engines"), "runDir",
				q->options->run_dir, "bpffsDir", q->options->redirect.bpffs_dir,
				"cgroup", q->attach_dir, "mesh", q->options->text[OPTION_MESH],
				"counters", counters, "accelerate", accelerate_json(q->accelerate),
				"enrolment", enrolment_status(q->enrolment)));
}

static const char *mode_name(enum pod_mode mode)
{
	switch (mode) {
	case POD_SIDECAR:
		return "sidecar";
	case POD_AMBIENT:
		return "ambient";
	default:
		return "none";
	}
}

/* ---- pods and pod --------------------------------------------------------------------------- */

static json_t *ips_json(const struct pod *pod)
{
	json_t *ips = json_array();

	for (size_t i = 0; i < pod->n_ips; i++) {
		char text[IP_ADDRESS_TEXT_MAX];

		json_array_append_new(ips,
				      json_string(ip_address_format(&pod->ips[i].address, text)));
	}
	return ips;
}

/* Engines that still keep something for connections from before the pod moved. */
static json_t *draining_json(const struct queries *q, const struct pod *pod)
{
	const char *names[REDIRECT_ENGINES];
	size_t n = redirect_pod_draining(q->redirect, pod->cookie, names);
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, json_string(names[i]));
	return list;
}

/* NULL: the accelerator has nothing to say of it. */
static const char *accelerate_reason(const struct queries *q, const struct pod *pod, char *text,
				     size_t size)
{
	const char *engine;

	if (pod->mode == POD_SKIP)
		return accelerate_pod_reason(q->accelerate, pod->cookie);
	engine = redirect_pod_engine(q->redirect, pod->cookie);
	if (!strcmp(engine, "ebpf"))
		return accelerate_pod_reason(q->accelerate, pod->cookie);
	snprintf(text, size, "only pods of the eBPF engine; this one's is %s", engine);
	return text;
}

static json_t *pod_json(const struct queries *q, const struct pod *pod)
{
	bool redirected = pod->mode != POD_SKIP;
	const char *why_engine =
		redirected ? redirect_pod_engine_reason(q->redirect, pod->cookie) : NULL;
	char cookie[24], since[TIME_TEXT_MAX], why_accelerate[96];

	snprintf(cookie, sizeof(cookie), "%" PRIu64, pod->cookie);
	return json_pack("{s:s?, s:s?, s:s?, s:s, s:s, s:s, s:s, s:s, s:s?, s:o, s:b, s:o, s:s?, "
			 "s:s, s:s?, s:s, s:s, s:s?, s:s, s:s?}",
			 "namespace", pod->ns, "name", pod->name, "uid", pod->uid, "containerId",
			 pod->container_id, "ifName", pod->if_name, "decision",
			 redirected ? "redirect" : "skip", "reason", pod->reason ?: "", "engine",
			 redirected ? redirect_pod_engine(q->redirect, pod->cookie) : "none",
			 "engineReason", why_engine, "draining", draining_json(q, pod), "orphan",
			 pod->orphan, "ips", ips_json(pod), "netns", pod->netns, "cookie", cookie,
			 "cgroup", pod->cgroup, "since", pod_state_time(pod->since_s, since),
			 "accelerate", accelerate_pod_level(q->accelerate, pod->cookie),
			 "accelerateReason",
			 accelerate_reason(q, pod, why_accelerate, sizeof(why_accelerate)), "mode",
			 mode_name(pod->mode), "broken", pod->broken);
}

static json_t *pods(const struct queries *q)
{
	const struct pod_table *table = registration_pods(q->registration);
	json_t *list = json_array();

	for (size_t i = 0; list && i < pod_table_count(table); i++)
		if (json_array_append_new(list, pod_json(q, pod_table_at(table, i))) < 0) {
			json_decref(list);
			return NULL;
		}
	return list ? answer(json_pack("{s:o}", "pods", list)) : NULL;
}

static const char *verdict_name(enum plan_verdict verdict)
{
	switch (verdict) {
	case PLAN_REDIRECT:
		return "redirect";
	case PLAN_TPROXY:
		return "tproxy";
	case PLAN_PASS:
		break;
	}
	return "pass";
}

static void add_rules(json_t *list, const char *direction, const struct plan_rule *rules, size_t n)
{
	for (size_t i = 0; i < n; i++)
		json_array_append_new(
			list, json_pack("{s:s, s:s, s:s, s:s, s:i}", "direction", direction, "name",
					plan_rule_name(rules[i].id), "sentence",
					plan_rule_sentence(rules[i].id), "verdict",
					verdict_name(rules[i].verdict), "port", rules[i].port));
}

static void add_ports(json_t *lists, const char *name, const struct port_list *ports)
{
	json_t *list = ports->n ? json_array() : NULL;

	for (size_t i = 0; list && i < ports->n; i++)
		json_array_append_new(list, json_integer(ports->ports[i]));
	if (list)
		json_object_set_new(lists, name, list);
}

static void add_prefixes(json_t *lists, const char *name, const struct prefix_list *prefixes)
{
	json_t *list = prefixes->n ? json_array() : NULL;

	for (size_t i = 0; list && i < prefixes->n; i++) {
		char text[IP_PREFIX_TEXT_MAX];

		json_array_append_new(list,
				      json_string(ip_prefix_format(&prefixes->prefixes[i], text)));
	}
	if (list)
		json_object_set_new(lists, name, list);
}

static void add_ids(json_t *lists, const char *name, const struct id_list *ids)
{
	json_t *list = ids->n ? json_array() : NULL;

	for (size_t i = 0; list && i < ids->n; i++)
		json_array_append_new(list, json_integer(ids->ids[i]));
	if (list)
		json_object_set_new(lists, name, list);
}

static void add_names(json_t *lists, const char *name, const struct name_list *names)
{
	json_t *list = names->n ? json_array() : NULL;

	for (size_t i = 0; list && i < names->n; i++)
		json_array_append_new(list, json_string(names->names[i]));
	if (list)
		json_object_set_new(lists, name, list);
}

static json_t *lists_json(const struct redirect_plan *plan)
{
	json_t *lists = json_object();

	add_ids(lists, "proxyUids", &plan->proxy_uids);
	add_ids(lists, "proxyGids", &plan->proxy_gids);
	add_ids(lists, plan->groups_exempt ? "excludedGroups" : "includedGroups", &plan->groups);
	add_ports(lists, "outboundExcludePorts", &plan->outbound_exclude_ports);
	add_ports(lists, "outboundIncludePorts", &plan->outbound_include_ports);
	add_ports(lists, "inboundExcludePorts", &plan->inbound_exclude_ports);
	add_ports(lists, "inboundIncludePorts", &plan->inbound_include_ports);
	add_prefixes(lists, "outboundExcludeRanges", &plan->exclude_prefixes);
	add_prefixes(lists, "outboundIncludeRanges", &plan->include_prefixes);
	add_names(lists, "excludeInterfaces", &plan->exclude_interfaces);
	add_names(lists, "rerouteInterfaces", &plan->reroute_interfaces);
	return lists;
}

static json_t *refuse_unknown_pod(const struct agent_request *req)
{
	char text[640];

	snprintf(text, sizeof(text), "no pod %s/%s is known to this agent", req->pod_namespace,
		 req->pod_name);
	return agent_reply_refusal(AGENT_CODE_NOT_FOUND, false, text);
}

static const struct pod *find(const struct queries *q, const struct agent_request *req)
{
	if (!req->pod_namespace || !req->pod_name)
		return NULL;
	return pod_table_find_name(registration_pods(q->registration), req->pod_namespace,
				   req->pod_name);
}

static json_t *pod_details(const struct queries *q, const struct agent_request *req)
{
	const struct pod *pod = find(q, req);
	json_t *rules, *lists, *counters;

	if (!pod)
		return refuse_unknown_pod(req);
	rules = json_array();
	if (pod->plan) {
		add_rules(rules, "outbound", pod->plan->outbound, pod->plan->n_outbound);
		add_rules(rules, "inbound", pod->plan->inbound, pod->plan->n_inbound);
	}
	lists = pod->plan ? lists_json(pod->plan) : json_object();
	counters = pod->mode != POD_SKIP ? redirect_pod_counters(q->redirect, pod->cookie) : NULL;
	return answer(json_pack("{s:o, s:o, s:o, s:o}", "pod", pod_json(q, pod), "rules", rules,
				"lists", lists, "counters", object_or_empty(counters)));
}

/* ---- explain -------------------------------------------------------------------------------- */

static bool has_id(const struct id_list *list, uint32_t id)
{
	for (size_t i = 0; i < list->n; i++)
		if (list->ids[i] == id)
			return true;
	return false;
}

/* Any id that is not the proxy's and in no group list: the application that nobody told us of. */
static uint32_t application_id(const struct id_list *proxy, const struct id_list *groups)
{
	uint32_t id = 1000;

	while (has_id(proxy, id) || (groups && has_id(groups, id)))
		id++;
	return id;
}

/* Where only some groups are captured, the application is taken to be in one of them. */
static uint32_t application_gid(const struct redirect_plan *plan)
{
	for (size_t i = 0; !plan->groups_exempt && i < plan->groups.n; i++)
		if (!has_id(&plan->proxy_gids, plan->groups.ids[i]))
			return plan->groups.ids[i];
	return application_id(&plan->proxy_gids, &plan->groups);
}

static json_t *explain_skipped(const struct pod *pod)
{
	return answer(json_pack("{s:s, s:i, s:s, s:s, s:b}", "verdict", "pass", "port", 0, "rule",
				"pod-skipped", "sentence", pod->reason, "inbound", 0));
}

/* NULL: in the pod, or not asked. "" where it has no address and the connection is refused. */
static const char *where_node_proxy_is(const struct redirect_plan *plan,
				       const struct plan_rule *rule, const struct ip_address *to,
				       char buf[static IP_ENDPOINT_TEXT_MAX])
{
	const struct ip_address *proxy = ip_address_is_v4(to) ? &plan->proxy4 : &plan->proxy6;

	if (!plan->node_proxy || rule->verdict != PLAN_REDIRECT)
		return NULL;
	return ip_address_is_unspecified(proxy) ? "" : ip_endpoint_format(proxy, rule->port, buf);
}

static json_t *explain(const struct queries *q, const struct agent_request *req)
{
	const struct pod *pod = find(q, req);
	struct plan_flow flow = {.udp = req->udp,
				 .destination = req->to,
				 .port = req->to_port,
				 .interface = req->interface};
	const struct plan_rule *rule;
	char to[IP_ENDPOINT_TEXT_MAX], proxy[IP_ENDPOINT_TEXT_MAX];

	if (!pod)
		return refuse_unknown_pod(req);
	if (pod->mode == POD_SKIP)
		return explain_skipped(pod);
	if (!pod->plan)
		return agent_reply_refusal(AGENT_CODE_NOT_READY, false, pod->reason);
	flow.uid =
		req->uid >= 0 ? (uint32_t)req->uid : application_id(&pod->plan->proxy_uids, NULL);
	flow.gid = req->gid >= 0 ? (uint32_t)req->gid : application_gid(pod->plan);
	flow.knows_kubelet = !strcmp(redirect_pod_engine(q->redirect, pod->cookie), "ebpf");
	flow.destination_is_local = redirect_address_is_local(q->redirect, pod->cookie, &req->to);
	rule = redirect_plan_decide(pod->plan, &flow);
	return answer(json_pack("{s:s, s:i, s:s*, s:s, s:s, s:b, s:s, s:s, s:I, s:I, s:b}",
				"verdict", verdict_name(rule->verdict), "port", rule->port, "proxy",
				where_node_proxy_is(pod->plan, rule, &req->to, proxy), "rule",
				plan_rule_name(rule->id), "sentence", plan_rule_sentence(rule->id),
				"inbound", 0, "to", ip_endpoint_format(&req->to, req->to_port, to),
				"protocol", req->udp ? "udp" : "tcp", "uid", (json_int_t)flow.uid,
				"gid", (json_int_t)flow.gid, "destinationIsLocal",
				flow.destination_is_local));
}

/* ---- probe ---------------------------------------------------------------------------------- */

static json_t *probe(const struct queries *q)
{
	const struct redirect_config *cfg = &q->options->redirect;
	scoped_free uint32_t *ours = NULL;
	struct netfilter_probe *netfilter = NULL;
	struct kernel_probe *found = NULL;
	struct error err = {0}, no_netfilter = {0};
	size_t n_ours = 0;
	json_t *reply;
	char text[640];

	if (own_programs(cfg->bpffs_dir, &ours, &n_ours, &err) ||
	    kernel_probe_run(cfg->cgroup_root, cfg->bpffs_dir, ours, n_ours, &found, &err))
		return agent_reply_refusal(AGENT_CODE_KERNEL, true,
					   error_format(&err, text, sizeof(text)));
	/* Where it cannot run, the answer says that nothing is known of those two engines. */
	netfilter_probe_run(cfg->iptables, &netfilter, &no_netfilter);
	reply = answer(json_pack(
		"{s:o, s:s, s:s, s:o*, s:o*}", "probe", kernel_probe_json(found, netfilter),
		"engine", redirect_engine(q->redirect), "engineReason",
		redirect_reason(q->redirect), "kubelet", redirect_kubelet(q->redirect),
		"accelerate", accelerate_probe_json(q->accelerate)));
	netfilter_probe_free(netfilter);
	kernel_probe_free(found);
	return reply;
}

/* ---- accelerate ----------------------------------------------------------------------------- */

static json_t *refuse_advice(const struct error *err)
{
	char text[sizeof(err->text) + 64];

	switch (err->code) {
	case EBUSY:
		return agent_reply_refusal(AGENT_CODE_BUSY, true, err->text);
	case ENOENT:
		return agent_reply_refusal(AGENT_CODE_NOT_FOUND, false, err->text);
	case ENOMEM:
		return agent_reply_refusal(AGENT_CODE_BUSY, true,
					   error_format(err, text, sizeof(text)));
	default:
		return agent_reply_refusal(AGENT_CODE_KERNEL, false,
					   error_format(err, text, sizeof(text)));
	}
}

static json_t *advice(const struct queries *q, const struct agent_request *req)
{
	struct error err = {0};
	json_t *found = NULL;

	if (workload_advice_ask(q->advice, req->advise, req->advise_seconds, &found, &err))
		return refuse_advice(&err);
	return answer(json_pack("{s:o}", "advice", found));
}

static json_t *accelerator(const struct queries *q)
{
	return answer(json_pack("{s:o, s:o}", "accelerate", accelerate_json(q->accelerate), "pairs",
				accelerate_pairs_json(q->accelerate)));
}

json_t *queries_handle(const struct queries *q, const struct agent_request *req)
{
	char text[64];

	switch (req->op) {
	case AGENT_STATUS:
		return status(q);
	case AGENT_PODS:
		return pods(q);
	case AGENT_POD:
		return pod_details(q, req);
	case AGENT_EXPLAIN:
		return explain(q, req);
	case AGENT_PROBE:
		return probe(q);
	case AGENT_ACCELERATE:
		return req->advise ? advice(q, req) : accelerator(q);
	default:
		snprintf(text, sizeof(text), "\"%s\" is not built yet", agent_op_name(req->op));
		return agent_reply_refusal(AGENT_CODE_UNSUPPORTED, false, text);
	}
}
