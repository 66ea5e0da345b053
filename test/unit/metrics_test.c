/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include "accelerate_probe.h"
#include "json.h"
#include "scoped.h"
#include "test.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>

/* What a node's agent says, as far as it matters here: every kind of member is in it. */
static const char STATUS[] =
	"{'v':1,'ok':true,'version':'1.2','engine':'ebpf','uptimeSeconds':7,"
	"'pods':{'redirected':3,'skipped':2,'orphaned':0,'engines':{'ebpf':3}},"
	"'counters':{'events':{'handover-miss':9},'totals':{'verdicts':{'out-rest':41},"
	"'events':{'handover-miss':12,'no-listener':0}},'kubelet':{'probe-announced':5},"
	"'handovers':1,'limits':{'pods':1024},'engines':{'ebpf':3,'nftables':0},"
	"'healed':1,'healFailures':4,'moves':2,'fallbacks':3},"
	"'accelerate':{'policy':'auto','level':'proxy','reason':'because','sockets':4,"
	"'claimed':4096,'retiring':0,'limits':{'sockets':32768},'events':{'entered':8}},"
	"'enrolment':{'joined':1,'left':2,'changed':3,'refused':4,'found':5,'admittedUnknown':6,"
	"'admittedWithoutZtunnel':7,'waiting':8,"
	"'kubernetes':{'node':'n','current':true,'complete':false,'pods':10,'namespaces':11,"
	"'unreadable':12,'leftOut':13,'client':{'requests':14,'failed':15,"
	"'statuses':{'2xx':16,'4xx':17}},'watches':[{'name':'namespaces','synced':true,"
	"'watchesFailed':18,'listsFailed':19},{'name':'pods','synced':false,'watchesFailed':20,"
	"'listsFailed':21}],'written':{'written':22,'failed':23}},"
	"'ztunnel':{'pods':24,'pending':25,'refused':26,'connections':[{'pid':1},{'pid':2}],"
	"'counters':{'acks':27}}}}";

/* NULL is a failure of the test itself. */
static json_t *parsed(const char *text)
{
	scoped_free char *quoted = strdup(text);
	struct error err = {0};
	json_t *value = NULL;

	for (char *c = quoted; c && *c; c++)
		if (*c == '\'')
			*c = '"';
	return quoted && !json_parse(quoted, strlen(quoted), "test", &value, &err) ? value : NULL;
}

static json_t *facts_of(const char *status)
{
	return json_pack("{s:o, s:{s:I, s:I, s:I, s:f}}", "status", parsed(status), "process",
			 "residentBytes", (json_int_t)8192, "openFds", (json_int_t)12, "maxFds",
			 (json_int_t)1024, "cpuSeconds", 0.25);
}

/* ---- the format ------------------------------------------------------------------------------ */

enum { SERIES_MAX = 512 };

struct reader {
	char *series[SERIES_MAX];
	size_t n_series;
	char *names[SERIES_MAX];
	size_t n_names;
	bool is_counter;
	const char *wrong;
};

static bool add(char **list, size_t *n, const char *text, size_t size)
{
	for (size_t i = 0; i < *n; i++)
		if (strlen(list[i]) == size && !strncmp(list[i], text, size))
			return false;
	if (*n < SERIES_MAX)
		list[(*n)++] = strndup(text, size);
	return true;
}

static size_t name_size(const char *text)
{
	size_t n = 0;

	while (isalnum((unsigned char)text[n]) || text[n] == '_' || text[n] == ':')
		n++;
	return n;
}

/* Past the labels; NULL when they are none. */
static const char *skip_labels(const char *text)
{
	if (*text != '{')
		return text;
	do {
		size_t n = name_size(++text);

		if (!n || isdigit((unsigned char)*text) || text[n] != '=' || text[n + 1] != '"')
			return NULL;
		for (text += n + 2; *text && *text != '"'; text++)
			if (*text == '\\' && !strchr("\\\"n", *++text))
				return NULL;
		if (*text++ != '"')
			return NULL;
	} while (*text == ',');
	return *text == '}' ? text + 1 : NULL;
}

static const char *read_sample(struct reader *r, const char *line)
{
	const char *name = r->n_names ? r->names[r->n_names - 1] : "";
	size_t n = name_size(line);
	const char *value = skip_labels(line + n);
	bool is_total = n > 6 && !strncmp(line + n - 6, "_total", 6);
	char *end;

	if (!n || strlen(name) != n || strncmp(line, name, n) != 0)
		return "a sample outside of its family";
	if (is_total != r->is_counter)
		return "a counter is what ends in _total";
	if (!value || *value != ' ')
		return "labels";
	if (!add(r->series, &r->n_series, line, (size_t)(value - line)))
		return "a series twice";
	strtod(value + 1, &end);
	return end == value + 1 || *end ? "a value" : NULL;
}

static const char *read_line(struct reader *r, const char *line)
{
	static const char help[] = "# HELP ", type[] = "# TYPE ";
	const char *name = line + sizeof(help) - 1;
	size_t n;

	if (!strncmp(line, help, sizeof(help) - 1)) {
		n = name_size(name);
		if (strncmp(name, "sockmesh_", 9) != 0 || name[n] != ' ' || !name[n + 1])
			return "HELP";
		return add(r->names, &r->n_names, name, n) ? NULL : "HELP twice";
	}
	if (strncmp(line, type, sizeof(type) - 1) != 0)
		return read_sample(r, line);
	n = name_size(name);
	if (!r->n_names || strncmp(r->names[r->n_names - 1], name, n) != 0)
		return "TYPE without HELP";
	r->is_counter = !strcmp(name + n, " counter");
	return r->is_counter || !strcmp(name + n, " gauge") ? NULL : "TYPE";
}

static void reader_done(struct reader *r)
{
	for (size_t i = 0; i < r->n_series; i++)
		free(r->series[i]);
	for (size_t i = 0; i < r->n_names; i++)
		free(r->names[i]);
}

/* NULL: it is what a Prometheus server takes. */
static const char *what_is_wrong(const char *text, size_t *ret_series)
{
	scoped_free char *copy = strdup(text);
	struct reader r = {0};
	const char *wrong = *text && text[strlen(text) - 1] != '\n' ? "the last line's end" : NULL;
	char *rest = copy, *line;

	while (!wrong && (line = strsep(&rest, "\n")))
		if (*line)
			wrong = read_line(&r, line);
		else if (rest)
			wrong = "an empty line";
	if (wrong)
		printf("# %s\n", wrong);
	*ret_series = r.n_series;
	reader_done(&r);
	return wrong;
}

TEST(the_format_is_prometheus)
{
	scoped_json json_t *facts = facts_of(STATUS);
	scoped_free char *text = metrics_text(facts);
	size_t n;

	CHECK(text && !what_is_wrong(text, &n));
	CHECK(n > 50);
	/* And the reader can tell. */
	CHECK(what_is_wrong("sockmesh_a 1\n", &n));
	CHECK(what_is_wrong("# HELP sockmesh_a b\n# TYPE sockmesh_a gauge\nsockmesh_a 1\n"
			    "sockmesh_a 2\n",
			    &n));
	CHECK(what_is_wrong(
		"# HELP sockmesh_a b\n# TYPE sockmesh_a gauge\nsockmesh_a{b=\"\"\"} 1\n", &n));
	CHECK(what_is_wrong("# HELP sockmesh_a b\n# TYPE sockmesh_a counter\nsockmesh_a 1\n", &n));
	CHECK(what_is_wrong("# HELP sockmesh_a b\n# HELP sockmesh_a b\n", &n));
	CHECK(what_is_wrong("# HELP sockmesh_a b\n# TYPE sockmesh_a gauge\nsockmesh_a 1", &n));
	return TEST_OK;
}

/* ---- what is said ---------------------------------------------------------------------------- */

TEST(every_figure_is_there)
{
	static const char *const lines[] = {
		"sockmesh_build_info{version=\"1.2\"} 1",
		"sockmesh_uptime_seconds 7",
		"sockmesh_engine_info{engine=\"ebpf\"} 1",
		"sockmesh_pods{state=\"redirected\"} 3",
		"sockmesh_pods{state=\"skipped\"} 2",
		"sockmesh_pods{state=\"orphaned\"} 0",
		"sockmesh_pods_by_engine{engine=\"nftables\"} 0",
		"sockmesh_verdicts_total{rule=\"out-rest\"} 41",
		"sockmesh_events_total{event=\"handover-miss\"} 12",
		"sockmesh_events_total{event=\"no-listener\"} 0",
		"sockmesh_kubelet_events_total{event=\"probe-announced\"} 5",
		"sockmesh_handovers 1",
		"sockmesh_limit{limit=\"pods\"} 1024",
		"sockmesh_healed_total 1",
		"sockmesh_heal_failures_total 4",
		"sockmesh_moves_total 2",
		"sockmesh_fallbacks_total 3",
		"sockmesh_accelerate_level_info{level=\"proxy\",policy=\"auto\"} 1",
		"sockmesh_accelerate_sockets 4",
		"sockmesh_accelerate_claimed_bytes 4096",
		"sockmesh_accelerate_retiring 0",
		"sockmesh_accelerate_limit{limit=\"sockets\"} 32768",
		"sockmesh_accelerate_events_total{event=\"entered\"} 8",
		"sockmesh_kubernetes_current 1",
		"sockmesh_kubernetes_complete 0",
		"sockmesh_kubernetes_objects{kind=\"pods\"} 10",
		"sockmesh_kubernetes_objects{kind=\"namespaces\"} 11",
		"sockmesh_kubernetes_unreadable_total 12",
		"sockmesh_kubernetes_left_out_total 13",
		"sockmesh_kubernetes_requests_total 14",
		"sockmesh_kubernetes_requests_failed_total 15",
		"sockmesh_kubernetes_responses_total{class=\"4xx\"} 17",
		"sockmesh_kubernetes_watch_synced{watch=\"namespaces\"} 1",
		"sockmesh_kubernetes_watch_synced{watch=\"pods\"} 0",
		"sockmesh_kubernetes_watch_failures_total{watch=\"pods\"} 20",
		"sockmesh_kubernetes_list_failures_total{watch=\"pods\"} 21",
		"sockmesh_kubernetes_status_written_total 22",
		"sockmesh_kubernetes_status_failed_total 23",
		"sockmesh_ztunnel_connections 2",
		"sockmesh_ztunnel_pods 24",
		"sockmesh_ztunnel_pods_pending 25",
		"sockmesh_ztunnel_pods_refused 26",
		"sockmesh_ztunnel_events_total{event=\"acks\"} 27",
		"sockmesh_enrolment_joined_total 1",
		"sockmesh_enrolment_left_total 2",
		"sockmesh_enrolment_changed_total 3",
		"sockmesh_enrolment_refused_total 4",
		"sockmesh_enrolment_found_total 5",
		"sockmesh_enrolment_admitted_unknown_total 6",
		"sockmesh_enrolment_admitted_without_ztunnel_total 7",
		"sockmesh_enrolment_waiting 8",
		"sockmesh_process_resident_memory_bytes 8192",
		"sockmesh_process_open_fds 12",
		"sockmesh_process_max_fds 1024",
		"sockmesh_process_cpu_seconds_total 0.250000",
	};
	scoped_json json_t *facts = facts_of(STATUS);
	scoped_free char *text = metrics_text(facts);

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		char line[128];

		snprintf(line, sizeof(line), "\n%s\n", lines[i]);
		CHECK_HAS(text, line);
	}
	return TEST_OK;
}

TEST(what_is_not_there_is_left_out)
{
	scoped_json json_t *facts = facts_of("{'version':'1','engine':'nftables',"
					     "'counters':{'healed':0},"
					     "'enrolment':{'kubernetes':null,'ztunnel':null}}");
	scoped_json json_t *nothing = json_object();
	scoped_free char *text = metrics_text(facts), *empty = metrics_text(nothing);
	size_t n;

	CHECK(!what_is_wrong(text, &n));
	CHECK_HAS(text, "sockmesh_engine_info{engine=\"nftables\"} 1\n");
	CHECK_HAS(text, "sockmesh_healed_total 0\n");
	CHECK(!strstr(text, "kubernetes") && !strstr(text, "ztunnel"));
	CHECK(!strstr(text, "accelerate") && !strstr(text, "sockmesh_events_total"));
	CHECK(empty && !what_is_wrong(empty, &n));
	return TEST_OK;
}

TEST(every_test_of_the_probe_is_a_series)
{
	struct accelerate_probe probe = {.results[TEST_ORDER].finding = FINDING_DIFFERS,
					 .results[TEST_LOADS].finding = FINDING_AS_TCP};
	scoped_json json_t *facts = json_pack("{s:o}", "probe", accelerate_probe_to_json(&probe));
	scoped_free char *text = metrics_text(facts);
	char line[256];
	size_t n;

	CHECK(text && !what_is_wrong(text, &n));
	CHECK_EQ(n, TEST_COUNT_ + 1); /* and build_info */
	for (int i = 0; i < TEST_COUNT_; i++) {
		snprintf(line, sizeof(line),
			 "\nsockmesh_accelerate_probe{test=\"%s\",finding=\"%s\",decides=\"%s\"} "
			 "1\n",
			 accelerate_test_name((enum accelerate_test)i),
			 accelerate_finding_name(probe.results[i].finding),
			 accelerate_test_decides((enum accelerate_test)i));
		CHECK_HAS(text, line);
	}
	return TEST_OK;
}

TEST(labels_are_escaped)
{
	scoped_json json_t *facts = json_pack("{s:{s:s}}", "status", "version", "a\"b\\c\nd");
	scoped_free char *text = metrics_text(facts);
	size_t n;

	CHECK_HAS(text, "sockmesh_build_info{version=\"a\\\"b\\\\c\\nd\"} 1\n");
	CHECK(!what_is_wrong(text, &n));
	return TEST_OK;
}
