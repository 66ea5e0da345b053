/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct family {
	const char *name;
	const char *type;
	const char *help;
	const char *path;  /* members of facts, "status.pods" */
	const char *label; /* a sample for each member that is a number; NULL: one sample */
	/* Instead of path and label: writes its samples, if there are any. */
	void (*write)(FILE *out, const struct family *f, const json_t *facts, bool *is_named);
};

/* "a.b.c"; NULL when a member is not there. */
static const json_t *find(const json_t *value, const char *path)
{
	while (value && *path) {
		size_t size = strcspn(path, ".");

		value = json_object_getn(value, path, size);
		path += size + (path[size] == '.');
	}
	return value;
}

static const char *text_at(const json_t *facts, const char *path)
{
	return json_string_value(find(facts, path));
}

static void write_escaped(FILE *out, const char *text, bool quote)
{
	for (; *text; text++) {
		if (*text == '\n')
			fputs("\\n", out);
		else if (*text == '\\' || (quote && *text == '"'))
			fprintf(out, "\\%c", *text);
		else
			fputc(*text, out);
	}
}

/* A family without a sample is not named at all. */
static void write_head(FILE *out, const struct family *f, bool *is_named)
{
	if (*is_named)
		return;
	*is_named = true;
	fprintf(out, "# HELP %s ", f->name);
	write_escaped(out, f->help, false);
	fprintf(out, "\n# TYPE %s %s\n", f->name, f->type);
}

static void write_value(FILE *out, const json_t *value)
{
	if (json_is_integer(value))
		fprintf(out, " %" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
	else if (json_is_real(value))
		fprintf(out, " %.6f\n", json_real_value(value));
	else
		fprintf(out, " %d\n", json_is_true(value));
}

static bool has_value(const json_t *value)
{
	return json_is_number(value) || json_is_boolean(value);
}

/* Labels as "name", value pairs, ended by NULL; a value that is NULL is left empty. */
static void write_labels(FILE *out, const char *const pairs[])
{
	fputc('{', out);
	for (size_t i = 0; pairs[i]; i += 2) {
		fprintf(out, "%s%s=\"", i ? "," : "", pairs[i]);
		write_escaped(out, pairs[i + 1] ? pairs[i + 1] : "", true);
		fputc('"', out);
	}
	fputc('}', out);
}

static void write_sample(FILE *out, const struct family *f, const char *const pairs[],
			 const json_t *value, bool *is_named)
{
	if (!has_value(value))
		return;
	write_head(out, f, is_named);
	fputs(f->name, out);
	if (pairs)
		write_labels(out, pairs);
	write_value(out, value);
}

/* What is said by labels alone. */
static void write_info(FILE *out, const struct family *f, const char *const pairs[], bool *is_named)
{
	write_head(out, f, is_named);
	fputs(f->name, out);
	write_labels(out, pairs);
	fputs(" 1\n", out);
}

/* ---- families that are no plain member ------------------------------------------------------- */

static void write_build(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	write_info(out, f, (const char *const[]){"version", text_at(facts, "status.version"), NULL},
		   is_named);
}

static void write_engine(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	const char *engine = text_at(facts, "status.engine");

	if (!engine)
		return;
	write_info(out, f, (const char *const[]){"engine", engine, NULL}, is_named);
}

static void write_level(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	const char *level = text_at(facts, "status.accelerate.level");

	if (!level)
		return;
	write_info(out, f,
		   (const char *const[]){"level", level, "policy",
					 text_at(facts, "status.accelerate.policy"), NULL},
		   is_named);
}

static void write_probe(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	const json_t *tests = find(facts, "probe.tests"), *test;
	size_t i;

	json_array_foreach (tests, i, test)
		write_info(out, f,
			   (const char *const[]){"test", text_at(test, "name"), "finding",
						 text_at(test, "finding"), "decides",
						 text_at(test, "decides"), NULL},
			   is_named);
}

static void write_objects(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	write_sample(out, f, (const char *const[]){"kind", "pods", NULL},
		     find(facts, "status.enrolment.kubernetes.pods"), is_named);
	write_sample(out, f, (const char *const[]){"kind", "namespaces", NULL},
		     find(facts, "status.enrolment.kubernetes.namespaces"), is_named);
}

/* One figure of both watches. */
static void write_watches(FILE *out, const struct family *f, const json_t *facts,
			  const char *member, bool *is_named)
{
	const json_t *watches = find(facts, "status.enrolment.kubernetes.watches"), *watch;
	size_t i;

	json_array_foreach (watches, i, watch)
		write_sample(out, f, (const char *const[]){"watch", text_at(watch, "name"), NULL},
			     json_object_get(watch, member), is_named);
}

static void write_synced(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	write_watches(out, f, facts, "synced", is_named);
}

static void write_watch_failures(FILE *out, const struct family *f, const json_t *facts,
				 bool *is_named)
{
	write_watches(out, f, facts, "watchesFailed", is_named);
}

static void write_list_failures(FILE *out, const struct family *f, const json_t *facts,
				bool *is_named)
{
	write_watches(out, f, facts, "listsFailed", is_named);
}

static void write_ztunnels(FILE *out, const struct family *f, const json_t *facts, bool *is_named)
{
	const json_t *connections = find(facts, "status.enrolment.ztunnel.connections");

	if (!json_is_array(connections))
		return;
	write_head(out, f, is_named);
	fprintf(out, "%s %zu\n", f->name, json_array_size(connections));
}

/* ---- all of them ----------------------------------------------------------------------------- */

#define COUNTER "counter"
#define GAUGE	"gauge"

static const struct family families[] = {
	{"sockmesh_build_info", GAUGE, "The agent's version.", .write = write_build},
	{"sockmesh_uptime_seconds", GAUGE, "For how long this agent runs.",
	 .path = "status.uptimeSeconds"},
	{"sockmesh_engine_info", GAUGE, "The redirect engine that this node prefers.",
	 .write = write_engine},
	{"sockmesh_pods", GAUGE, "Pods that the agent knows, by what it does with them.",
	 .path = "status.pods", .label = "state"},
	{"sockmesh_pods_by_engine", GAUGE, "Pods by the engine that redirects them.",
	 .path = "status.counters.engines", .label = "engine"},
	{"sockmesh_verdicts_total", COUNTER,
	 "Connections and DNS questions by the rule that decided, all pods (eBPF engine).",
	 .path = "status.counters.totals.verdicts", .label = "rule"},
	{"sockmesh_events_total", COUNTER,
	 "What did not go as it should, and what was answered, all pods (eBPF engine).",
	 .path = "status.counters.totals.events", .label = "event"},
	{"sockmesh_kubelet_events_total", COUNTER,
	 "What became of kubelet's probes of ambient pods (eBPF engine).",
	 .path = "status.counters.kubelet", .label = "event"},
	{"sockmesh_handovers", GAUGE,
	 "Connections whose handshake with their proxy is under way (eBPF engine).",
	 .path = "status.counters.handovers"},
	{"sockmesh_limit", GAUGE, "Limits of the eBPF engine.", .path = "status.counters.limits",
	 .label = "limit"},
	{"sockmesh_healed_total", COUNTER,
	 "Pods whose redirection was found changed, and put right.",
	 .path = "status.counters.healed"},
	{"sockmesh_heal_failures_total", COUNTER,
	 "Times that a pod's redirection was found changed, and could not be put right.",
	 .path = "status.counters.healFailures"},
	{"sockmesh_moves_total", COUNTER, "Pods that were moved to another engine.",
	 .path = "status.counters.moves"},
	{"sockmesh_fallbacks_total", COUNTER,
	 "Pods that got another engine than the one that this node prefers.",
	 .path = "status.counters.fallbacks"},

	{"sockmesh_accelerate_level_info", GAUGE,
	 "How far connections may leave the TCP stack here, and what --accelerate asks for.",
	 .write = write_level},
	{"sockmesh_accelerate_probe", GAUGE,
	 "What this kernel's sockmap did in each test of the start-up probe, and what that "
	 "decides.",
	 .write = write_probe},
	{"sockmesh_accelerate_sockets", GAUGE, "Sockets that are connected the short way.",
	 .path = "status.accelerate.sockets"},
	{"sockmesh_accelerate_claimed_bytes", GAUGE,
	 "Kernel memory claimed for what is not read yet, beyond each direction's allowance.",
	 .path = "status.accelerate.claimed"},
	{"sockmesh_accelerate_retiring", GAUGE,
	 "Earlier versions of the accelerator that still have sockets.",
	 .path = "status.accelerate.retiring"},
	{"sockmesh_accelerate_limit", GAUGE, "The accelerator's limits.",
	 .path = "status.accelerate.limits", .label = "limit"},
	{"sockmesh_accelerate_events_total", COUNTER,
	 "What the accelerator did and why it did not; what has not happened is left out.",
	 .path = "status.accelerate.events", .label = "event"},

	{"sockmesh_kubernetes_current", GAUGE,
	 "1 while what is known of the API's pods and namespaces is current.",
	 .path = "status.enrolment.kubernetes.current"},
	{"sockmesh_kubernetes_complete", GAUGE,
	 "1 once all pods of the node and all namespaces have been read.",
	 .path = "status.enrolment.kubernetes.complete"},
	{"sockmesh_kubernetes_objects", GAUGE, "Objects of the API that are known.",
	 .write = write_objects},
	{"sockmesh_kubernetes_unreadable_total", COUNTER, "Objects that could not be read.",
	 .path = "status.enrolment.kubernetes.unreadable"},
	{"sockmesh_kubernetes_left_out_total", COUNTER, "Objects beyond a limit.",
	 .path = "status.enrolment.kubernetes.leftOut"},
	{"sockmesh_kubernetes_requests_total", COUNTER, "Requests to the API server.",
	 .path = "status.enrolment.kubernetes.client.requests"},
	{"sockmesh_kubernetes_requests_failed_total", COUNTER,
	 "Requests to the API server that got no answer.",
	 .path = "status.enrolment.kubernetes.client.failed"},
	{"sockmesh_kubernetes_responses_total", COUNTER, "The API server's answers.",
	 .path = "status.enrolment.kubernetes.client.statuses", .label = "class"},
	{"sockmesh_kubernetes_watch_synced", GAUGE, "1 once the watch's first list was read.",
	 .write = write_synced},
	{"sockmesh_kubernetes_watch_failures_total", COUNTER, "Watches that ended with an error.",
	 .write = write_watch_failures},
	{"sockmesh_kubernetes_list_failures_total", COUNTER, "Lists that ended with an error.",
	 .write = write_list_failures},
	{"sockmesh_kubernetes_status_written_total", COUNTER, "Status annotations written to pods.",
	 .path = "status.enrolment.kubernetes.written.written"},
	{"sockmesh_kubernetes_status_failed_total", COUNTER,
	 "Attempts to write a status annotation that failed.",
	 .path = "status.enrolment.kubernetes.written.failed"},

	{"sockmesh_ztunnel_connections", GAUGE, "Ztunnels that are connected.",
	 .write = write_ztunnels},
	{"sockmesh_ztunnel_pods", GAUGE, "Ambient pods that ztunnel is told of.",
	 .path = "status.enrolment.ztunnel.pods"},
	{"sockmesh_ztunnel_pods_pending", GAUGE, "Pods that no ztunnel has confirmed yet.",
	 .path = "status.enrolment.ztunnel.pending"},
	{"sockmesh_ztunnel_pods_refused", GAUGE, "Pods that ztunnel refuses.",
	 .path = "status.enrolment.ztunnel.refused"},
	{"sockmesh_ztunnel_events_total", COUNTER, "Connections of and messages to ztunnel.",
	 .path = "status.enrolment.ztunnel.counters", .label = "event"},

	{"sockmesh_enrolment_joined_total", COUNTER, "Pods that joined the mesh.",
	 .path = "status.enrolment.joined"},
	{"sockmesh_enrolment_left_total", COUNTER, "Pods that left the mesh and live on.",
	 .path = "status.enrolment.left"},
	{"sockmesh_enrolment_changed_total", COUNTER, "Pods whose redirection was changed.",
	 .path = "status.enrolment.changed"},
	{"sockmesh_enrolment_refused_total", COUNTER, "Pods that could not join.",
	 .path = "status.enrolment.refused"},
	{"sockmesh_enrolment_found_total", COUNTER,
	 "Pods that no CNI plugin announced, found by their processes.",
	 .path = "status.enrolment.found"},
	{"sockmesh_enrolment_admitted_unknown_total", COUNTER,
	 "Pods that were created before the API server was heard of them.",
	 .path = "status.enrolment.admittedUnknown"},
	{"sockmesh_enrolment_admitted_without_ztunnel_total", COUNTER,
	 "Ambient pods that were created while no ztunnel was connected.",
	 .path = "status.enrolment.admittedWithoutZtunnel"},
	{"sockmesh_enrolment_waiting", GAUGE, "CNI requests that are not answered yet.",
	 .path = "status.enrolment.waiting"},

	{"sockmesh_process_resident_memory_bytes", GAUGE, "Memory of the agent.",
	 .path = "process.residentBytes"},
	{"sockmesh_process_open_fds", GAUGE, "File descriptors that the agent has open.",
	 .path = "process.openFds"},
	{"sockmesh_process_max_fds", GAUGE, "File descriptors that the agent may have open.",
	 .path = "process.maxFds"},
	{"sockmesh_process_cpu_seconds_total", COUNTER, "CPU time of the agent.",
	 .path = "process.cpuSeconds"},
};

static void write_members(FILE *out, const struct family *f, const json_t *members, bool *is_named)
{
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *)members, key, value)
		write_sample(out, f, (const char *const[]){f->label, key, NULL}, value, is_named);
}

static void write_family(FILE *out, const struct family *f, const json_t *facts)
{
	bool is_named = false;

	if (f->write)
		f->write(out, f, facts, &is_named);
	else if (f->label)
		write_members(out, f, find(facts, f->path), &is_named);
	else
		write_sample(out, f, NULL, find(facts, f->path), &is_named);
}

char *metrics_text(const json_t *facts)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	bool failed;

	if (!out)
		return NULL;
	for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
		write_family(out, &families[i], facts);
	failed = ferror(out);
	if (fclose(out) || failed) {
		free(text);
		return NULL;
	}
	return text;
}
