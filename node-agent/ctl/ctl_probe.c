/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "scoped.h"

static int request(const struct ctl_options *opt, struct agent_request *req, struct error *err)
{
	(void)opt;
	(void)err;
	req->op = AGENT_PROBE;
	return 0;
}

static enum ctl_exit status(const json_t *answer)
{
	return ctl_true(json_object_get(answer, "probe"), "ebpf") ? CTL_OK : CTL_NO;
}

static void add_facility(struct ctl_table *table, const json_t *facility)
{
	const char *detail = ctl_string(facility, "detail", "");
	bool required = ctl_true(facility, "required");

	ctl_table_cell(table, CTL_PLAIN, "  %s", ctl_string(facility, "name", ""));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(facility, "engine", "ebpf"));
	if (ctl_true(facility, "found")) {
		ctl_table_cell(table, CTL_GOOD, "found");
		ctl_table_cell(table, CTL_PLAIN, "%s",
			       *detail ? detail : ctl_string(facility, "how", ""));
		return;
	}
	ctl_table_cell(table, required ? CTL_BAD : CTL_WARN, "%s",
		       required ? "missing, required" : "missing");
	ctl_table_cell(table, CTL_PLAIN, "%s%s%s%s", ctl_string(facility, "without", ""),
		       *detail ? " (" : "", detail, *detail ? ")" : "");
}

static void show_engines(struct ctl_out *out, const json_t *answer, const json_t *probe)
{
	const json_t *engines = json_object_get(probe, "engines");
	json_t *engine;
	size_t i;

	json_array_foreach (engines, i, engine) {
		bool usable = ctl_true(engine, "usable");

		ctl_field(out, ctl_string(engine, "name", ""), usable ? CTL_GOOD : CTL_BAD,
			  "%s: %s", usable ? "usable" : "not usable",
			  ctl_string(engine, "summary", ""));
	}
	ctl_field(out, "--mode auto", CTL_PLAIN, "would take %s",
		  ctl_string(probe, "auto", "the eBPF engine or none"));
	ctl_field(out, "The agent has", CTL_PLAIN, "%s: %s", ctl_string(answer, "engine", "-"),
		  ctl_string(answer, "engineReason", "-"));
}

/* An agent of an earlier version has no engines, and facilities of eBPF only. */
static void show_ebpf(struct ctl_out *out, const json_t *probe)
{
	bool usable = ctl_true(probe, "ebpf");

	ctl_field(out, "eBPF engine", usable ? CTL_GOOD : CTL_BAD, "%s",
		  usable ? "usable" : "not usable");
	ctl_field(out, "Why", CTL_PLAIN, "%s", ctl_string(probe, "summary", ""));
}

static void show_facilities(struct ctl_out *out, const json_t *facilities)
{
	static const char *const headings[] = {"  FACILITY", "ENGINE", "STATE", "NOTE"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	scoped(ctl_table_free_at) struct ctl_table *table = ctl_table_new(headings, N_COLUMNS);
	json_t *facility;
	size_t i;

	json_array_foreach (facilities, i, facility)
		add_facility(table, facility);
	ctl_heading(out, "Facilities of this node, each found by trying it");
	ctl_table_print(table, out);
}

static void show_foreign(struct ctl_out *out, const json_t *programs)
{
	static const char *const headings[] = {"  RUNS", "HOOK", "PROGRAM", "ID", "CGROUP"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	scoped(ctl_table_free_at) struct ctl_table *table = ctl_table_new(headings, N_COLUMNS);
	json_t *program;
	size_t i;

	ctl_heading(out, "Programs of others on the same hooks");
	if (json_array_size(programs) == 0) {
		fputs("  none\n", out->file);
		return;
	}
	json_array_foreach (programs, i, program) {
		bool before = ctl_true(program, "runsBeforeOurs");

		ctl_table_cell(table, before ? CTL_WARN : CTL_PLAIN, "  %s",
			       before ? "before ours" : "after ours");
		ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(program, "attachType", ""));
		ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(program, "name", ""));
		ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT,
			       ctl_integer(program, "id", 0));
		ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(program, "cgroup", ""));
	}
	ctl_table_print(table, out);
}

static void show(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	const json_t *probe = json_object_get(answer, "probe");

	(void)opt;
	ctl_field(out, "Kernel", CTL_PLAIN, "%s", ctl_string(probe, "release", ""));
	if (json_object_get(probe, "engines"))
		show_engines(out, answer, probe);
	else
		show_ebpf(out, probe);
	ctl_field(out, "Attaches to", CTL_PLAIN, "%s", ctl_string(probe, "cgroup", ""));
	show_facilities(out, json_object_get(probe, "facilities"));
	show_foreign(out, json_object_get(probe, "foreign"));
}

const struct ctl_verb ctl_probe = {
	.name = "probe",
	.arguments = "",
	.help = "what this node can do, and whose programs run beside ours;\n"
		"1 when the eBPF engine is not usable",
	.request = request,
	.status = status,
	.show = show,
};
