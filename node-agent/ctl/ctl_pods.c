/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "scoped.h"

#include <stdlib.h>
#include <string.h>

static int request(const struct ctl_options *opt, struct agent_request *req, struct error *err)
{
	(void)opt;
	(void)err;
	req->op = AGENT_PODS;
	return 0;
}

/* By namespace, name, then attachment, so that two listings can be compared. */
static int by_name(const void *a, const void *b)
{
	static const char *const keys[] = {"namespace", "name", "containerId", "ifName"};
	const json_t *pod_a = *(json_t *const *)a, *pod_b = *(json_t *const *)b;
	int order = 0;

	for (size_t i = 0; !order && i < sizeof(keys) / sizeof(*keys); i++)
		order = strcmp(ctl_string(pod_a, keys[i], ""), ctl_string(pod_b, keys[i], ""));
	return order;
}

/* "nftables*" is not the preferred engine, "nftables (ebpf drains)" took over from another. */
static void add_engine(struct ctl_table *table, const json_t *pod)
{
	scoped_free char *draining = ctl_join(json_object_get(pod, "draining"));
	bool other = ctl_string(pod, "engineReason", NULL);

	ctl_table_cell(table, other ? CTL_WARN : CTL_PLAIN, "%s%s%s%s%s",
		       ctl_string(pod, "engine", ""), other ? "*" : "",
		       draining && *draining ? " (" : "", draining ?: "",
		       draining && *draining ? " drains)" : "");
}

static void add_row(struct ctl_table *table, const json_t *pod)
{
	enum { SHORT_ID = 12 };
	scoped_free char *ips = ctl_join(json_object_get(pod, "ips"));
	const char *decision = ctl_string(pod, "decision", "");
	const char *name = ctl_string(pod, "name", NULL);

	if (name)
		ctl_table_cell(table, CTL_PLAIN, "%s/%s", ctl_string(pod, "namespace", "-"), name);
	else /* not from Kubernetes */
		ctl_table_cell(table, CTL_PLAIN, "container %.*s", SHORT_ID,
			       ctl_string(pod, "containerId", "-"));
	ctl_table_cell(table, strcmp(decision, "redirect") == 0 ? CTL_GOOD : CTL_PLAIN, "%s",
		       decision);
	add_engine(table, pod);
	ctl_table_cell(table, CTL_PLAIN, "%s", ips ? ips : "");
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(pod, "since", ""));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(pod, "reason", ""));
}

static void show(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	static const char *const headings[] = {"POD",	    "DECISION", "ENGINE",
					       "ADDRESSES", "SINCE",	"REASON"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	const json_t *pods = json_object_get(answer, "pods");
	size_t n = json_array_size(pods);
	scoped(ctl_table_free_at) struct ctl_table *table = NULL;
	scoped_free const json_t **sorted = NULL;

	(void)opt;
	if (!n) {
		fputs("no pods\n", out->file);
		return;
	}
	sorted = calloc(n, sizeof(json_t *));
	if (!sorted) {
		ctl_table_print(NULL, out);
		return;
	}
	table = ctl_table_new(headings, N_COLUMNS);
	for (size_t i = 0; i < n; i++)
		sorted[i] = json_array_get(pods, i);
	qsort(sorted, n, sizeof(json_t *), by_name);
	for (size_t i = 0; i < n; i++)
		add_row(table, sorted[i]);
	ctl_table_print(table, out);
}

const struct ctl_verb ctl_pods = {
	.name = "pods",
	.arguments = "",
	.help = "every pod that the agent knows, with its decision and the reason",
	.request = request,
	.status = ctl_always_ok,
	.show = show,
};
