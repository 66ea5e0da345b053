/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"

#include <string.h>

static int request(const struct ctl_options *opt, struct agent_request *req, struct error *err)
{
	(void)opt;
	(void)err;
	req->op = AGENT_STATUS;
	return 0;
}

/* Without an engine nothing can be redirected: new pods of the mesh are refused. */
static enum ctl_exit status(const json_t *answer)
{
	return *ctl_string(answer, "engine", "") ? CTL_OK : CTL_NO;
}

static void show_uptime(struct ctl_out *out, json_int_t seconds)
{
	enum { MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR };
	long long s = seconds;

	if (s < 0)
		ctl_field(out, "Running for", CTL_PLAIN, "-");
	else if (s < MINUTE)
		ctl_field(out, "Running for", CTL_PLAIN, "%llds", s);
	else if (s < HOUR)
		ctl_field(out, "Running for", CTL_PLAIN, "%lldm %llds", s / MINUTE, s % MINUTE);
	else if (s < DAY)
		ctl_field(out, "Running for", CTL_PLAIN, "%lldh %lldm", s / HOUR,
			  s % HOUR / MINUTE);
	else
		ctl_field(out, "Running for", CTL_PLAIN, "%lldd %lldh", s / DAY, s % DAY / HOUR);
}

/* Only where there is more than one, or it would say twice what is above. */
static void show_engines(struct ctl_out *out, const json_t *engines)
{
	const char *name;
	json_t *count;
	size_t n = 0;

	json_object_foreach ((json_t *)engines, name, count)
		n += json_integer_value(count) > 0;
	if (n < 2)
		return;
	json_object_foreach ((json_t *)engines, name, count)
		if (json_integer_value(count) > 0)
			ctl_field(out, "", CTL_PLAIN, "%" JSON_INTEGER_FORMAT " by %s",
				  json_integer_value(count), name);
}

/* What the agent had to do about pods on its own; nothing to see is not shown. */
static void show_changes(struct ctl_out *out, const json_t *counters)
{
	static const struct {
		const char *name, *text;
	} rows[] = {
		{"healed", "healed after somebody else had changed them"},
		{"healFailures", "attempts to heal one that failed"},
		{"moves", "moved from one engine to another"},
		{"fallbacks", "given another engine than the preferred one"},
	};
	const char *label = "Since start";

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		json_int_t n = ctl_integer(counters, rows[i].name, 0);

		if (!n)
			continue;
		ctl_field(out, label, CTL_WARN, "%" JSON_INTEGER_FORMAT " %s", n, rows[i].text);
		label = "";
	}
}

static void show_pods(struct ctl_out *out, const json_t *pods)
{
	json_int_t orphaned = ctl_integer(pods, "orphaned", 0);

	ctl_field(out, "Pods", CTL_PLAIN,
		  "%" JSON_INTEGER_FORMAT " redirected, %" JSON_INTEGER_FORMAT " skipped",
		  ctl_integer(pods, "redirected", 0), ctl_integer(pods, "skipped", 0));
	show_engines(out, json_object_get(pods, "engines"));
	if (orphaned)
		ctl_field(out, "", CTL_WARN,
			  "%" JSON_INTEGER_FORMAT " redirected in the kernel, not known by name",
			  orphaned);
}

static void show_accelerator(struct ctl_out *out, const json_t *accelerate)
{
	const char *level = ctl_string(accelerate, "level", NULL);
	json_int_t retiring = ctl_integer(accelerate, "retiring", 0);
	bool off = level && !strcmp(level, "off");
	bool wanted = strcmp(ctl_string(accelerate, "policy", "off"), "off") != 0;

	if (!level) /* an agent from before it */
		return;
	ctl_field(out, "Accelerator", off && wanted ? CTL_WARN : CTL_PLAIN, "%s%s%s",
		  off ? "" : "up to ", level, off && wanted ? ", although it is asked for" : "");
	ctl_field(out, "", CTL_PLAIN, "%s", ctl_string(accelerate, "reason", ""));
	if (!off)
		ctl_field(out, "", CTL_PLAIN, "%" JSON_INTEGER_FORMAT " sockets now",
			  ctl_integer(accelerate, "sockets", 0));
	if (retiring)
		ctl_field(out, "", CTL_WARN,
			  "an earlier one has stopped, and goes when its last socket is closed");
}

static void show_kubernetes(struct ctl_out *out, const json_t *kubernetes)
{
	bool current = json_is_true(json_object_get(kubernetes, "current"));

	if (!json_is_object(kubernetes)) {
		ctl_field(out, "API server", CTL_PLAIN, "not watched");
		return;
	}
	ctl_field(
		out, "API server", current ? CTL_PLAIN : CTL_WARN,
		"%s as node %s: %" JSON_INTEGER_FORMAT " pods, %" JSON_INTEGER_FORMAT " namespaces",
		current ? "watched" : "not reached, last known", ctl_string(kubernetes, "node", ""),
		ctl_integer(kubernetes, "pods", 0), ctl_integer(kubernetes, "namespaces", 0));
}

static void show_ztunnel(struct ctl_out *out, const json_t *ztunnel)
{
	json_int_t ready = ctl_integer(ztunnel, "ready", 0);
	json_int_t pods = ctl_integer(ztunnel, "pods", 0);
	json_int_t refused = ctl_integer(ztunnel, "refused", 0);

	if (!json_is_object(ztunnel)) {
		ctl_field(out, "ztunnel", CTL_PLAIN, "not served: no ambient pod so far");
		return;
	}
	ctl_field(out, "ztunnel", ready || !pods ? CTL_PLAIN : CTL_WARN,
		  "%" JSON_INTEGER_FORMAT " connected, %" JSON_INTEGER_FORMAT " pods for it", ready,
		  pods);
	if (refused)
		ctl_field(out, "", CTL_WARN, "%" JSON_INTEGER_FORMAT " pods refused by it",
			  refused);
}

/* Absent from the answer of an agent from before it. */
static void show_enrolment(struct ctl_out *out, const json_t *enrolment)
{
	json_int_t joined = ctl_integer(enrolment, "joined", 0);
	json_int_t left = ctl_integer(enrolment, "left", 0);

	if (!json_is_object(enrolment))
		return;
	show_kubernetes(out, json_object_get(enrolment, "kubernetes"));
	show_ztunnel(out, json_object_get(enrolment, "ztunnel"));
	if (joined || left)
		ctl_field(out, "", CTL_PLAIN,
			  "%" JSON_INTEGER_FORMAT " pods joined, %" JSON_INTEGER_FORMAT
			  " left, by what "
			  "the API said",
			  joined, left);
}

static void show(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	const json_t *counters = json_object_get(answer, "counters");
	const char *engine = ctl_string(answer, "engine", "");

	(void)opt;
	ctl_field(out, "Agent", CTL_PLAIN, "%s", ctl_string(answer, "version", ""));
	ctl_field(out, "Engine", *engine ? CTL_GOOD : CTL_BAD, "%s",
		  *engine ? engine : "none: nothing can be redirected");
	ctl_field(out, "Why", CTL_PLAIN, "%s", ctl_string(answer, "engineReason", ""));
	ctl_field(out, "Mesh", CTL_PLAIN, "%s", ctl_string(answer, "mesh", ""));
	show_uptime(out, ctl_integer(answer, "uptimeSeconds", -1));
	show_pods(out, json_object_get(answer, "pods"));
	ctl_field(out, "Run directory", CTL_PLAIN, "%s", ctl_string(answer, "runDir", ""));
	ctl_field(out, "Pins", CTL_PLAIN, "%s", ctl_string(answer, "bpffsDir", ""));
	ctl_field(out, "Cgroup", CTL_PLAIN, "%s", ctl_string(answer, "cgroup", ""));
	show_accelerator(out, json_object_get(answer, "accelerate"));
	show_enrolment(out, json_object_get(answer, "enrolment"));
	show_changes(out, counters);
	if (json_is_integer(json_object_get(counters, "handovers")))
		ctl_field(out, "Hand-overs", CTL_PLAIN, "%" JSON_INTEGER_FORMAT " under way",
			  ctl_integer(counters, "handovers", 0));
	ctl_counters(out, "Events of connections that belong to no pod",
		     json_object_get(counters, "events"));
}

const struct ctl_verb ctl_status = {
	.name = "status",
	.arguments = "",
	.help = "the agent, its engine, how many pods it serves; 1 without an engine",
	.request = request,
	.status = status,
	.show = show,
};
