/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "error.h"
#include "scoped.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- asking -----------------------------------------------------------------------------------
 */

static int request(const struct ctl_options *opt, struct agent_request *req, struct error *err)
{
	const char *slash = opt->advise ? strchr(opt->advise, '/') : NULL;

	req->op = AGENT_ACCELERATE;
	if (!opt->advise)
		return opt->seconds ? error_set(err, EINVAL, "--seconds goes with --advise") : 0;
	if (!slash || slash == opt->advise || !slash[1] || strchr(slash + 1, '/'))
		return error_set(err, EINVAL, "workload \"%s\" is not NAMESPACE/NAME", opt->advise);
	req->advise = strdup(opt->advise);
	req->advise_seconds = opt->seconds;
	return req->advise ? 0 : error_set(err, ENOMEM, "workload");
}

static unsigned left_s(const json_t *answer, char *ret_what, size_t size)
{
	const json_t *advice = json_object_get(answer, "advice");
	json_int_t left = ctl_integer(advice, "left", 0);

	if (strcmp(ctl_string(advice, "state", ""), "watching") != 0)
		return 0;
	snprintf(ret_what, size, "watching %s", ctl_string(advice, "workload", "the workload"));
	return left < 1 ? 1 : left > UINT16_MAX ? UINT16_MAX : (unsigned)left;
}

/* Not accelerating at all is a no, as is not being cleared. */
static enum ctl_exit status(const json_t *answer)
{
	const json_t *advice = json_object_get(answer, "advice");
	const json_t *accelerate = json_object_get(answer, "accelerate");

	if (advice)
		return ctl_true(advice, "cleared") ? CTL_OK : CTL_NO;
	return strcmp(ctl_string(accelerate, "level", "off"), "off") != 0 ? CTL_OK : CTL_NO;
}

/* ---- numbers for people -----------------------------------------------------------------------
 */

enum { NUMBER_TEXT_MAX = 32, WHY_TEXT_MAX = 512 };

static const char *bytes_text(json_int_t bytes, char buf[static NUMBER_TEXT_MAX])
{
	static const char *const units[] = {"KB", "MB", "GB", "TB", "PB", "EB"};
	double divisor = 1024;
	size_t unit = 0;

	if (bytes < 1024) {
		snprintf(buf, NUMBER_TEXT_MAX, "%" JSON_INTEGER_FORMAT " B", bytes);
		return buf;
	}
	for (json_int_t rest = bytes / 1024; rest >= 1024; rest /= 1024, unit++)
		divisor *= 1024;
	snprintf(buf, NUMBER_TEXT_MAX, "%.1f %s", (double)bytes / divisor, units[unit]);
	return buf;
}

/* How much of it all went the short way. Nearly all is not all, nearly nothing is not nothing. */
static const char *share_text(json_int_t part, json_int_t rest, char buf[static NUMBER_TEXT_MAX])
{
	double percent = 100 * (double)part / ((double)part + (double)rest);

	if (part <= 0 && rest <= 0)
		return "-";
	if (part > 0 && rest > 0 && percent < 1)
		return "<1 %";
	if (part > 0 && rest > 0 && percent > 99)
		return ">99 %";
	snprintf(buf, NUMBER_TEXT_MAX, "%.0f %%", percent);
	return buf;
}

/* ---- the pairs --------------------------------------------------------------------------------
 */

static const char *why_in_words(const json_t *pair)
{
	static const struct {
		const char *why, *words;
	} rows[] = {
		{"brief", "connections too short to pay: 8 messages or fewer"},
		{"bulk", "bulk: a limit sent it back to TCP"},
		{"spills", "limits often send it back to TCP"},
		{"blocking", "a socket turned blocking"},
		{"not-short", "nearly all goes by TCP anyway"},
		{"slower", "TCP is faster here"},
	};
	const char *why = ctl_string(pair, "why", "");

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		if (strcmp(why, rows[i].why) == 0)
			return rows[i].words;
	return why;
}

/* "with 16-31 at once slower: 245.1 us, by TCP 210.3 us" */
static void append_measured(const json_t *pair, char *buf, size_t size)
{
	const json_t *list = json_object_get(pair, "measured"), *one;
	size_t length = strlen(buf), i;

	json_array_foreach (list, i, one) {
		int n = snprintf(buf + length, size - length,
				 "%s %s connections %s: %.1f us, by TCP %.1f us",
				 length ? "; with" : "with", ctl_string(one, "connections", "?"),
				 ctl_string(one, "verdict", "?"),
				 json_number_value(json_object_get(one, "shortUs")),
				 json_number_value(json_object_get(one, "tcpUs")));

		if (n < 0 || (size_t)n >= size - length)
			return;
		length += (size_t)n;
	}
}

static int by_pair(const void *a, const void *b)
{
	static const char *const keys[] = {"workload", "peer", "leg"};
	const json_t *left = *(json_t *const *)a, *right = *(json_t *const *)b;
	json_int_t ports[] = {ctl_integer(left, "port", 0), ctl_integer(right, "port", 0)};
	int order = 0;

	for (size_t i = 0; !order && i < sizeof(keys) / sizeof(*keys); i++)
		order = strcmp(ctl_string(left, keys[i], ""), ctl_string(right, keys[i], ""));
	return order ? order : (ports[0] > ports[1]) - (ports[0] < ports[1]);
}

static void add_pair(struct ctl_table *table, const json_t *pair)
{
	json_int_t bytes = ctl_integer(pair, "bytes", 0);
	const char *verdict = ctl_string(pair, "verdict", "");
	bool alone = strcmp(verdict, "left-alone") == 0, trial = ctl_true(pair, "trial");
	char text[NUMBER_TEXT_MAX], why[WHY_TEXT_MAX];

	snprintf(why, sizeof(why), "%s", why_in_words(pair));
	append_measured(pair, why, sizeof(why));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(pair, "workload", ""));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(pair, "peer", ""));
	ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT, ctl_integer(pair, "port", 0));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(pair, "leg", ""));
	ctl_table_cell(table, alone ? CTL_WARN : CTL_GOOD, "%s%s", verdict,
		       trial ? ", on trial" : "");
	ctl_table_cell(table, CTL_PLAIN, "%s", bytes_text(bytes, text));
	ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT, ctl_integer(pair, "messages", 0));
	ctl_table_cell(table, CTL_PLAIN, "%s",
		       share_text(bytes, ctl_integer(pair, "tcpBytes", 0), text));
	ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT, ctl_integer(pair, "spills", 0));
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(pair, "until", ""));
	ctl_table_cell(table, CTL_PLAIN, "%s", why);
}

static void show_pairs(const json_t *pairs, struct ctl_out *out)
{
	static const char *const headings[] = {"WORKLOAD", "PEER",  "PORT",	"HOP",
					       "VERDICT",  "SHORT", "MESSAGES", "SHARE",
					       "SPILLS",   "UNTIL", "WHY"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	scoped(ctl_table_free_at) struct ctl_table *table = NULL;
	scoped_free const json_t **sorted = NULL;
	size_t n = json_array_size(pairs);

	ctl_heading(out, "Pairs of workloads, and what went the short way between them");
	if (!n) {
		fputs("none yet\n", out->file);
		return;
	}
	sorted = calloc(n, sizeof(json_t *));
	table = sorted ? ctl_table_new(headings, N_COLUMNS) : NULL;
	for (size_t i = 0; table && i < n; i++)
		sorted[i] = json_array_get(pairs, i);
	if (table)
		qsort(sorted, n, sizeof(json_t *), by_pair);
	for (size_t i = 0; table && i < n; i++)
		add_pair(table, sorted[i]);
	ctl_table_print(table, out);
}

static void show_node(const json_t *accelerate, struct ctl_out *out)
{
	const char *level = ctl_string(accelerate, "level", "off");
	bool off = strcmp(level, "off") == 0;
	json_int_t retiring = ctl_integer(accelerate, "retiring", 0);
	char claimed[NUMBER_TEXT_MAX];

	ctl_field(out, "Policy", CTL_PLAIN, "%s%s", ctl_string(accelerate, "policy", "-"),
		  ctl_true(accelerate, "learning") ? "" : ", without learning");
	ctl_field(out, "Level", off ? CTL_WARN : CTL_GOOD, "%s%s", off ? "" : "up to ", level);
	ctl_field(out, "Why", CTL_PLAIN, "%s", ctl_string(accelerate, "reason", ""));
	ctl_field(out, "Sockets", CTL_PLAIN,
		  "%" JSON_INTEGER_FORMAT " of at most %" JSON_INTEGER_FORMAT
		  ", %s claimed for what is not read yet",
		  ctl_integer(accelerate, "sockets", 0),
		  ctl_integer(json_object_get(accelerate, "limits"), "sockets", 0),
		  bytes_text(ctl_integer(accelerate, "claimed", 0), claimed));
	if (retiring)
		ctl_field(out, "Retiring", CTL_PLAIN,
			  "%" JSON_INTEGER_FORMAT
			  " from earlier agents, stopped; each goes with its last socket",
			  retiring);
}

/* ---- advice -----------------------------------------------------------------------------------
 */

static void add_evidence(struct ctl_table *table, const json_t *row)
{
	bool unsafe = ctl_true(row, "unsafe"), unknown = ctl_true(row, "unknown");

	ctl_table_cell(table, CTL_PLAIN, "  %s", ctl_string(row, "call", ""));
	ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT, ctl_integer(row, "count", 0));
	ctl_table_cell(table, CTL_PLAIN, "%s (%" JSON_INTEGER_FORMAT ")",
		       ctl_string(row, "comm", ""), ctl_integer(row, "pid", 0));
	ctl_table_cell(table,
		       unsafe	 ? CTL_BAD
		       : unknown ? CTL_WARN
				 : CTL_GOOD,
		       "%s",
		       unsafe	 ? "unsafe"
		       : unknown ? "unknown"
				 : "safe");
	ctl_table_cell(table, CTL_PLAIN, "%s", ctl_string(row, "means", ""));
}

static void show_evidence(const json_t *evidence, struct ctl_out *out)
{
	static const char *const headings[] = {"  CALL", "COUNT", "PROGRAM", "FULL", "MEANS"};
	enum { N_COLUMNS = sizeof(headings) / sizeof(*headings) };
	scoped(ctl_table_free_at) struct ctl_table *table = NULL;
	json_t *row;
	size_t i;

	if (json_array_size(evidence) == 0)
		return;
	table = ctl_table_new(headings, N_COLUMNS);
	json_array_foreach (evidence, i, row)
		add_evidence(table, row);
	ctl_heading(out, "Calls on TCP sockets that were seen");
	ctl_table_print(table, out);
}

static void show_advice(const json_t *advice, struct ctl_out *out)
{
	bool cleared = ctl_true(advice, "cleared"), refuted = ctl_true(advice, "refuted");

	ctl_field(out, "Workload", CTL_PLAIN, "%s", ctl_string(advice, "workload", ""));
	ctl_field(out, "Full", cleared ? CTL_GOOD : CTL_WARN, "%s",
		  cleared   ? "safe, as far as was seen"
		  : refuted ? "not safe"
			    : "not known");
	ctl_field(out, "Why", CTL_PLAIN, "%s", ctl_string(advice, "reason", ""));
	ctl_field(out, "Seen", CTL_PLAIN,
		  "%" JSON_INTEGER_FORMAT " calls on %" JSON_INTEGER_FORMAT
		  " sockets in %" JSON_INTEGER_FORMAT " s",
		  ctl_integer(advice, "calls", 0), ctl_integer(advice, "sockets", 0),
		  ctl_integer(advice, "seconds", 0));
	ctl_field(out, "Ended", CTL_PLAIN, "%s", ctl_string(advice, "ended", ""));
	show_evidence(json_object_get(advice, "evidence"), out);
}

static void show(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	const json_t *advice = json_object_get(answer, "advice");

	(void)opt;
	if (advice) {
		show_advice(advice, out);
		return;
	}
	show_node(json_object_get(answer, "accelerate"), out);
	show_pairs(json_object_get(answer, "pairs"), out);
}

const struct ctl_verb ctl_accelerate = {
	.name = "accelerate",
	.arguments = "[--advise NS/NAME [--seconds N]]",
	.help = "what goes the short way on this node; 1 when nothing may; or watch a\n"
		"workload, and say whether full is safe for it; 1 when not cleared",
	.takes = CTL_TAKES_ADVICE,
	.request = request,
	.status = status,
	.show = show,
	.left_s = left_s,
};
