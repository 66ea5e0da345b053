/* SPDX-License-Identifier: Apache-2.0 */
/* What needs no API server; test/kube/ has the rest. */
#include "kube_client.h"

#include "event_loop.h"
#include "kube_config.h"
#include "scoped.h"
#include "test.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

/* An authority that parses; nobody has its key. */
static const char authority[] = "-----BEGIN CERTIFICATE-----\n"
				"MIIBbzCCARWgAwIBAgIUbsmDoEw5L3rfr+/8GjsmsXZIP9wwCgYIKoZIzj0EAwIw\n"
				"DDEKMAgGA1UEAwwBdDAgFw0yNjExMjMwNzI2MjlaGA8yMTI2MTAzMDA3MjYyOVow\n"
				"DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNOLDxkZN67W\n"
				"m+ajUtQc09hAmlvJnL/9wZqtSfaml/+9dX4ZQ22mI18HUvj/gfmyqmej3sDh7GiZ\n"
				"qs4p1QRA9t+jUzBRMB0GA1UdDgQWBBTaMK6VuqiZWLdWjalBKztyGeJNuTAfBgNV\n"
				"HSMEGDAWgBTaMK6VuqiZWLdWjalBKztyGeJNuTAPBgNVHRMBAf8EBTADAQH/MAoG\n"
				"CCqGSM49BAMCA0gAMEUCIQCMQWu+drdkz/tOWh/tCoCiCF/mCkewvWk9HvVDkFRU\n"
				"hgIgbZySpruLGNGNCnMmwpIpwEwL0sTia9lUH2thgW0xVyo=\n"
				"-----END CERTIFICATE-----\n";

/* A client of a server that accepts connections and says nothing. */
struct setup {
	char dir[64];
	int server;
	struct event_loop *loop;
	struct kube_config *config;
	struct kube_client *client;
	unsigned done;
	int code; /* of the last one */
	struct kube_request *other;
};

static void write_text(const char *dir, const char *name, const char *text)
{
	scoped_free char *path = NULL;
	scoped_file FILE *f = NULL;

	if (asprintf(&path, "%s/%s", dir, name) < 0 || !(f = fopen(path, "w")) ||
	    fputs(text, f) < 0)
		abort();
}

static void remove_text(const char *dir, const char *name)
{
	scoped_free char *path = NULL;

	if (asprintf(&path, "%s/%s", dir, name) >= 0)
		unlink(path);
}

static int setup_new(struct setup *s)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(at);
	struct error err;
	char port[16];

	*s = (struct setup){.dir = "/tmp/kube_client_test.XXXXXX"};
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK || !mkdtemp(s->dir))
		return -1;
	write_text(s->dir, "token", "t");
	write_text(s->dir, "ca.crt", authority);
	s->server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(s->server, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(s->server, 8) < 0 ||
	    getsockname(s->server, (struct sockaddr *)&at, &size) < 0)
		return -1;
	snprintf(port, sizeof(port), "%d", ntohs(at.sin_port));
	if (event_loop_new(&s->loop, &err) < 0 ||
	    kube_config_load_in_cluster("127.0.0.1", port, s->dir, &s->config, &err) < 0)
		return -1;
	return kube_client_new(s->loop, s->config, &s->client, &err);
}

static void setup_done(struct setup *s)
{
	kube_client_free(s->client);
	kube_config_free(s->config);
	event_loop_free(s->loop);
	close(s->server);
	remove_text(s->dir, "token");
	remove_text(s->dir, "ca.crt");
	rmdir(s->dir);
	curl_global_cleanup();
}

static void on_done(void *arg, const struct kube_response *response)
{
	struct setup *s = arg;

	s->done++;
	s->code = response->err.code;
	kube_request_cancel(s->other);
	s->other = NULL;
	event_loop_stop(s->loop);
}

static void on_timer(void *arg)
{
	event_loop_stop(arg);
}

static int ask(struct setup *s, const char *path, uint64_t deadline_ms, struct kube_request **ret)
{
	struct kube_request_spec spec = {
		.path = path, .deadline_ms = deadline_ms, .on_done = on_done, .arg = s};
	struct error err;

	return kube_client_send(s->client, &spec, ret, &err);
}

TEST(a_request_needs_a_deadline_and_a_path)
{
	struct setup s;

	CHECK(setup_new(&s) == 0);
	CHECK_EQ(ask(&s, "/x", 0, NULL), -EINVAL);
	CHECK_EQ(ask(&s, "x", 100, NULL), -EINVAL);
	setup_done(&s);
	CHECK_EQ(s.done, 0);
	return TEST_OK;
}

TEST(what_is_in_flight_is_told_when_the_client_ends)
{
	struct setup s;

	CHECK(setup_new(&s) == 0);
	CHECK_EQ(ask(&s, "/x", 10000, NULL), 0);
	CHECK_EQ(ask(&s, "/y", 10000, NULL), 0);
	CHECK_EQ(s.done, 0);
	setup_done(&s);
	CHECK_EQ(s.done, 2);
	CHECK_EQ(s.code, ECANCELED);
	return TEST_OK;
}

TEST(a_cancelled_request_is_heard_of_no_more_at_any_stage)
{
	struct kube_request *early, *late;
	struct setup s;
	struct error err;

	CHECK(setup_new(&s) == 0);
	CHECK_EQ(ask(&s, "/x", 50, &early), 0);
	CHECK_EQ(ask(&s, "/y", 50, &late), 0);
	kube_request_cancel(early); /* not started */
	CHECK(!event_loop_add_timer(s.loop, 20, 0, on_timer, s.loop, NULL, &err));
	CHECK(!event_loop_run(s.loop, &err));
	kube_request_cancel(late); /* connected, or about to be */
	kube_request_cancel(NULL);
	CHECK(!event_loop_add_timer(s.loop, 100, 0, on_timer, s.loop, NULL, &err));
	CHECK(!event_loop_run(s.loop, &err));
	setup_done(&s);
	CHECK_EQ(s.done, 0);
	return TEST_OK;
}

TEST(a_callback_may_cancel_another_request_and_its_own)
{
	struct kube_request *own;
	struct setup s;
	struct error err;

	CHECK(setup_new(&s) == 0);
	CHECK_EQ(ask(&s, "/x", 10000, &s.other), 0);
	CHECK_EQ(ask(&s, "/y", 30, &own), 0);
	CHECK(!event_loop_run(s.loop, &err));
	CHECK_EQ(s.done, 1);
	CHECK_EQ(s.code, ETIMEDOUT);
	CHECK_EQ(ask(&s, "/z", 30, &s.other), 0); /* cancels itself */
	CHECK(!event_loop_run(s.loop, &err));
	CHECK_EQ(s.done, 2);
	setup_done(&s);
	CHECK_EQ(s.done, 2);
	return TEST_OK;
}

TEST(a_message_is_one_printable_line)
{
	static const struct {
		const char *body, *message;
	} cases[] = {
		{"", "without a reason"},
		{"{\"message\":\"pods is forbidden\"}", "pods is forbidden"},
		{"{\"message\":\"two\\nlines\\u001b[1m\"}", "two lines [1m"},
		{"404 page not found\n", "404 page not found "},
		{"{\"message\":7}", "{\"message\":7}"},
		{"0123456789012345678901234567890123456789",
		 "012345678901234567890123456789012345678"},
		{"01234567890123456789012345678901234567\xc3\xa9",
		 "01234567890123456789012345678901234567"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct kube_response response = {.body = cases[i].body,
						 .body_size = strlen(cases[i].body)};
		char text[40];

		CHECK_STR(kube_response_message(&response, text, sizeof(text)), cases[i].message);
	}
	return TEST_OK;
}
