/* SPDX-License-Identifier: Apache-2.0 */
#include "selftest_process.h"

#include "error.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#ifndef SO_ORIGINAL_DST
#define SO_ORIGINAL_DST 80 /* linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same number */
#endif

enum { OUTBOUND_TARGET_PORT = 80, INBOUND_TARGET_PORT = 8080, STEP_TIMEOUT_S = 2 };

/*
 * Everything between here and the next line runs in a process forked from one that may have had
 * threads: system calls only, no memory allocated, nothing printed.
 */

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static socklen_t address_set(union address *a, bool ipv6, const char *text, uint16_t port)
{
	memset(a, 0, sizeof(*a));
	if (ipv6) {
		a->v6.sin6_family = AF_INET6;
		a->v6.sin6_port = htons(port);
		inet_pton(AF_INET6, text, &a->v6.sin6_addr);
		return sizeof(a->v6);
	}
	a->v4.sin_family = AF_INET;
	a->v4.sin_port = htons(port);
	inet_pton(AF_INET, text, &a->v4.sin_addr);
	return sizeof(a->v4);
}

static bool address_equal(const union address *a, const union address *b)
{
	if (a->any.sa_family != b->any.sa_family)
		return false;
	if (a->any.sa_family == AF_INET6)
		return a->v6.sin6_port == b->v6.sin6_port &&
		       !memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, sizeof(a->v6.sin6_addr));
	return a->v4.sin_port == b->v4.sin_port && a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
}

/* A reset at close: an orphaned socket on its way out would keep the namespace. */
static int tune(int fd)
{
	const struct timeval timeout = {.tv_sec = STEP_TIMEOUT_S};
	const struct linger reset = {.l_onoff = 1};

	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) ||
	    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		return -1;
	return fd;
}

static int open_socket(int netns_fd, bool ipv6)
{
	scoped_fd int fd = -1;

	if (setns(netns_fd, CLONE_NEWNET) < 0)
		return -1;
	fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	return fd < 0 || tune(fd) < 0 ? -1 : take_fd(&fd);
}

/* On any address, as proxies do. */
static int open_listener(int netns_fd, bool ipv6, uint16_t port)
{
	scoped_fd int fd = open_socket(netns_fd, ipv6);
	union address any;
	socklen_t size = address_set(&any, ipv6, ipv6 ? "::" : "0.0.0.0", port);
	const int on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    (ipv6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on))) ||
	    bind(fd, &any.any, size) < 0 || listen(fd, 4) < 0)
		return -1;
	return take_fd(&fd);
}

static int move_byte(int from, int to)
{
	char byte = 'x';

	return send(from, &byte, 1, MSG_NOSIGNAL) == 1 && recv(to, &byte, 1, 0) == 1 ? 0 : -1;
}

static enum selftest_outcome check_accepted(int listener, int client, const union address *dialled)
{
	scoped_fd int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	bool ipv6 = dialled->any.sa_family == AF_INET6;
	union address original = {0};
	socklen_t size = sizeof(original);

	if (accepted < 0)
		return SELFTEST_NOT_ACCEPTED;
	if (tune(accepted) < 0)
		return SELFTEST_NOT_SET_UP;
	if (getsockopt(accepted, ipv6 ? SOL_IPV6 : SOL_IP, SO_ORIGINAL_DST, &original, &size))
		return SELFTEST_NO_ORIGINAL;
	if (!address_equal(&original, dialled))
		return SELFTEST_OTHER_ORIGINAL;
	return move_byte(client, accepted) || move_byte(accepted, client) ? SELFTEST_NO_DATA
									  : SELFTEST_PASSED;
}

static enum selftest_outcome run_connection(const struct selftest_network *net,
					    const struct selftest_connection *c)
{
	static const char *const targets[2][2] = {{SELFTEST_PEER_V4, SELFTEST_PEER_V6},
						  {SELFTEST_POD_V4, SELFTEST_POD_V6}};
	scoped_fd int listener = -1, client = -1;
	union address dialled;
	socklen_t size = address_set(&dialled, c->ipv6, targets[c->inbound][c->ipv6],
				     c->inbound ? INBOUND_TARGET_PORT : OUTBOUND_TARGET_PORT);

	listener = open_listener(net->pod_fd, c->ipv6,
				 c->inbound ? SELFTEST_INBOUND_PORT : SELFTEST_OUTBOUND_PORT);
	client = open_socket(c->inbound ? net->peer_fd : net->pod_fd, c->ipv6);
	if (listener < 0 || client < 0)
		return SELFTEST_NOT_SET_UP;
	if (connect(client, &dialled.any, size) < 0)
		return SELFTEST_NOT_CONNECTED;
	return check_accepted(listener, client, &dialled);
}

/* The socket timeouts have names of their own. */
static int code_of(enum selftest_outcome outcome)
{
	switch (outcome) {
	case SELFTEST_NOT_SET_UP:
	case SELFTEST_NOT_CONNECTED:
	case SELFTEST_NOT_ACCEPTED:
	case SELFTEST_NO_ORIGINAL:
	case SELFTEST_NO_DATA:
		return errno == EINPROGRESS || errno == EAGAIN ? ETIMEDOUT : errno;
	default:
		return 0;
	}
}

static bool join_cgroup(int procs_fd)
{
	return procs_fd < 0 || write(procs_fd, "0", 1) == 1;
}

__attribute__((noreturn)) static void serve(const struct selftest_network *net, int procs_fd,
					    int channel, pid_t parent)
{
	struct selftest_connection connection;
	bool joined;
	int code;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	joined = getppid() == parent && join_cgroup(procs_fd);
	code = errno;
	while (recv(channel, &connection, sizeof(connection), 0) == sizeof(connection)) {
		struct selftest_report report = {.outcome = SELFTEST_NOT_SET_UP, .code = code};

		if (joined) {
			errno = 0;
			report.outcome = run_connection(net, &connection);
			report.code = code_of(report.outcome);
		}
		if (send(channel, &report, sizeof(report), MSG_NOSIGNAL) != sizeof(report))
			break;
	}
	_exit(0);
}

/* ---- the caller's side ---------------------------------------------------------------------- */

int selftest_process_start(const struct selftest_network *net, int cgroup_procs_fd,
			   struct selftest_process *ret, struct error *err)
{
	pid_t parent = getpid();
	int ends[2];

	ret->pid = ret->channel = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, errno, "make a channel to the self-test's process");
	ret->channel = ends[0];
	ret->pid = fork();
	if (ret->pid == 0) {
		close(ends[0]);
		serve(net, cgroup_procs_fd, ends[1], parent);
	}
	close(ends[1]);
	return ret->pid < 0 ? error_set(err, errno, "fork for the self-test") : 0;
}

static int await_report(int channel, int64_t deadline_ms, struct error *err)
{
	struct pollfd fd = {.fd = channel, .events = POLLIN};
	int n;

	do {
		int64_t left = deadline_ms - monotonic_ms();

		n = poll(&fd, 1, left > 0 ? (int)left : 0);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_set(err, errno, "wait for the self-test's process");
	return n ? 0 : error_set(err, ETIMEDOUT, "the self-test's process does not answer");
}

int selftest_process_connect(struct selftest_process *process,
			     const struct selftest_connection *connection, int64_t deadline_ms,
			     struct selftest_report *ret, struct error *err)
{
	struct selftest_report report;
	ssize_t n;
	int r;

	if (send(process->channel, connection, sizeof(*connection), MSG_NOSIGNAL) < 0)
		return error_set(err, errno, "ask the self-test's process");
	r = await_report(process->channel, deadline_ms, err);
	if (r)
		return r;
	n = recv(process->channel, &report, sizeof(report), MSG_DONTWAIT);
	if (n != sizeof(report))
		return error_set(err, n < 0 ? errno : ECHILD, "the self-test's process has ended");
	*ret = report;
	return 0;
}

void selftest_process_end(struct selftest_process *process)
{
	scoped_close(&process->channel);
	if (process->pid <= 0)
		return;
	kill(process->pid, SIGKILL);
	while (waitpid(process->pid, NULL, 0) < 0 && errno == EINTR)
		;
}
