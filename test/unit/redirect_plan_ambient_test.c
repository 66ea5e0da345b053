/* SPDX-License-Identifier: Apache-2.0 */
/* The conformance matrix of Istio's ambient rules as data, against the reference decision. */
#include "redirect_plan.h"

#include "error.h"
#include "test.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct redirect_settings ambient(void)
{
	struct redirect_settings s = {.ambient = true,
				      .outbound_port = 15001,
				      .inbound_port = 15006,
				      .dns_port = 15053,
				      .tunnel_port = 15008,
				      .dns_capture = true,
				      .capture_ipv6 = true,
				      .outbound_include_all = true,
				      .inbound_include_all = true};
	struct error err = {0};

	if (ip_prefix_parse("127.0.0.1/32", &s.loopback4, &err) < 0)
		abort();
	return s;
}

static struct redirect_plan *build(const struct redirect_settings *s)
{
	struct redirect_plan *plan = NULL;
	struct error err = {0};

	if (redirect_plan_build(s, &plan, &err) < 0)
		abort();
	return plan;
}

enum place { EXTERNAL, RESOLVER, OWN, LO, LO_OTHER, PROBE, PLACES };
enum family { V4, V6, MAPPED, FAMILIES };

/* "" where a family has no such address. */
static const char *const places[PLACES][FAMILIES] = {
	[EXTERNAL] = {"203.0.113.9", "2001:db8::9", "::ffff:203.0.113.9"},
	[RESOLVER] = {"10.96.0.10", "fd00:96::a", "::ffff:10.96.0.10"},
	[OWN] = {"10.244.0.5", "fd00:10::5", "::ffff:10.244.0.5"},
	[LO] = {"127.0.0.1", "::1", "::ffff:127.0.0.1"},
	[LO_OTHER] = {"127.0.0.2", "", "::ffff:127.0.0.2"},
	[PROBE] = {"169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
		   "::ffff:169.254.7.127"},
};

enum { APP = 0, ZTUNNEL = 0x539, ZTUNNEL_WITH_MORE = 0x7000539, ANSWER = 0x111 };

struct row {
	uint32_t mark;
	enum place to;
	uint16_t port;
	bool udp;
	enum plan_rule_id with_dns, without;
	uint16_t goes_to; /* with DNS capture; 0: passes */
};

static const struct row outbound_rows[] = {
	{APP, EXTERNAL, 80, false, RULE_OUT_ALL, RULE_OUT_ALL, 15001},
	{APP, EXTERNAL, 15008, false, RULE_OUT_ALL, RULE_OUT_ALL, 15001},
	{APP, EXTERNAL, 80, true, RULE_NONE, RULE_NONE, 0},
	{APP, RESOLVER, 53, true, RULE_OUT_DNS_UDP, RULE_NONE, 15053},
	{APP, RESOLVER, 53, false, RULE_OUT_DNS_TCP, RULE_OUT_ALL, 15053},
	{APP, LO, 53, true, RULE_OUT_LOOPBACK, RULE_OUT_LOOPBACK, 0},
	{APP, LO, 53, false, RULE_OUT_LOOPBACK, RULE_OUT_LOOPBACK, 0},
	{APP, LO_OTHER, 53, true, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF, 0},
	{APP, LO_OTHER, 53, false, RULE_OUT_DNS_TCP, RULE_OUT_TO_SELF, 15053},
	{APP, OWN, 53, true, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF, 0},
	{APP, OWN, 53, false, RULE_OUT_DNS_TCP, RULE_OUT_TO_SELF, 15053},
	{APP, OWN, 8080, false, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF, 0},
	{APP, LO, 8080, false, RULE_OUT_LOOPBACK, RULE_OUT_LOOPBACK, 0},
	{APP, LO, 15001, false, RULE_OUT_LOOPBACK, RULE_OUT_LOOPBACK, 0},
	{APP, LO_OTHER, 8080, false, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF, 0},
	{APP, PROBE, 8080, false, RULE_OUT_PROBE, RULE_OUT_PROBE, 0},
	{APP, PROBE, 8080, true, RULE_NONE, RULE_NONE, 0},
	{ZTUNNEL, EXTERNAL, 80, false, RULE_OUT_PROXY_MARK, RULE_OUT_PROXY_MARK, 0},
	{ZTUNNEL, RESOLVER, 53, true, RULE_OUT_PROXY_MARK, RULE_OUT_PROXY_MARK, 0},
	{ZTUNNEL, OWN, 8080, false, RULE_OUT_PROXY_MARK, RULE_OUT_PROXY_MARK, 0},
	{ZTUNNEL_WITH_MORE, EXTERNAL, 80, false, RULE_OUT_PROXY_MARK, RULE_OUT_PROXY_MARK, 0},
	{ANSWER, EXTERNAL, 80, false, RULE_OUT_REPLY_MARK, RULE_OUT_REPLY_MARK, 0},
};

static bool is_own(enum place place)
{
	return place == OWN || place == LO || place == LO_OTHER;
}

static enum test_result check_row(const struct redirect_plan *plan, const struct row *row,
				  enum family family, bool dns)
{
	enum plan_rule_id wanted = dns ? row->with_dns : row->without;
	struct plan_flow flow = {.udp = row->udp,
				 .port = row->port,
				 .mark = row->mark,
				 .uid = 1337, /* which means nothing here */
				 .gid = 1337,
				 .destination_is_local = is_own(row->to)};
	const struct plan_rule *rule;
	struct error err = {0};

	if (!*places[row->to][family])
		return TEST_OK;
	CHECK(!ip_address_parse(places[row->to][family], &flow.destination, &err));
	rule = redirect_plan_decide(plan, &flow);
	CHECK_STR(plan_rule_name(rule->id), plan_rule_name(wanted));
	if (dns) {
		CHECK_EQ(rule->port, row->goes_to);
		CHECK_EQ(rule->verdict, row->goes_to ? PLAN_REDIRECT : PLAN_PASS);
	}
	return TEST_OK;
}

TEST(ambient_matrix_outbound)
{
	struct redirect_settings s = ambient();

	for (int dns = 0; dns < 2; dns++) {
		struct redirect_plan *plan;

		s.dns_capture = dns;
		plan = build(&s);
		for (size_t i = 0; i < COUNT(outbound_rows); i++)
			for (enum family family = 0; family < FAMILIES; family++) {
				if (check_row(plan, &outbound_rows[i], family, dns) == TEST_OK)
					continue;
				printf("# row %zu, %s, DNS capture %s\n", i,
				       places[outbound_rows[i].to][family], dns ? "on" : "off");
				redirect_plan_free(plan);
				return TEST_FAILED;
			}
		redirect_plan_free(plan);
	}
	return TEST_OK;
}

/* What becomes of a connection from outside; NULL: a client's address. */
static enum plan_rule_id inbound(const struct redirect_plan *plan, const char *from, uint16_t port,
				 uint32_t mark)
{
	struct plan_flow flow = {.inbound = true, .port = port, .mark = mark};
	struct error err = {0};

	if (ip_address_parse(from ?: "203.0.113.9", &flow.source, &err) < 0 ||
	    ip_address_parse("10.244.0.5", &flow.destination, &err) < 0)
		abort();
	return redirect_plan_decide(plan, &flow)->id;
}

TEST(ambient_matrix_inbound)
{
	static const uint16_t ports[] = {8080, 53, 15001, 15006, 15020, 15021, 15053, 15090};
	struct redirect_settings s = ambient();
	struct redirect_plan *plan = build(&s);

	for (size_t i = 0; i < COUNT(ports); i++) {
		CHECK_EQ(inbound(plan, NULL, ports[i], APP), RULE_IN_ALL);
		CHECK_EQ(inbound(plan, places[PROBE][V4], ports[i], APP), RULE_IN_PROBE);
		CHECK_EQ(inbound(plan, places[PROBE][V6], ports[i], APP), RULE_IN_PROBE);
		/* ztunnel's own, with the client's address */
		CHECK_EQ(inbound(plan, NULL, ports[i], ZTUNNEL), RULE_NONE);
	}
	CHECK_EQ(inbound(plan, NULL, 15008, APP), RULE_IN_TUNNEL);
	CHECK_EQ(inbound(plan, places[PROBE][V4], 15008, APP), RULE_IN_PROBE);
	CHECK_EQ(inbound(plan, "169.254.7.126", 8080, APP), RULE_IN_ALL);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(ambient_ingress_mode_captures_nothing_inbound)
{
	struct redirect_settings s = ambient();
	struct redirect_plan *plan;

	s.inbound_include_all = false;
	plan = build(&s);
	CHECK_EQ(plan->n_inbound, 0);
	CHECK_EQ(inbound(plan, NULL, 8080, APP), RULE_NONE);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(ambient_guest_interfaces_go_to_the_outbound_port)
{
	char name[] = "k6t-eth0", *names[] = {name};
	struct redirect_settings s = ambient();
	struct plan_flow flow = {.inbound = true, .port = 80, .interface = "k6t-eth0"};
	struct redirect_plan *plan;
	struct error err = {0};

	s.reroute_interfaces = (struct name_list){names, 1};
	plan = build(&s);
	CHECK(!ip_address_parse("203.0.113.9", &flow.destination, &err));
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IN_IF_REROUTED);
	CHECK_EQ(redirect_plan_decide(plan, &flow)->port, 15001);
	flow.udp = true;
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IN_IF_REROUTED_REST);
	flow.interface = "eth0";
	flow.udp = false;
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IN_ALL);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(ambient_probe_address_is_nothing_to_who_knows_kubelet)
{
	struct redirect_settings s = ambient();
	struct redirect_plan *plan = build(&s);
	struct plan_flow flow = {.port = 80, .knows_kubelet = true};
	struct error err = {0};

	CHECK(!ip_address_parse(places[PROBE][V4], &flow.destination, &err));
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_ALL);
	flow.inbound = true;
	flow.source = flow.destination;
	CHECK(!ip_address_parse("10.244.0.5", &flow.destination, &err));
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IN_ALL);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(ambient_marks_mean_nothing_to_a_sidecar)
{
	struct redirect_settings s = ambient();
	struct plan_flow flow = {.port = 80, .mark = ZTUNNEL, .uid = 1000, .gid = 1000};
	struct redirect_plan *plan, *other;
	struct error err = {0};

	CHECK(!ip_address_parse("203.0.113.9", &flow.destination, &err));
	plan = build(&s);
	s.ambient = false;
	other = build(&s);
	CHECK_EQ(redirect_plan_decide(other, &flow)->id, RULE_OUT_ALL);
	CHECK(!redirect_plan_equal(plan, other));
	redirect_plan_free(plan);
	redirect_plan_free(other);
	return TEST_OK;
}

TEST(ambient_without_ipv6_leaves_it_alone)
{
	struct redirect_settings s = ambient();
	struct plan_flow flow = {.port = 80};
	struct redirect_plan *plan;
	struct error err = {0};

	s.capture_ipv6 = false;
	plan = build(&s);
	CHECK(!ip_address_parse("2001:db8::9", &flow.destination, &err));
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IPV6_OFF);
	flow.inbound = true;
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IPV6_OFF);
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- by a proxy in another namespace of the node ---- */

static struct redirect_settings by_node(void)
{
	struct redirect_settings s = ambient();
	struct error err = {0};

	s.ambient = false;
	s.node_proxy = true;
	s.inbound_port = s.tunnel_port = 0;
	s.inbound_include_all = false;
	if (ip_address_parse("10.245.0.2", &s.proxy4, &err) ||
	    ip_address_parse("fd00:45::2", &s.proxy6, &err))
		abort();
	return s;
}

TEST(the_nodes_proxy_gets_what_leaves_the_pod)
{
	static const struct {
		const char *to;
		uint16_t port;
		bool udp, own;
		enum plan_rule_id with_dns, without;
	} rows[] = {
		{"203.0.113.9", 80, false, false, RULE_OUT_ALL, RULE_OUT_ALL},
		{"2001:db8::9", 80, false, false, RULE_OUT_ALL, RULE_OUT_ALL},
		{"::ffff:203.0.113.9", 15001, false, false, RULE_OUT_ALL, RULE_OUT_ALL},
		{"203.0.113.9", 80, true, false, RULE_NONE, RULE_NONE},
		{"10.96.0.10", 53, false, false, RULE_OUT_DNS_TCP, RULE_OUT_ALL},
		{"fd00:96::a", 53, true, false, RULE_OUT_DNS_UDP, RULE_NONE},
		{"10.244.0.5", 53, false, true, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF},
		{"10.244.0.5", 53, true, true, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF},
		{"fd00:10::5", 8080, false, true, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF},
		{"127.0.0.1", 53, false, true, RULE_OUT_LOOPBACK, RULE_OUT_LOOPBACK},
		{"127.0.0.2", 53, false, true, RULE_OUT_TO_SELF, RULE_OUT_TO_SELF},
		{"::1", 15001, false, true, RULE_OUT_LOOPBACK, RULE_OUT_LOOPBACK},
		{"10.245.0.2", 15001, false, false, RULE_OUT_TO_NODE_PROXY, RULE_OUT_TO_NODE_PROXY},
		{"::ffff:10.245.0.2", 80, false, false, RULE_OUT_TO_NODE_PROXY,
		 RULE_OUT_TO_NODE_PROXY},
		{"fd00:45::2", 53, true, false, RULE_OUT_TO_NODE_PROXY, RULE_OUT_TO_NODE_PROXY},
		{"fd00:45::3", 80, false, false, RULE_OUT_ALL, RULE_OUT_ALL},
	};
	struct redirect_settings s = by_node();

	for (int dns = 1; dns >= 0; dns--) {
		struct redirect_plan *plan;

		s.dns_capture = dns;
		plan = build(&s);
		for (size_t i = 0; i < COUNT(rows); i++) {
			/* Whatever mark the socket has: ztunnel's mean nothing here. */
			struct plan_flow flow = {.udp = rows[i].udp,
						 .port = rows[i].port,
						 .mark = i % 2 ? ZTUNNEL : ANSWER,
						 .uid = 1337,
						 .gid = 1337,
						 .destination_is_local = rows[i].own};
			struct error err = {0};

			CHECK(!ip_address_parse(rows[i].to, &flow.destination, &err));
			CHECK_STR(plan_rule_name(redirect_plan_decide(plan, &flow)->id),
				  plan_rule_name(dns ? rows[i].with_dns : rows[i].without));
		}
		redirect_plan_free(plan);
	}
	return TEST_OK;
}

TEST(the_nodes_proxy_gets_nothing_that_comes_in)
{
	static const uint16_t ports[] = {80, 8080, 15001, 15006, 15008};
	struct redirect_settings s = by_node();
	struct redirect_plan *plan = build(&s);

	CHECK_EQ(plan->n_inbound, 0);
	for (size_t i = 0; i < COUNT(ports); i++) {
		struct plan_flow flow = {.inbound = true, .port = ports[i]};
		struct error err = {0};

		CHECK(!ip_address_parse(places[OWN][V4], &flow.destination, &err));
		CHECK_EQ(redirect_plan_decide(plan, &flow)->verdict, PLAN_PASS);
	}
	CHECK(!redirect_plan_wants_passthrough(plan));
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(plans_for_another_proxy_are_others)
{
	struct redirect_settings s = by_node();
	struct redirect_plan *plan = build(&s), *other;

	CHECK_HAS(redirect_plan_needs_ebpf(plan), "needs eBPF");
	s.proxy4.bytes[15]++;
	other = build(&s);
	CHECK(!redirect_plan_equal(plan, other));
	redirect_plan_free(other);
	s = by_node();
	s.proxy6 = (struct ip_address){0};
	other = build(&s);
	CHECK(!redirect_plan_equal(plan, other));
	redirect_plan_free(other);
	s = by_node();
	other = build(&s);
	CHECK(redirect_plan_equal(plan, other));
	redirect_plan_free(other);
	s = ambient();
	other = build(&s);
	CHECK(!redirect_plan_equal(plan, other));
	CHECK(!redirect_plan_needs_ebpf(other));
	redirect_plan_free(other);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(without_ipv6_the_nodes_proxy_gets_none)
{
	struct redirect_settings s = by_node();
	struct plan_flow flow = {.port = 80};
	struct redirect_plan *plan;
	struct error err = {0};

	s.capture_ipv6 = false;
	plan = build(&s);
	CHECK(!ip_address_parse("2001:db8::9", &flow.destination, &err));
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_IPV6_OFF);
	redirect_plan_free(plan);
	return TEST_OK;
}
