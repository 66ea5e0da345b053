/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Annotations and labels of a hostile pod, through the policy and into a plan. Input: one line of
 * configuration "MESH,OWNER-GROUPS", then lines NAME=VALUE, those of labels with a leading '@'.
 */
#include "error.h"
#include "json.h"
#include "pod_policy.h"
#include "pod_workload.h"
#include "redirect_plan.h"

#include <errno.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(cond)                                                                              \
	do {                                                                                       \
		if (!(cond))                                                                       \
			abort();                                                                   \
	} while (0)

static void add_pair(json_t *object, const char *line, size_t size)
{
	const char *equals = memchr(line, '=', size);
	size_t name_size = equals ? (size_t)(equals - line) : size;
	const char *value = equals ? equals + 1 : line + size;

	json_object_setn_new_nocheck(object, line, name_size,
				     json_stringn_nocheck(value, size - name_size - !!equals));
}

static void check_flow(const struct redirect_plan *plan, const struct plan_flow *flow)
{
	const struct plan_rule *rule = redirect_plan_decide(plan, flow);

	REQUIRE((unsigned)rule->id < RULE_ID_COUNT_ && *plan_rule_name(rule->id));
	REQUIRE((rule->verdict != PLAN_PASS) == (rule->port != 0));
	REQUIRE(rule->verdict != PLAN_TPROXY || plan->tproxy);
	/* Of UDP nothing but the app's DNS is ever taken. */
	REQUIRE(!flow->udp || rule->verdict == PLAN_PASS || rule->id == RULE_OUT_DNS_UDP);
	/* What the proxy sends elsewhere never comes back to it. */
	REQUIRE(flow->inbound || flow->destination_is_local || rule->verdict == PLAN_PASS ||
		flow->uid != plan->proxy_uids.ids[0] || ip_address_is_loopback(&flow->destination));
}

static void check_names(const struct name_list *list)
{
	for (size_t i = 0; i < list->n; i++) {
		const char *name = list->names[i];
		size_t n = strlen(name);

		REQUIRE(n > 0 && n < IFNAMSIZ && name[n - 1] != '+');
		for (size_t k = 0; k < n; k++)
			REQUIRE(name[k] > ' ' && name[k] < 0x7f && !strchr("\"/\\", name[k]));
	}
}

static const char *first_name(const struct name_list *list)
{
	return list->n ? list->names[0] : NULL;
}

static void check_plan(const struct pod_decision *d)
{
	static const char *const places[] = {"10.1.2.3", "127.0.0.1", "127.0.0.2", "0.0.0.0",
					     "fd00::5",	 "::1",	      "::"};
	static const uint16_t ports[] = {0, 53, 80, 15008, 15020, 65535};
	struct redirect_plan *plan = NULL, *again = NULL;
	struct error err = {0};

	REQUIRE(redirect_plan_build(&d->settings, &plan, &err) == 0);
	REQUIRE(redirect_plan_build(&d->settings, &again, &err) == 0);
	REQUIRE(redirect_plan_equal(plan, again));
	redirect_plan_free(again);
	check_names(&plan->exclude_interfaces);
	check_names(&plan->reroute_interfaces);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		struct plan_flow flow = {.uid = plan->proxy_uids.ids[0]};

		REQUIRE(ip_address_parse(places[i], &flow.destination, &err) == 0);
		flow.destination_is_local = ip_address_is_unspecified(&flow.destination);
		for (size_t k = 0; k < sizeof(ports) / sizeof(ports[0]); k++) {
			for (unsigned bits = 0; bits < 32; bits++) {
				flow.port = ports[k];
				flow.udp = bits & 1;
				flow.inbound = bits & 2;
				flow.uid = bits & 4 ? plan->proxy_uids.ids[0] : 1000;
				flow.interface = bits & 8    ? first_name(&plan->exclude_interfaces)
						 : bits & 16 ? first_name(&plan->reroute_interfaces)
							     : NULL;
				check_flow(plan, &flow);
			}
		}
	}
	redirect_plan_free(plan);
}

static void check_decision(const struct policy_config *cfg, const struct pod_facts *pod)
{
	struct pod_decision d;
	struct error err = {0};
	int r = pod_policy_decide(cfg, pod, &d, &err);

	if (r < 0) {
		REQUIRE(r == -EINVAL || r == -ENOTSUP);
		REQUIRE(err.code == -r && err.text[0]);
		return;
	}
	REQUIRE(d.reason[0]);
	if (d.mode == POD_SIDECAR)
		check_plan(&d);
	pod_decision_done(&d);
}

static void check_workload(const struct pod_facts *pod, const char *name)
{
	struct pod_facts named = *pod;
	char buf[POD_WORKLOAD_MAX];
	const char *workload;

	named.name = name;
	workload = pod_workload(&named, buf);
	REQUIRE(strlen(workload) < POD_WORKLOAD_MAX);
	REQUIRE(!strncmp(workload, "default/", 8) && workload[8]);
}

static void read_pairs(const char *text, size_t size, json_t *annotations, json_t *labels)
{
	while (size > 0) {
		const char *newline = memchr(text, '\n', size);
		size_t line = newline ? (size_t)(newline - text) : size;

		if (line > 0 && text[0] == '@')
			add_pair(labels, text + 1, line - 1);
		else
			add_pair(annotations, text, line);
		line += newline ? 1 : 0;
		text += line;
		size -= line;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const excluded[] = {"kube-system", NULL};
	struct policy_config cfg = {
		.mesh = mesh_presets[size ? (unsigned)(data[0] - '0') % MESH_COUNT_ : 0],
		.capture_ipv6 = true,
		.exclude_namespaces = excluded};
	const char *text = (const char *)data;
	const char *newline = size ? memchr(text, '\n', size) : NULL;
	scoped_json json_t *annotations = json_object(), *labels = json_object();
	struct pod_facts pod = {.ns = "default", .annotations = annotations, .labels = labels};
	size_t first = newline ? (size_t)(newline - text) : size;
	char *groups = first > 2 ? strndup(text + 2, first - 2) : NULL;
	struct error err = {0};

	REQUIRE(ip_prefix_parse("127.0.0.1/32", &cfg.loopback4, &err) == 0);
	cfg.owner_groups = groups;
	if (newline)
		read_pairs(newline + 1, size - first - 1, annotations, labels);
	check_decision(&cfg, &pod);
	check_workload(&pod, groups);
	free(groups);
	return 0;
}
