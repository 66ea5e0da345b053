/* SPDX-License-Identifier: Apache-2.0 */
/* Real connections and real conntrack, in namespaces of their own. Needs root and nft. */
#include "conntrack_stale.h"

#include "error.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <arpa/inet.h>
#include <cap-ng.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * Addresses of lo, all of them the pod's but 10.9.9.3 and 10.9.9.4 and their sisters, which are
 * taken away again: what goes from the one to the other then passes through.
 */
static const char setup[] = "ip link set lo up; for i in 1 2 3 4; do "
			    "ip addr add 10.9.9.$i/32 dev lo; "
			    "ip addr add fd99::$i/128 dev lo nodad; done";
/* The kernel makes the routes to addresses of IPv6 a moment later, in a worker. */
static const char has_routes[] = "[ $(ip -6 route show table local | grep -c fd99) = 4 ]";
static const char take_away[] = "for i in 3 4; do ip addr del 10.9.9.$i/32 dev lo; "
				"ip addr del fd99::$i/128 dev lo; done";
static const char track[] = "nft 'add table inet t; "
			    "add chain inet t c { type nat hook output priority -100; }; "
			    "add rule inet t c tcp dport 7000 redirect to :7001'";
static const char do_not_track[] = "nft delete table inet t";

static int run(void *arg, struct error *err)
{
	if (system(arg)) /* NOLINT(cert-env33-c) */
		return error_set(err, EIO, "%s", (const char *)arg);
	return 0;
}

static int in(int netns, const char *command)
{
	struct error err = {0};

	return netns_run(netns, run, (void *)command, &err);
}

struct connection {
	const char *from, *to;
	uint16_t port;
	int listener, client, server;
};

static socklen_t make_address(const char *text, uint16_t port, struct sockaddr_storage *ret)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;

	memset(ret, 0, sizeof(*ret));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	inet_pton(AF_INET6, text, &v6->sin6_addr);
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	return sizeof(*v6);
}

static int set_up(int netns)
{
	int r = in(netns, setup);

	for (int ms = 0; !r && in(netns, has_routes); ms += 10) {
		if (ms >= 5000)
			return -ETIMEDOUT;
		usleep(10000);
	}
	return r;
}

static int open_inside(void *arg, struct error *err)
{
	struct connection *c = arg;
	struct sockaddr_storage from, to, any;
	socklen_t size = make_address(c->from, 0, &from);
	/* Port 7000 is redirected. */
	uint16_t listens_on = c->port == 7000 ? 7001 : c->port;
	int one = 1;

	make_address(c->to, c->port, &to);
	make_address(from.ss_family == AF_INET ? "0.0.0.0" : "::", listens_on, &any);
	c->listener = socket(from.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	c->client = socket(from.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(c->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(c->listener, (struct sockaddr *)&any, size) < 0 || listen(c->listener, 1) < 0 ||
	    bind(c->client, (struct sockaddr *)&from, size) < 0 ||
	    connect(c->client, (struct sockaddr *)&to, size) < 0)
		return error_set(err, errno, "connect from %s", c->from);
	c->server = accept(c->listener, NULL, NULL);
	return c->server < 0 ? error_set(err, errno, "accept") : 0;
}

static int open_in(int netns, struct connection *c)
{
	struct error err = {0};

	return netns_run(netns, open_inside, c, &err);
}

static void end(struct connection *c)
{
	char byte;

	close(c->listener);
	shutdown(c->client, SHUT_WR);
	while (read(c->server, &byte, 1) > 0)
		;
	close(c->server);
	while (read(c->client, &byte, 1) > 0)
		;
	close(c->client);
}

/* At once, whatever the other end hears of it. */
static void cut(const struct connection *c)
{
	const struct linger now = {.l_onoff = 1};

	setsockopt(c->server, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	setsockopt(c->client, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(c->listener);
	close(c->server);
	close(c->client);
}

static int exchange(const struct connection *c)
{
	char byte;

	return write(c->client, "x", 1) == 1 && read(c->server, &byte, 1) == 1 &&
			       write(c->server, "y", 1) == 1 && read(c->client, &byte, 1) == 1
		       ? 0
		       : -1;
}

TEST(entries_of_connections_whose_end_was_not_seen_are_forgotten)
{
	struct connection ended4 = {"10.9.9.1", "10.9.9.2", 7100, 0, 0, 0};
	struct connection ended6 = {"fd99::1", "fd99::2", 7101, 0, 0, 0};
	struct connection lives4 = {"10.9.9.1", "10.9.9.2", 7102, 0, 0, 0};
	struct connection lives6 = {"fd99::1", "fd99::2", 7103, 0, 0, 0};
	struct connection translated = {"10.9.9.1", "10.9.9.2", 7000, 0, 0, 0};
	struct connection seen = {"10.9.9.1", "10.9.9.2", 7104, 0, 0, 0};
	struct connection *all[] = {&ended4, &ended6, &lives4, &lives6, &translated, &seen};
	scoped_fd int netns = -1;
	struct error err = {0};
	size_t n = 99;

	if (netns_new(&netns, &err))
		return TEST_SKIP;
	CHECK_EQ(set_up(netns), 0);
	CHECK_EQ(in(netns, track), 0);
	CHECK_EQ(conntrack_forget_ended(netns, &n, &err), 0);
	CHECK_EQ(n, 0);
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		CHECK_EQ(open_in(netns, all[i]), 0);
	end(&seen);
	CHECK_EQ(conntrack_forget_ended(netns, &n, &err), 0);
	CHECK_EQ(n, 0);
	CHECK_EQ(in(netns, do_not_track), 0);
	end(&ended4);
	end(&ended6);
	cut(&translated);
	CHECK_EQ(conntrack_forget_ended(netns, &n, &err), 0);
	CHECK_EQ(n, 2);
	CHECK_EQ(conntrack_forget_ended(netns, &n, &err), 0);
	CHECK_EQ(n, 0);
	end(&lives4);
	end(&lives6);
	CHECK_EQ(conntrack_forget_ended(netns, &n, &err), 0);
	CHECK_EQ(n, 2);
	return TEST_OK;
}

TEST(what_passes_through_the_pod_is_left_alone)
{
	struct connection passing4 = {"10.9.9.3", "10.9.9.4", 7100, 0, 0, 0};
	struct connection passing6 = {"fd99::3", "fd99::4", 7101, 0, 0, 0};
	struct connection from_outside = {"10.9.9.3", "10.9.9.2", 7102, 0, 0, 0};
	scoped_fd int netns = -1;
	struct error err = {0};
	size_t n = 99;

	if (netns_new(&netns, &err))
		return TEST_SKIP;
	CHECK_EQ(set_up(netns), 0);
	CHECK_EQ(in(netns, track), 0);
	CHECK_EQ(open_in(netns, &passing4), 0);
	CHECK_EQ(open_in(netns, &passing6), 0);
	CHECK_EQ(open_in(netns, &from_outside), 0);
	CHECK_EQ(in(netns, do_not_track), 0);
	end(&passing4);
	end(&passing6);
	end(&from_outside);
	CHECK_EQ(in(netns, take_away), 0);
	CHECK_EQ(conntrack_forget_ended(netns, &n, &err), 0);
	CHECK_EQ(n, 1);
	return TEST_OK;
}

/* Who lists connections needs this right; who only reads how many there are does not. */
static int list_rights(capng_act_t act)
{
	capng_get_caps_process();
	capng_update(act, CAPNG_EFFECTIVE, CAP_NET_ADMIN);
	return capng_apply(CAPNG_SELECT_CAPS);
}

/* For each list the kernel walks over the connections of the whole node. */
TEST(the_connections_of_a_namespace_that_has_none_are_not_listed)
{
	struct connection one = {"10.9.9.1", "10.9.9.2", 7100, 0, 0, 0};
	scoped_fd int netns = -1;
	struct error err = {0};
	size_t n = 99;
	int without, with;

	if (netns_new(&netns, &err))
		return TEST_SKIP;
	CHECK_EQ(set_up(netns), 0);
	CHECK_EQ(in(netns, track), 0);
	CHECK_EQ(list_rights(CAPNG_DROP), 0);
	without = conntrack_forget_ended(netns, &n, &err);
	CHECK_EQ(list_rights(CAPNG_ADD), 0);
	CHECK_EQ(without, 0);
	CHECK_EQ(n, 0);
	CHECK_EQ(open_in(netns, &one), 0);
	CHECK_EQ(list_rights(CAPNG_DROP), 0);
	with = conntrack_forget_ended(netns, &n, &err);
	CHECK_EQ(list_rights(CAPNG_ADD), 0);
	CHECK_EQ(with, -EPERM);
	end(&one);
	return TEST_OK;
}

/* Ends after conntrack has come to what it was opened before; how many entries then are stale. */
static int end_late(bool loose, size_t *ret_n)
{
	struct connection idle = {"10.9.9.1", "10.9.9.2", 7100, 0, 0, 0};
	struct connection busy = {"fd99::1", "fd99::2", 7101, 0, 0, 0};
	scoped_fd int netns = -1;
	struct error err = {0};
	int r = netns_new(&netns, &err);

	r = r ? r : set_up(netns);
	r = r ? r : open_in(netns, &idle);
	r = r ? r : open_in(netns, &busy);
	r = r ? r : conntrack_set_loose(netns, loose, &err);
	r = r ? r : in(netns, track);
	r = r ? r : exchange(&busy);
	if (r)
		return r;
	end(&idle);
	end(&busy);
	return conntrack_forget_ended(netns, ret_n, &err);
}

TEST(what_was_open_before_conntrack_gets_no_entry_unless_it_is_loose)
{
	size_t n = 99;

	CHECK_EQ(end_late(true, &n), 0);
	CHECK_EQ(n, 1); /* that of the last acknowledgement */
	CHECK_EQ(end_late(false, &n), 0);
	CHECK_EQ(n, 0);
	return TEST_OK;
}

TEST(what_is_no_namespace_is_refused)
{
	struct error err = {0};
	size_t n = 99;

	CHECK_EQ(conntrack_forget_ended(-1, &n, &err), -EBADF);
	CHECK_EQ(conntrack_set_loose(-1, true, &err), -EBADF);
	CHECK_EQ(n, 99);
	return TEST_OK;
}
