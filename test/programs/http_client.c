/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An application's client, in the ways in which programs read from sockets:
 *
 *	http_client [--way WAY] [--each] [--static] [--count N] [--seconds N] ADDRESS PORT
 *
 *	nonblocking     poll, then recv
 *	blocking        recv
 *	timed           as Java's sockets with timeouts: a dual-stack socket that dials mapped
 *	                addresses, non-blocking from its connect on, poll with a timeout, recv
 *	available       the same, and nothing is read that FIONREAD has not announced
 *	waitall         blocking, every recv with MSG_WAITALL
 *	turned          connects non-blocking, then blocks (hiredis and others)
 *	turned-waitall  both
 *	splice          non-blocking, edge-triggered: spliced into a pipe, read from there
 *
 * COUNT requests of the sizes and kinds below on one connection, or on one --each; every byte of
 * the answers is compared. The exit status says how it went: 0 right; 3 nothing came although it
 * was sent (--seconds in all); 4 a call did what TCP's does not; 5 a wrong byte; 6 the end came
 *before all that was sent; 1 anything else.
 */
#include "bench_net.h"
#include "http_stream.h"

#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

enum { STALLED = 3, UNLIKE_TCP = 4, WRONG_BYTES = 5, CUT_SHORT = 6 };

static const unsigned sizes[] = {1, 64, 1000, 16384, 1048576};
enum { N_SIZES = sizeof(sizes) / sizeof(sizes[0]) };

enum kind { BYTES, CHUNKED, ECHO, ECHO_CHUNKED, N_KINDS };
static const char *const kind_names[] = {"bytes", "chunked", "echo", "echo"};

struct way {
	const char *name;
	ssize_t (*receive)(struct http_stream *, void *, size_t);
	bool nonblocking_connect, blocking, dual_stack, exact;
};

static struct {
	const struct way *way;
	union bench_address to;
	const char *host;
	bool each, is_static;
	unsigned count, seconds;
} options = {.count = 40, .seconds = 20};

static uint64_t deadline_ns;
static unsigned requests;

static void alarmed(int sig)
{
	(void)sig; /* interrupts what blocks */
}

static __attribute__((noreturn)) void stalled(const struct http_stream *s, const char *what)
{
	int waiting = -1;

	ioctl(s->fd, FIONREAD, &waiting);
	printf("stalled in %s after %u requests; FIONREAD says %d\n", what, requests, waiting);
	exit(STALLED);
}

static __attribute__((noreturn)) void unlike_tcp(const char *what, long long detail)
{
	printf("unlike TCP after %u requests: %s (%lld)\n", requests, what, detail);
	exit(UNLIKE_TCP);
}

static void set_time_left(struct http_stream *s)
{
	uint64_t now = bench_now_ns();

	s->timeout_ms = now < deadline_ns ? (deadline_ns - now) / 1000000 + 1 : 0;
}

static ssize_t receive_polled(struct http_stream *s, void *to, size_t size)
{
	for (;;) {
		ssize_t n = recv(s->fd, to, size, 0);

		if (n >= 0)
			return n;
		if (errno != EAGAIN)
			return -errno;
		set_time_left(s);
		if (http_wait(s, POLLIN) == -ETIMEDOUT)
			stalled(s, "poll");
	}
}

/* The order in which Java waits: first poll, then read. */
static ssize_t receive_timed(struct http_stream *s, void *to, size_t size)
{
	ssize_t n;

	set_time_left(s);
	if (http_wait(s, POLLIN) == -ETIMEDOUT)
		stalled(s, "poll");
	n = recv(s->fd, to, size, 0);
	if (n < 0 && errno == EAGAIN) {
		if (bench_now_ns() > deadline_ns)
			stalled(s, "a recv that poll called for");
		return receive_timed(s, to, size);
	}
	return n < 0 ? -errno : n;
}

static ssize_t receive_available(struct http_stream *s, void *to, size_t size)
{
	int n = 0;

	while (!n) {
		struct timespec ms = {.tv_nsec = 1000000};
		struct pollfd p = {.fd = s->fd, .events = POLLRDHUP};

		if (ioctl(s->fd, FIONREAD, &n))
			return -errno;
		if (n || poll(&p, 1, 0) > 0)
			break;
		if (bench_now_ns() > deadline_ns)
			stalled(s, "FIONREAD");
		nanosleep(&ms, NULL);
	}
	return receive_polled(s, to, n && (size_t)n < size ? (size_t)n : size);
}

static ssize_t receive_blocking(struct http_stream *s, void *to, size_t size)
{
	ssize_t n = recv(s->fd, to, size, options.way->exact ? MSG_WAITALL : 0);

	if (n < 0 && errno == EINTR)
		stalled(s, "a blocking recv");
	if (n < 0 && errno == EAGAIN)
		unlike_tcp("EAGAIN from a recv that blocks", size);
	if (n > 0 && (size_t)n < size && options.way->exact)
		unlike_tcp("MSG_WAITALL did not wait for all", n);
	return n < 0 ? -errno : n;
}

static ssize_t receive_spliced(struct http_stream *s, void *to, size_t size)
{
	struct epoll_event e;
	ssize_t n;

	for (;;) {
		n = splice(s->fd, NULL, s->pipe[1], NULL, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
		if (n >= 0 || errno != EAGAIN)
			break;
		set_time_left(s);
		if (!s->timeout_ms || !epoll_wait(s->epoll, &e, 1, s->timeout_ms))
			stalled(s, "splice");
	}
	if (n < 0)
		return -errno;
	return n ? read(s->pipe[0], to, n) : 0;
}

static const struct way ways[] = {
	{"nonblocking", receive_polled, .nonblocking_connect = true},
	{"blocking", receive_blocking, .blocking = true},
	{"timed", receive_timed, .nonblocking_connect = true, .dual_stack = true},
	{"available", receive_available, .nonblocking_connect = true, .dual_stack = true},
	{"waitall", receive_blocking, .blocking = true, .exact = true},
	{"turned", receive_blocking, .nonblocking_connect = true, .blocking = true},
	{"turned-waitall", receive_blocking, .nonblocking_connect = true, .blocking = true,
	 .exact = true},
	{"splice", receive_spliced, .nonblocking_connect = true},
};

/* ::ffff:a.b.c.d */
static union bench_address mapped(const union bench_address *v4)
{
	union bench_address a = {.v6 = {.sin6_family = AF_INET6, .sin6_port = v4->v4.sin_port}};

	a.v6.sin6_addr.s6_addr[10] = a.v6.sin6_addr.s6_addr[11] = 0xff;
	memcpy(a.v6.sin6_addr.s6_addr + 12, &v4->v4.sin_addr, 4);
	return a;
}

static void dial(struct http_stream *s)
{
	const struct way *way = options.way;
	union bench_address to = options.to;
	int flags, error = 0, off = 0;
	socklen_t len = sizeof(error);
	struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};

	if (way->dual_stack && to.any.sa_family == AF_INET)
		to = mapped(&to);
	s->start = s->end = 0;
	s->fd = socket(to.any.sa_family,
		       SOCK_STREAM | SOCK_CLOEXEC | (way->nonblocking_connect ? SOCK_NONBLOCK : 0),
		       0);
	if (s->fd < 0)
		err(1, "socket");
	if (way->dual_stack && setsockopt(s->fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)))
		err(1, "IPV6_V6ONLY");
	bench_no_delay(s->fd);
	if (connect(s->fd, &to.any, bench_address_size(&to))) {
		if (errno != EINPROGRESS)
			err(1, "connect");
		set_time_left(s);
		if (http_wait(s, POLLOUT) ||
		    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len) || error)
			errx(1, "connect: %s", strerror(error));
	}
	e.data.fd = s->fd;
	if (way->receive == receive_spliced && epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->fd, &e))
		err(1, "epoll");
	if (way->nonblocking_connect && way->blocking) {
		flags = fcntl(s->fd, F_GETFL);
		if (flags < 0 || fcntl(s->fd, F_SETFL, flags & ~O_NONBLOCK))
			err(1, "fcntl");
	}
}

static int request(struct http_stream *s, enum kind kind, size_t size, const unsigned char *body)
{
	char head[256], length[48] = "";
	int rc, len;

	if (kind == ECHO)
		sprintf(length, "Content-Length: %zu\r\n", size);
	else if (kind == ECHO_CHUNKED)
		sprintf(length, "Transfer-Encoding: chunked\r\n");
	len = snprintf(head, sizeof(head), "%s %s/%s/%zu/%u HTTP/1.1\r\nHost: %s\r\n%s%s\r\n",
		       kind >= ECHO ? "POST" : "GET", options.is_static ? "/static" : "",
		       kind_names[kind], size, options.is_static ? 0 : requests, options.host,
		       length, options.each ? "Connection: close\r\n" : "");
	rc = http_send(s, head, len, 0);
	if (rc || kind < ECHO)
		return rc;
	return kind == ECHO ? http_send(s, body, size, 0) : http_send_chunks(s, body, size);
}

static void exchange(struct http_stream *s, enum kind kind, size_t size, unsigned char *body)
{
	uint32_t seed = options.is_static ? 0 : requests;
	struct http_message m = {0};
	size_t got = 0;
	int rc;

	http_fill(body, size, seed);
	rc = request(s, kind, size, body);
	if (rc == -ETIMEDOUT || rc == -EINTR)
		stalled(s, "sending");
	memset(body, 0, size);
	if (!rc)
		rc = http_head(s, &m);
	if (!rc)
		rc = http_body(s, &m, body, &got);
	if (rc) {
		bool ended = rc == -EPIPE || rc == -ENODATA;

		printf("request %u (%s, %zu bytes): %s\n", requests, kind_names[kind], size,
		       ended ? "the end came too early" : strerror(-rc));
		exit(ended ? CUT_SHORT : 1);
	}
	if (!strstr(m.first, " 200")) {
		printf("request %u (%s, %zu bytes): %s\n", requests, kind_names[kind], size,
		       m.first);
		exit(1);
	}
	for (size_t i = 0; i < got && i < size; i++)
		if (body[i] != http_byte(i, seed)) {
			printf("request %u (%s): byte %zu of %zu is wrong\n", requests,
			       kind_names[kind], i, size);
			exit(WRONG_BYTES);
		}
	if (got != size) {
		printf("request %u (%s): %zu of %zu bytes\n", requests, kind_names[kind], got,
		       size);
		exit(WRONG_BYTES);
	}
}

static void run(struct http_stream *s, unsigned char *body)
{
	unsigned kinds = options.is_static ? 1 : N_KINDS;

	for (requests = 0; requests < options.count; requests++) {
		if (!requests || options.each)
			dial(s);
		exchange(s, requests % kinds, sizes[requests / kinds % N_SIZES], body);
		if (options.each)
			close(s->fd);
	}
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{"way", required_argument, NULL, 'w'},	   {"each", no_argument, NULL, 'e'},
		{"static", no_argument, NULL, 's'},	   {"count", required_argument, NULL, 'n'},
		{"seconds", required_argument, NULL, 't'}, {0},
	};
	const char *name = "nonblocking";
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 'w')
			name = optarg;
		else if (c == 'e')
			options.each = true;
		else if (c == 's')
			options.is_static = true;
		else if (c == 'n')
			options.count = strtoul(optarg, NULL, 10);
		else if (c == 't')
			options.seconds = strtoul(optarg, NULL, 10);
		else
			exit(2);
	}
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		if (!strcmp(ways[i].name, name))
			options.way = &ways[i];
	if (!options.way || argc - optind != 2)
		errx(2, "usage: http_client [--way WAY] [--each] [--static] [--count N] "
			"[--seconds N] ADDRESS PORT");
	options.host = argv[optind];
	options.to = bench_address(options.host, bench_port(argv[optind + 1]));
}

int main(int argc, char **argv)
{
	static struct http_stream stream;
	struct sigaction on_alarm = {.sa_handler = alarmed}; /* without SA_RESTART */
	unsigned char *body = malloc(HTTP_BODY_MAX);

	parse(argc, argv);
	stream.epoll = epoll_create1(EPOLL_CLOEXEC);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!body || pipe2(stream.pipe, O_CLOEXEC | O_NONBLOCK))
		err(1, "pipe");
	stream.receive = options.way->receive;
	stream.exact = options.way->exact;
	deadline_ns = bench_now_ns() + options.seconds * UINT64_C(1000000000);
	sigaction(SIGALRM, &on_alarm, NULL);
	alarm(options.seconds);
	run(&stream, body);
	printf("%u requests right\n", requests);
	return 0;
}
