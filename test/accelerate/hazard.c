/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One test for each hazard of a sockmap, with both ends of a connection in this one process, so
 * that what happens when is certain: a proxy of pod A that connects to pod B, and B's proxy.
 *
 *   ACCELERATE_PINS=DIR hazard A-CGROUP A-NETNS B-CGROUP B-NETNS B-IPV4 B-IPV6 [TEST...]
 *
 * "short" means that a send did not pass the TCP stack: its bytes are not in tcp_info. Prints a
 * line of TAP, without a number, for each test, or for those whose name begins with one of the
 * TESTs; exits 0 when none failed. Those of memory, and of the whole machine, only when they are
 * asked for.
 */
#include "accelerate_abi.h"
#include "bench_net.h"

#include <linux/bpf.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum {
	PROXY = 1337,
	APP = 1000,
	OUTBOUND = 15001,
	INBOUND = 15006,
	DIALLED = 8080,
	MAX_BYTES = 1 << 20, /* --accelerate-max-bytes, -messages and -pod-budget */
	MAX_MESSAGES = 1024,
	POD_BUDGET = 64 << 20,
	ALLOWANCE = 32 << 10,
	MESSAGE_COST = 4096,
};

struct pod {
	char procs[256];
	int netns;
};

struct ends {
	int client, server;
};

static struct pod pod_a, pod_b;
static int home_netns; /* that we were started in */

/* What is waited for at most; times SOCKMESH_TEST_PATIENCE. */
static int patience_ms = 5000;
static const char *b_ipv4, *b_ipv6;
static char why[256];
static char skipped[128]; /* why this machine cannot try the test that returned true */

#define FAIL(...)                                                                                  \
	do {                                                                                       \
		snprintf(why, sizeof(why), __VA_ARGS__);                                           \
		return false;                                                                      \
	} while (0)
#define SKIP(...)                                                                                  \
	do {                                                                                       \
		snprintf(skipped, sizeof(skipped), __VA_ARGS__);                                   \
		return true;                                                                       \
	} while (0)
#define WANT(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			FAIL("line %d: not %s (errno: %s)", __LINE__, #condition,                  \
			     strerror(errno));                                                     \
	} while (0)

/* ---- sockets of pods ------------------------------------------------------------------------- */

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(2, "write %s", path);
	close(fd);
}

/* From here on sockets are made in this pod. */
static void enter(const struct pod *pod)
{
	write_text(pod->procs, "0");
	if (setns(pod->netns, CLONE_NEWNET))
		err(2, "setns");
}

static void go_home(void)
{
	if (setns(home_netns, CLONE_NEWNET))
		err(2, "setns");
}

static int socket_as(const struct pod *pod, uid_t uid, int family, int type, int protocol)
{
	int fd;

	enter(pod);
	if (seteuid(uid))
		err(2, "seteuid");
	fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | type, protocol);
	if (seteuid(0))
		err(2, "seteuid");
	if (fd < 0)
		err(2, "socket");
	return fd;
}

static void listen_on(int fd, uint16_t port, int backlog)
{
	struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int on = 1, off = 0;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, backlog))
		err(2, "listen on %d", port);
}

static int listen_as(const struct pod *pod, uid_t uid, uint16_t port, int protocol, int backlog)
{
	int fd = socket_as(pod, uid, AF_INET6, SOCK_NONBLOCK, protocol);

	listen_on(fd, port, backlog);
	return fd;
}

static bool ready(int fd, short events, int ms)
{
	struct pollfd p = {.fd = fd, .events = events};

	/* A reset is an error first, and readable a moment later. */
	return poll(&p, 1, ms) == 1 && (p.revents & (events | POLLERR | POLLHUP));
}

static int dial_as(const struct pod *pod, uid_t uid, const union bench_address *to, int type)
{
	int fd = socket_as(pod, uid, to->any.sa_family, type, 0);

	bench_no_delay(fd);
	if (connect(fd, &to->any, bench_address_size(to)) && errno != EINPROGRESS)
		err(2, "connect");
	ready(fd, POLLOUT, patience_ms);
	return fd;
}

static int accept_one(int listener)
{
	int fd;

	if (!ready(listener, POLLIN, patience_ms))
		return -1;
	fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0)
		bench_no_delay(fd);
	return fd;
}

/* B's proxy, for every test: the accelerator has to know a listener first. */
static int inbound = -1;

static struct ends open_to(const char *address)
{
	union bench_address to = bench_address(address, DIALLED);
	struct ends e = {.client = dial_as(&pod_a, PROXY, &to, SOCK_NONBLOCK)};

	e.server = accept_one(inbound);
	if (e.server < 0)
		err(2, "no connection arrives");
	return e;
}

static struct ends open_ends(void)
{
	return open_to(b_ipv4);
}

static void close_ends(struct ends *e)
{
	close(e->client);
	close(e->server);
}

static void reset(int fd)
{
	struct linger linger = {.l_onoff = 1};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

/* ---- what was sent, and how ------------------------------------------------------------------ */

/* As far as it is needed; libc's ends earlier. */
struct long_tcp_info {
	struct tcp_info base;
	uint64_t rates[2], bytes_acked, bytes_received;
	uint32_t segs[2], notsent_bytes, min_rtt, data_segs[2];
	uint64_t delivery_rate, times[3];
	uint32_t delivered[2];
	uint64_t bytes_sent, bytes_retrans;
};
_Static_assert(offsetof(struct long_tcp_info, bytes_sent) == 200, "as in linux/tcp.h");

static struct long_tcp_info long_tcp_info(int fd)
{
	struct long_tcp_info info = {0};
	socklen_t size = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
		err(2, "TCP_INFO");
	return info;
}

static uint64_t by_tcp(int fd)
{
	struct long_tcp_info info = long_tcp_info(fd);

	return info.bytes_sent - info.bytes_retrans + info.notsent_bytes;
}

/* All that the client has sent by TCP is in the server's queue, and has been announced. */
static bool has_arrived(const struct ends *e)
{
	for (int ms = 0; ms < patience_ms; ms++) {
		if (long_tcp_info(e->server).bytes_received == by_tcp(e->client))
			return true;
		poll(NULL, 0, 1);
	}
	return false;
}

enum way { FAILED, TCP, SHORT };

static enum way say(int fd, const char *text)
{
	uint64_t before = by_tcp(fd);

	if (send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
		return FAILED;
	return by_tcp(fd) == before ? SHORT : TCP;
}

/* Are these exactly the next bytes? */
static bool hears(int fd, const char *text)
{
	char buf[256];
	size_t got = 0, wanted = strlen(text);

	while (got < wanted) {
		ssize_t n;

		if (!ready(fd, POLLIN, patience_ms))
			return false;
		n = recv(fd, buf + got, wanted - got, 0);
		if (n <= 0)
			return false;
		got += (size_t)n;
	}
	return !memcmp(buf, text, wanted) && recv(fd, buf, 1, MSG_PEEK) < 0 && errno == EAGAIN;
}

/* TCP takes thousands of small segments that nobody reads, each of which costs it a kilobyte. */
static void make_roomy(const struct ends *e)
{
	int bytes = 16 << 20;

	if (setsockopt(e->client, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) ||
	    setsockopt(e->server, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)))
		err(2, "make room");
}

static bool hears_end(int fd)
{
	char byte;

	return ready(fd, POLLIN, patience_ms) && recv(fd, &byte, 1, 0) == 0;
}

static bool is_duplex(const struct ends *e)
{
	return say(e->client, "ping") != FAILED && hears(e->server, "ping") &&
	       say(e->server, "pong") != FAILED && hears(e->client, "pong");
}

/* Until the accelerator knows the listener, connections stay on TCP: has this one gone so far? */
static bool goes_short(struct ends *e, bool *ret_works)
{
	enum way way = FAILED;

	*ret_works = e->server >= 0 && is_duplex(e);
	if (*ret_works)
		way = say(e->client, "how");
	close_ends(e);
	return way == SHORT;
}

static bool is_met(int listener, const struct pod *from, uid_t uid, const union bench_address *to)
{
	bool works = true;

	for (int i = 0; i < 50 && works; i++) {
		struct ends e = {.client = dial_as(from, uid, to, SOCK_NONBLOCK)};

		e.server = accept_one(listener);
		if (goes_short(&e, &works))
			return true;
	}
	return false;
}

/* Sends until it would block, a limit or `most`; returns what went the short way. */
static uint64_t flood(int fd, size_t message, uint64_t most, uint64_t *ret_all)
{
	static char data[64 << 10];
	uint64_t all = 0, before = by_tcp(fd);

	while (all < most) {
		ssize_t n = send(fd, data, message, MSG_NOSIGNAL);

		if (n < 0)
			break;
		all += (uint64_t)n;
	}
	*ret_all = all;
	return all - (by_tcp(fd) - before);
}

/* ---- what the accelerator counts ----------------------------------------------------------------
 */

static int sys_bpf(int cmd, union bpf_attr *attr)
{
	return (int)syscall(__NR_bpf, cmd, attr, sizeof(*attr));
}

static int pinned(const char *name)
{
	const char *dir = getenv("ACCELERATE_PINS");
	char path[512];
	union bpf_attr attr = {.pathname = (unsigned long)path};
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir ? dir : ".", name);
	fd = sys_bpf(BPF_OBJ_GET, &attr);
	if (fd < 0)
		err(2, "ACCELERATE_PINS: %s", path);
	return fd;
}

static void map_call(int cmd, const char *name, const void *key, void *value)
{
	int fd = pinned(name);
	union bpf_attr attr = {
		.map_fd = (unsigned)fd, .key = (unsigned long)key, .value = (unsigned long)value};

	if (sys_bpf(cmd, &attr))
		err(2, "%s", name);
	close(fd);
}

/* Of the whole node. */
static struct accel_usage usage(void)
{
	struct accel_usage u = {0};
	const uint64_t node = 0;

	map_call(BPF_MAP_LOOKUP_ELEM, "accel_usage", &node, &u);
	return u;
}

/* How often an event has been counted, on all CPUs. */
static uint64_t counted(uint32_t event)
{
	static uint64_t each[4096];
	uint64_t sum = 0;

	memset(each, 0, sizeof(each));
	map_call(BPF_MAP_LOOKUP_ELEM, "accel_counters", &event, each);
	for (size_t i = 0; i < sizeof(each) / sizeof(each[0]); i++)
		sum += each[i];
	return sum;
}

static bool comes_back_to(const struct accel_usage *before)
{
	struct accel_usage u = usage();

	for (int ms = 0; ms < patience_ms; ms += 20) {
		if (u.sockets == before->sockets && u.claimed == before->claimed)
			return true;
		poll(NULL, 0, 20);
		u = usage();
	}
	FAIL("%lld sockets and %lld bytes are counted too many for ever",
	     (long long)(u.sockets - before->sockets), (long long)(u.claimed - before->claimed));
}

/* Before a test: nothing, as soon as the last one's sockets have ended. */
static struct accel_usage usage_at_rest(void)
{
	const struct accel_usage none = {0};

	comes_back_to(&none);
	return usage();
}

/* What `--accelerate off` does first. */
static void brake(bool on)
{
	struct accel_control control = {0};
	const uint32_t zero = 0;

	map_call(BPF_MAP_LOOKUP_ELEM, "accel_control", &zero, &control);
	control.stopped = on;
	map_call(BPF_MAP_UPDATE_ELEM, "accel_control", &zero, &control);
}

/* ---- the tests ------------------------------------------------------------------------------- */

static bool short_both_ways(void)
{
	struct ends e = open_ends();

	WANT(say(e.client, "ping") == SHORT && hears(e.server, "ping"));
	WANT(say(e.server, "pong") == SHORT && hears(e.client, "pong"));
	close_ends(&e);
	return true;
}

/* What is sent before accept() goes by TCP, because nobody knows the accepted socket's mode yet. */
static bool reorder(void)
{
	union bench_address to = bench_address(b_ipv4, DIALLED);
	struct ends e = {.client = dial_as(&pod_a, PROXY, &to, SOCK_NONBLOCK)};

	WANT(say(e.client, "AAAA") == TCP);
	WANT((e.server = accept_one(inbound)) >= 0);
	WANT(say(e.client, "BBBB") != FAILED);
	WANT(hears(e.server, "AAAABBBB"));
	WANT(say(e.client, "CCCC") == SHORT && hears(e.server, "CCCC"));
	close_ends(&e);
	return true;
}

static bool overflow(void)
{
	enum { CLIENTS = 12 };
	union bench_address to = bench_address(b_ipv4, DIALLED);
	int clients[CLIENTS], servers[CLIENTS];
	bool right = true;

	WANT(!listen(inbound, 1));
	for (int i = 0; i < CLIENTS; i++) {
		clients[i] = socket_as(&pod_a, PROXY, AF_INET, SOCK_NONBLOCK, 0);
		bench_no_delay(clients[i]);
		connect(clients[i], &to.any, bench_address_size(&to));
	}
	for (int i = 0; i < CLIENTS; i++)
		if (ready(clients[i], POLLOUT, 100))
			say(clients[i], "AAAA");
		else
			reset(clients[i]), clients[i] = -1;
	for (int i = 0; i < CLIENTS; i++) {
		servers[i] = -1;
		if (ready(inbound, POLLIN, i ? 300 : patience_ms))
			servers[i] = accept_one(inbound);
	}
	WANT(!listen(inbound, 4096));
	for (int i = 0; i < CLIENTS; i++)
		if (clients[i] >= 0)
			say(clients[i], "BBBB");
	for (int i = 0; i < CLIENTS; i++)
		if (servers[i] >= 0)
			right &= hears(servers[i], "AAAABBBB");
	for (int i = 0; i < CLIENTS; i++) {
		close(clients[i]);
		close(servers[i]);
	}
	/* Those that came later than we looked. */
	while (ready(inbound, POLLIN, 100))
		close(accept_one(inbound));
	WANT(right);
	return true;
}

/* The first segment with data makes the accepted socket: it has moved data and must stay out. */
static bool deferred(void)
{
	union bench_address to = bench_address(b_ipv4, DIALLED);
	int seconds = 5, off = 0;
	struct ends e;

	WANT(!setsockopt(inbound, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds)));
	e.client = dial_as(&pod_a, PROXY, &to, SOCK_NONBLOCK);
	say(e.client, "AAAA");
	say(e.client, "BBBB");
	e.server = accept_one(inbound);
	setsockopt(inbound, IPPROTO_TCP, TCP_DEFER_ACCEPT, &off, sizeof(off));
	WANT(e.server >= 0 && hears(e.server, "AAAABBBB"));
	WANT(say(e.client, "CCCC") == TCP && hears(e.server, "CCCC"));
	WANT(say(e.server, "DDDD") == TCP && hears(e.client, "DDDD"));
	close_ends(&e);
	return true;
}

static bool fast_open(void)
{
	union bench_address to = bench_address(b_ipv4, DIALLED);
	int queue = 16, off = 0;
	bool had_data = false;

	enter(&pod_a);
	write_text("/proc/sys/net/ipv4/tcp_fastopen", "3");
	enter(&pod_b);
	write_text("/proc/sys/net/ipv4/tcp_fastopen", "3");
	WANT(!setsockopt(inbound, IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof(queue)));
	/* The first asks for the cookie, later ones carry data in the SYN. */
	for (int i = 0; i < 3; i++) {
		struct ends e = {.client = socket_as(&pod_a, PROXY, AF_INET, SOCK_NONBLOCK, 0)};
		struct tcp_info info = {0};
		socklen_t size = sizeof(info);

		sendto(e.client, "AAAA", 4, MSG_FASTOPEN | MSG_NOSIGNAL, &to.any,
		       bench_address_size(&to));
		WANT((e.server = accept_one(inbound)) >= 0);
		getsockopt(e.server, IPPROTO_TCP, TCP_INFO, &info, &size);
		if (!(info.tcpi_options & TCPI_OPT_SYN_DATA)) {
			close_ends(&e);
			continue;
		}
		had_data = true;
		/* What came with the SYN can be accepted before the client has its answer. */
		WANT(ready(e.client, POLLOUT, patience_ms));
		WANT(say(e.client, "BBBB") == TCP);
		WANT(hears(e.server, "AAAABBBB"));
		WANT(say(e.client, "CCCC") == TCP && hears(e.server, "CCCC"));
		WANT(say(e.server, "DDDD") != FAILED && hears(e.client, "DDDD"));
		close_ends(&e);
	}
	setsockopt(inbound, IPPROTO_TCP, TCP_FASTOPEN, &off, sizeof(off));
	WANT(had_data);
	return true;
}

static bool syn_cookies(void)
{
	bool right;

	enter(&pod_b);
	write_text("/proc/sys/net/ipv4/tcp_syncookies", "2");
	right = reorder();
	enter(&pod_b);
	write_text("/proc/sys/net/ipv4/tcp_syncookies", "1");
	return right;
}

static bool bounded_bytes(void)
{
	struct ends e = open_ends();
	uint64_t all, shortly = flood(e.client, 64 << 10, 40 << 20, &all);

	close_ends(&e);
	WANT(shortly > MAX_BYTES / 2); /* or this test shows nothing */
	if (shortly > MAX_BYTES)
		FAIL("%llu bytes the short way to a reader that does not read",
		     (unsigned long long)shortly);
	WANT(all < 30 << 20);
	return true;
}

static bool bounded_messages(void)
{
	struct ends e = open_ends();
	uint64_t all, shortly = flood(e.client, 1, 50000, &all);

	close_ends(&e);
	WANT(shortly > MAX_MESSAGES / 2);
	if (shortly > MAX_MESSAGES)
		FAIL("%llu messages the short way to a reader that does not read",
		     (unsigned long long)shortly);
	return true;
}

static bool bounded_pod(void)
{
	enum { CONNECTIONS = 120 };
	struct ends e[CONNECTIONS];
	uint64_t all, sum = 0;

	for (int i = 0; i < CONNECTIONS; i++) {
		e[i] = open_ends();
		sum += flood(e[i].client, 64 << 10, MAX_BYTES, &all);
	}
	for (int i = 0; i < CONNECTIONS; i++)
		close_ends(&e[i]);
	WANT(sum > POD_BUDGET / 2);
	if (sum > POD_BUDGET + (uint64_t)CONNECTIONS * ALLOWANCE)
		FAIL("%llu bytes the short way to one pod that does not read",
		     (unsigned long long)sum);
	return true;
}

/* After a limit all goes by TCP, and in order. */
static bool spill_in_order(void)
{
	struct ends e = open_ends();
	uint32_t next = 0, seen = 0, got[1024];
	enum way last = FAILED;

	make_roomy(&e);
	for (; next < 3000; next++) {
		uint64_t before = by_tcp(e.client);

		if (send(e.client, &next, sizeof(next), MSG_NOSIGNAL) != sizeof(next))
			break;
		last = by_tcp(e.client) == before ? SHORT : TCP;
	}
	WANT(next == 3000 && last == TCP);
	while (seen < next && ready(e.server, POLLIN, patience_ms)) {
		ssize_t n = recv(e.server, got, sizeof(got), 0);

		WANT(n > 0 && n % (ssize_t)sizeof(got[0]) == 0);
		for (size_t i = 0; i < (size_t)n / sizeof(got[0]); i++, seen++)
			if (got[i] != seen)
				FAIL("number %u in the place of %u", got[i], seen);
	}
	WANT(seen == next);
	WANT(say(e.client, "x") == TCP && hears(e.server, "x"));
	close_ends(&e);
	return true;
}

/* The same source port again, while the server still has the old socket open. */
static bool tuple_reuse(void)
{
	union bench_address to = bench_address(b_ipv4, DIALLED);
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(41000)};
	int old[8], on = 1;
	char byte;

	for (int i = 0; i < 8; i++) {
		int fd = socket_as(&pod_a, PROXY, AF_INET, SOCK_NONBLOCK, 0);

		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		WANT(!bind(fd, (struct sockaddr *)&from, sizeof(from)));
		bench_no_delay(fd);
		WANT(!connect(fd, &to.any, bench_address_size(&to)) || errno == EINPROGRESS);
		WANT(ready(fd, POLLOUT, patience_ms));
		WANT((old[i] = accept_one(inbound)) >= 0);
		byte = (char)('a' + i);
		for (int again = 0; again < 3; again++) {
			WANT(send(fd, &byte, 1, MSG_NOSIGNAL) == 1);
			WANT(hears(old[i], (char[]){byte, 0}));
		}
		for (int before = 0; before < i; before++)
			WANT(recv(old[before], &byte, 1, MSG_DONTWAIT) <= 0);
		WANT(send(fd, "unread", 6, MSG_NOSIGNAL) == 6);
		WANT(hears(old[i], "unread"));
		reset(fd);
	}
	for (int i = 0; i < 8; i++)
		close(old[i]);
	return true;
}

/* Within both pods the proxy's connection to its application has the same addresses and ports. */
static bool equal_tuples(void)
{
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(42000)};
	union bench_address to = bench_address("127.0.0.1", 8099);
	const struct pod *pods[] = {&pod_a, &pod_b};
	static const char *const text[] = {"of pod A", "of pod B"};
	int listeners[2], on = 1;
	struct ends e[2];

	from.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < 2; i++) {
		listeners[i] = listen_as(pods[i], APP, 8099, 0, 64);
		WANT(is_met(listeners[i], pods[i], PROXY, &to));
	}
	for (int i = 0; i < 2; i++) {
		e[i].client = socket_as(pods[i], PROXY, AF_INET, SOCK_NONBLOCK, 0);
		setsockopt(e[i].client, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		WANT(!bind(e[i].client, (struct sockaddr *)&from, sizeof(from)));
		bench_no_delay(e[i].client);
		connect(e[i].client, &to.any, bench_address_size(&to));
		WANT(ready(e[i].client, POLLOUT, patience_ms));
		WANT((e[i].server = accept_one(listeners[i])) >= 0);
	}
	for (int i = 0; i < 2; i++)
		WANT(say(e[i].client, text[i]) == SHORT);
	for (int i = 0; i < 2; i++)
		WANT(hears(e[i].server, text[i]));
	for (int i = 0; i < 2; i++) {
		WANT(say(e[i].server, text[i]) == SHORT && hears(e[i].client, text[i]));
		reset(e[i].client);
		close(e[i].server);
		close(listeners[i]);
	}
	return true;
}

static bool run_ip(const struct pod *pod, const char *command)
{
	int status;

	enter(pod);
	signal(SIGCHLD, SIG_DFL); /* system() asks for the status */
	status = system(command);
	signal(SIGCHLD, SIG_IGN);
	return !status;
}

static void to_device(int fd, const char *name)
{
	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name)))
		err(2, "SO_BINDTODEVICE %s", name);
}

/* From this port of B's address, 0: any, to a listener on the same device. */
static struct ends open_on(const char *device, int listener, uint16_t port)
{
	union bench_address to = bench_address(b_ipv6, 8096), from = to;
	struct ends e = {.client = socket_as(&pod_b, PROXY, AF_INET6, SOCK_NONBLOCK, 0)};
	int on = 1;

	from.v6.sin6_port = htons(port);
	to_device(e.client, device);
	bench_no_delay(e.client);
	setsockopt(e.client, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(e.client, &from.any, bench_address_size(&from)) ||
	    (connect(e.client, &to.any, bench_address_size(&to)) && errno != EINPROGRESS))
		err(2, "connect on %s", device);
	e.server = accept_one(listener);
	return e;
}

/*
 * One pod has an address on two devices, and its application a listener on each: two connections
 * have the same addresses and ports, in the same namespace, at the same time. Only their sequence
 * numbers tell them apart.
 */
static bool twins(void)
{
	static const char *const devices[] = {"eth0", "twin"};
	static const char *const text[] = {"by eth0", "by its twin"};
	bool works = true, met = false;
	int listeners[2];
	struct ends e[2];

	for (int i = 0; i < 2; i++) {
		listeners[i] = socket_as(&pod_b, APP, AF_INET6, SOCK_NONBLOCK, 0);
		to_device(listeners[i], devices[i]);
		listen_on(listeners[i], 8096, 64);
	}
	for (int i = 0; i < 50 && works && !met; i++) {
		e[0] = open_on(devices[0], listeners[0], 0);
		met = goes_short(&e[0], &works);
	}
	WANT(met);
	for (int i = 0; i < 2; i++) {
		e[i] = open_on(devices[i], listeners[i], 43000);
		WANT(e[i].server >= 0);
	}
	for (int i = 0; i < 2; i++)
		WANT(say(e[i].client, text[i]) == SHORT);
	for (int i = 0; i < 2; i++)
		WANT(hears(e[i].server, text[i]));
	for (int i = 0; i < 2; i++) {
		WANT(say(e[i].server, text[i]) == SHORT && hears(e[i].client, text[i]));
		close_ends(&e[i]);
		close(listeners[i]);
	}
	return true;
}

static bool one_tuple_twice(void)
{
	char command[256];
	bool right;

	snprintf(command, sizeof(command),
		 "ip link add twin type veth peer name twin-peer && ip link set twin-peer up && "
		 "ip link set twin up && ip address add %s/128 dev twin nodad",
		 b_ipv6);
	WANT(run_ip(&pod_b, command));
	right = twins();
	run_ip(&pod_b, "ip link delete twin");
	return right;
}

static bool half_close(void)
{
	struct ends e = open_ends();

	WANT(say(e.client, "all") == SHORT);
	WANT(!shutdown(e.client, SHUT_WR));
	WANT(ready(e.server, POLLIN, patience_ms));
	WANT(say(e.server, "back") != FAILED && hears(e.client, "back"));
	{
		char buf[8];

		WANT(recv(e.server, buf, sizeof(buf), 0) == 3 && !memcmp(buf, "all", 3));
	}
	WANT(hears_end(e.server));
	WANT(say(e.server, "more") != FAILED && hears(e.client, "more"));
	close(e.server);
	WANT(hears_end(e.client));
	close(e.client);
	return true;
}

static bool reset_after_data(void)
{
	struct ends e = open_ends();
	char buf[8];

	WANT(say(e.client, "all") == SHORT);
	reset(e.client);
	WANT(ready(e.server, POLLIN, patience_ms));
	WANT(recv(e.server, buf, sizeof(buf), 0) == 3 && !memcmp(buf, "all", 3));
	WANT(ready(e.server, POLLERR | POLLHUP, patience_ms));
	WANT(recv(e.server, buf, sizeof(buf), 0) < 0 && errno == ECONNRESET);
	close(e.server);
	return true;
}

static bool close_after_send(void)
{
	struct ends e = open_ends();
	char buf[8];

	WANT(say(e.client, "all") == SHORT);
	close(e.client);
	WANT(ready(e.server, POLLIN, patience_ms));
	WANT(recv(e.server, buf, sizeof(buf), 0) == 3 && !memcmp(buf, "all", 3));
	WANT(hears_end(e.server));
	close(e.server);
	return true;
}

/* The end is told, though not by a reset: docs/acceleration.md. */
static bool close_unread(void)
{
	struct ends e = open_ends();

	WANT(say(e.client, "unread") == SHORT);
	close(e.server);
	WANT(ready(e.client, POLLIN, patience_ms));
	for (int i = 0; i < 10 && send(e.client, "x", 1, MSG_NOSIGNAL) == 1; i++)
		poll(NULL, 0, 20);
	errno = 0;
	WANT(send(e.client, "x", 1, MSG_NOSIGNAL) < 0 && (errno == EPIPE || errno == ECONNRESET));
	close(e.client);
	return true;
}

static bool send_after_shutdown(void)
{
	struct ends e = open_ends();

	WANT(say(e.client, "all") == SHORT && hears(e.server, "all"));
	WANT(!shutdown(e.client, SHUT_WR));
	errno = 0;
	WANT(send(e.client, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	WANT(hears_end(e.server));
	close_ends(&e);
	return true;
}

static bool send_to_gone(void)
{
	struct ends e = open_ends();
	ssize_t n;

	WANT(say(e.client, "all") == SHORT && hears(e.server, "all"));
	reset(e.server);
	WANT(ready(e.client, POLLIN, patience_ms));
	n = send(e.client, "x", 1, MSG_NOSIGNAL);
	WANT(n < 0 && (errno == EPIPE || errno == ECONNRESET));
	close(e.client);
	e = open_ends();
	WANT(say(e.client, "all") == SHORT && hears(e.server, "all"));
	close(e.server);
	WANT(ready(e.client, POLLIN, patience_ms));
	WANT(send(e.client, "x", 1, MSG_NOSIGNAL) == 1); /* as TCP: the reset comes after it */
	close(e.client);
	return true;
}

static bool zerocopy_completes(int fd)
{
	static char page[32 << 10];
	struct msghdr m = {0};
	char control[128];
	int on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)))
		return false;
	if (send(fd, page, sizeof(page), MSG_ZEROCOPY | MSG_NOSIGNAL) <= 0)
		return false;
	for (int i = 0; i < 100; i++) {
		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		if (recvmsg(fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0)
			return true;
		poll(NULL, 0, 20);
	}
	return false;
}

static bool zerocopy(void)
{
	struct ends e = open_ends();
	static char buf[64 << 10];

	WANT(say(e.client, "all") == SHORT && hears(e.server, "all"));
	/* Whoever reads must read, or TCP holds the pages. */
	if (!ready(e.server, POLLIN, 0)) {
		pid_t pid = fork();

		if (!pid) {
			close(inbound); /* a listener that nobody accepts from is one all the same
					 */
			while (ready(e.server, POLLIN, 3000) &&
			       recv(e.server, buf, sizeof(buf), 0) > 0)
				;
			_exit(0);
		}
	}
	WANT(zerocopy_completes(e.client));
	close_ends(&e);
	return true;
}

static bool lowat(void)
{
	struct ends e = open_ends();
	int bytes = 8;

	WANT(say(e.client, "all") == SHORT && hears(e.server, "all"));
	WANT(!setsockopt(e.server, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes)));
	WANT(say(e.client, "1234") == TCP);
	WANT(!ready(e.server, POLLIN, 200));
	WANT(say(e.client, "5678") == TCP && hears(e.server, "12345678"));
	close_ends(&e);
	return true;
}

/* Whether this kernel has TLS or not. */
static bool ulp(void)
{
	struct ends e = open_ends();

	setsockopt(e.client, IPPROTO_TCP, TCP_ULP, "tls", 3);
	WANT(say(e.client, "all") == TCP && hears(e.server, "all"));
	close_ends(&e);
	e = open_ends();
	WANT(say(e.client, "all") == SHORT);
	WANT(setsockopt(e.server, IPPROTO_TCP, TCP_ULP, "tls", 3) < 0);
	WANT(hears(e.server, "all"));
	close_ends(&e);
	return true;
}

static bool has_mptcp(const struct pod *pod)
{
	int fd;

	enter(pod);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_MPTCP);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* Sockets that were offered to the map, whether it took them or not. */
static uint64_t offered(void)
{
	return counted(ACCEL_ENTERED) + counted(ACCEL_INSERT_FAILED);
}

/*
 * A subflow is a TCP socket whose stream is another socket's. Kernels that refuse it in a sockmap
 * are not asked: those from before that would take it.
 */
static bool mptcp(void)
{
	union bench_address to = bench_address("127.0.0.1", 8097);
	struct ends e;
	int listener;

	if (!has_mptcp(&pod_b))
		SKIP("the kernel has no mptcp");
	listener = listen_as(&pod_b, APP, 8097, IPPROTO_MPTCP, 16);
	/* Within the pod, proxy to application. */
	for (int i = 0; i < 4; i++) {
		int protocol = i % 2 ? 0 : IPPROTO_MPTCP;
		uint64_t before = offered();

		e.client = socket_as(&pod_b, PROXY, AF_INET, SOCK_NONBLOCK, protocol);
		connect(e.client, &to.any, bench_address_size(&to));
		WANT(ready(e.client, POLLOUT, patience_ms));
		WANT((e.server = accept_one(listener)) >= 0);
		for (int round = 0; round < 3; round++) {
			WANT(send(e.client, "ping", 4, MSG_NOSIGNAL) == 4 &&
			     hears(e.server, "ping"));
			WANT(send(e.server, "pong", 4, MSG_NOSIGNAL) == 4 &&
			     hears(e.client, "pong"));
		}
		close_ends(&e);
		if (protocol && offered() != before)
			FAIL("a subflow of MPTCP was put into the map, or tried to be");
	}
	close(listener);
	return true;
}

static bool blocking_client(void)
{
	union bench_address to = bench_address(b_ipv4, DIALLED);
	struct timeval patience = {.tv_sec = 5};
	struct ends e = {.client = dial_as(&pod_a, PROXY, &to, 0)};
	static char buf[64 << 10];
	char answer[5] = "";
	pid_t pid;

	WANT((e.server = accept_one(inbound)) >= 0);
	WANT(say(e.client, "ping") == TCP && hears(e.server, "ping"));
	WANT(say(e.server, "pong") == TCP);
	WANT(recv(e.client, answer, 4, 0) == 4);
	/* A receive that waits while the socket is woken for other reasons. */
	pid = fork();
	if (!pid) {
		close(inbound); /* a listener that nobody accepts from is one all the same */
		size_t got = 0;

		while (got < 4 << 20 && ready(e.server, POLLIN, patience_ms)) {
			ssize_t n = recv(e.server, buf, 4096, 0);

			if (n <= 0)
				break;
			got += (size_t)n;
		}
		poll(NULL, 0, 50);
		send(e.server, "done", 4, MSG_NOSIGNAL);
		_exit(0);
	}
	setsockopt(e.client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	for (int i = 0; i < 64; i++)
		WANT(send(e.client, buf, sizeof(buf), MSG_NOSIGNAL) == sizeof(buf));
	WANT(recv(e.client, answer, 4, 0) == 4 && !strcmp(answer, "done"));
	close_ends(&e);
	return true;
}

static bool turns_blocking(void)
{
	struct ends e = open_ends();

	WANT(say(e.client, "all") == SHORT && hears(e.server, "all"));
	WANT(say(e.server, "back") == SHORT && hears(e.client, "back"));
	fcntl(e.client, F_SETFL, fcntl(e.client, F_GETFL) & ~O_NONBLOCK);
	WANT(say(e.client, "all") == TCP && hears(e.server, "all"));
	WANT(say(e.server, "back") == TCP);
	close_ends(&e);
	return true;
}

static bool families(void)
{
	struct ends e = open_to(b_ipv6);
	char mapped[64];

	WANT(say(e.client, "six") == SHORT && hears(e.server, "six"));
	WANT(say(e.server, "six") == SHORT && hears(e.client, "six"));
	close_ends(&e);
	snprintf(mapped, sizeof(mapped), "::ffff:%s", b_ipv4);
	e = open_to(mapped);
	WANT(say(e.client, "mapped") == SHORT && hears(e.server, "mapped"));
	WANT(say(e.server, "mapped") == SHORT && hears(e.client, "mapped"));
	close_ends(&e);
	return true;
}

static int accept_one_of(int first, int second)
{
	struct pollfd both[] = {{.fd = first, .events = POLLIN}, {.fd = second, .events = POLLIN}};

	if (poll(both, 2, patience_ms) <= 0)
		return -1;
	return accept_one(both[1].revents & POLLIN ? second : first);
}

/* A proxy's next generation listens beside the last one, which then stops; its streams go on. */
static bool hot_restart(void)
{
	struct ends old = open_ends(), e;
	union bench_address to = bench_address(b_ipv4, DIALLED);
	int next = listen_as(&pod_b, PROXY, INBOUND, 0, 4096);
	char text[16];

	for (int i = 0; i < 60; i++) {
		if (i == 30) {
			close(inbound);
			inbound = next;
		}
		e.client = dial_as(&pod_a, PROXY, &to, SOCK_NONBLOCK);
		e.server = accept_one_of(inbound, next);
		if (e.server < 0)
			FAIL("connection %d does not arrive", i);
		snprintf(text, sizeof(text), "number %d", i);
		WANT(say(e.client, text) != FAILED && hears(e.server, text));
		WANT(say(e.server, text) != FAILED && hears(e.client, text));
		close_ends(&e);
		WANT(say(old.client, text) == SHORT && hears(old.server, text));
		WANT(say(old.server, text) == SHORT && hears(old.client, text));
	}
	close_ends(&old);
	return short_both_ways();
}

/* ---- memory ---------------------------------------------------------------------------------- */

static long available_mb(void)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];
	long kb = 0;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %ld kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb / 1024;
}

/*
 * Many readers that do not read. TCP's own buffers are made small, so that what is seen is what the
 * short way holds: at most the pod's budget and each direction's allowance.
 */
static bool memory_of(size_t message, uint64_t most)
{
	enum { CONNECTIONS = 1000, STEP = 100, SLACK_MB = 160 };
	static struct ends e[CONNECTIONS];
	uint64_t all, shortly, cost = 0, sent = 0;
	long before = available_mb(), now = before;
	int small = 4096, i;
	const uint64_t bound = POD_BUDGET + (uint64_t)CONNECTIONS * ALLOWANCE;

	for (i = 0; i < CONNECTIONS; i++) {
		e[i] = open_ends();
		setsockopt(e[i].client, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
		setsockopt(e[i].server, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
		shortly = flood(e[i].client, message, most, &all);
		cost += shortly + shortly / message * MESSAGE_COST;
		sent += all;
		if ((i + 1) % STEP)
			continue;
		now = available_mb();
		printf("# %4d connections: %5llu MB accepted from senders, %4llu MB of it held the "
		       "short "
		       "way, %5ld MB less available\n",
		       i + 1, (unsigned long long)sent >> 20, (unsigned long long)cost >> 20,
		       before - now);
	}
	for (i = 0; i < CONNECTIONS; i++)
		close_ends(&e[i]);
	if (cost > bound)
		FAIL("%llu MB the short way, more than %llu", (unsigned long long)cost >> 20,
		     (unsigned long long)bound >> 20);
	if (before - now > (long)(2 * bound >> 20) + SLACK_MB)
		FAIL("%ld MB less available", before - now);
	return true;
}

static bool memory_flood(void)
{
	return memory_of(64 << 10, 2 << 20);
}

static bool memory_bytes(void)
{
	return memory_of(1, 4096);
}

/* ---- memory that is short ---------------------------------------------------------------------
 */

/* Connections of which only the accepting ends are the pod's that is short of memory. */
struct squeezed {
	struct ends full, e;
};

static void dial_squeezed(struct squeezed *s)
{
	union bench_address to = bench_address(b_ipv4, DIALLED);

	s->full.client = dial_as(&pod_a, PROXY, &to, SOCK_NONBLOCK);
	s->e.client = dial_as(&pod_a, PROXY, &to, SOCK_NONBLOCK);
}

static bool accept_squeezed(struct squeezed *s)
{
	s->full.server = accept_one(inbound);
	s->e.server = accept_one(inbound);
	return s->full.server >= 0 && s->e.server >= 0;
}

/* All the memory that there is goes to one connection, by TCP; then another one wants some. */
static bool squeeze(struct squeezed *s)
{
	uint64_t all = 0;
	enum way way;
	int error;

	brake(true);
	for (int ms = 0; ms < patience_ms && !long_tcp_info(s->full.server).bytes_received; ms++) {
		flood(s->full.client, 64 << 10, 1 << 20, &all);
		poll(NULL, 0, 1);
	}
	brake(false);
	WANT(long_tcp_info(s->full.server).bytes_received);
	way = say(s->e.client, "more");
	error = errno;
	if (way != TCP)
		FAIL("under pressure a send %s",
		     way == SHORT ? "went the short way" : strerror(error));
	WANT(hears(s->e.server, "more"));
	close_ends(&s->full);
	close_ends(&s->e);
	return true;
}

/* Where cgroup v1 has the memory controller, and where in it we are. */
static bool memory_groups(char mount[static 256], char own[static 256])
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[1024], *options;

	*mount = *own = '\0';
	while (f && !*mount && fgets(line, sizeof(line), f)) {
		options = strrchr(line, ' ');
		if (strstr(line, " - cgroup ") && options && strstr(options, ",memory"))
			sscanf(line, "%*s %*s %*s %*s %255s", mount);
	}
	if (f)
		fclose(f);
	f = fopen("/proc/self/cgroup", "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%*d:memory:%255s", own) == 1)
			break;
	if (f)
		fclose(f);
	return *mount && *own;
}

/* Whoever accepts a connection pays for what it has not read. */
static bool pod_pressure(void)
{
	char mount[256], own[256], group[300], path[600];
	struct squeezed s;
	bool right;

	if (!memory_groups(mount, own))
		SKIP("no memory controller of cgroup v1");
	snprintf(group, sizeof(group), "%s/sockmesh-hazard-%d", mount, (int)getpid());
	WANT(!mkdir(group, 0755));
	snprintf(path, sizeof(path), "%s/memory.kmem.tcp.limit_in_bytes", group);
	write_text(path, "4096");
	dial_squeezed(&s);
	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	write_text(path, "0");
	right = accept_squeezed(&s);
	snprintf(path, sizeof(path), "%s%s/cgroup.procs", mount, own);
	write_text(path, "0");
	right = right && squeeze(&s);
	rmdir(group);
	return right;
}

/* The machine's, so only on one that is ours. */
static bool node_pressure(void)
{
	static const char path[] = "/proc/sys/net/ipv4/tcp_mem"; /* of the first namespace only */
	char were[128] = "";
	struct squeezed s;
	bool right;
	FILE *f;

	go_home();
	f = fopen(path, "re");

	if (f) {
		(void)!fgets(were, sizeof(were), f);
		fclose(f);
	}
	WANT(*were);
	dial_squeezed(&s);
	right = accept_squeezed(&s);
	go_home();
	write_text(path, "1 1 100000");
	right = right && squeeze(&s);
	write_text(path, were);
	return right;
}

/* ---- another owner --------------------------------------------------------------------------- */

static int load(enum bpf_prog_type type, enum bpf_attach_type attach, const struct bpf_insn *insns,
		unsigned n)
{
	union bpf_attr attr = {.prog_type = type,
			       .insns = (unsigned long)insns,
			       .insn_cnt = n,
			       .license = (unsigned long)"GPL",
			       .expected_attach_type = attach};

	return sys_bpf(BPF_PROG_LOAD, &attr);
}

static int attach(int target, int program, enum bpf_attach_type type, unsigned flags)
{
	union bpf_attr attr = {.target_fd = (unsigned)target,
			       .attach_bpf_fd = (unsigned)program,
			       .attach_type = type,
			       .attach_flags = flags};

	return sys_bpf(BPF_PROG_ATTACH, &attr);
}

static int detach(int target, int program, enum bpf_attach_type type)
{
	union bpf_attr attr = {.target_fd = (unsigned)target,
			       .attach_bpf_fd = (unsigned)program,
			       .attach_type = type};

	return sys_bpf(BPF_PROG_DETACH, &attr);
}

/* In a child cgroup, whose programs run before ours: every established socket is put into `map`. */
static bool second_owner(void)
{
	union bpf_attr map = {.map_type = BPF_MAP_TYPE_SOCKHASH,
			      .key_size = 4,
			      .value_size = 4,
			      .max_entries = 64};
	const struct bpf_insn pass[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = 1},
		{.code = BPF_JMP | BPF_EXIT},
	};
	int sockhash = sys_bpf(BPF_MAP_CREATE, &map), verdict, sockops, cgroup;
	struct ends e;

	WANT(sockhash >= 0);
	WANT((verdict = load(BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT, pass, 2)) >= 0);
	WANT(!attach(sockhash, verdict, BPF_SK_MSG_VERDICT, 0));
	{
		const struct bpf_insn own[] = {
			/* only ACTIVE_ESTABLISHED (4); the key is the remote port */
			{.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1},
			{.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = 2, .imm = 4, .off = 7},
			{.code = BPF_ST | BPF_MEM | BPF_W, .dst_reg = 10, .off = -4, .imm = 1},
			{.code = BPF_LD | BPF_DW | BPF_IMM,
			 .dst_reg = 2,
			 .src_reg = BPF_PSEUDO_MAP_FD,
			 .imm = sockhash},
			{.code = 0},
			{.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 3, .src_reg = 10},
			{.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 3, .imm = -4},
			{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 4, .imm = 0},
			{.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_sock_hash_update},
			{.code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = 1},
			{.code = BPF_JMP | BPF_EXIT},
		};

		sockops = load(BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, own,
			       sizeof(own) / sizeof(own[0]));
	}
	WANT(sockops >= 0);
	{
		char dir[256];

		snprintf(dir, sizeof(dir), "%s", pod_a.procs);
		*strrchr(dir, '/') = '\0';
		cgroup = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	WANT(!attach(cgroup, sockops, BPF_CGROUP_SOCK_OPS, BPF_F_ALLOW_MULTI));
	e = open_ends();
	detach(cgroup, sockops, BPF_CGROUP_SOCK_OPS);
	close(cgroup);
	for (int i = 0; i < 3; i++)
		WANT(say(e.client, "all") == TCP && hears(e.server, "all") &&
		     say(e.server, "back") != FAILED && hears(e.client, "back"));
	close_ends(&e);
	close(sockops);
	close(verdict);
	close(sockhash);
	return true;
}

/* ---- sockets that end before their bytes are read ----------------------------------------------
 */

/* A reset ends TCP's part of a socket; the bytes stay until its owner closes it. */
static bool reset_unread(void)
{
	enum { CONNECTIONS = 20 };
	const struct accel_usage before = usage_at_rest();
	struct ends e[CONNECTIONS];
	uint64_t all, shortly, sum = 0;
	struct accel_usage now;

	for (int i = 0; i < CONNECTIONS; i++) {
		e[i] = open_ends();
		shortly = flood(e[i].client, 64 << 10, MAX_BYTES, &all);
		WANT(shortly > MAX_BYTES / 2);
		sum += shortly;
	}
	for (int i = 0; i < CONNECTIONS; i++) {
		reset(e[i].client);
		WANT(ready(e[i].server, POLLERR, patience_ms));
	}
	now = usage();
	for (int i = 0; i < CONNECTIONS; i++)
		close(e[i].server);
	if (now.sockets < before.sockets + CONNECTIONS)
		FAIL("%lld of %d sockets with unread bytes are counted",
		     (long long)(now.sockets - before.sockets), CONNECTIONS);
	if (now.claimed + (uint64_t)CONNECTIONS * ALLOWANCE < before.claimed + sum)
		FAIL("%lld of %lld unread bytes are claimed",
		     (long long)(now.claimed - before.claimed), (long long)sum);
	return comes_back_to(&before);
}

/* The reader's end is over for TCP, with all still unread, before the writer's is. */
static bool half_close_claim(void)
{
	enum { CONNECTIONS = 20 };
	const struct accel_usage before = usage_at_rest();
	uint64_t all, got, claimed = 0;
	static char buf[16 << 10];
	ssize_t n;

	for (int i = 0; i < CONNECTIONS; i++) {
		struct ends e = open_ends();

		WANT(!shutdown(e.client, SHUT_WR));
		WANT(hears_end(e.server));
		WANT(flood(e.server, 64 << 10, MAX_BYTES, &all) > MAX_BYTES / 2);
		claimed += usage().claimed - before.claimed;
		close(e.server);
		WANT(ready(e.client, POLLRDHUP, patience_ms));
		for (got = 0; ready(e.client, POLLIN, patience_ms); got += (uint64_t)n) {
			n = recv(e.client, buf, sizeof(buf), 0);
			if (n <= 0)
				break;
		}
		close(e.client);
		if (got != all)
			FAIL("%llu of %llu bytes", (unsigned long long)got,
			     (unsigned long long)all);
	}
	WANT(claimed);
	return comes_back_to(&before);
}

/* What the first connection has left unread is not the second one's. */
static bool connect_again(void)
{
	union bench_address other = bench_address(b_ipv4, DIALLED + 1);
	const struct accel_usage before = usage_at_rest();
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct ends e = open_ends();
	int old = e.server;

	WANT(say(e.client, "ping") == SHORT && hears(old, "ping"));
	WANT(say(old, "old") == SHORT);
	WANT(ready(e.client, POLLIN, patience_ms));
	WANT(!connect(e.client, &none, sizeof(none)));
	close(old);
	WANT(!connect(e.client, &other.any, bench_address_size(&other)) || errno == EINPROGRESS);
	WANT(ready(e.client, POLLOUT, patience_ms));
	WANT((e.server = accept_one(inbound)) >= 0);
	for (int i = 0; i < 3; i++) {
		WANT(say(e.client, "question") != FAILED && hears(e.server, "question"));
		WANT(say(e.server, "new") != FAILED);
		if (!hears(e.client, "new"))
			FAIL("the new connection's answer %d is not what is read", i);
	}
	close_ends(&e);
	return comes_back_to(&before);
}

/* ---- how receivers read ------------------------------------------------------------------------
 */

enum reader {
	LEVELS,	     /* level-triggered, one receive each time */
	EDGES,	     /* edge-triggered, until EAGAIN */
	SHORT_EDGES, /* edge-triggered, until a receive fills less than its buffer */
};

static int watch(int fd, enum reader how)
{
	struct epoll_event event = {.events = EPOLLIN | (how == LEVELS ? 0 : EPOLLET)};
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		err(2, "epoll");
	return epoll;
}

/* Reads until there are `wanted` bytes, each one more than the last, or no more is announced. */
static size_t read_as(enum reader how, int epoll, int fd, size_t wanted, uint8_t *next)
{
	static uint8_t buf[64 << 10];
	struct epoll_event event;
	size_t got = 0;

	while (got < wanted && epoll_wait(epoll, &event, 1, 1000) == 1) {
		ssize_t n;

		do {
			n = recv(fd, buf, sizeof(buf), 0);
			for (ssize_t i = 0; i < n; i++)
				if (buf[i] != (*next)++)
					return 0;
			got += n > 0 ? (size_t)n : 0;
		} while ((how == EDGES && n > 0) ||
			 (how == SHORT_EDGES && n == (ssize_t)sizeof(buf)));
	}
	return got;
}

/* Sends bytes that count on; how many of these messages went the short way. */
static int count_on(int fd, int messages, uint8_t *next)
{
	int shortly = 0;

	for (int i = 0; i < messages; i++) {
		uint64_t before = by_tcp(fd);

		if (send(fd, next, 1, MSG_NOSIGNAL) != 1)
			break;
		++*next;
		shortly += by_tcp(fd) == before;
	}
	return shortly;
}

/*
 * A stop must not put bytes behind others that are unread: whoever takes a short read for all there
 * is would wait for an edge that has been.
 */
static bool stops_behind_reader(void)
{
	struct ends e = open_ends();
	int epoll = watch(e.server, SHORT_EDGES);
	uint8_t sent = 0, seen = 0;
	size_t got;

	WANT(count_on(e.client, 1, &sent) == 1);
	WANT(read_as(SHORT_EDGES, epoll, e.server, 1, &seen) == 1);
	WANT(count_on(e.client, 20, &sent) == 20);
	brake(true);
	count_on(e.client, 20, &sent);
	WANT(has_arrived(&e));
	got = read_as(SHORT_EDGES, epoll, e.server, 40, &seen);
	if (got != 40)
		FAIL("%zu of 40 bytes, and no further edge", got);
	WANT(count_on(e.client, 20, &sent) == 0);
	WANT(read_as(SHORT_EDGES, epoll, e.server, 20, &seen) == 20);
	close(epoll);
	close_ends(&e);
	return true;
}

static bool brake_is_clean(void)
{
	bool right = stops_behind_reader();

	brake(false);
	return right;
}

static bool spill_read_as(enum reader how)
{
	enum { MESSAGES = 2 * MAX_MESSAGES };
	struct ends e = open_ends();
	int epoll = watch(e.server, how), shortly;
	uint8_t sent = 0, seen = 0;

	make_roomy(&e);
	shortly = count_on(e.client, MESSAGES, &sent);
	WANT(shortly > 0 && shortly <= MAX_MESSAGES && has_arrived(&e));
	WANT(read_as(how, epoll, e.server, MESSAGES, &seen) == MESSAGES);
	WANT(count_on(e.client, 10, &sent) == 0);
	WANT(read_as(how, epoll, e.server, 10, &seen) == 10);
	close(epoll);
	close_ends(&e);
	return true;
}

static bool spill_to_levels(void)
{
	return spill_read_as(LEVELS);
}

static bool spill_to_edges(void)
{
	return spill_read_as(EDGES);
}

/* ---- others ------------------------------------------------------------------------------------
 */

/* How the first connection to a listener goes that has just been made. */
static enum way first_way(void)
{
	struct ends e;
	enum way way;

	close(inbound);
	inbound = listen_as(&pod_b, PROXY, INBOUND, 0, 4096);
	e = open_ends();
	way = is_duplex(&e) ? say(e.client, "how") : FAILED;
	close_ends(&e);
	return way;
}

/* A proxy that accepts blocking sockets says nothing about the other proxies of the node. */
static bool one_blocking_proxy(void)
{
	int outbound = listen_as(&pod_a, PROXY, OUTBOUND, 0, 64);
	union bench_address to = bench_address(b_ipv4, DIALLED);

	WANT(first_way() == SHORT);
	for (int i = 0; i < 5; i++) {
		struct ends e = {.client = dial_as(&pod_a, APP, &to, SOCK_NONBLOCK)};

		WANT((e.server = accept_one(outbound)) >= 0);
		fcntl(e.server, F_SETFL, fcntl(e.server, F_GETFL) & ~O_NONBLOCK);
		for (int round = 0; round < 3; round++) {
			WANT(say(e.client, "ping") == TCP && ready(e.server, POLLIN, patience_ms));
			WANT(say(e.server, "pong") == TCP && hears(e.client, "pong"));
		}
		close_ends(&e);
	}
	close(outbound);
	WANT(first_way() == SHORT);
	return true;
}

/* A message of one byte may hold a page: seven fit into an allowance, and the eighth is claimed. */
static bool small_messages(void)
{
	enum { CONNECTIONS = 500, FREE = ALLOWANCE / MESSAGE_COST - 1, CLAIMED = FREE + 8 };
	const struct accel_usage before = usage_at_rest();
	static struct ends e[CONNECTIONS];
	uint64_t held = 2ull * CONNECTIONS * (CLAIMED * MESSAGE_COST - ALLOWANCE);
	struct accel_usage with_free, now;
	uint8_t next = 0;

	for (int i = 0; i < CONNECTIONS; i++) {
		e[i] = open_ends();
		WANT(count_on(e[i].client, FREE, &next) == FREE);
		WANT(count_on(e[i].server, FREE, &next) == FREE);
	}
	with_free = usage();
	for (int i = 0; i < CONNECTIONS; i++) {
		count_on(e[i].client, CLAIMED - FREE, &next);
		count_on(e[i].server, CLAIMED - FREE, &next);
	}
	now = usage();
	for (int i = 0; i < CONNECTIONS; i++)
		close_ends(&e[i]);
	WANT(with_free.claimed == before.claimed);
	if (now.claimed - before.claimed < held)
		FAIL("%llu KB are claimed for at least %llu KB",
		     (unsigned long long)(now.claimed - before.claimed) >> 10,
		     (unsigned long long)held >> 10);
	return comes_back_to(&before);
}

/* ---- */

static const struct {
	const char *name;
	bool (*run)(void);
} tests[] = {
	{"short both ways", short_both_ways},
	{"H1 reorder", reorder},
	{"H2 late peer: accept-queue overflow", overflow},
	{"H2 late peer: TCP_DEFER_ACCEPT", deferred},
	{"H2 late peer: TCP Fast Open", fast_open},
	{"H2 late peer: SYN cookies", syn_cookies},
	{"H4 1 bytes without back-pressure", bounded_bytes},
	{"H5 messages without back-pressure", bounded_messages},
	{"H4 H5 budget of a pod", bounded_pod},
	{"H1 spill in order", spill_in_order},
	{"H7 9 tuple reuse", tuple_reuse},
	{"8 equal tuples in two pods", equal_tuples},
	{"H7 9 one tuple twice in one pod", one_tuple_twice},
	{"H8 half-close", half_close},
	{"H8 reset after data", reset_after_data},
	{"H8 close after send", close_after_send},
	{"H9 7 close with unread data", close_unread},
	{"send after shutdown", send_after_shutdown},
	{"send to a peer that is gone", send_to_gone},
	{"H12 6 zerocopy", zerocopy},
	{"H15 5 SO_RCVLOWAT", lowat},
	{"H20 kernel TLS", ulp},
	{"H21 MPTCP", mptcp},
	{"3 blocking client", blocking_client},
	{"3 socket that turns blocking", turns_blocking},
	{"H24 IPv6 and v4-mapped", families},
	{"H22 second owner", second_owner},
	{"hot restart with SO_REUSEPORT", hot_restart},
	{"reset with unread bytes keeps its place and its claim", reset_unread},
	{"half-close gives the claim back", half_close_claim},
	{"connect again on one socket", connect_again},
	{"the brake is clean", brake_is_clean},
	{"a short read at a limit, level-triggered", spill_to_levels},
	{"a short read at a limit, edge-triggered until EAGAIN", spill_to_edges},
	{"one blocking proxy does not speak for others", one_blocking_proxy},
	{"small messages are bounded by what they hold", small_messages},
	{"memory pressure of a pod", pod_pressure},
	{"memory pressure of the node", node_pressure},
	{"memory: 1,000 readers that do not read, 64 KB", memory_flood},
	{"memory: 1,000 readers that do not read, 1 byte", memory_bytes},
};

static bool begins(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* Those of memory only when they are asked for; with acceleration off, too. */
static bool is_asked_for(const char *name, char **wanted)
{
	if (!*wanted)
		return !begins(name, "memory:") && !begins(name, "memory pressure of the node");
	for (; *wanted; wanted++)
		if (begins(name, *wanted))
			return true;
	return false;
}

static void pod_open(struct pod *pod, const char *cgroup, const char *netns)
{
	snprintf(pod->procs, sizeof(pod->procs), "%s/cgroup.procs", cgroup);
	pod->netns = open(netns, O_RDONLY | O_CLOEXEC);
	if (pod->netns < 0)
		err(2, "%s", netns);
}

int main(int argc, char **argv)
{
	const struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY}, files = {65536, 65536};
	const char *patience = getenv("SOCKMESH_TEST_PATIENCE");
	union bench_address to;
	int failed = 0;

	if (argc < 7)
		errx(2, "usage: hazard A-CGROUP A-NETNS B-CGROUP B-NETNS B-IPV4 B-IPV6 [TEST...]");
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	setrlimit(RLIMIT_MEMLOCK, &unlimited); /* kernels before 5.11 charge maps to it */
	setrlimit(RLIMIT_NOFILE, &files);      /* a test that fails leaves its sockets open */
	if (patience && atoi(patience) > 0)
		patience_ms *= atoi(patience);
	home_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	pod_open(&pod_a, argv[1], argv[2]);
	pod_open(&pod_b, argv[3], argv[4]);
	b_ipv4 = argv[5];
	b_ipv6 = argv[6];
	inbound = listen_as(&pod_b, PROXY, INBOUND, 0, 4096);
	to = bench_address(b_ipv4, DIALLED);
	if (!is_met(inbound, &pod_a, PROXY, &to) && (!argv[7] || !begins(argv[7], "memory:")))
		printf("not ok - a connection between proxies goes the short way\n");
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (!is_asked_for(tests[i].name, argv + 7))
			continue;
		*skipped = '\0';
		if (tests[i].run()) {
			printf("ok - %s%s%s\n", tests[i].name, *skipped ? " # SKIP " : "", skipped);
			continue;
		}
		printf("not ok - %s\n#   %s\n", tests[i].name, why);
		failed++;
		/* Nothing of a failed test may meet the next one. */
		close(inbound);
		inbound = listen_as(&pod_b, PROXY, INBOUND, 0, 4096);
		is_met(inbound, &pod_a, PROXY, &to);
	}
	return failed != 0;
}
