/* SPDX-License-Identifier: Apache-2.0 */
#include "conntrack.h"

#include "error.h"
#include "netns.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MARK = 1337, PLAIN_PORT = 5000, TO_PORT = 5001, ZONE_PORT = 5002, SNAT_PORT = 5003 };
enum { MARK_PORT = 5004, OTHER_MARK_PORT = 5005 };

static int send_to(int family, int port)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), r;

	v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	v6.sin6_addr = in6addr_loopback;
	r = family == AF_INET ? sendto(fd, "x", 1, 0, (struct sockaddr *)&v4, sizeof(v4))
			      : sendto(fd, "x", 1, 0, (struct sockaddr *)&v6, sizeof(v6));
	close(fd);
	return r == 1 ? 0 : -1;
}

/* Flows on lo, all of which pass a nat chain. */
static int prepare(void *arg, struct error *err)
{
	static const char rules[] =
		"ip link set lo up && nft -f - <<'EOF'\n"
		"table inet t {\n"
		" chain c1 { type filter hook output priority raw;\n"
		"  udp dport 5002 ct zone set 7; }\n"
		" chain c2 { type filter hook output priority mangle;\n"
		"  udp dport 5004 ct mark set 1337; udp dport 5005 ct mark set 7; }\n"
		" chain c3 { type nat hook output priority -100;\n"
		"  udp dport { 5001, 5002 } redirect to :6000; }\n"
		" chain c4 { type nat hook postrouting priority 100;\n"
		"  ip daddr 127.0.0.1 udp dport 5003 snat ip to 127.0.0.9; }\n"
		"}\n"
		"EOF\n";

	(void)arg;
	if (system(rules)) /* NOLINT(cert-env33-c) */
		return error_set(err, EIO, "nft");
	return 0;
}

static int open_flows(void *arg, struct error *err)
{
	(void)arg;
	if (send_to(AF_INET, PLAIN_PORT) || send_to(AF_INET6, PLAIN_PORT) ||
	    send_to(AF_INET, TO_PORT) || send_to(AF_INET6, TO_PORT) ||
	    send_to(AF_INET, ZONE_PORT) || send_to(AF_INET, SNAT_PORT) ||
	    send_to(AF_INET, MARK_PORT) || send_to(AF_INET, OTHER_MARK_PORT))
		return error_set(err, errno, "send");
	return 0;
}

TEST(translated_and_marked_flows_are_counted_and_no_others)
{
	struct error err = {0};
	size_t n = 99;
	int fd = -1;

	if (netns_new(&fd, &err))
		return TEST_SKIP;
	CHECK_EQ(conntrack_count_captured(fd, MARK, UINT32_MAX, &n, &err), 0);
	CHECK_EQ(n, 0);
	CHECK_EQ(netns_run(fd, prepare, NULL, &err), 0);
	CHECK_EQ(netns_run(fd, open_flows, NULL, &err), 0);
	CHECK_EQ(conntrack_count_captured(fd, 0, 0, &n, &err), 0);
	CHECK_EQ(n, 4);
	CHECK_EQ(conntrack_count_captured(fd, MARK, UINT32_MAX, &n, &err), 0);
	CHECK_EQ(n, 5);
	CHECK_EQ(conntrack_count_captured(fd, MARK & 0xf, 0xf, &n, &err), 0);
	CHECK_EQ(n, 5);
	CHECK_EQ(conntrack_count_captured(fd, 2, 0x2, &n, &err), 0);
	CHECK_EQ(n, 5);
	close(fd);
	return TEST_OK;
}

static int open_many(void *arg, struct error *err)
{
	const int *flows = arg;

	for (int i = 0; i < *flows; i++)
		if (send_to(AF_INET, TO_PORT))
			return error_set(err, errno, "send");
	return 0;
}

TEST(more_flows_than_one_message_holds_are_all_counted)
{
	struct error err = {0};
	int fd = -1, flows = 1500;
	size_t n = 0;

	if (netns_new(&fd, &err))
		return TEST_SKIP;
	CHECK_EQ(netns_run(fd, prepare, NULL, &err), 0);
	CHECK_EQ(netns_run(fd, open_many, &flows, &err), 0);
	CHECK_EQ(conntrack_count_captured(fd, 0, 0, &n, &err), 0);
	/* Two sockets in a row may have had the same port, which is the same flow. */
	CHECK(n > 1400 && n <= 1500);
	close(fd);
	return TEST_OK;
}

TEST(what_is_no_namespace_is_refused)
{
	struct error err = {0};
	size_t n = 99;

	CHECK_EQ(conntrack_count_captured(-1, 0, 0, &n, &err), -EBADF);
	CHECK_EQ(n, 99);
	return TEST_OK;
}
