/* SPDX-License-Identifier: Apache-2.0 */
/* Netfilter rules, walked through as the kernel does, must decide as the plan they are made of. */
#include "netfilter_rules.h"

#include "error.h"
#include "test.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct ip_prefix prefix(const char *text)
{
	struct ip_prefix p;
	struct error err = {0};

	if (ip_prefix_parse(text, &p, &err) < 0)
		abort();
	return p;
}

static struct ip_address address(const char *text)
{
	struct ip_address a;
	struct error err = {0};

	if (ip_address_parse(text, &a, &err) < 0)
		abort();
	return a;
}

/* ---- settings: variants of a pod ------------------------------------------------------------- */

static uint32_t one_id[] = {1337}, ids[] = {1337, 1338}, groups[] = {2000};
static uint16_t status_port[] = {15020}, reserved[] = {15020, 15021, 15090}, some[] = {53, 80};
static char *eth[] = {(char[]){"eth1"}}, *guests[] = {(char[]){"k0"}};
static struct ip_prefix excluded[5], included[3], zero[1];

enum variant {
	V_DNS = 1 << 0,
	V_NO_IPV6 = 1 << 1,
	V_TPROXY = 1 << 2,
	V_EXCLUDE = 1 << 3, /* prefixes, interfaces */
	V_INCLUDE = 1 << 4, /* prefixes and ports */
	V_GROUPS = 1 << 5,
	V_GROUPS_EXEMPT = 1 << 6,
	V_INTERFACES = 1 << 7,
	V_LISTED_IN = 1 << 8,
	V_SEVERAL = 1 << 9,
	V_ZERO = 1 << 10, /* 0.0.0.0/0 excluded */
	V_AMBIENT = 1 << 11,
	V_NO_INBOUND = 1 << 12, /* as in ambient's ingress mode */
	V_END = 1 << 13,
};

static void include_lists(struct redirect_settings *s)
{
	included[0] = prefix("10.99.1.0/24");
	included[1] = prefix("127.0.0.0/8");
	included[2] = prefix("10.99.1.5/32");
	s->outbound_include_all = false;
	s->include_prefixes = (struct prefix_list){included, COUNT(included)};
	s->outbound_include_ports = (struct port_list){some, COUNT(some)};
}

static void exclude_lists(struct redirect_settings *s, unsigned variant)
{
	excluded[0] = prefix("10.99.0.0/16");
	excluded[1] = prefix("10.98.0.0/16");
	excluded[2] = prefix("10.99.3.0/24");
	excluded[3] = prefix("fd00:99::/32");
	excluded[4] = prefix("fd00:99:0:1::/64");
	zero[0] = prefix("0.0.0.0/0");
	s->exclude_prefixes = (struct prefix_list){excluded, COUNT(excluded)};
	if (variant & V_ZERO)
		s->exclude_prefixes = (struct prefix_list){zero, 1};
}

static struct redirect_plan *plan_of(unsigned variant)
{
	struct redirect_settings s = {
		.outbound_port = 15001,
		.inbound_port = 15006,
		.dns_port = 15053,
		.dns_capture = variant & V_DNS,
		.tunnel_port = 15008,
		.capture_ipv6 = !(variant & V_NO_IPV6),
		.ambient = variant & V_AMBIENT,
		.tproxy = !(variant & V_AMBIENT) && (variant & V_TPROXY),
		.loopback4 = prefix("127.0.0.1/32"),
		.proxy_uids = {ids, variant & V_SEVERAL ? 2 : 1},
		.proxy_gids = {one_id, 1},
		.groups = {groups, 1},
		.groups_set = variant & (V_GROUPS | V_GROUPS_EXEMPT),
		.groups_exempt = variant & V_GROUPS_EXEMPT,
		.outbound_include_all = true,
		.inbound_include_all = !(variant & (V_LISTED_IN | V_NO_INBOUND)),
		.outbound_exclude_ports = {status_port, 1},
		.inbound_exclude_ports = {reserved, COUNT(reserved)},
		.inbound_include_ports = {some, COUNT(some)},
	};
	struct redirect_plan *plan = NULL;
	struct error err = {0};

	if (variant & V_NO_INBOUND)
		s.inbound_include_ports.n = 0;
	if (variant & (V_EXCLUDE | V_ZERO))
		exclude_lists(&s, variant);
	if (variant & V_INCLUDE)
		include_lists(&s);
	if (variant & V_INTERFACES) {
		s.exclude_interfaces = (struct name_list){eth, 1};
		s.reroute_interfaces = (struct name_list){guests, 1};
	}
	if (redirect_plan_build(&s, &plan, &err) < 0)
		abort();
	return plan;
}

/* ---- the kernel's way through a chain -------------------------------------------------------- */

struct packet {
	const struct plan_flow *flow;
	const char *in, *out;
	bool first_syn, is_answer;
	uint32_t mark, connection_mark;
};

static bool port_is(const struct nf_match *m, uint16_t port)
{
	if (!m->ports)
		return m->value == port;
	for (size_t i = 0; i < m->ports->n; i++)
		if (m->ports->ports[i] == port)
			return true;
	return false;
}

static bool address_is(const struct nf_match *m, const struct ip_address *a)
{
	if (!m->prefixes)
		return ip_prefix_contains(&m->prefix, a);
	for (size_t i = 0; i < m->prefixes->n; i++)
		if (ip_prefix_contains(&m->prefixes->prefixes[i], a))
			return true;
	return false;
}

static bool name_is(const struct nf_match *m, const char *name)
{
	for (size_t i = 0; i < m->names->n; i++)
		if (!strcmp(m->names->names[i], name))
			return true;
	return false;
}

static bool id_is(const struct nf_match *m, uint32_t id)
{
	for (size_t i = 0; i < m->ids->n; i++)
		if (m->ids->ids[i] == id)
			return true;
	return false;
}

static bool holds(const struct nf_match *m, const struct packet *p)
{
	const struct plan_flow *flow = p->flow;

	switch (m->type) {
	case NF_MATCH_PROTOCOL:
		return m->value == (flow->udp ? IPPROTO_UDP : IPPROTO_TCP);
	case NF_MATCH_FIRST_SYN:
		return p->first_syn;
	case NF_MATCH_DESTINATION_PORT:
		return port_is(m, flow->port);
	case NF_MATCH_SOURCE_PORT:
		return false;
	case NF_MATCH_SOURCE:
		return address_is(m, &flow->source);
	case NF_MATCH_DESTINATION:
		return address_is(m, &flow->destination);
	case NF_MATCH_IN_INTERFACE:
		return name_is(m, p->in);
	case NF_MATCH_OUT_INTERFACE:
		return name_is(m, p->out);
	case NF_MATCH_UID:
		return id_is(m, flow->uid);
	case NF_MATCH_GID:
		return id_is(m, flow->gid);
	case NF_MATCH_MARK:
		return (p->mark & (m->mask ? m->mask : UINT32_MAX)) == m->value;
	case NF_MATCH_CONNECTION_MARK:
		return (p->connection_mark & (m->mask ? m->mask : UINT32_MAX)) == m->value;
	case NF_MATCH_FROM_OPENER:
		return !p->is_answer;
	case NF_MATCH_STATE:
	case NF_MATCH_NEVER:
		return false;
	}
	return false;
}

static bool needs_protocol(const struct nf_match *m)
{
	return m->type == NF_MATCH_FIRST_SYN || m->type == NF_MATCH_DESTINATION_PORT ||
	       m->type == NF_MATCH_SOURCE_PORT;
}

static bool matches(const struct nf_rule *rule, const struct packet *p)
{
	bool v4 = ip_address_is_v4(&p->flow->destination);

	if (rule->family != NF_ANY_FAMILY && v4 != (rule->family == NF_IPV4))
		return false;
	for (size_t i = 0; i < rule->n_matches; i++)
		if (holds(&rule->matches[i], p) == rule->matches[i].negated)
			return false;
	return true;
}

static const struct nf_rule *walk(const struct nf_rules *rules, enum nf_chain chain,
				  const struct packet *p)
{
	for (size_t i = 0; i < rules->n; i++)
		if (rules->rules[i].chain == chain && matches(&rules->rules[i], p))
			return &rules->rules[i];
	return NULL;
}

static const struct nf_rule *walk_mangle(const struct nf_rules *rules, const struct packet *p)
{
	const struct nf_rule *rule = walk(rules, NF_MANGLE_PREROUTING, p);

	return rule && rule->verdict == NF_JUMP_TPROXY ? walk(rules, NF_MANGLE_TPROXY, p) : rule;
}

/* ---- flows ----------------------------------------------------------------------------------- */

static const char *const addresses[] = {
	"203.0.113.9",	 "10.99.0.7",	"10.99.1.5",	 "10.99.3.9",
	"10.98.255.255", "10.97.1.1",	"127.0.0.1",	 "127.0.0.2",
	"10.244.0.5",	 "2001:db8::9", "fd00:99::1",	 "::1",
	"fd00:10::5",	 "fd00:98::1",	"169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
};
/* Of which ambient looks at twelve bits. */
static const uint32_t socket_marks[] = {0, 0x539, 0x111, 0xabc539, 0x5391, 0x80111, 0x538};
static const uint16_t dialled[] = {53, 80, 8080, 15008, 15020, 15021};
static const struct {
	uint32_t uid, gid;
} identities[] = {{1000, 1000}, {0, 0},	      {1337, 1337}, {1337, 1000},
		  {1000, 1337}, {1338, 2000}, {1000, 2000}};

static bool is_local(const struct ip_address *a)
{
	static const char *const own[] = {"10.244.0.5", "fd00:10::5"};

	for (size_t i = 0; i < COUNT(own); i++) {
		struct ip_address mine = address(own[i]);

		if (ip_address_equal(&mine, a))
			return true;
	}
	return ip_address_is_loopback(a);
}

/* What the rules do, in the plan's words; TPROXY's own calls are mangle's and not looked at. */
static bool decides_alike(const struct redirect_plan *plan, const struct nf_rules *rules,
			  const struct plan_flow *flow)
{
	const struct plan_rule *want = redirect_plan_decide(plan, flow);
	bool lo = !flow->inbound && is_local(&flow->destination);
	const char *interface = flow->interface ? flow->interface : "eth0";
	struct packet p = {
		.flow = flow,
		.in = interface,
		.out = lo ? "lo" : interface,
		.first_syn = !flow->udp,
		.mark = flow->mark,
	};
	enum nf_chain chain = flow->inbound ? NF_NAT_PREROUTING : NF_NAT_OUTPUT;
	const struct nf_rule *found = walk(rules, chain, &p);
	bool redirected = found && found->verdict == NF_REDIRECT;
	const struct nf_rule *mangled = flow->inbound ? walk_mangle(rules, &p) : NULL;
	char text[IP_ADDRESS_TEXT_MAX];

	if (flow->inbound &&
	    (mangled && mangled->verdict == NF_TPROXY) != (want->verdict == PLAN_TPROXY)) {
		found = mangled;
	} else if (want->verdict == PLAN_TPROXY) {
		if (!mangled || mangled->value == want->port)
			return true;
	} else if (redirected == (want->verdict == PLAN_REDIRECT) &&
		   (!redirected || (found->value == want->port && found->id == want->id))) {
		return true;
	}
	printf("# %s %s port %u uid %u gid %u mark %#x if %s: plan %s, rules %s\n",
	       flow->inbound ? "in" : "out", ip_address_format(&flow->destination, text),
	       flow->port, flow->uid, flow->gid, flow->mark, interface, plan_rule_name(want->id),
	       found ? found->comment : "none");
	return false;
}

static struct ip_address source_of(const struct ip_address *destination, size_t variant)
{
	static const char *const sources[][2] = {
		{"2001:db8::1", "192.0.2.1"},
		{"::6", "127.0.0.6"},
		{"fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "169.254.7.127"},
	};

	return address(sources[variant % COUNT(sources)][ip_address_is_v4(destination)]);
}

static bool all_flows_alike(const struct redirect_plan *plan, const struct nf_rules *rules)
{
	static const char *const interfaces[] = {NULL, "eth1", "k0"};
	bool alike = true;

	for (size_t a = 0; a < COUNT(addresses); a++)
		for (size_t p = 0; p < COUNT(dialled); p++)
			for (size_t i = 0; i < COUNT(identities); i++)
				for (unsigned k = 0; k < 12; k++) {
					struct plan_flow flow = {
						.inbound = k & 1,
						.udp = k & 2,
						.destination = address(addresses[a]),
						.port = dialled[p],
						.uid = identities[i].uid,
						.gid = identities[i].gid,
						.mark = plan->ambient ? socket_marks[i] : 0,
						.interface = interfaces[k / 4],
					};

					flow.source = source_of(&flow.destination, p);
					flow.destination_is_local = is_local(&flow.destination);
					if (flow.destination_is_local && !flow.inbound)
						flow.interface = NULL;
					/* From outside nobody reaches a loopback address. */
					if (flow.inbound &&
					    ip_address_is_loopback(&flow.destination))
						continue;
					alike &= decides_alike(plan, rules, &flow);
				}
	return alike;
}

_Static_assert(COUNT(socket_marks) == COUNT(identities), "one mark goes with each identity");

TEST(rules_decide_as_the_plan_they_are_made_of)
{
	for (unsigned variant = 0; variant < V_END; variant++) {
		struct nf_rules rules;
		struct error err = {0};
		struct redirect_plan *plan;
		bool alike;

		/* Every pair of settings; all combinations would take minutes. */
		if (__builtin_popcount(variant) > 2)
			continue;
		plan = plan_of(variant);
		CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
		alike = all_flows_alike(plan, &rules);
		netfilter_rules_done(&rules);
		redirect_plan_free(plan);
		if (!alike)
			printf("# variant %#x\n", variant);
		CHECK(alike);
	}
	return TEST_OK;
}

TEST(whatever_matches_ports_or_flags_has_a_protocol_and_addresses_have_a_family)
{
	for (unsigned variant = 0; variant < V_END; variant++) {
		struct nf_rules rules;
		struct error err = {0};
		struct redirect_plan *plan = plan_of(variant);

		CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
		for (size_t i = 0; i < rules.n; i++) {
			const struct nf_rule *rule = &rules.rules[i];
			bool protocol = false;

			CHECK(i == 0 || rules.rules[i - 1].chain <= rule->chain);
			CHECK(rule->comment && rule->comment[0]);
			for (size_t k = 0; k < rule->n_matches; k++) {
				const struct nf_match *m = &rule->matches[k];

				protocol |= m->type == NF_MATCH_PROTOCOL;
				CHECK(protocol || !needs_protocol(m));
				if (m->type == NF_MATCH_SOURCE || m->type == NF_MATCH_DESTINATION)
					CHECK(rule->family != NF_ANY_FAMILY);
				CHECK(!m->prefixes || m->prefixes->n > 0);
				CHECK(!m->ids || m->ids->n > 0);
				CHECK(!m->ports || m->ports->n > 0);
			}
			if (variant & V_NO_IPV6)
				CHECK(rule->family != NF_IPV6 || rule->id == RULE_IPV6_OFF);
		}
		netfilter_rules_done(&rules);
		redirect_plan_free(plan);
	}
	return TEST_OK;
}

TEST(a_covered_prefix_is_left_out)
{
	struct redirect_plan *plan = plan_of(V_EXCLUDE);
	struct nf_rules rules;
	struct error err = {0};
	size_t v4 = 0, v6 = 0;

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
	for (size_t i = 0; i < rules.n; i++)
		for (size_t k = 0; k < rules.rules[i].n_matches; k++)
			if (rules.rules[i].matches[k].prefixes)
				*(rules.rules[i].family == NF_IPV4 ? &v4 : &v6) =
					rules.rules[i].matches[k].prefixes->n;
	CHECK_EQ(v4, 2);
	CHECK_EQ(v6, 1);
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(a_connection_that_was_open_before_is_not_touched)
{
	struct redirect_plan *plan = plan_of(V_DNS | V_INTERFACES);
	struct nf_rules rules;
	struct error err = {0};
	struct plan_flow flow = {.destination = address("203.0.113.9"), .port = 80, .uid = 1};
	struct packet p = {.flow = &flow, .in = "k0", .out = "eth0"};

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
	CHECK_EQ(walk(&rules, NF_NAT_OUTPUT, &p)->verdict, NF_RETURN);
	CHECK_EQ(walk(&rules, NF_NAT_PREROUTING, &p)->verdict, NF_RETURN);
	p.first_syn = true;
	CHECK_EQ(walk(&rules, NF_NAT_OUTPUT, &p)->verdict, NF_REDIRECT);
	CHECK_EQ(walk(&rules, NF_NAT_PREROUTING, &p)->value, 15001);
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(beside_ebpf_what_it_has_sent_to_the_proxy_is_left_alone)
{
	struct redirect_plan *plan = plan_of(V_DNS);
	struct nf_rules rules;
	struct error err = {0};
	static const uint16_t proxy_ports[] = {15001, 15006, 15053};

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE_BESIDE_EBPF, &rules, &err));
	for (size_t i = 0; i < COUNT(proxy_ports); i++) {
		struct plan_flow flow = {.destination = address("10.244.0.5"),
					 .port = proxy_ports[i],
					 .uid = 1337,
					 .gid = 1337};
		struct packet p = {.flow = &flow, .in = "lo", .out = "lo", .first_syn = true};

		CHECK_EQ(walk(&rules, NF_NAT_OUTPUT, &p)->verdict, NF_RETURN);
		CHECK_STR(walk(&rules, NF_NAT_OUTPUT, &p)->comment, "beside-ebpf");
		CHECK_EQ(walk(&rules, NF_NAT_PREROUTING, &p)->verdict, NF_RETURN);
		p.out = "eth0";
		CHECK(strcmp(walk(&rules, NF_NAT_OUTPUT, &p)->comment, "beside-ebpf"));
	}
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(draining_rules_capture_nothing_and_keep_zones_and_marks)
{
	struct redirect_plan *plan = plan_of(V_DNS | V_TPROXY);
	struct nf_rules rules;
	struct error err = {0};
	size_t redirects = 0, zones = 0, marks = 0;

	CHECK(!netfilter_rules_build(plan, NF_DRAIN, &rules, &err));
	for (size_t i = 0; i < rules.n; i++) {
		const struct nf_rule *rule = &rules.rules[i];

		CHECK(rule->verdict != NF_TPROXY && rule->verdict != NF_DROP);
		zones += rule->verdict == NF_ZONE;
		marks += rule->verdict == NF_SET_MARK;
		if (rule->chain != NF_NAT_OUTPUT && rule->chain != NF_NAT_PREROUTING)
			continue;
		redirects++;
		CHECK_EQ(rule->verdict, NF_REDIRECT);
		CHECK_EQ(rule->matches[rule->n_matches - 1].type, NF_MATCH_NEVER);
	}
	CHECK_EQ(redirects, 1);
	CHECK_EQ(zones, 6);
	CHECK(marks > 0);
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

/* ---- ambient --------------------------------------------------------------------------------- */

static const struct nf_rule *find(const struct nf_rules *rules, enum nf_chain chain,
				  const char *comment)
{
	for (size_t i = 0; i < rules->n; i++)
		if (rules->rules[i].chain == chain && !strcmp(rules->rules[i].comment, comment))
			return &rules->rules[i];
	return NULL;
}

TEST(ambient_marks_what_ztunnel_opens_and_sends_answers_back_to_it)
{
	struct plan_flow flow = {.destination = address("10.244.0.5"), .port = 8080};
	struct packet p = {.flow = &flow, .in = "lo", .out = "eth0", .mark = 0x70539};
	struct redirect_plan *plan = plan_of(V_AMBIENT | V_DNS);
	const struct nf_rule *save, *restore;
	struct nf_rules rules;
	struct error err = {0};

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
	CHECK_EQ(rules.routes, NETFILTER_ROUTES_AMBIENT);
	save = walk(&rules, NF_MANGLE_PREROUTING, &p);
	CHECK(save);
	CHECK_EQ(save->verdict, NF_SET_CONNECTION_MARK);
	CHECK_EQ(save->value, 0x111);
	CHECK_EQ(save->mask, 0xfff);
	p.is_answer = true;
	CHECK(walk(&rules, NF_MANGLE_PREROUTING, &p));
	p.mark = 0x538;
	CHECK(!walk(&rules, NF_MANGLE_PREROUTING, &p));
	p.connection_mark = 0x9111;
	restore = walk(&rules, NF_MANGLE_OUTPUT, &p);
	CHECK(restore);
	CHECK_EQ(restore->verdict, NF_SET_MARK);
	CHECK_EQ(restore->value, 0x111);
	CHECK_EQ(restore->mask, 0xfff);
	p.connection_mark = 0x9539;
	CHECK(!walk(&rules, NF_MANGLE_OUTPUT, &p));
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(ambient_keeps_the_questions_of_ztunnel_in_a_zone_of_their_own)
{
	struct plan_flow flow = {.udp = true, .destination = address("10.96.0.10"), .port = 53};
	struct packet p = {.flow = &flow, .out = "eth0", .mark = 0x539};
	struct redirect_plan *plan = plan_of(V_AMBIENT | V_DNS);
	const struct nf_rule *answer;
	struct nf_rules rules;
	struct error err = {0};

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
	CHECK(walk(&rules, NF_RAW_OUTPUT, &p));
	CHECK_EQ(walk(&rules, NF_RAW_OUTPUT, &p)->value, 1);
	p.mark = 0;
	CHECK(!walk(&rules, NF_RAW_OUTPUT, &p));
	answer = find(&rules, NF_RAW_PREROUTING, "dns-zone-upstream-answer");
	CHECK(answer);
	CHECK_EQ(answer->value, 1);
	CHECK_EQ(answer->matches[answer->n_matches - 1].type, NF_MATCH_MARK);
	CHECK(answer->matches[answer->n_matches - 1].negated);
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	plan = plan_of(V_AMBIENT);
	CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
	for (size_t i = 0; i < rules.n; i++)
		CHECK(rules.rules[i].verdict != NF_ZONE);
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(beside_ebpf_connections_of_ztunnel_that_have_the_mark_of_answers_are_left_alone)
{
	struct redirect_plan *plan = plan_of(V_AMBIENT | V_DNS);
	/* To a DNS server in the pod: without this exemption it would be captured as a question. */
	struct plan_flow flow = {.destination = address("10.244.0.5"), .port = 53};
	struct packet p = {
		.flow = &flow, .in = "lo", .out = "lo", .first_syn = true, .mark = 0x111};
	struct nf_rules rules;
	struct error err = {0};

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE_BESIDE_EBPF, &rules, &err));
	CHECK_STR(walk(&rules, NF_NAT_OUTPUT, &p)->comment, "beside-ebpf");
	CHECK_EQ(walk(&rules, NF_NAT_OUTPUT, &p)->verdict, NF_RETURN);
	p.mark = 0;
	CHECK_EQ(walk(&rules, NF_NAT_OUTPUT, &p)->verdict, NF_REDIRECT);
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}

/*
 * What is marked must end some day: what eBPF sends to ztunnel has answers with ztunnel's mark, and
 * where another engine has the pod ztunnel goes on opening connections.
 */
TEST(draining_ambient_rules_capture_nothing_and_mark_only_what_must_be)
{
	static const enum nf_stage stages[] = {NF_DRAIN, NF_DRAIN_LEAVING, NF_CAPTURE_BESIDE_EBPF};
	struct redirect_plan *plan = plan_of(V_AMBIENT | V_DNS);

	for (size_t i = 0; i < COUNT(stages); i++) {
		struct plan_flow flow = {.destination = address("10.244.0.5"), .port = 8080};
		struct packet p = {.flow = &flow, .in = "lo", .out = "lo", .first_syn = true};
		bool captures = stages[i] == NF_CAPTURE_BESIDE_EBPF;
		struct nf_rules rules;
		struct error err = {0};
		size_t nat = 0, zones = 0;

		CHECK(!netfilter_rules_build(plan, stages[i], &rules, &err));
		for (size_t k = 0; k < rules.n; k++) {
			zones += rules.rules[k].verdict == NF_ZONE;
			nat += rules.rules[k].chain == NF_NAT_OUTPUT ||
			       rules.rules[k].chain == NF_NAT_PREROUTING;
		}
		CHECK(captures || nat == 1);
		CHECK_EQ(zones, 2);
		CHECK(captures || !walk(&rules, NF_NAT_OUTPUT, &p));
		p.mark = 0x539;
		CHECK_EQ(walk(&rules, NF_MANGLE_PREROUTING, &p) != NULL, stages[i] != NF_DRAIN);
		p.is_answer = true;
		CHECK(!walk(&rules, NF_MANGLE_PREROUTING, &p));
		p.connection_mark = 0x111;
		CHECK(walk(&rules, NF_MANGLE_OUTPUT, &p));
		netfilter_rules_done(&rules);
	}
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(without_inbound_capture_ambient_has_no_rule_for_what_comes_in)
{
	struct redirect_plan *plan = plan_of(V_AMBIENT | V_NO_INBOUND);
	struct nf_rules rules;
	struct error err = {0};

	CHECK(!netfilter_rules_build(plan, NF_CAPTURE, &rules, &err));
	for (size_t i = 0; i < rules.n; i++)
		CHECK(rules.rules[i].chain != NF_NAT_PREROUTING);
	CHECK(find(&rules, NF_NAT_OUTPUT, "out-all"));
	netfilter_rules_done(&rules);
	redirect_plan_free(plan);
	return TEST_OK;
}
