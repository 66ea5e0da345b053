/* SPDX-License-Identifier: Apache-2.0 */
/* The watch, with an API server that is a list of answers in memory. */
#include "kube_watch.h"

#include "event_loop.h"
#include "json.h"
#include "kube_backoff.h"
#include "monotonic.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

enum { ANSWERS = 32, LOG_SIZE = 8192 };

struct answer {
	int status;
	const char *body;
	int64_t retry_after_ms; /* 0: not said */
	int err;		/* of the transport, after the body */
};

/* What stands for the client: the next answer for each request, from a timer. */
struct fake {
	struct event_loop *loop;
	struct event_source *timer;
	const struct answer *answers;
	unsigned next, cancelled;
	struct kube_request_spec request;
	char log[LOG_SIZE]; /* requests and callbacks, one line each */
	int64_t asked_ms[ANSWERS];
};

static struct fake fake; /* kube_send_fn has no argument of ours */

static void note(const char *fmt, ...) PRINTF_LIKE(1, 2);

static void note(const char *fmt, ...)
{
	size_t used = strlen(fake.log);
	va_list args;

	va_start(args, fmt);
	vsnprintf(fake.log + used, sizeof(fake.log) - used, fmt, args);
	va_end(args);
	strncat(fake.log, "\n", sizeof(fake.log) - strlen(fake.log) - 1);
}

static void on_answer(void *arg)
{
	const struct answer *a = &fake.answers[fake.next++];
	struct kube_request_spec q = fake.request;
	struct kube_response response = {.status = a->status,
					 .retry_after_ms =
						 a->retry_after_ms ? a->retry_after_ms : -1,
					 .body = ""};

	(void)arg;
	fake.timer = NULL;
	if (a->status / 100 == 2) {
		q.on_answer(q.arg);
		if (a->body && q.on_data(q.arg, a->body, strlen(a->body)) < 0)
			error_set(&response.err, ECANCELED, "stopped by its reader");
	} else if (a->body) {
		response.body = a->body;
		response.body_size = strlen(a->body);
	}
	if (a->err && !response.err.code)
		error_set(&response.err, a->err, "transport");
	q.on_done(q.arg, &response);
}

static int fake_send(struct kube_client *client, const struct kube_request_spec *spec,
		     struct kube_request **ret, struct error *err)
{
	(void)client;
	scoped_free char *path = strdup(spec->path);
	char *seconds = strstr(path, "timeoutSeconds=");

	if (seconds)
		memmove(seconds, seconds + strcspn(seconds, "&") + 1,
			strlen(seconds + strcspn(seconds, "&")));
	note("%s", path);
	fake.asked_ms[fake.next] = monotonic_ms();
	fake.request = *spec;
	*ret = (struct kube_request *)&fake;
	if (fake.answers[fake.next].status < 0) {
		event_loop_stop(fake.loop);
		return 0;
	}
	return event_loop_add_timer(fake.loop, 0, 0, on_answer, NULL, &fake.timer, err);
}

static void fake_cancel(struct kube_request *request)
{
	fake.cancelled += request != NULL;
	event_loop_remove(fake.timer);
}

static void on_begin(void *arg)
{
	(void)arg;
	note("begin");
}

static void on_object(void *arg, enum kube_change change, const json_t *object,
		      const struct error *unreadable)
{
	static const char *const words[] = {"seen", "changed", "deleted"};
	const json_t *metadata = json_object_get(object, "metadata");

	(void)arg;
	note("%s %s%s", words[change], json_string_value(json_object_get(metadata, "name")),
	     unreadable ? " unreadable" : "");
}

static void on_end(void *arg)
{
	(void)arg;
	note("end");
}

static void on_state(void *arg, enum kube_watch_state state, const struct error *why)
{
	(void)arg;
	(void)state;
	if (why)
		note("why %s", why->text);
}

static const struct kube_watch_ops ops = {on_begin, on_object, on_end, on_state};

static void on_deadline(void *arg)
{
	note("too late");
	event_loop_stop(arg);
}

/* Runs a watch until it asks for what has no answer; its status is the caller's. */
static json_t *run(const struct answer *answers)
{
	struct kube_watch_spec spec = {
		.name = "pods",
		.path = "/api/v1/pods",
		.field_selector = "spec.nodeName=n 1",
		.ops = &ops,
		.limits = {.backoff_base_ms = 20, .backoff_max_ms = 100},
		.send = fake_send,
		.cancel = fake_cancel,
	};
	struct kube_watch *watch;
	struct error err = {0};
	json_t *status;

	fake = (struct fake){.answers = answers};
	if (event_loop_new(&fake.loop, &err) < 0)
		abort();
	spec.loop = fake.loop;
	if (kube_watch_new(&spec, &watch, &err) < 0 ||
	    event_loop_add_timer(fake.loop, 10000, 0, on_deadline, fake.loop, NULL, &err) < 0 ||
	    event_loop_run(fake.loop, &err) < 0)
		abort();
	status = kube_watch_status(watch);
	kube_watch_free(watch);
	event_loop_free(fake.loop);
	return status;
}

#define LIST_QUERY  "/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName%3Dn%201\n"
#define PAGED_QUERY "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Dn%201\n"
#define WATCH_QUERY(v)                                                                             \
	"/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion=" v                      \
	"&fieldSelector=spec.nodeName%3Dn%201\n"
#define ITEM(n, v)     "{\"metadata\":{\"name\":\"" n "\",\"resourceVersion\":\"" v "\"}}"
#define LIST(v, items) "{\"metadata\":{\"resourceVersion\":\"" v "\"},\"items\":[" items "]}"
#define EVENT(t, n, v) "{\"type\":\"" t "\",\"object\":" ITEM(n, v) "}\n"
#define PAGE(v, more, items)                                                                       \
	"{\"metadata\":{\"resourceVersion\":\"" v "\",\"continue\":\"" more                        \
	"\"},\"items\":[" items "]}"
#define STATUS(code) "{\"kind\":\"Status\",\"message\":\"so it is\",\"code\":" code "}"
#define END                                                                                        \
	{                                                                                          \
		.status = -1                                                                       \
	}

static const struct answer listed = {200, LIST("10", ITEM("a", "7") "," ITEM("b", "8")), 0, 0};

TEST(a_list_then_a_watch_from_its_version)
{
	const struct answer answers[] = {listed,
					 {200,
					  EVENT("ADDED", "c", "11") EVENT("MODIFIED", "a", "12")
						  EVENT("DELETED", "b", "13"),
					  0, 0},
					 END};
	scoped_json json_t *status = run(answers);

	CHECK_STR(fake.log, "begin\n" LIST_QUERY "seen a\nseen b\nend\n" WATCH_QUERY(
				    "10") "changed c\nchanged a\ndeleted b\n" WATCH_QUERY("13"));
	CHECK_EQ(fake.cancelled, 1);
	CHECK(json_is_true(json_object_get(status, "synced")));
	CHECK_EQ(json_integer_value(json_object_get(status, "events")), 3);
	return TEST_OK;
}

TEST(a_bookmark_moves_the_version_and_nothing_else)
{
	const struct answer answers[] = {listed, {200, EVENT("BOOKMARK", "", "99"), 0, 0}, END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "end\n" WATCH_QUERY("10") WATCH_QUERY("99"));
	CHECK_EQ(json_integer_value(json_object_get(status, "bookmarks")), 1);
	return TEST_OK;
}

TEST(a_cut_watch_resumes_from_the_last_version)
{
	const struct answer answers[] = {
		listed, {200, EVENT("ADDED", "c", "11") "{\"type\":\"ADD", 0, ECONNRESET}, END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "changed c\nwhy watch pods: transport\n" WATCH_QUERY("11"));
	CHECK(!strstr(strstr(fake.log, "end"), "begin"));
	CHECK_EQ(json_integer_value(json_object_get(status, "lists")), 1);
	return TEST_OK;
}

TEST(every_way_of_saying_too_old_leads_to_a_consistent_list)
{
	static const struct answer expired[] = {
		{410, STATUS("410"), 0, 0},
		{410, "not even JSON", 0, 0},
		{200, "{\"type\":\"ERROR\",\"object\":" STATUS("410") "}", 0, 0},
		{200, EVENT("ADDED", "c", "11") "{\"type\":\"ERROR\",\"object\":" STATUS("410") "}",
		 0, 0},
		{400, STATUS("400"), 0, 0},
		{504,
		 "{\"message\":\"x\",\"details\":{\"causes\":[{\"reason\":"
		 "\"ResourceVersionTooLarge\"}]}}",
		 0, 0},
		{504, "{\"message\":\"Too large resource version: 5, current: 3\"}", 0, 0},
	};

	for (size_t i = 0; i < sizeof(expired) / sizeof(*expired); i++) {
		const struct answer answers[] = {
			listed, expired[i], {200, LIST("3", ITEM("a", "2")), 0, 0}, END};
		scoped_json json_t *status = run(answers);

		CHECK_HAS(fake.log, "begin\n" PAGED_QUERY "seen a\nend\n" WATCH_QUERY("3"));
		CHECK_EQ(json_integer_value(json_object_get(status, "expired")), 1);
	}
	return TEST_OK;
}

TEST(a_state_is_what_was_answered_not_what_is_asked)
{
	const struct {
		struct answer answers[4]; /* before the request that nobody answers */
		const char *state;
	} rows[] = {
		{{END}, "waiting"},
		{{listed, END}, "listing"},
		{{listed, {200, EVENT("ADDED", "c", "11"), 0, 0}, END}, "watching"},
		{{listed, {0, NULL, 0, ETIMEDOUT}, END}, "waiting"},
		{{listed, {503, NULL, 0, 0}, {503, NULL, 0, 0}, END}, "waiting"},
		{{{200, PAGE("5", "t", ITEM("a", "1")), 0, 0}, END}, "listing"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		scoped_json json_t *status = run(rows[i].answers);

		CHECK_STR(json_string_value(json_object_get(status, "state")), rows[i].state);
	}
	return TEST_OK;
}

TEST(an_error_event_tells_its_reason)
{
	const struct answer answers[] = {
		listed, {200, "{\"type\":\"ERROR\",\"object\":" STATUS("500") "}", 0, 0}, END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "why watch pods: 500: so it is\n");
	CHECK_STR(json_string_value(json_object_get(status, "error")), "watch pods: 500: so it is");
	return TEST_OK;
}

TEST(other_failures_of_a_watch_resume_it)
{
	static const struct answer failures[] = {
		{401, STATUS("401"), 0, 0},
		{403, STATUS("403"), 0, 0},
		{404, "404 page not found", 0, 0},
		{429, STATUS("429"), 10, 0},
		{500, "", 0, 0},
		{504, "gateway", 0, 0},
		{0, NULL, 0, ECONNREFUSED},
		{200, "garbage", 0, 0},
		{200, "", 0, 0}, /* ended as soon as it began */
		{200, "{\"type\":\"ERROR\",\"object\":" STATUS("500") "}", 0, 0},
		{200, "{\"type\":\"ERROR\",\"object\":{}}", 0, 0},
		{200, "{\"type\":7,\"object\":{}}", 0, 0},
		{200, "{\"type\":\"ADDED\"}", 0, 0},
		{200, "{\"type\":\"ADDED\",\"object\":[]}", 0, 0},
		{200, "{\"type\":\"ADDED\",\"object\":{}}", 0, 0},
		{200, "{\"type\":\"ADDED\",\"object\":{\"metadata\":[]}}", 0, 0},
		{200, "{\"type\":\"BOOKMARK\",\"object\":{}}", 0, 0},
	};

	for (size_t i = 0; i < sizeof(failures) / sizeof(*failures); i++) {
		const struct answer answers[] = {listed, failures[i], END};
		scoped_json json_t *status = run(answers);

		CHECK_HAS(fake.log, "end\n" WATCH_QUERY("10") "why watch pods: ");
		CHECK_STR(strrchr(strstr(fake.log, "why"), '/') - 7, WATCH_QUERY("10"));
		CHECK(!strstr(strstr(fake.log, "why"), "begin"));
		CHECK(json_is_string(json_object_get(status, "error")));
	}
	return TEST_OK;
}

TEST(an_event_of_a_type_that_we_do_not_know_is_counted)
{
	const struct answer answers[] = {
		listed, {200, EVENT("FLIPPED", "c", "11") EVENT("ADDED", "d", "12"), 0, 0}, END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, WATCH_QUERY("10") "changed d\n" WATCH_QUERY("12"));
	CHECK_EQ(json_integer_value(json_object_get(status, "unknownEvents")), 1);
	return TEST_OK;
}

TEST(pages_are_one_list)
{
	const struct answer answers[] = {{200, PAGE("5", "a+/=", ITEM("a", "1")), 0, 0},
					 {200, PAGE("6", "t2", ITEM("b", "2")), 0, 0},
					 {200, PAGE("7", "", ITEM("c", "3")), 0, 0},
					 END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "seen a\n/api/v1/pods?limit=500&continue=a%2B%2F%3D&fieldSelector");
	CHECK_HAS(fake.log, "seen b\n/api/v1/pods?limit=500&continue=t2&fieldSelector");
	CHECK_HAS(fake.log, "seen c\nend\n" WATCH_QUERY("7"));
	CHECK_EQ(json_integer_value(json_object_get(status, "lists")), 1);
	return TEST_OK;
}

TEST(too_old_in_the_midst_of_pages_begins_anew_at_once)
{
	const struct answer answers[] = {{200, PAGE("5", "t", ITEM("a", "1")), 0, 0},
					 {410, STATUS("410"), 0, 0},
					 {200, LIST("9", ITEM("b", "2")), 0, 0},
					 END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "begin\n" PAGED_QUERY "seen b\nend\n" WATCH_QUERY("9"));
	CHECK(!strstr(fake.log, "why"));
	CHECK_EQ(json_integer_value(json_object_get(status, "expired")), 1);
	return TEST_OK;
}

TEST(a_list_that_fails_begins_anew_after_a_while)
{
	static const struct answer failures[] = {
		{403, STATUS("403"), 0, 0},
		{500, STATUS("500"), 0, 0},
		{200, "garbage", 0, 0},
		{200, LIST("", ITEM("a", "1")), 0, 0},
		{200, "{\"items\":[]}", 0, 0},
		{200, LIST("5", "{}"), 0, 0},
		{200, LIST("5", ITEM("", "1")), 0, 0},
		{200, LIST("5", ITEM("a", "")), 0, 0},
		{200, LIST("5", "{\"metadata\":{\"name\":[],\"resourceVersion\":\"1\"}}"), 0, 0},
		{200, "{\"metadata\":{\"resourceVersion\":5},\"items\":[]}", 0, 0},
		{200, "{\"metadata\":[],\"items\":[]}", 0, 0},
		{200, LIST("5", ITEM("a", "1")), 0, ECONNRESET},
		{200, "{\"items\":[", 0, 0},
	};

	for (size_t i = 0; i < sizeof(failures) / sizeof(*failures); i++) {
		const struct answer answers[] = {failures[i], failures[i], listed, END};
		scoped_json json_t *status = run(answers);

		CHECK_HAS(fake.log, "why list pods: ");
		CHECK_HAS(fake.log, "begin\n" LIST_QUERY "seen a\nseen b\nend\n" WATCH_QUERY("10"));
		CHECK_EQ(json_integer_value(json_object_get(status, "listsFailed")), 2);
		CHECK(fake.asked_ms[1] - fake.asked_ms[0] >= 20 / KUBE_BACKOFF_FLOOR);
	}
	return TEST_OK;
}

TEST(the_servers_message_is_the_reason)
{
	const struct answer answers[] = {{403, STATUS("403"), 0, 0}, listed, END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "why list pods: HTTP 403: so it is\n");
	CHECK_EQ(json_integer_value(json_object_get(status, "listsFailed")), 1);
	return TEST_OK;
}

TEST(retry_after_is_waited_for)
{
	const struct answer answers[] = {{429, STATUS("429"), 300, 0}, listed, END};
	scoped_json json_t *status = run(answers);

	CHECK(fake.asked_ms[1] - fake.asked_ms[0] >= 299);
	CHECK_EQ(json_integer_value(json_object_get(status, "lists")), 1);
	return TEST_OK;
}

TEST(a_server_that_forgets_at_once_is_not_listed_in_a_circle)
{
	struct answer answers[11] = {[10] = END};
	json_t *status;

	for (int i = 0; i < 10; i += 2) {
		answers[i] = listed;
		answers[i + 1] = (struct answer){410, STATUS("410"), 0, 0};
	}
	status = run(answers);
	json_decref(status);
	/* Five rounds with waits up to 20, 40, 80, 100, 100 ms, by dice. */
	CHECK(strstr(fake.log, "why watch pods: HTTP 410"));
	CHECK(fake.asked_ms[10] - fake.asked_ms[0] >= 5 * (20 / KUBE_BACKOFF_FLOOR));
	return TEST_OK;
}

TEST(an_unreadable_object_is_there)
{
	const struct answer answers[] = {
		{200,
		 LIST("9",
		      "{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"1\"},\"x\":1,\"x\":2}"),
		 0, 0},
		{200,
		 "{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"a\","
		 "\"resourceVersion\":\"10\"},\"x\":1,\"x\":2}}",
		 0, 0},
		END};
	scoped_json json_t *status = run(answers);

	CHECK_HAS(fake.log, "seen a unreadable\nend\n" WATCH_QUERY(
				    "9") "changed a unreadable\n" WATCH_QUERY("10"));
	CHECK_EQ(json_integer_value(json_object_get(status, "unreadable")), 2);
	return TEST_OK;
}
