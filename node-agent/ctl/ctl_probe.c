/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "scoped.h"

#include <string.h>

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

static enum ctl_style finding_style(const char *finding, const char *decides)
{
	if (!strcmp(finding, "as-tcp"))
		return CTL_GOOD;
	if (!strcmp(decides, "proxy"))
		return CTL_BAD;
	return strcmp(decides, "full") != 0 ? CTL_DIM : CTL_WARN;
}

/* In words of its own, as it stands between two others. */
static const char *decides_text(const char *decides)
{
	if (!strcmp(decides, "proxy"))
		return "the accelerator";
	return strcmp(decides, "full") != 0 ? "nothing" : "a warning for full";
}

static void add_test(struct ctl_table *table, const json_t *test)
{
	const char *finding = ctl_string(test, "finding", "");
	const char *decides = ctl_string(test, "decides", "");

	ctl_table_cell(table, CTL_PLAIN, "  %s", ctl_string(test, "name", ""));
	ctl_table_cell(table, finding_style(finding, decides), "%s", finding);
	ctl_table_cell(table, CTL_PLAIN, "%s", decides_text(decides));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(test, "detail", ""));
}

static void show_accelerator(struct ctl_out *out, const json_t *accelerator)
{
	static const char *const headings[] = {"  TEST", "FINDING", "DECIDES", "SEEN"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	scoped(ctl_table_free_at) struct ctl_table *table = NULL;
	const char *level = ctl_string(accelerator, "level", "off");
	const char *known_bug = ctl_string(accelerator, "knownBug", "");
	json_t *test;
	size_t i;

	ctl_heading(out, "What this kernel's sockmap does where it may differ from TCP");
	ctl_field(out, "Allows", strcmp(level, "off") != 0 ? CTL_GOOD : CTL_BAD, "%s", level);
	ctl_field(out, "Because", CTL_PLAIN, "%s", ctl_string(accelerator, "reason", ""));
	if (*known_bug)
		ctl_field(out, "Known bug", CTL_BAD, "%s", known_bug);
	table = ctl_table_new(headings, N_COLUMNS);
	json_array_foreach (json_object_get(accelerator, "tests"), i, test)
		add_test(table, test);
	ctl_table_print(table, out);
}

/* What is exempt from redirection; an agent of an earlier version does not say it. */
static void show_kubelet(struct ctl_out *out, const json_t *kubelet)
{
	const char *by = ctl_string(kubelet, "knownBy", "");
	const char *detail = ctl_string(kubelet, "detail", "");

	if (!strcmp(by, "nothing"))
		ctl_field(out, "Kubelet", CTL_WARN,
			  "not known, its probes of ambient pods go to "
			  "ztunnel: %s",
			  detail);
	else
		ctl_field(out, "Kubelet", strcmp(by, "user") != 0 ? CTL_GOOD : CTL_WARN,
			  "known by its %s: %s", by, detail);
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
	if (json_object_get(answer, "kubelet"))
		show_kubelet(out, json_object_get(answer, "kubelet"));
	show_facilities(out, json_object_get(probe, "facilities"));
	show_foreign(out, json_object_get(probe, "foreign"));
	/* Neither an agent of an earlier version nor one that did not try has it. */
	if (json_object_get(answer, "accelerate"))
		show_accelerator(out, json_object_get(answer, "accelerate"));
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
