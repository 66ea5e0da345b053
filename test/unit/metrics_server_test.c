/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics_server.h"

#include "error.h"
#include "event_loop.h"
#include "monotonic.h"
#include "scoped.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { DEADLINE_MS = 10 * 1000, VISITORS_MAX = 32 }; /* of metrics_server.h */

struct rig {
	struct event_loop *loop;
	struct metrics_server *server;
	unsigned n_texts;
	const char *text, *not_ready;
	char answer[256 * 1024];
	size_t size;
	const char *until; /* NULL: the end of the connection */
	bool timed_out;
};

static char *make_text(void *arg)
{
	struct rig *rig = arg;

	rig->n_texts++;
	return rig->text ? strdup(rig->text) : NULL;
}

static const char *not_ready(void *arg)
{
	return ((struct rig *)arg)->not_ready;
}

static int rig_open(struct rig *rig, const char *address, unsigned request_ms, struct error *err)
{
	const struct metrics_server_config cfg = {.address = address,
						  .text = make_text,
						  .not_ready = not_ready,
						  .arg = rig,
						  .request_ms = request_ms};
	int r;

	*rig = (struct rig){.text = "# figures\n"};
	r = event_loop_new(&rig->loop, err);
	return r ? r : metrics_server_open(&cfg, rig->loop, &rig->server, err);
}

static void rig_close(struct rig *rig)
{
	metrics_server_close(rig->server);
	event_loop_free(rig->loop);
}

static int dial(const struct rig *rig, int family)
{
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
				  .sin6_addr = IN6ADDR_LOOPBACK_INIT,
				  .sin6_port = htons(metrics_server_port(rig->server))};
	struct sockaddr_in v4 = {.sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = v6.sin6_port};
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int r = family == AF_INET ? connect(fd, (struct sockaddr *)&v4, sizeof(v4))
				  : connect(fd, (struct sockaddr *)&v6, sizeof(v6));

	if (!r)
		return fd;
	close(fd);
	return -1;
}

static void on_answer(int fd, uint32_t events, void *arg)
{
	struct rig *rig = arg;
	ssize_t n = recv(fd, rig->answer + rig->size, sizeof(rig->answer) - 1 - rig->size,
			 MSG_DONTWAIT);

	(void)events;
	if (n > 0)
		rig->size += (size_t)n;
	rig->answer[rig->size] = '\0';
	if (n <= 0 || (rig->until && strstr(rig->answer, rig->until)))
		event_loop_stop(rig->loop);
}

static void on_deadline(void *arg)
{
	struct rig *rig = arg;

	rig->timed_out = true;
	event_loop_stop(rig->loop);
}

/* The answer up to `until`, while the loop turns; "" when none came in time. */
static const char *receive(struct rig *rig, int fd, const char *until)
{
	struct event_source *source = NULL, *deadline = NULL;
	struct error err = {0};

	rig->size = 0;
	rig->answer[0] = '\0';
	rig->until = until;
	rig->timed_out = false;
	if (event_loop_add_fd(rig->loop, fd, EPOLLIN, on_answer, rig, &source, &err) ||
	    event_loop_add_timer(rig->loop, DEADLINE_MS, 0, on_deadline, rig, &deadline, &err) ||
	    event_loop_run(rig->loop, &err))
		return "";
	event_loop_remove(source);
	if (rig->timed_out)
		return "";
	event_loop_remove(deadline);
	return rig->answer;
}

static bool say(int fd, const char *text)
{
	return send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text);
}

static const char *ask_family(struct rig *rig, int family, const char *request)
{
	scoped_fd int fd = dial(rig, family);

	return fd >= 0 && say(fd, request) ? receive(rig, fd, NULL) : "";
}

#define HEAD_END " HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"

static const char *ask(struct rig *rig, const char *request)
{
	return ask_family(rig, AF_INET, request);
}

/* ---- the address ----------------------------------------------------------------------------- */

TEST(addresses)
{
	static const char *const wrong[] = {
		"",
		":",
		"9090",
		"localhost:9090",
		"1.2.3:80",
		"::1:80",
		"[1.2.3.4]:80",
		"[::1]80",
		"[::1]",
		"1.2.3.4",
		"1.2.3.4:",
		"1.2.3.4:x",
		"1.2.3.4:-1",
		"1.2.3.4:65536",
		"1.2.3.4:80x",
		"[fe80::1%lo]:80",
		" 1.2.3.4:80",
		"a:b:80",
	};
	struct metrics_address a;
	struct error err = {0};
	char text[IP_ADDRESS_TEXT_MAX];

	CHECK(!metrics_address_parse("192.0.2.1:9090", &a, &err));
	CHECK(!a.all);
	CHECK_EQ(a.port, 9090);
	CHECK_STR(ip_address_format(&a.address, text), "192.0.2.1");
	CHECK(!metrics_address_parse("[2001:db8::1]:80", &a, &err));
	CHECK_STR(ip_address_format(&a.address, text), "2001:db8::1");
	CHECK(!metrics_address_parse(":9090", &a, &err));
	CHECK(a.all);
	CHECK_EQ(a.port, 9090);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		if (metrics_address_parse(wrong[i], &a, &err) == -EINVAL)
			continue;
		printf("# \"%s\" was taken\n", wrong[i]);
		return TEST_FAILED;
	}
	return TEST_OK;
}

TEST(listens_on_one_address_or_on_all)
{
	static struct rig rig;
	struct error err = {0};

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	CHECK_HAS(ask(&rig, "GET /healthz" HEAD_END), "200 OK");
	CHECK_EQ(dial(&rig, AF_INET6), -1);
	rig_close(&rig);
	CHECK(!rig_open(&rig, "[::1]:0", 0, &err));
	CHECK_HAS(ask_family(&rig, AF_INET6, "GET /healthz" HEAD_END), "200 OK");
	CHECK_EQ(dial(&rig, AF_INET), -1);
	rig_close(&rig);
	CHECK(!rig_open(&rig, ":0", 0, &err));
	CHECK_HAS(ask_family(&rig, AF_INET6, "GET /healthz" HEAD_END), "200 OK");
	CHECK_HAS(ask(&rig, "GET /healthz" HEAD_END), "200 OK");
	rig_close(&rig);
	return TEST_OK;
}

TEST(an_address_that_is_in_use_is_an_error_that_names_the_option)
{
	static struct rig rig, other;
	struct error err = {0};
	char address[32];

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	snprintf(address, sizeof(address), "127.0.0.1:%u", metrics_server_port(rig.server));
	CHECK_EQ(rig_open(&other, address, 0, &err), -EADDRINUSE);
	CHECK_HAS(err.text, "--metrics-address 127.0.0.1:");
	rig_close(&other);
	rig_close(&rig);
	return TEST_OK;
}

/* ---- what is answered ------------------------------------------------------------------------ */

TEST(metrics_health_and_readiness)
{
	static struct rig rig;
	struct error err = {0};
	const char *answer;

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	answer = ask(&rig, "GET /metrics" HEAD_END);
	CHECK_HAS(answer, "HTTP/1.1 200 OK\r\n");
	CHECK_HAS(answer, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n");
	CHECK_HAS(answer, "\r\n\r\n# figures\n");
	CHECK_HAS(ask(&rig, "GET /metrics?x=y" HEAD_END), "# figures\n");
	CHECK_HAS(ask(&rig, "GET /healthz" HEAD_END), "\r\n\r\nok\n");
	CHECK_HAS(ask(&rig, "GET /readyz" HEAD_END), "200 OK");
	rig.not_ready = "the tide is out";
	answer = ask(&rig, "GET /readyz" HEAD_END);
	CHECK_HAS(answer, "HTTP/1.1 503 ");
	CHECK_HAS(answer, "not ready: the tide is out\n");
	CHECK_HAS(ask(&rig, "GET /healthz" HEAD_END), "200 OK");
	rig_close(&rig);
	return TEST_OK;
}

TEST(anything_else_is_refused)
{
	static struct rig rig;
	struct error err = {0};
	const char *answer;

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	CHECK_HAS(ask(&rig, "GET /" HEAD_END), "HTTP/1.1 404 ");
	CHECK_HAS(ask(&rig, "GET /metrics/" HEAD_END), "HTTP/1.1 404 ");
	answer = ask(&rig, "DELETE /metrics" HEAD_END);
	CHECK_HAS(answer, "HTTP/1.1 405 ");
	CHECK_HAS(answer, "Allow: GET, HEAD\r\n");
	/* The body is never waited for, nor read. */
	CHECK_HAS(ask(&rig, "POST /metrics HTTP/1.1\r\nHost: n\r\nContent-Length: 9999\r\n\r\nx"),
		  "HTTP/1.1 405 ");
	CHECK_HAS(ask(&rig, "GET /metrics HTTP/1.1\r\nHost: n\r\nContent-Length: 9999\r\n\r\nx"),
		  "HTTP/1.1 413 ");
	CHECK_HAS(
		ask(&rig, "GET /metrics HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"),
		"HTTP/1.1 413 ");
	CHECK_EQ(rig.n_texts, 0);
	answer = ask(&rig, "HEAD /metrics" HEAD_END);
	CHECK_HAS(answer, "HTTP/1.1 200 OK\r\n");
	CHECK_HAS(answer, "Content-Length: 10\r\n");
	CHECK(!strstr(answer, "figures"));
	CHECK(!strstr(ask(&rig, "nonsense\r\n\r\n"), "200 OK"));
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_connection_carries_several_requests_and_the_text_is_made_once)
{
	static struct rig rig;
	struct error err = {0};
	scoped_fd int fd = -1;

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	fd = dial(&rig, AF_INET);
	for (int i = 0; i < 20; i++) {
		CHECK(say(fd, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n"));
		CHECK_HAS(receive(&rig, fd, "figures\n"), "200 OK");
	}
	CHECK(rig.n_texts >= 1 && rig.n_texts < 10); /* one a second, on a slow machine too */
	rig_close(&rig);
	return TEST_OK;
}

TEST(without_memory_for_the_text_it_says_so)
{
	static struct rig rig;
	struct error err = {0};

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	rig.text = NULL;
	CHECK_HAS(ask(&rig, "GET /metrics" HEAD_END), "HTTP/1.1 500 ");
	rig.text = "# again\n";
	CHECK_HAS(ask(&rig, "GET /metrics" HEAD_END), "# again\n");
	rig_close(&rig);
	return TEST_OK;
}

/* ---- who is slow ----------------------------------------------------------------------------- */

TEST(a_long_text_reaches_who_reads_late)
{
	static struct rig rig;
	static char text[200 * 1024];
	struct error err = {0};
	scoped_fd int fd = -1;

	memset(text, 'x', sizeof(text) - 2);
	memcpy(text + sizeof(text) - 6, "end\n", 5);
	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	rig.text = text;
	fd = dial(&rig, AF_INET);
	CHECK(say(fd, "GET /metrics" HEAD_END));
	CHECK_HAS(ask(&rig, "GET /healthz" HEAD_END), "200 OK"); /* meanwhile */
	CHECK_HAS(receive(&rig, fd, NULL), "end\n");
	CHECK(rig.size > strlen(text));
	rig_close(&rig);
	return TEST_OK;
}

static void on_drop(void *arg)
{
	say(*(const int *)arg, "X"); /* of a header that never ends */
}

TEST(who_sends_a_byte_now_and_then_is_cut_off)
{
	static struct rig rig;
	struct event_source *drops;
	struct error err = {0};
	scoped_fd int fd = -1;
	int64_t since_ms;

	CHECK(!rig_open(&rig, "127.0.0.1:0", 300, &err));
	fd = dial(&rig, AF_INET);
	since_ms = monotonic_ms();
	CHECK(say(fd, "GET /metrics HTTP/1.1\r\n"));
	CHECK(!event_loop_add_timer(rig.loop, 50, 50, on_drop, &fd, &drops, &err));
	receive(&rig, fd, NULL);
	CHECK(!rig.timed_out);
	CHECK(monotonic_ms() - since_ms >= 300);
	CHECK_EQ(rig.n_texts, 0);
	event_loop_remove(drops);
	rig_close(&rig);
	return TEST_OK;
}

TEST(one_more_than_there_may_be_waits_for_a_place)
{
	static struct rig rig;
	struct error err = {0};
	int fds[VISITORS_MAX + 1];

	CHECK(!rig_open(&rig, "127.0.0.1:0", 500, &err));
	for (int i = 0; i <= VISITORS_MAX; i++)
		fds[i] = dial(&rig, AF_INET);
	/* Silent ones lose their places. */
	CHECK(say(fds[VISITORS_MAX], "GET /healthz" HEAD_END));
	CHECK_HAS(receive(&rig, fds[VISITORS_MAX], NULL), "200 OK");
	CHECK_STR(receive(&rig, fds[0], NULL), "");
	CHECK(!rig.timed_out);
	rig_close(&rig);
	for (int i = 0; i <= VISITORS_MAX; i++)
		close(fds[i]);
	return TEST_OK;
}

TEST(ends_while_somebody_is_connected)
{
	static struct rig rig;
	struct error err = {0};
	scoped_fd int fd = -1;

	CHECK(!rig_open(&rig, "127.0.0.1:0", 0, &err));
	fd = dial(&rig, AF_INET);
	CHECK(say(fd, "GET /metr"));
	CHECK_HAS(ask(&rig, "GET /healthz" HEAD_END), "200 OK");
	metrics_server_close(rig.server);
	rig.server = NULL;
	CHECK_STR(receive(&rig, fd, NULL), "");
	CHECK(!rig.timed_out);
	metrics_server_close(NULL);
	rig_close(&rig);
	return TEST_OK;
}
