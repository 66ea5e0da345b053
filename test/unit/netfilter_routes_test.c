/* SPDX-License-Identifier: Apache-2.0 */
#include "netfilter_routes.h"

#include "error.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct shell {
	const char *command;
	char output[4096];
};

static int run_shell(void *arg, struct error *err)
{
	struct shell *shell = arg;
	FILE *out = popen(shell->command, "re"); /* NOLINT(cert-env33-c) */
	size_t n;

	if (!out)
		return error_set(err, errno, "popen");
	n = fread(shell->output, 1, sizeof(shell->output) - 1, out);
	shell->output[n] = '\0';
	return pclose(out) ? error_set(err, EIO, "%s", shell->command) : 0;
}

static bool in(int fd, const char *command)
{
	struct shell shell = {.command = command};
	struct error err = {0};
	bool done = !netns_run(fd, run_shell, &shell, &err);

	if (!done)
		printf("# %s\n", err.text);
	return done;
}

/* How many lines the command prints. */
static int lines(int fd, const char *command)
{
	struct shell shell = {.command = command};
	struct error err = {0};
	int n = 0;

	if (netns_run(fd, run_shell, &shell, &err))
		return -1;
	for (const char *c = shell.output; *c; c++)
		n += *c == '\n';
	return n;
}

static bool new_pod(int *ret_fd)
{
	struct error err = {0};

	return !netns_new(ret_fd, &err) && in(*ret_fd, "ip link set lo up");
}

#define RULES_4 "ip -4 rule show | grep 'from all fwmark 0x539 lookup 133'; true"
#define RULES_6 "ip -6 rule show | grep 'from all fwmark 0x539 lookup 133'; true"
#define ROUTES_4                                                                                   \
	"ip -4 route show table 133 2>/dev/null | grep 'local default dev lo scope host'; true"
#define ROUTES_6 "ip -6 route show table 133 2>/dev/null | grep 'local default dev lo'; true"

TEST(rules_and_routes_come_once_and_go)
{
	struct error err = {0};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
		CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), 0);
		CHECK_EQ(lines(fd, RULES_4), 1);
		CHECK_EQ(lines(fd, RULES_6), 1);
		CHECK_EQ(lines(fd, ROUTES_4), 1);
		CHECK_EQ(lines(fd, ROUTES_6), 1);
	}
	/* What it is for: a marked packet to anywhere is delivered here. */
	CHECK_EQ(lines(fd, "ip -4 route get 192.0.2.1 mark 1337 | grep ^local"), 1);
	CHECK_EQ(lines(fd, "ip -6 route get 2001:db8::1 mark 1337 | grep ^local"), 1);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, false, true, &err), 0);
		CHECK_EQ(lines(fd, "ip -4 rule; ip -6 rule"), 3 + 2);
		CHECK_EQ(lines(fd, ROUTES_4) + lines(fd, ROUTES_6), 0);
	}
	close(fd);
	return TEST_OK;
}

TEST(those_of_ambient_are_as_istios_and_independent_of_tproxys)
{
	struct error err = {0};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_AMBIENT, true, &err), -ENODEV);
	CHECK_STR(err.text, "the IPv4 routing rule of mark 273 is missing");
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_AMBIENT, true, true, &err), 0);
		CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_AMBIENT, true, &err), 0);
		CHECK_EQ(lines(fd, "ip -4 rule | grep '^32764:.*fwmark 0x111/0xfff lookup 100'"),
			 1);
		CHECK_EQ(lines(fd, "ip -6 rule | grep '^32764:.*fwmark 0x111/0xfff lookup 100'"),
			 1);
		CHECK_EQ(lines(fd, "ip -4 route show table 100 | grep 'local default dev lo'"), 1);
		CHECK_EQ(lines(fd, "ip -6 route show table 100 | grep 'local default dev lo'"), 1);
	}
	CHECK_EQ(lines(fd, "ip -4 route get 192.0.2.1 mark 0xabc111 | grep ^local"), 1);
	CHECK_EQ(lines(fd, "ip -6 route get 2001:db8::1 mark 0x111 | grep ^local"), 1);
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_AMBIENT, false, true, &err), 0);
	CHECK_EQ(lines(fd, "ip -4 rule; ip -6 rule"), 4 + 3);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), 0);
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_NONE, true, true, &err), 0);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_NONE, true, &err), 0);
	close(fd);
	return TEST_OK;
}

TEST(without_ipv6_only_ipv4_is_touched)
{
	struct error err = {0};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, false, &err), 0);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, false, &err), 0);
	CHECK_EQ(lines(fd, RULES_4), 1);
	CHECK_EQ(lines(fd, RULES_6) + lines(fd, ROUTES_6), 0);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), -ENODEV);
	CHECK_STR(err.text, "the IPv6 routing rule of mark 1337 is missing");
	close(fd);
	return TEST_OK;
}

TEST(those_of_istio_are_found_and_not_doubled)
{
	struct error err = {0};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	CHECK(in(fd, "ip rule add fwmark 1337 lookup 133 &&"
		     "ip route add local default dev lo table 133 &&"
		     "ip -6 rule add fwmark 1337 lookup 133 &&"
		     "ip -6 route add local default dev lo table 133"));
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), 0);
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
	CHECK_EQ(lines(fd, RULES_4), 1);
	CHECK_EQ(lines(fd, RULES_6), 1);
	CHECK(in(fd, "ip rule add fwmark 1337 lookup 133")); /* as a second run of Istio's does */
	CHECK_EQ(lines(fd, RULES_4), 2);
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, false, true, &err), 0);
	CHECK_EQ(lines(fd, "ip -4 rule; ip -6 rule"), 3 + 2);
	CHECK_EQ(lines(fd, ROUTES_4) + lines(fd, ROUTES_6), 0);
	close(fd);
	return TEST_OK;
}

TEST(what_is_missing_is_named)
{
	static const struct {
		const char *command, *text;
	} cases[] = {
		{"ip -4 rule del fwmark 1337", "the IPv4 routing rule of mark 1337 is missing"},
		{"ip -6 rule del fwmark 1337", "the IPv6 routing rule of mark 1337 is missing"},
		{"ip -4 route flush table 133", "the IPv4 route of table 133 is missing"},
		{"ip -6 route flush table 133", "the IPv6 route of table 133 is missing"},
	};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct error err = {0};

		CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
		CHECK(in(fd, cases[i].command));
		CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), -ENODEV);
		CHECK_STR(err.text, cases[i].text);
	}
	close(fd);
	return TEST_OK;
}

TEST(similar_rules_of_others_do_not_count_and_stay)
{
	static const char *const rules[] = {
		"fwmark 1337/0xff lookup 133",
		"fwmark 1337 iif lo lookup 133",
		"not fwmark 1337 lookup 133",
		"fwmark 1337 to 192.0.2.0/24 lookup 133",
		"fwmark 1337 lookup 134",
		"fwmark 1338 lookup 133",
		"fwmark 1337 lookup 133 pref 32800",
		"fwmark 1337 lookup 133 suppress_prefixlength 0",
		"fwmark 1337 lookup 133 uidrange 0-5",
	};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		struct error err = {0};
		char command[128];

		printf("# %s\n", rules[i]);
		snprintf(command, sizeof(command), "ip rule add %s", rules[i]);
		CHECK(in(fd, command));
		CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, false, &err),
			 -ENODEV);
		CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, false, &err), 0);
		CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, false, &err), 0);
		CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, false, false, &err), 0);
		CHECK_EQ(lines(fd, "ip rule show"), 3 + 1);
		snprintf(command, sizeof(command), "ip rule del %s", rules[i]);
		CHECK(in(fd, command));
	}
	close(fd);
	return TEST_OK;
}

TEST(a_default_route_of_somebody_else_is_an_error)
{
	struct error err = {0};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	CHECK(in(fd, "ip route add blackhole default table 133"));
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), -EEXIST);
	CHECK_HAS(err.text, "IPv4 default route");
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, false, true, &err), 0);
	CHECK_EQ(lines(fd, "ip route show table 133"), 1);
	close(fd);
	return TEST_OK;
}

TEST(ipv6_switched_off_in_the_namespace_is_no_failure)
{
	struct error err = {0};
	int fd = -1;

	if (!new_pod(&fd))
		return TEST_SKIP;
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
	CHECK(in(fd, "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"));
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), 0);
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, false, true, &err), 0);
	CHECK_EQ(lines(fd, "ip -4 rule; ip -6 rule"), 3 + 2);
	CHECK_EQ(netfilter_routes_set(fd, NETFILTER_ROUTES_TPROXY, true, true, &err), 0);
	CHECK_EQ(netfilter_routes_verify(fd, NETFILTER_ROUTES_TPROXY, true, &err), 0);
	close(fd);
	return TEST_OK;
}
