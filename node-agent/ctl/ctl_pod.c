/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "scoped.h"

#include <string.h>

static int request(const struct ctl_options *opt, struct agent_request *req, struct error *err)
{
	req->op = AGENT_POD;
	return ctl_set_pod(opt->pod, req, err);
}

static void show_rules(struct ctl_out *out, const json_t *rules, const json_t *verdicts,
		       const char *direction, const char *heading)
{
	static const char *const headings[] = {"  RULE", "VERDICT", "HITS", "MEANING"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	scoped(ctl_table_free_at) struct ctl_table *table = ctl_table_new(headings, N_COLUMNS);
	size_t i, shown = 0;
	json_t *rule;

	json_array_foreach (rules, i, rule) {
		const char *name = ctl_string(rule, "name", "");
		const char *verdict = ctl_string(rule, "verdict", "");

		if (strcmp(ctl_string(rule, "direction", ""), direction) != 0)
			continue;
		shown++;
		ctl_table_cell(table, CTL_PLAIN, "  %s", name);
		if (strcmp(verdict, "redirect") == 0)
			ctl_table_cell(table, CTL_GOOD, "to port %" JSON_INTEGER_FORMAT,
				       ctl_integer(rule, "port", 0));
		else if (strcmp(verdict, "tproxy") == 0)
			ctl_table_cell(table, CTL_GOOD, "TPROXY to port %" JSON_INTEGER_FORMAT,
				       ctl_integer(rule, "port", 0));
		else
			ctl_table_cell(table, CTL_PLAIN, "%s", verdict);
		ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT,
			       ctl_integer(verdicts, name, 0));
		ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(rule, "sentence", ""));
	}
	if (!shown)
		return;
	ctl_heading(out, "%s", heading);
	ctl_table_print(table, out);
}

/* The lists that rules look into; empty ones say nothing. */
static void show_lists(struct ctl_out *out, const json_t *lists)
{
	bool headed = false;
	const char *name;
	json_t *list;

	json_object_foreach ((json_t *)lists, name, list) {
		scoped_free char *items = ctl_join(list);

		if (json_array_size(list) == 0)
			continue;
		if (!headed)
			ctl_heading(out, "Lists");
		headed = true;
		ctl_field(out, "", CTL_PLAIN, "%s: %s", name, items ? items : "(no memory)");
	}
}

static void show_engine(struct ctl_out *out, const json_t *pod)
{
	scoped_free char *draining = ctl_join(json_object_get(pod, "draining"));
	const char *reason = ctl_string(pod, "engineReason", NULL);
	const char *broken = ctl_string(pod, "broken", NULL);

	ctl_field(out, "Engine", CTL_PLAIN, "%s", ctl_string(pod, "engine", ""));
	if (reason)
		ctl_field(out, "", CTL_WARN, "not the preferred one: %s", reason);
	if (broken)
		ctl_field(out, "", CTL_BAD, "%s", broken);
	if (draining && *draining)
		ctl_field(out, "Draining", CTL_WARN,
			  "%s, for connections from before the pod moved", draining);
}

static void show_acceleration(struct ctl_out *out, const json_t *pod)
{
	const char *reason = ctl_string(pod, "accelerateReason", NULL);

	if (!reason) /* a skipped pod, another engine's, or an agent from before it */
		return;
	ctl_field(out, "Accelerated", CTL_PLAIN, "%s: %s", ctl_string(pod, "accelerate", "off"),
		  reason);
}

static void show_attachment(struct ctl_out *out, const json_t *pod)
{
	scoped_free char *ips = ctl_join(json_object_get(pod, "ips"));
	const char *decision = ctl_string(pod, "decision", "");

	ctl_field(out, "Pod", CTL_BOLD, "%s/%s", ctl_string(pod, "namespace", "-"),
		  ctl_string(pod, "name", "-"));
	ctl_field(out, "Decision", strcmp(decision, "redirect") == 0 ? CTL_GOOD : CTL_PLAIN, "%s",
		  decision);
	if (json_object_get(pod, "mode"))
		ctl_field(out, "Mode", CTL_PLAIN, "%s", ctl_string(pod, "mode", ""));
	ctl_field(out, "Why", CTL_PLAIN, "%s", ctl_string(pod, "reason", ""));
	show_engine(out, pod);
	show_acceleration(out, pod);
	ctl_field(out, "Addresses", CTL_PLAIN, "%s", ips ? ips : "");
	ctl_field(out, "Since", CTL_PLAIN, "%s", ctl_string(pod, "since", ""));
	ctl_field(out, "Uid", CTL_PLAIN, "%s", ctl_string(pod, "uid", ""));
	ctl_field(out, "Container", CTL_PLAIN, "%s, interface %s",
		  ctl_string(pod, "containerId", "-"), ctl_string(pod, "ifName", "-"));
	ctl_field(out, "Namespace", CTL_PLAIN, "%s, cookie %s", ctl_string(pod, "netns", "-"),
		  ctl_string(pod, "cookie", "-"));
	ctl_field(out, "Cgroup", CTL_PLAIN, "%s", ctl_string(pod, "cgroup", ""));
}

static void show(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	const json_t *counters = json_object_get(answer, "counters");
	const json_t *verdicts = json_object_get(counters, "verdicts");
	const json_t *rules = json_object_get(answer, "rules");

	(void)opt;
	show_attachment(out, json_object_get(answer, "pod"));
	show_rules(out, rules, verdicts, "outbound",
		   "Outbound rules, the first that holds decides");
	show_rules(out, rules, verdicts, "inbound", "Inbound rules, the first that holds decides");
	show_lists(out, json_object_get(answer, "lists"));
	ctl_counters(out, "Events", json_object_get(counters, "events"));
}

const struct ctl_verb ctl_pod = {
	.name = "pod",
	.arguments = "NAMESPACE/NAME",
	.help = "one pod: its rules in order, how often each decided; 1 when not found",
	.takes = CTL_TAKES_POD_ARGUMENT,
	.request = request,
	.status = ctl_always_ok,
	.show = show,
};
