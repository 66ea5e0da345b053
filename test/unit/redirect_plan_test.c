/* SPDX-License-Identifier: Apache-2.0 */
/* The conformance matrix of Istio's sidecar rules as data, against the reference decision. */
#include "redirect_plan.h"

#include "error.h"
#include "test.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { OUTBOUND_PORT = 15001, INBOUND_PORT = 15006, DNS_PORT = 15053, TUNNEL_PORT = 15008 };

static uint32_t proxy_ids[] = {1337};
static uint16_t status_port[] = {15020};
static uint16_t reserved_ports[] = {15020, 15021, 15090};

/* What Istio's annotations come to when a pod has none. The lists are borrowed. */
static struct redirect_settings defaults(void)
{
	struct redirect_settings s = {
		.outbound_port = OUTBOUND_PORT,
		.inbound_port = INBOUND_PORT,
		.dns_port = DNS_PORT,
		.tunnel_port = TUNNEL_PORT,
		.capture_ipv6 = true,
		.proxy_uids = {proxy_ids, 1},
		.proxy_gids = {proxy_ids, 1},
		.outbound_include_all = true,
		.inbound_include_all = true,
		.outbound_exclude_ports = {status_port, COUNT(status_port)},
		.inbound_exclude_ports = {reserved_ports, COUNT(reserved_ports)},
	};
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

static struct ip_address address(const char *text)
{
	struct ip_address a;
	struct error err = {0};

	if (ip_address_parse(text, &a, &err) < 0)
		abort();
	return a;
}

static struct ip_prefix prefix(const char *text)
{
	struct ip_prefix p;
	struct error err = {0};

	if (ip_prefix_parse(text, &p, &err) < 0)
		abort();
	return p;
}

/* The rule that decides about an app's outbound TCP connection. */
static enum plan_rule_id app_tcp(const struct redirect_plan *plan, const char *to, uint16_t port)
{
	struct plan_flow flow = {
		.destination = address(to), .port = port, .uid = 1000, .gid = 1000};

	return redirect_plan_decide(plan, &flow)->id;
}

static enum plan_rule_id inbound_tcp(const struct redirect_plan *plan, const char *to,
				     uint16_t port)
{
	struct plan_flow flow = {.inbound = true, .destination = address(to), .port = port};

	return redirect_plan_decide(plan, &flow)->id;
}

/* ---- the matrix ---------------------------------------------------------------------------- */

enum place {
	EXTERNAL,
	RESOLVER,
	OWN,
	OWN_SECOND,
	LO,
	LO_OTHER,
	UNSPECIFIED,
	PASSTHROUGH,
	PLACES,
	UNBOUND = UNSPECIFIED,
};
enum family { V4, V6, MAPPED, FAMILIES };

/* "" where a family has no such address. */
static const char *const places[PLACES][FAMILIES] = {
	[EXTERNAL] = {"203.0.113.9", "2001:db8::9", "::ffff:203.0.113.9"},
	[RESOLVER] = {"10.96.0.10", "fd00:96::a", "::ffff:10.96.0.10"},
	[OWN] = {"10.244.0.5", "fd00:10::5", "::ffff:10.244.0.5"},
	[OWN_SECOND] = {"192.0.2.77", "fd00:77::7", "::ffff:192.0.2.77"},
	[LO] = {"127.0.0.1", "::1", "::ffff:127.0.0.1"},
	[LO_OTHER] = {"127.0.0.2", "", "::ffff:127.0.0.2"},
	[UNSPECIFIED] = {"0.0.0.0", "::", "::ffff:0.0.0.0"},
	[PASSTHROUGH] = {"127.0.0.6", "::6", "::ffff:127.0.0.6"},
};

enum who { APP, ROOT, PROXY, PROXY_UID_ONLY, PROXY_GID_ONLY, IDENTITIES };

static const struct {
	uint32_t uid, gid;
} identities[IDENTITIES] = {
	[APP] = {1000, 1000},
	[ROOT] = {0, 0},
	[PROXY] = {1337, 1337},
	[PROXY_UID_ONLY] = {1337, 1000},
	[PROXY_GID_ONLY] = {1000, 1337},
};

enum protocol { TCP, UDP };

struct row {
	enum who who;
	enum place from, to;
	uint16_t port;
	enum protocol protocol;
	enum plan_rule_id plain, with_dns; /* without and with DNS capture */
};

static const struct row app_rows[] = {
	{APP, UNBOUND, EXTERNAL, 80, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, UNBOUND, EXTERNAL, 443, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, OWN, EXTERNAL, 443, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, UNBOUND, EXTERNAL, 0, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, UNBOUND, EXTERNAL, 65535, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, UNBOUND, EXTERNAL, 15008, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, UNBOUND, EXTERNAL, 15020, TCP, RULE_OUT_PORT_EXCLUDED, RULE_OUT_PORT_EXCLUDED},
	{APP, UNBOUND, EXTERNAL, 15020, UDP, RULE_OUT_PORT_EXCLUDED, RULE_OUT_PORT_EXCLUDED},
	{APP, UNBOUND, EXTERNAL, 15021, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
	{APP, UNBOUND, RESOLVER, 53, TCP, RULE_OUT_ALL, RULE_OUT_DNS_TCP},
	{APP, UNBOUND, RESOLVER, 53, UDP, RULE_NONE, RULE_OUT_DNS_UDP},
	{APP, UNBOUND, EXTERNAL, 123, UDP, RULE_NONE, RULE_NONE},
	{APP, UNBOUND, OWN, 8080, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, OWN_SECOND, 8080, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, OWN, 15001, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, OWN, 15008, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, OWN, 15020, TCP, RULE_OUT_PORT_EXCLUDED, RULE_OUT_PORT_EXCLUDED},
	{APP, UNBOUND, OWN, 53, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_DNS_TCP},
	{APP, UNBOUND, OWN, 53, UDP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_DNS_UDP},
	{APP, UNBOUND, OWN, 8080, UDP, RULE_OUT_APP_TO_SELF_UID, RULE_NONE},
	{APP, UNBOUND, LO, 8080, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, LO, 15001, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, LO, 8080, UDP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_LOOPBACK},
	{APP, UNBOUND, LO, 53, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_DNS_TCP},
	{APP, UNBOUND, LO, 53, UDP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_DNS_UDP},
	{APP, UNBOUND, LO_OTHER, 8080, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, UNSPECIFIED, 8080, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_APP_TO_SELF_UID},
	{APP, UNBOUND, UNSPECIFIED, 53, UDP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_DNS_UDP},
	{APP, PASSTHROUGH, LO, 8080, TCP, RULE_OUT_SRC_P6, RULE_OUT_SRC_P6},
	{APP, PASSTHROUGH, LO, 53, TCP, RULE_OUT_SRC_P6, RULE_OUT_SRC_P6},
	/* The exemption is for the loopback device only. */
	{APP, PASSTHROUGH, EXTERNAL, 80, TCP, RULE_OUT_ALL, RULE_OUT_ALL},
};

static const struct row proxy_rows[] = {
	{PROXY, UNBOUND, EXTERNAL, 80, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, EXTERNAL, 15008, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, EXTERNAL, 123, UDP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, RESOLVER, 53, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, RESOLVER, 53, UDP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, OWN, 8080, TCP, RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_PROXY_UID_TO_SELF},
	{PROXY, OWN, OWN, 8080, TCP, RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_PROXY_UID_TO_SELF},
	{PROXY, UNBOUND, OWN_SECOND, 80, TCP, RULE_OUT_PROXY_UID_TO_SELF,
	 RULE_OUT_PROXY_UID_TO_SELF},
	{PROXY, UNBOUND, OWN, 8080, UDP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, OWN, 15008, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, OWN, 15020, TCP, RULE_OUT_PORT_EXCLUDED, RULE_OUT_PORT_EXCLUDED},
	{PROXY, UNBOUND, OWN, 15021, TCP, RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_PROXY_UID_TO_SELF},
	{PROXY, UNBOUND, OWN, 15090, TCP, RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_PROXY_UID_TO_SELF},
	{PROXY, UNBOUND, OWN, 53, TCP, RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, OWN, 53, UDP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, LO, 8080, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, LO, 53, UDP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, UNSPECIFIED, 8080, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
	{PROXY, UNBOUND, LO_OTHER, 8080, TCP, RULE_OUT_PROXY_UID_TO_SELF,
	 RULE_OUT_PROXY_UID_TO_SELF},
	{PROXY, PASSTHROUGH, OWN, 8080, TCP, RULE_OUT_SRC_P6, RULE_OUT_SRC_P6},
	{PROXY, PASSTHROUGH, LO, 8080, TCP, RULE_OUT_SRC_P6, RULE_OUT_SRC_P6},
	{PROXY, PASSTHROUGH, EXTERNAL, 80, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
};

static const struct row gid_rows[] = {
	{PROXY_GID_ONLY, UNBOUND, EXTERNAL, 80, TCP, RULE_OUT_PROXY_GID, RULE_OUT_PROXY_GID},
	{PROXY_GID_ONLY, UNBOUND, RESOLVER, 53, UDP, RULE_OUT_PROXY_GID, RULE_OUT_PROXY_GID},
	{PROXY_GID_ONLY, UNBOUND, OWN, 8080, TCP, RULE_OUT_APP_TO_SELF_UID,
	 RULE_OUT_APP_TO_SELF_UID},
	{PROXY_GID_ONLY, UNBOUND, LO, 8080, TCP, RULE_OUT_APP_TO_SELF_UID,
	 RULE_OUT_APP_TO_SELF_UID},
	/* The gid form of "proxy to itself" has no exception for DNS. */
	{PROXY_GID_ONLY, UNBOUND, OWN, 53, TCP, RULE_OUT_APP_TO_SELF_UID,
	 RULE_OUT_PROXY_GID_TO_SELF},
	{PROXY_GID_ONLY, UNBOUND, OWN, 53, UDP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_PROXY_GID},
	{PROXY_GID_ONLY, UNBOUND, LO, 53, TCP, RULE_OUT_APP_TO_SELF_UID, RULE_OUT_PROXY_GID},
};

static uint16_t expected_port(enum plan_rule_id id)
{
	switch (id) {
	case RULE_OUT_PROXY_UID_TO_SELF:
	case RULE_OUT_PROXY_GID_TO_SELF:
	case RULE_OUT_TPROXY_SELF:
	case RULE_IN_ALL:
	case RULE_IN_PORT_INCLUDED:
		return INBOUND_PORT;
	case RULE_OUT_DNS_TCP:
	case RULE_OUT_DNS_UDP:
		return DNS_PORT;
	case RULE_OUT_ALL:
	case RULE_OUT_PORT_INCLUDED:
	case RULE_OUT_CIDR_INCLUDED:
	case RULE_IN_IF_REROUTED:
		return OUTBOUND_PORT;
	default:
		return 0;
	}
}

/* TPROXY is about what reaches the inbound port, but for what nat's own rule sends there. */
static bool is_tproxy_rule(const struct redirect_plan *plan, enum plan_rule_id id)
{
	return plan->tproxy &&
	       (id == RULE_OUT_TPROXY_SELF || id == RULE_IN_ALL || id == RULE_IN_PORT_INCLUDED);
}

static enum test_result check_flow(const struct redirect_plan *plan, const struct plan_flow *flow,
				   enum plan_rule_id want)
{
	const struct plan_rule *rule = redirect_plan_decide(plan, flow);

	CHECK_STR(plan_rule_name(rule->id), plan_rule_name(want));
	CHECK_EQ(rule->port, expected_port(want));
	CHECK_EQ(rule->verdict, !expected_port(want)	     ? PLAN_PASS
				: is_tproxy_rule(plan, want) ? PLAN_TPROXY
							     : PLAN_REDIRECT);
	return TEST_OK;
}

static enum test_result check_row(const struct redirect_plan *plan, const struct row *row,
				  enum who who, enum family family, bool dns)
{
	const char *from = places[row->from][family], *to = places[row->to][family];
	struct plan_flow flow = {
		.udp = row->protocol == UDP,
		.port = row->port,
		.destination_is_local = row->to == OWN || row->to == OWN_SECOND,
		.uid = identities[who].uid,
		.gid = identities[who].gid,
	};

	if (!*from || !*to)
		return TEST_OK;
	flow.source = address(from);
	flow.destination = address(to);
	if (check_flow(plan, &flow, dns ? row->with_dns : row->plain) == TEST_OK)
		return TEST_OK;
	printf("# uid %u gid %u: %s -> %s port %u %s, DNS capture %s\n", flow.uid, flow.gid, from,
	       to, flow.port, flow.udp ? "udp" : "tcp", dns ? "on" : "off");
	return TEST_FAILED;
}

static enum test_result check_rows(const struct row *rows, size_t n, enum who instead)
{
	struct redirect_settings s = defaults();
	enum test_result result = TEST_OK;

	for (int dns = 0; dns < 2; dns++) {
		struct redirect_plan *plan;

		s.dns_capture = dns;
		plan = build(&s);
		for (size_t i = 0; i < n; i++)
			for (enum family family = 0; family < FAMILIES; family++)
				if (check_row(plan, &rows[i],
					      instead == IDENTITIES ? rows[i].who : instead, family,
					      dns) != TEST_OK)
					result = TEST_FAILED;
		redirect_plan_free(plan);
	}
	return result;
}

TEST(matrix_app)
{
	return check_rows(app_rows, COUNT(app_rows), IDENTITIES);
}

TEST(matrix_root_is_an_app)
{
	return check_rows(app_rows, COUNT(app_rows), ROOT);
}

TEST(matrix_proxy)
{
	return check_rows(proxy_rows, COUNT(proxy_rows), IDENTITIES);
}

TEST(matrix_proxy_with_another_gid)
{
	return check_rows(proxy_rows, COUNT(proxy_rows), PROXY_UID_ONLY);
}

TEST(matrix_proxy_gid_with_another_uid)
{
	return check_rows(gid_rows, COUNT(gid_rows), IDENTITIES);
}

TEST(matrix_inbound)
{
	static const struct {
		uint16_t port;
		enum protocol protocol;
		enum plan_rule_id want;
	} rows[] = {
		{8080, TCP, RULE_IN_ALL},
		{9090, TCP, RULE_IN_ALL},
		{53, TCP, RULE_IN_ALL},
		{15001, TCP, RULE_IN_ALL},
		{15006, TCP, RULE_IN_ALL},
		{15053, TCP, RULE_IN_ALL},
		{15008, TCP, RULE_IN_TUNNEL},
		{15020, TCP, RULE_IN_PORT_EXCLUDED},
		{15021, TCP, RULE_IN_PORT_EXCLUDED},
		{15090, TCP, RULE_IN_PORT_EXCLUDED},
		{8080, UDP, RULE_NONE},
		{53, UDP, RULE_NONE},
		{15008, UDP, RULE_NONE},
		{15020, UDP, RULE_NONE},
		{7, TCP, RULE_IN_PORT_EXCLUDED},
	};
	uint16_t excluded[] = {15090, 7, 15021, 15020};
	struct redirect_settings s = defaults();
	enum test_result result = TEST_OK;

	s.inbound_exclude_ports = (struct port_list){excluded, COUNT(excluded)};
	for (int dns = 0; dns < 2; dns++) {
		struct redirect_plan *plan;

		s.dns_capture = dns;
		plan = build(&s);
		for (size_t i = 0; i < COUNT(rows); i++) {
			for (enum family family = 0; family < FAMILIES; family++) {
				struct plan_flow flow = {
					.inbound = true,
					.udp = rows[i].protocol == UDP,
					.source = address(places[EXTERNAL][family]),
					.destination = address(places[OWN][family]),
					.port = rows[i].port,
					.destination_is_local = true,
					/* Identity means nothing inbound. */
					.uid = 1337,
					.gid = 1337,
				};

				if (check_flow(plan, &flow, rows[i].want) != TEST_OK) {
					printf("# inbound port %u, family %d\n", flow.port, family);
					result = TEST_FAILED;
				}
			}
		}
		redirect_plan_free(plan);
	}
	return result;
}

static enum test_result check_ids(const struct plan_rule *rules, size_t n,
				  const enum plan_rule_id *want, size_t n_want)
{
	CHECK_EQ(n, n_want);
	for (size_t i = 0; i < n; i++)
		CHECK_STR(plan_rule_name(rules[i].id), plan_rule_name(want[i]));
	return TEST_OK;
}

/* ---- TPROXY, section 2.6 ------------------------------------------------------------------ */

/* Rows of the matrix above that TPROXY changes; all others must stay. */
TEST(matrix_tproxy_outbound)
{
	static const struct row changed[] = {
		{PROXY, UNBOUND, OWN, 15008, TCP, RULE_OUT_TPROXY_SELF, RULE_OUT_TPROXY_SELF},
		{PROXY, UNBOUND, OWN, 53, TCP, RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_TPROXY_SELF},
		{PROXY_GID_ONLY, UNBOUND, OWN, 8080, TCP, RULE_OUT_TPROXY_SELF,
		 RULE_OUT_TPROXY_SELF},
		{PROXY_GID_ONLY, UNBOUND, OWN, 15008, TCP, RULE_OUT_TPROXY_SELF,
		 RULE_OUT_TPROXY_SELF},
		{PROXY_GID_ONLY, UNBOUND, OWN, 53, TCP, RULE_OUT_TPROXY_SELF, RULE_OUT_TPROXY_SELF},
		{PROXY, UNBOUND, OWN, 8080, TCP, RULE_OUT_PROXY_UID_TO_SELF,
		 RULE_OUT_PROXY_UID_TO_SELF},
		{PROXY, UNBOUND, OWN, 15020, TCP, RULE_OUT_PORT_EXCLUDED, RULE_OUT_PORT_EXCLUDED},
		{PROXY, UNBOUND, OWN, 8080, UDP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
		{PROXY, UNBOUND, LO, 8080, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
		{PROXY, UNBOUND, EXTERNAL, 80, TCP, RULE_OUT_PROXY_UID, RULE_OUT_PROXY_UID},
		{PROXY_GID_ONLY, UNBOUND, LO, 8080, TCP, RULE_OUT_APP_TO_SELF_UID,
		 RULE_OUT_APP_TO_SELF_UID},
		{PROXY_GID_ONLY, UNBOUND, EXTERNAL, 80, TCP, RULE_OUT_PROXY_GID,
		 RULE_OUT_PROXY_GID},
		{PROXY, PASSTHROUGH, OWN, 15008, TCP, RULE_OUT_SRC_P6, RULE_OUT_SRC_P6},
	};
	struct redirect_settings s = defaults();
	enum test_result result = TEST_OK;

	s.tproxy = true;
	for (int dns = 0; dns < 2; dns++) {
		struct redirect_plan *plan;

		s.dns_capture = dns;
		plan = build(&s);
		for (enum family family = 0; family < FAMILIES; family++) {
			for (size_t i = 0; i < COUNT(changed); i++)
				if (check_row(plan, &changed[i], changed[i].who, family, dns) !=
				    TEST_OK)
					result = TEST_FAILED;
			for (size_t i = 0; i < COUNT(app_rows); i++)
				if (check_row(plan, &app_rows[i], APP, family, dns) != TEST_OK)
					result = TEST_FAILED;
		}
		redirect_plan_free(plan);
	}
	return result;
}

TEST(matrix_tproxy_inbound)
{
	static const struct {
		uint16_t port;
		enum protocol protocol;
		enum plan_rule_id want;
	} rows[] = {
		{8080, TCP, RULE_IN_ALL},
		{15001, TCP, RULE_IN_ALL},
		{15008, TCP, RULE_IN_ALL}, /* no exemption for the tunnel port in mangle */
		{15020, TCP, RULE_IN_PORT_EXCLUDED},
		{15021, TCP, RULE_IN_PORT_EXCLUDED},
		{8080, UDP, RULE_NONE},
	};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.tproxy = true;
	plan = build(&s);
	for (size_t i = 0; i < COUNT(rows); i++) {
		for (enum family family = 0; family < FAMILIES; family++) {
			struct plan_flow flow = {.inbound = true,
						 .udp = rows[i].protocol == UDP,
						 .destination = address(places[OWN][family]),
						 .port = rows[i].port};

			CHECK(check_flow(plan, &flow, rows[i].want) == TEST_OK);
		}
	}
	redirect_plan_free(plan);
	s.inbound_include_all = false;
	s.inbound_include_ports = (struct port_list){status_port, 1};
	plan = build(&s);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 15020), RULE_IN_PORT_INCLUDED);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 15008), RULE_NONE);
	CHECK_EQ(plan->inbound[plan->n_inbound - 1].verdict, PLAN_TPROXY);
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- interfaces, O1, I0 and I1 ------------------------------------------------------------- */

static enum plan_rule_id by_interface(const struct redirect_plan *plan, bool inbound, bool udp,
				      const char *to, const char *interface)
{
	struct plan_flow flow = {.inbound = inbound,
				 .udp = udp,
				 .destination = address(to),
				 .port = 15020,
				 .uid = 1000,
				 .gid = 1000,
				 .interface = interface};

	return redirect_plan_decide(plan, &flow)->id;
}

TEST(excluded_interfaces_pass_before_all_other_rules)
{
	char *names[] = {(char *)"net1", (char *)"eth1", (char *)"net1"};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.exclude_interfaces = (struct name_list){names, COUNT(names)};
	plan = build(&s);
	CHECK_EQ(plan->exclude_interfaces.n, 2);
	CHECK_STR(plan->exclude_interfaces.names[0], "eth1");
	CHECK_EQ(by_interface(plan, false, false, "203.0.113.9", "eth1"), RULE_OUT_IF_EXCLUDED);
	CHECK_EQ(by_interface(plan, false, true, "203.0.113.9", "net1"), RULE_OUT_IF_EXCLUDED);
	CHECK_EQ(by_interface(plan, false, false, "203.0.113.9", "eth0"), RULE_OUT_PORT_EXCLUDED);
	CHECK_EQ(by_interface(plan, false, false, "203.0.113.9", "eth11"), RULE_OUT_PORT_EXCLUDED);
	CHECK_EQ(by_interface(plan, false, false, "203.0.113.9", NULL), RULE_OUT_PORT_EXCLUDED);
	CHECK_EQ(by_interface(plan, true, false, "fd00:10::5", "net1"), RULE_IN_IF_EXCLUDED);
	CHECK_EQ(by_interface(plan, true, false, "fd00:10::5", "eth0"), RULE_IN_PORT_EXCLUDED);
	redirect_plan_free(plan);
	/* Without inbound capture there is nothing to exempt, outbound stays. */
	s.inbound_include_all = false;
	plan = build(&s);
	CHECK_EQ(plan->n_inbound, 0);
	CHECK_EQ(by_interface(plan, false, false, "203.0.113.9", "eth1"), RULE_OUT_IF_EXCLUDED);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(rerouted_interfaces_go_to_the_outbound_port)
{
	static const enum plan_rule_id want_in[] = {RULE_IN_IF_REROUTED,   RULE_IN_IF_REROUTED_REST,
						    RULE_IN_IF_EXCLUDED,   RULE_IN_TUNNEL,
						    RULE_IN_PORT_EXCLUDED, RULE_IN_ALL};
	struct ip_prefix prefixes[] = {prefix("10.0.0.0/8"), prefix("fd00::/8")};
	char *names[] = {(char *)"tap0"};
	struct redirect_settings s = defaults();
	struct plan_flow flow = {.inbound = true,
				 .destination = address("203.0.113.9"),
				 .port = 80,
				 .interface = "tap0"};
	struct redirect_plan *plan;

	s.reroute_interfaces = s.exclude_interfaces = (struct name_list){names, 1};
	plan = build(&s);
	CHECK(check_ids(plan->inbound, plan->n_inbound, want_in, COUNT(want_in)) == TEST_OK);
	CHECK(check_flow(plan, &flow, RULE_IN_IF_REROUTED) == TEST_OK);
	CHECK_EQ(by_interface(plan, true, true, "203.0.113.9", "tap0"), RULE_IN_IF_REROUTED_REST);
	CHECK_EQ(by_interface(plan, true, false, "203.0.113.9", "eth0"), RULE_IN_PORT_EXCLUDED);
	redirect_plan_free(plan);
	/* With ranges only what goes there; the rest of the guest's packets passes all the same. */
	s.outbound_include_all = false;
	s.include_prefixes = (struct prefix_list){prefixes, 2};
	plan = build(&s);
	CHECK_EQ(by_interface(plan, true, false, "203.0.113.9", "tap0"), RULE_IN_IF_REROUTED_REST);
	CHECK_EQ(by_interface(plan, true, false, "10.1.1.1", "tap0"), RULE_IN_IF_REROUTED);
	CHECK_EQ(by_interface(plan, true, false, "fd00::1", "tap0"), RULE_IN_IF_REROUTED);
	redirect_plan_free(plan);
	/* No inbound capture at all, IPv6 off, TPROXY: a guest's interface keeps its rules. */
	s.include_prefixes.n = 0;
	s.outbound_include_all = true;
	s.inbound_include_all = false;
	s.capture_ipv6 = false;
	s.tproxy = true;
	plan = build(&s);
	CHECK_EQ(by_interface(plan, true, false, "fd00::1", "tap0"), RULE_IPV6_OFF);
	CHECK(check_flow(plan, &flow, RULE_IN_IF_REROUTED) == TEST_OK);
	CHECK_EQ(by_interface(plan, true, false, "10.1.1.1", "eth0"), RULE_NONE);
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- the lists of rules -------------------------------------------------------------------- */

TEST(rules_are_in_the_order_of_istios_chains)
{
	static const enum plan_rule_id want_out[] = {
		RULE_IPV6_OFF,
		RULE_OUT_PORT_EXCLUDED,
		RULE_OUT_SRC_P6,
		RULE_OUT_PROXY_UID_TO_SELF,
		RULE_OUT_APP_TO_SELF_UID,
		RULE_OUT_PROXY_UID,
		RULE_OUT_PROXY_GID_TO_SELF,
		RULE_OUT_APP_TO_SELF_GID,
		RULE_OUT_PROXY_GID,
		RULE_OUT_GROUP_EXEMPT,
		RULE_OUT_DNS_TCP,
		RULE_OUT_DNS_UDP,
		RULE_OUT_LOOPBACK,
		RULE_OUT_CIDR_EXCLUDED,
		RULE_OUT_PORT_INCLUDED,
		RULE_OUT_CIDR_INCLUDED,
	};
	static const enum plan_rule_id want_in[] = {RULE_IPV6_OFF, RULE_IN_TUNNEL,
						    RULE_IN_PORT_EXCLUDED, RULE_IN_ALL};
	struct ip_prefix prefixes[] = {prefix("10.0.0.0/8")};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.capture_ipv6 = false;
	s.dns_capture = true;
	s.groups_set = true;
	s.groups = (struct id_list){proxy_ids, 1};
	s.outbound_include_all = false;
	s.include_prefixes = s.exclude_prefixes = (struct prefix_list){prefixes, 1};
	s.outbound_include_ports = (struct port_list){status_port, 1};
	plan = build(&s);
	CHECK(check_ids(plan->outbound, plan->n_outbound, want_out, COUNT(want_out)) == TEST_OK);
	CHECK(check_ids(plan->inbound, plan->n_inbound, want_in, COUNT(want_in)) == TEST_OK);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(rules_without_an_object_are_left_out)
{
	static const enum plan_rule_id want_out[] = {
		RULE_OUT_SRC_P6,    RULE_OUT_PROXY_UID_TO_SELF, RULE_OUT_APP_TO_SELF_UID,
		RULE_OUT_PROXY_UID, RULE_OUT_PROXY_GID_TO_SELF, RULE_OUT_APP_TO_SELF_GID,
		RULE_OUT_PROXY_GID, RULE_OUT_LOOPBACK,		RULE_OUT_ALL,
	};
	static const enum plan_rule_id want_in[] = {RULE_IN_ALL};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.tunnel_port = 0;
	s.outbound_exclude_ports.n = 0;
	s.inbound_exclude_ports.n = 0;
	plan = build(&s);
	CHECK(check_ids(plan->outbound, plan->n_outbound, want_out, COUNT(want_out)) == TEST_OK);
	CHECK(check_ids(plan->inbound, plan->n_inbound, want_in, COUNT(want_in)) == TEST_OK);
	CHECK_EQ(plan->dns_port, 0);
	/* Without a tunnel port, port 0 is not one. */
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 0), RULE_IN_ALL);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(ipv6_off_passes_ipv6_first_and_keeps_ipv4)
{
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.capture_ipv6 = false;
	plan = build(&s);
	CHECK_EQ(app_tcp(plan, "2001:db8::9", 80), RULE_IPV6_OFF);
	CHECK_EQ(app_tcp(plan, "2001:db8::9", 15020), RULE_IPV6_OFF);
	CHECK_EQ(app_tcp(plan, "::", 80), RULE_IPV6_OFF);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 80), RULE_OUT_ALL);
	CHECK_EQ(app_tcp(plan, "::ffff:203.0.113.9", 80), RULE_OUT_ALL);
	CHECK_EQ(inbound_tcp(plan, "fd00:10::5", 8080), RULE_IPV6_OFF);
	CHECK_EQ(inbound_tcp(plan, "fd00:10::5", 15008), RULE_IPV6_OFF);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 8080), RULE_IN_ALL);
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- lists of prefixes and ports ----------------------------------------------------------- */

TEST(excluded_prefixes_come_before_included_ones_and_ports)
{
	struct ip_prefix include[] = {prefix("10.0.0.0/8"), prefix("fd00::/16")};
	struct ip_prefix exclude[] = {prefix("10.1.0.0/16"), prefix("fd00:1::/32"),
				      prefix("192.0.2.0/24")};
	uint16_t ports[] = {9000};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.outbound_include_all = false;
	s.include_prefixes = (struct prefix_list){include, COUNT(include)};
	s.exclude_prefixes = (struct prefix_list){exclude, COUNT(exclude)};
	s.outbound_include_ports = (struct port_list){ports, COUNT(ports)};
	plan = build(&s);
	CHECK_EQ(app_tcp(plan, "10.2.0.1", 80), RULE_OUT_CIDR_INCLUDED);
	CHECK_EQ(app_tcp(plan, "::ffff:10.2.0.1", 80), RULE_OUT_CIDR_INCLUDED);
	CHECK_EQ(app_tcp(plan, "10.1.0.1", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "10.1.0.1", 9000), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "192.0.2.1", 9000), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 9000), RULE_OUT_PORT_INCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 80), RULE_NONE);
	CHECK_EQ(app_tcp(plan, "fd00:2::1", 80), RULE_OUT_CIDR_INCLUDED);
	CHECK_EQ(app_tcp(plan, "fd00:1::1", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "2001:db8::9", 9000), RULE_OUT_PORT_INCLUDED);
	CHECK_EQ(app_tcp(plan, "2001:db8::9", 80), RULE_NONE);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(udp_is_never_captured_by_ports_or_prefixes)
{
	struct ip_prefix all[] = {prefix("0.0.0.0/0"), prefix("::/0")};
	uint16_t ports[] = {9000};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;
	struct plan_flow flow = {
		.udp = true, .destination = address("203.0.113.9"), .port = 9000, .uid = 1000};

	s.outbound_include_all = false;
	s.include_prefixes = (struct prefix_list){all, COUNT(all)};
	s.outbound_include_ports = (struct port_list){ports, COUNT(ports)};
	plan = build(&s);
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_NONE);
	flow.port = 80;
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_NONE);
	flow.udp = false;
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_CIDR_INCLUDED);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(families_of_prefixes_stay_apart)
{
	struct ip_prefix six[] = {prefix("::/0")}, four[] = {prefix("0.0.0.0/0")};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.exclude_prefixes = (struct prefix_list){six, 1};
	plan = build(&s);
	CHECK_EQ(app_tcp(plan, "2001:db8::9", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 80), RULE_OUT_ALL);
	CHECK_EQ(app_tcp(plan, "::ffff:203.0.113.9", 80), RULE_OUT_ALL);
	redirect_plan_free(plan);

	s.exclude_prefixes = (struct prefix_list){four, 1};
	plan = build(&s);
	CHECK_EQ(app_tcp(plan, "2001:db8::9", 80), RULE_OUT_ALL);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "::ffff:203.0.113.9", 80), RULE_OUT_CIDR_EXCLUDED);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(an_included_loopback_range_opens_loopback_to_capture)
{
	static const char *const ranges[] = {"127.0.0.0/8", "127.0.0.1/32", "::1/128"};

	for (size_t i = 0; i < COUNT(ranges); i++) {
		struct ip_prefix include[] = {prefix("10.0.0.0/8"), prefix(ranges[i])};
		struct redirect_settings s = defaults();
		struct redirect_plan *plan;

		s.outbound_include_all = false;
		s.include_prefixes = (struct prefix_list){include, COUNT(include)};
		for (int dns = 0; dns < 2; dns++) {
			s.dns_capture = dns;
			plan = build(&s);
			/* 127.0.0.1 and ::1 themselves still return at the loopback rule. */
			CHECK_EQ(app_tcp(plan, "127.0.0.1", 8080), RULE_OUT_LOOPBACK);
			CHECK_EQ(app_tcp(plan, "::1", 8080), RULE_OUT_LOOPBACK);
			CHECK_EQ(app_tcp(plan, "127.0.0.2", 8080),
				 i == 0 ? RULE_OUT_CIDR_INCLUDED : RULE_NONE);
			redirect_plan_free(plan);
		}
	}
	return TEST_OK;
}

TEST(an_included_range_next_to_loopback_does_not_open_it)
{
	struct ip_prefix include[] = {prefix("126.0.0.0/8"), prefix("0.0.0.0/0"), prefix("::/0")};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.outbound_include_all = false;
	s.include_prefixes = (struct prefix_list){include, COUNT(include)};
	plan = build(&s);
	CHECK_EQ(app_tcp(plan, "127.0.0.2", 8080), RULE_OUT_APP_TO_SELF_UID);
	CHECK_EQ(app_tcp(plan, "::1", 8080), RULE_OUT_APP_TO_SELF_UID);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(loopback_open_lets_the_gid_rules_decide)
{
	struct ip_prefix include[] = {prefix("127.0.0.0/8")};
	struct redirect_settings s = defaults();
	struct plan_flow flow = {.destination = address("10.244.0.5"),
				 .port = 8080,
				 .destination_is_local = true,
				 .uid = 1000,
				 .gid = 1337};
	struct redirect_plan *plan;

	s.outbound_include_all = false;
	s.include_prefixes = (struct prefix_list){include, COUNT(include)};
	plan = build(&s);
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_PROXY_GID_TO_SELF);
	CHECK_EQ(redirect_plan_decide(plan, &flow)->port, INBOUND_PORT);
	flow.port = TUNNEL_PORT;
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_PROXY_GID);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(empty_include_ranges_capture_only_the_included_ports)
{
	uint16_t ports[] = {80, 443};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.outbound_include_all = false;
	s.outbound_include_ports = (struct port_list){ports, COUNT(ports)};
	plan = build(&s);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 80), RULE_OUT_PORT_INCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 443), RULE_OUT_PORT_INCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 81), RULE_NONE);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(a_wider_ipv4_loopback_counts_everywhere)
{
	struct redirect_settings s = defaults();
	struct plan_flow flow = {
		.destination = address("127.0.0.2"), .port = 8080, .uid = 1337, .gid = 1337};
	struct redirect_plan *plan;

	s.loopback4 = prefix("127.0.0.0/8");
	plan = build(&s);
	CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_PROXY_UID);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(explicit_inbound_ports_know_no_exclusions)
{
	uint16_t ports[] = {15020, 8080};
	struct redirect_settings s = defaults();
	struct plan_flow udp = {
		.inbound = true, .udp = true, .destination = address("10.244.0.5"), .port = 8080};
	struct redirect_plan *plan;

	s.inbound_include_all = false;
	s.inbound_include_ports = (struct port_list){ports, COUNT(ports)};
	plan = build(&s);
	CHECK_EQ(redirect_plan_decide(plan, &udp)->id, RULE_NONE);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 8080), RULE_IN_PORT_INCLUDED);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 15020), RULE_IN_PORT_INCLUDED);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 15021), RULE_NONE);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 9090), RULE_NONE);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 15008), RULE_IN_TUNNEL);
	CHECK_EQ(plan->inbound_exclude_ports.n, 0);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(no_inbound_ports_mean_no_inbound_rules)
{
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.inbound_include_all = false;
	s.capture_ipv6 = false;
	plan = build(&s);
	CHECK_EQ(plan->n_inbound, 0);
	CHECK_EQ(inbound_tcp(plan, "10.244.0.5", 8080), RULE_NONE);
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- identities ---------------------------------------------------------------------------- */

TEST(every_proxy_id_of_a_pod_is_the_proxy)
{
	uint32_t ids[] = {2000, 1337, 2000};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	s.proxy_uids = s.proxy_gids = (struct id_list){ids, COUNT(ids)};
	plan = build(&s);
	CHECK_EQ(plan->proxy_uids.n, 2);
	for (size_t i = 0; i < COUNT(ids); i++) {
		struct plan_flow flow = {.destination = address("10.244.0.5"),
					 .port = 8080,
					 .destination_is_local = true,
					 .uid = ids[i],
					 .gid = 1000};

		CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_PROXY_UID_TO_SELF);
		flow.destination = address("203.0.113.9");
		flow.destination_is_local = false;
		CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_PROXY_UID);
		flow.uid = 1000;
		flow.gid = ids[i];
		CHECK_EQ(redirect_plan_decide(plan, &flow)->id, RULE_OUT_PROXY_GID);
	}
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(owner_groups_are_captured_or_exempt)
{
	uint32_t ids[] = {500, 400};
	struct redirect_settings s = defaults();
	struct plan_flow flow = {.destination = address("203.0.113.9"), .port = 80, .uid = 1000};

	s.groups_set = true;
	s.groups = (struct id_list){ids, COUNT(ids)};
	for (int exempt = 0; exempt < 2; exempt++) {
		struct redirect_plan *plan;

		s.groups_exempt = exempt;
		plan = build(&s);
		flow.gid = 400;
		CHECK_EQ(redirect_plan_decide(plan, &flow)->id,
			 exempt ? RULE_OUT_GROUP_EXEMPT : RULE_OUT_ALL);
		flow.gid = 401;
		CHECK_EQ(redirect_plan_decide(plan, &flow)->id,
			 exempt ? RULE_OUT_ALL : RULE_OUT_GROUP_EXEMPT);
		redirect_plan_free(plan);
	}
	return TEST_OK;
}

TEST(without_a_group_filter_no_group_is_exempt)
{
	struct redirect_settings s = defaults();
	struct plan_flow flow = {.destination = address("203.0.113.9"), .port = 80};
	struct redirect_plan *plan = build(&s);

	CHECK(!(redirect_plan_facts(plan, &flow) & FACT_GROUP_EXEMPT));
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- facts --------------------------------------------------------------------------------- */

TEST(the_unspecified_destination_is_what_the_kernel_makes_of_it)
{
	static const struct {
		const char *source, *destination;
		uint32_t want, want_not;
	} rows[] = {
		{"0.0.0.0", "0.0.0.0", FACT_OUT_LO | FACT_DST_LO, FACT_IPV6},
		{"127.0.0.1", "0.0.0.0", FACT_OUT_LO | FACT_DST_LO, FACT_IPV6},
		{"10.244.0.5", "0.0.0.0", FACT_OUT_LO, FACT_IPV6 | FACT_DST_LO},
		{"127.0.0.6", "0.0.0.0", FACT_OUT_LO | FACT_SRC_P6, FACT_IPV6 | FACT_DST_LO},
		{"::", "::", FACT_OUT_LO | FACT_DST_LO | FACT_IPV6, 0},
		{"fd00:10::5", "::", FACT_OUT_LO | FACT_DST_LO | FACT_IPV6, 0},
		{"::ffff:10.244.0.5", "::", FACT_OUT_LO | FACT_DST_LO, FACT_IPV6},
		{"::", "::ffff:0.0.0.0", FACT_OUT_LO | FACT_DST_LO, FACT_IPV6},
	};
	struct redirect_settings s = defaults();
	struct redirect_plan *plan = build(&s);

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct plan_flow flow = {.source = address(rows[i].source),
					 .destination = address(rows[i].destination),
					 .port = 80};
		uint32_t facts = redirect_plan_facts(plan, &flow);

		CHECK_EQ(facts & rows[i].want, rows[i].want);
		CHECK_EQ(facts & rows[i].want_not, 0);
	}
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(every_rule_has_a_name_of_its_own_and_a_sentence)
{
	for (int a = 0; a < RULE_ID_COUNT_; a++) {
		CHECK(plan_rule_name(a) && *plan_rule_name(a));
		CHECK(plan_rule_sentence(a) && *plan_rule_sentence(a));
		for (int b = 0; b < a; b++)
			CHECK(strcmp(plan_rule_name(a), plan_rule_name(b)) != 0);
	}
	CHECK_STR(plan_rule_name(RULE_OUT_PORT_EXCLUDED), "out-port-excluded");
	CHECK_STR(plan_rule_name(RULE_ID_COUNT_), "unknown");
	return TEST_OK;
}

/* ---- long lists, sorting, equality --------------------------------------------------------- */

enum { LONG_LIST = 10000 };

TEST(long_lists_are_sorted_and_looked_up_whole)
{
	static uint16_t ports[LONG_LIST];
	static struct ip_prefix prefixes[2 * LONG_LIST];
	struct redirect_settings s = defaults();
	struct redirect_plan *plan;

	for (size_t i = 0; i < LONG_LIST; i++) {
		uint8_t a = (uint8_t)(i >> 8), b = (uint8_t)i;

		/* 7919 is prime to 10000: every number once, in no order. */
		ports[i] = (uint16_t)(20000 + i * 7919 % LONG_LIST);
		prefixes[LONG_LIST - 1 - i] = prefix("10.0.0.0/24");
		prefixes[LONG_LIST - 1 - i].address.bytes[13] = a;
		prefixes[LONG_LIST - 1 - i].address.bytes[14] = b;
		prefixes[LONG_LIST + i] = prefix("fd00::/64");
		prefixes[LONG_LIST + i].address.bytes[6] = a;
		prefixes[LONG_LIST + i].address.bytes[7] = b;
	}
	s.outbound_exclude_ports = (struct port_list){ports, LONG_LIST};
	s.exclude_prefixes = (struct prefix_list){prefixes, COUNT(prefixes)};
	plan = build(&s);
	CHECK_EQ(plan->outbound_exclude_ports.n, LONG_LIST);
	CHECK_EQ(plan->exclude_prefixes.n, COUNT(prefixes));
	for (size_t i = 1; i < LONG_LIST; i++)
		CHECK(plan->outbound_exclude_ports.ports[i - 1] <
		      plan->outbound_exclude_ports.ports[i]);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 19999), RULE_OUT_ALL);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 20000), RULE_OUT_PORT_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 29999), RULE_OUT_PORT_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 30000), RULE_OUT_ALL);
	CHECK_EQ(app_tcp(plan, "10.0.0.1", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "10.39.15.1", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "10.39.16.1", 80), RULE_OUT_ALL);
	CHECK_EQ(app_tcp(plan, "fd00:0:0:270f::1", 80), RULE_OUT_CIDR_EXCLUDED);
	CHECK_EQ(app_tcp(plan, "fd00:0:0:2710::1", 80), RULE_OUT_ALL);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(order_and_repeats_make_no_difference)
{
	uint16_t ports_a[] = {3, 1, 2, 3, 3}, ports_b[] = {1, 2, 3};
	struct ip_prefix prefixes_a[] = {prefix("fd00::/8"), prefix("10.0.0.0/8"),
					 prefix("10.0.0.0/16"), prefix("10.0.0.0/8")};
	struct ip_prefix prefixes_b[] = {prefix("10.0.0.0/16"), prefix("fd00::/8"),
					 prefix("10.0.0.0/8")};
	struct redirect_settings a = defaults(), b = defaults();
	struct redirect_plan *plan_a, *plan_b;

	a.outbound_exclude_ports = (struct port_list){ports_a, COUNT(ports_a)};
	b.outbound_exclude_ports = (struct port_list){ports_b, COUNT(ports_b)};
	a.exclude_prefixes = (struct prefix_list){prefixes_a, COUNT(prefixes_a)};
	b.exclude_prefixes = (struct prefix_list){prefixes_b, COUNT(prefixes_b)};
	plan_a = build(&a);
	plan_b = build(&b);
	CHECK_EQ(plan_a->outbound_exclude_ports.n, 3);
	CHECK_EQ(plan_a->exclude_prefixes.n, 3);
	CHECK_EQ(plan_a->exclude_prefixes.prefixes[0].length, 96 + 8);
	CHECK_EQ(plan_a->exclude_prefixes.prefixes[1].length, 96 + 16);
	CHECK(redirect_plan_equal(plan_a, plan_b));
	redirect_plan_free(plan_a);
	redirect_plan_free(plan_b);
	return TEST_OK;
}

/* One change to the defaults each. */
static void change(struct redirect_settings *s, size_t which)
{
	static uint32_t other_ids[] = {7};
	static uint16_t other_ports[] = {7};
	static struct ip_prefix other_prefixes[2];
	static char *names[] = {(char *)"eth1", (char *)"net1"};

	other_prefixes[0] = prefix("192.0.2.0/24");
	other_prefixes[1] = prefix("192.0.2.0/25");
	switch (which) {
	case 0:
		s->outbound_port++;
		break;
	case 1:
		s->inbound_port++;
		break;
	case 2:
		s->dns_capture = true;
		break;
	case 3:
		s->tunnel_port++;
		break;
	case 4:
		s->capture_ipv6 = false;
		break;
	case 5:
		s->loopback4 = prefix("127.0.0.0/8");
		break;
	case 6:
		s->proxy_uids = (struct id_list){other_ids, 1};
		break;
	case 7:
		s->proxy_gids = (struct id_list){other_ids, 1};
		break;
	case 8:
		s->groups_set = true;
		break;
	case 9:
		s->groups_set = true;
		s->groups = (struct id_list){other_ids, 1};
		break;
	case 10:
		s->outbound_include_all = false;
		break;
	case 11:
		s->inbound_include_all = false;
		break;
	case 12:
		s->outbound_exclude_ports = (struct port_list){other_ports, 1};
		break;
	case 13:
		s->outbound_include_ports = (struct port_list){other_ports, 1};
		break;
	case 14:
		s->inbound_exclude_ports = (struct port_list){other_ports, 1};
		break;
	case 15:
		s->inbound_include_all = false;
		s->inbound_include_ports = (struct port_list){other_ports, 1};
		break;
	case 16:
		s->exclude_prefixes = (struct prefix_list){other_prefixes, 1};
		break;
	case 17:
		s->outbound_include_all = false;
		s->include_prefixes = (struct prefix_list){other_prefixes, 1};
		break;
	case 18:
		s->outbound_include_all = false;
		s->include_prefixes = (struct prefix_list){other_prefixes, 2};
		break;
	case 19:
		s->groups_set = true;
		s->groups_exempt = true;
		s->groups = (struct id_list){other_ids, 1};
		break;
	case 20:
		s->tproxy = true;
		break;
	case 21:
		s->drop_invalid = true;
		break;
	case 22:
		s->exclude_interfaces = (struct name_list){names, 1};
		break;
	case 23:
		s->exclude_interfaces = (struct name_list){names, 2};
		break;
	case 24:
		s->exclude_interfaces = (struct name_list){names + 1, 1};
		break;
	case 25:
		s->reroute_interfaces = (struct name_list){names, 1};
		break;
	default:
		break;
	}
}

TEST(plans_are_equal_exactly_when_their_settings_mean_the_same)
{
	enum { CHANGES = 26 };
	struct redirect_plan *plans[CHANGES + 1];

	for (size_t i = 0; i <= CHANGES; i++) {
		struct redirect_settings s = defaults();

		change(&s, i);
		plans[i] = build(&s);
	}
	for (size_t i = 0; i <= CHANGES; i++)
		for (size_t k = 0; k <= CHANGES; k++)
			CHECK_EQ(redirect_plan_equal(plans[i], plans[k]), i == k);
	for (size_t i = 0; i <= CHANGES; i++)
		redirect_plan_free(plans[i]);
	return TEST_OK;
}

TEST(lists_that_no_rule_asks_about_do_not_make_plans_differ)
{
	uint16_t ports[] = {7};
	struct ip_prefix prefixes[] = {prefix("192.0.2.0/24")};
	struct redirect_settings a = defaults(), b = defaults();
	struct redirect_plan *plan_a = build(&a), *plan_b;

	b.include_prefixes = (struct prefix_list){prefixes, 1};
	b.inbound_include_ports = (struct port_list){ports, 1};
	b.groups = (struct id_list){proxy_ids, 1};
	plan_b = build(&b);
	CHECK(redirect_plan_equal(plan_a, plan_b));
	redirect_plan_free(plan_a);
	redirect_plan_free(plan_b);
	return TEST_OK;
}

TEST(a_plan_owns_its_lists)
{
	struct redirect_settings s = {.outbound_port = 1, .inbound_port = 2};
	struct redirect_plan *plan;

	s.outbound_exclude_ports.ports = calloc(1, sizeof(uint16_t));
	CHECK(s.outbound_exclude_ports.ports);
	s.outbound_exclude_ports.ports[0] = 80;
	s.outbound_exclude_ports.n = 1;
	s.exclude_interfaces.names = calloc(1, sizeof(char *));
	CHECK(s.exclude_interfaces.names);
	s.exclude_interfaces.names[0] = strdup("eth1");
	s.exclude_interfaces.n = 1;
	plan = build(&s);
	redirect_settings_done(&s);
	CHECK(!s.outbound_exclude_ports.ports);
	CHECK_STR(plan->exclude_interfaces.names[0], "eth1");
	CHECK(!s.exclude_interfaces.names);
	CHECK_EQ(app_tcp(plan, "203.0.113.9", 80), RULE_OUT_PORT_EXCLUDED);
	redirect_plan_free(plan);
	redirect_plan_free(NULL);
	return TEST_OK;
}
