/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "monotonic.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MARK_OTHER_BITS = 0x7000 };

struct pair { /* a connection over loopback, both ends here */
	sa_family_t family;
	int mark;
	int listener, client, server;
};

static int connect_pair(void *arg, struct error *err)
{
	struct pair *p = arg;
	struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in at4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr *address = p->family == AF_INET ? (void *)&at4 : (void *)&at;
	socklen_t size = p->family == AF_INET ? sizeof(at4) : sizeof(at);

	p->listener = socket(p->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	p->client = socket(p->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (system("ip link set lo up") || /* NOLINT(cert-env33-c) */
	    bind(p->listener, address, size) < 0 || listen(p->listener, 1) < 0 ||
	    getsockname(p->listener, address, &size) < 0)
		return error_set(err, errno, "listen");
	if (p->mark && setsockopt(p->client, SOL_SOCKET, SO_MARK, &p->mark, sizeof(p->mark)) < 0)
		return error_set(err, errno, "SO_MARK");
	if (connect(p->client, address, size) < 0)
		return error_set(err, errno, "connect");
	p->server = accept(p->listener, NULL, NULL);
	return p->server < 0 ? error_set(err, errno, "accept") : 0;
}

static void close_pair(struct pair *p)
{
	const struct linger reset = {.l_onoff = 1};

	setsockopt(p->client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(p->client);
	close(p->server);
	close(p->listener);
}

static bool has_connections(int netns)
{
	struct error err = {0};
	bool found = false;

	if (ebpf_ambient_has_connections(netns, &found, &err))
		printf("# %s\n", err.text);
	return found;
}

static enum test_result marked_are_found(sa_family_t family)
{
	struct pair plain = {.family = family};
	struct pair marked = {.family = family, .mark = AMBIENT_MARK_REPLY | MARK_OTHER_BITS};
	struct pair other = {.family = family, .mark = AMBIENT_MARK_PROXY};
	struct error err = {0};
	scoped_fd int netns = -1;

	CHECK_EQ(netns_new(&netns, &err), 0);
	CHECK(!has_connections(netns));
	CHECK_EQ(netns_run(netns, connect_pair, &plain, &err), 0);
	CHECK_EQ(netns_run(netns, connect_pair, &other, &err), 0);
	CHECK(!has_connections(netns));
	CHECK_EQ(netns_run(netns, connect_pair, &marked, &err), 0);
	CHECK(has_connections(netns));
	close_pair(&marked);
	CHECK(!has_connections(netns));
	close_pair(&plain);
	close_pair(&other);
	return TEST_OK;
}

TEST(connections_for_clients_are_known_by_their_mark)
{
	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(marked_are_found(AF_INET), TEST_OK);
	CHECK_EQ(marked_are_found(AF_INET6), TEST_OK);
	return TEST_OK;
}

struct knob_values {
	char accept, reflect4, reflect6;
};

static char first_byte(const char *path)
{
	scoped_file FILE *file = fopen(path, "re");

	return (char)(file ? fgetc(file) : '?');
}

static int read_knobs(void *arg, struct error *err)
{
	struct knob_values *ret = arg;

	(void)err;
	ret->accept = first_byte("/proc/sys/net/ipv4/tcp_fwmark_accept");
	ret->reflect4 = first_byte("/proc/sys/net/ipv4/fwmark_reflect");
	ret->reflect6 = first_byte("/proc/sys/net/ipv6/fwmark_reflect");
	return 0;
}

static int switch_on(void *arg, struct error *err)
{
	(void)arg;
	/* NOLINTNEXTLINE(cert-env33-c) */
	return system("cd /proc/sys/net && echo 1 >ipv4/tcp_fwmark_accept && "
		      "echo 1 >ipv4/fwmark_reflect && echo 1 >ipv6/fwmark_reflect")
		       ? error_set(err, EIO, "sysctl")
		       : 0;
}

TEST(only_what_was_off_is_switched_off_again)
{
	struct knob_values now = {0};
	struct error err = {0};
	scoped_fd int netns = -1;

	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(netns_new(&netns, &err), 0);
	CHECK_EQ(netns_run(netns, switch_on, NULL, &err), 0);
	CHECK_EQ(ebpf_ambient_undo(netns, POD_SET_FWMARK_ACCEPT | POD_SET_REFLECT6, &err), 0);
	CHECK_EQ(netns_run(netns, read_knobs, &now, &err), 0);
	CHECK_EQ(now.accept, '0');
	CHECK_EQ(now.reflect4, '1');
	CHECK_EQ(now.reflect6, '0');
	CHECK_EQ(ebpf_ambient_undo(netns, POD_ADDED_PASSTHROUGH, &err), 0); /* somebody else's */
	CHECK_EQ(ebpf_ambient_undo(netns, POD_ADDED_ROUTES, &err), 0);	    /* not there */
	return TEST_OK;
}

/* A process of that name, which has it when this returns. */
static pid_t start_kubelet(void)
{
	int ready[2];
	char byte;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) < 0)
		abort();
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "kubelet");
		if (write(ready[1], "", 1) == 1)
			pause();
		_exit(0);
	}
	close(ready[1]);
	if (pid < 0 || read(ready[0], &byte, 1) != 1)
		abort();
	close(ready[0]);
	return pid;
}

/* In a network namespace of our own, where no kubelet is but the one that we start. */
static enum test_result search_for_kubelet(struct ebpf *e)
{
	const int64_t long_ms = 10000;
	int64_t before_ms = monotonic_ms();
	struct kubelet found = {0};
	pid_t pid;

	CHECK_EQ(ebpf_kubelet_known(e, &found), KUBELET_KNOWN_NOT);
	CHECK(e->kubelet_missed_at_ms >= before_ms);
	pid = start_kubelet();
	e->kubelet_missed_at_ms = monotonic_ms() + long_ms; /* a moment ago, however slow we are */
	CHECK_EQ(ebpf_kubelet_known(e, &found), KUBELET_KNOWN_NOT);
	CHECK_EQ(found.source, KUBELET_UNKNOWN);
	e->kubelet_missed_at_ms = monotonic_ms() - long_ms;
	CHECK(ebpf_kubelet_known(e, &found) != KUBELET_KNOWN_NOT);
	CHECK_EQ(found.pid, pid);
	CHECK_EQ(e->kubelet_missed_at_ms, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return TEST_OK;
}

TEST(who_was_just_looked_for_in_vain_is_not_looked_for_again)
{
	const struct redirect_config cfg = {0};
	struct ebpf e = {.cfg = &cfg};
	scoped_fd int original = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	enum test_result result;

	if (geteuid() != 0)
		return TEST_SKIP;
	e.kubelet = kubelet_bpf__open();
	CHECK(e.kubelet && original >= 0 && unshare(CLONE_NEWNET) == 0);
	result = search_for_kubelet(&e);
	CHECK(setns(original, CLONE_NEWNET) == 0);
	kubelet_bpf__destroy(e.kubelet);
	return result;
}
