/* SPDX-License-Identifier: Apache-2.0 */
#include "netfilter_rules.h"

#include "error.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>

enum { PORT_DNS = 53, ZONE_UPSTREAM = 1, ZONE_CAPTURED = 2 };
enum { OWNED_EXCLUDE_V4, OWNED_EXCLUDE_V6, OWNED_INCLUDE_V4, OWNED_INCLUDE_V6, OWNED_COUNT };

static const struct ip_prefix loopback_v6 = {{{[15] = 1}}, 128};
static const struct ip_prefix passthrough_v4 = {{{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 6}},
						128};
static const struct ip_prefix passthrough_v6 = {{{[15] = 6}}, 128};

static char *const lo_name[] = {"lo"};
static const struct name_list lo = {.names = (char **)lo_name, .n = 1};

struct builder {
	const struct redirect_plan *plan;
	enum nf_stage stage;
	struct nf_rules *rules;
	size_t capacity;
	int code; /* the first errno; nothing is added after it */
};

/* One rule being made: what is asked of it, and what has come of that so far. */
struct draft {
	struct builder *b;
	uint32_t all_of, none_of;
	struct nf_rule rule;
	bool vanished; /* it can never match */
};

static bool is_draining(const struct builder *b)
{
	return b->stage == NF_DRAIN || b->stage == NF_DRAIN_LEAVING;
}

static bool uses_tproxy(const struct builder *b)
{
	return b->rules->routes == NETFILTER_ROUTES_TPROXY;
}

static const char *rule_comment(enum plan_rule_id id)
{
	return plan_rule_name(id);
}

static void push(struct builder *b, const struct nf_rule *rule)
{
	struct nf_rules *rules = b->rules;

	if (b->code)
		return;
	if (rules->n == b->capacity) {
		size_t capacity = b->capacity ? 2 * b->capacity : 64;
		struct nf_rule *grown = reallocarray(rules->rules, capacity, sizeof(*grown));

		if (!grown) {
			b->code = ENOMEM;
			return;
		}
		rules->rules = grown;
		b->capacity = capacity;
	}
	rules->rules[rules->n++] = *rule;
}

static void finish(struct draft *d, enum nf_verdict verdict, uint32_t value)
{
	d->rule.verdict = verdict;
	d->rule.value = value;
	if (!d->vanished)
		push(d->b, &d->rule);
}

/* A rule that is not one of the plan's. */
static struct draft own_rule(struct builder *b, enum nf_chain chain, const char *comment)
{
	return (struct draft){
		.b = b,
		.rule = {.chain = chain, .id = RULE_NONE, .comment = comment},
	};
}

static void add(struct draft *d, struct nf_match match)
{
	if (d->rule.n_matches == NF_MATCHES_MAX) {
		d->b->code = E2BIG;
		return;
	}
	d->rule.matches[d->rule.n_matches++] = match;
}

static void add_value(struct draft *d, enum nf_match_type type, uint32_t value)
{
	add(d, (struct nf_match){.type = type, .value = value});
}

static bool list_is_empty(const struct nf_match *m)
{
	return (m->ports && m->ports->n == 0) || (m->ids && m->ids->n == 0) ||
	       (m->names && m->names->n == 0) || (m->prefixes && m->prefixes->n == 0);
}

static bool is_whole_family(const struct ip_prefix *p)
{
	return p->length == (ip_address_is_v4(&p->address) ? IP_V4_PREFIX_BITS : 0);
}

static bool list_is_everything(const struct nf_match *m)
{
	return m->prefixes && m->prefixes->n == 1 && is_whole_family(&m->prefixes->prefixes[0]);
}

/* Adds the match, turned round where the fact must not hold, when the rule asks for the fact. */
static void add_fact(struct draft *d, enum plan_fact fact, struct nf_match match)
{
	if (!((d->all_of | d->none_of) & fact))
		return;
	if (d->none_of & fact)
		match.negated = !match.negated;
	if (list_is_empty(&match))
		d->vanished |= !match.negated;
	else if (list_is_everything(&match))
		d->vanished |= match.negated;
	else
		add(d, match);
}

static struct nf_match mark_match(enum nf_match_type type, enum ambient_mark mark)
{
	return (struct nf_match){.type = type, .value = (uint32_t)mark, .mask = AMBIENT_MARK_MASK};
}

static void add_mark_facts(struct draft *d)
{
	add_fact(d, FACT_MARK_PROXY, mark_match(NF_MATCH_MARK, AMBIENT_MARK_PROXY));
	add_fact(d, FACT_MARK_REPLY, mark_match(NF_MATCH_MARK, AMBIENT_MARK_REPLY));
}

static void add_interface_facts(struct draft *d, bool outbound)
{
	const struct redirect_plan *plan = d->b->plan;
	enum nf_match_type type = outbound ? NF_MATCH_OUT_INTERFACE : NF_MATCH_IN_INTERFACE;

	add_fact(d, FACT_OUT_LO, (struct nf_match){.type = type, .names = &lo});
	add_fact(d, FACT_IF_EXCLUDED,
		 (struct nf_match){.type = type, .names = &plan->exclude_interfaces});
	add_fact(d, FACT_IF_REROUTED,
		 (struct nf_match){.type = type, .names = &plan->reroute_interfaces});
}

static void add_address_facts(struct draft *d)
{
	const struct redirect_plan *plan = d->b->plan;
	const struct prefix_list *owned = d->b->rules->owned;
	bool v6 = d->rule.family == NF_IPV6;
	struct ip_prefix probe = {v6 ? plan_probe_source6 : plan_probe_source4, 128};

	add_fact(d, FACT_SRC_PROBE, (struct nf_match){.type = NF_MATCH_SOURCE, .prefix = probe});
	add_fact(d, FACT_DST_PROBE,
		 (struct nf_match){.type = NF_MATCH_DESTINATION, .prefix = probe});
	add_fact(d, FACT_SRC_P6,
		 (struct nf_match){.type = NF_MATCH_SOURCE,
				   .prefix = v6 ? passthrough_v6 : passthrough_v4});
	add_fact(d, FACT_DST_LO,
		 (struct nf_match){.type = NF_MATCH_DESTINATION,
				   .prefix = v6 ? loopback_v6 : plan->loopback4});
	add_fact(d, FACT_CIDR_EXCLUDED,
		 (struct nf_match){.type = NF_MATCH_DESTINATION,
				   .prefixes = &owned[v6 ? OWNED_EXCLUDE_V6 : OWNED_EXCLUDE_V4]});
	add_fact(d, FACT_CIDR_INCLUDED,
		 (struct nf_match){.type = NF_MATCH_DESTINATION,
				   .prefixes = &owned[v6 ? OWNED_INCLUDE_V6 : OWNED_INCLUDE_V4]});
}

static void add_port_facts(struct draft *d, bool outbound)
{
	const struct redirect_plan *plan = d->b->plan;
	const struct port_list *excluded =
		outbound ? &plan->outbound_exclude_ports : &plan->inbound_exclude_ports;
	const struct port_list *included =
		outbound ? &plan->outbound_include_ports : &plan->inbound_include_ports;
	struct nf_match port = {.type = NF_MATCH_DESTINATION_PORT};

	port.value = PORT_DNS;
	add_fact(d, FACT_PORT_DNS, port);
	port.value = plan->tunnel_port;
	/* A mesh without a tunnel port has no connection to it. */
	if (plan->tunnel_port)
		add_fact(d, FACT_PORT_TUNNEL, port);
	else
		d->vanished |= (d->all_of & FACT_PORT_TUNNEL) != 0;
	port.value = 0;
	port.ports = excluded;
	add_fact(d, FACT_PORT_EXCLUDED, port);
	port.ports = included;
	add_fact(d, FACT_PORT_INCLUDED, port);
}

static void add_owner_facts(struct draft *d)
{
	const struct redirect_plan *plan = d->b->plan;

	add_fact(d, FACT_UID_PROXY,
		 (struct nf_match){.type = NF_MATCH_UID, .ids = &plan->proxy_uids});
	add_fact(d, FACT_GID_PROXY,
		 (struct nf_match){.type = NF_MATCH_GID, .ids = &plan->proxy_gids});
	add_fact(d, FACT_GROUP_EXEMPT,
		 (struct nf_match){.type = NF_MATCH_GID,
				   .ids = &plan->groups,
				   .negated = !plan->groups_exempt});
}

static bool is_outbound(const struct builder *b, const struct plan_rule *from)
{
	return from >= b->plan->outbound && from < b->plan->outbound + b->plan->n_outbound;
}

/* The plan's rule for one protocol (0: any) and one family, without its verdict. */
static struct draft plan_draft(struct builder *b, enum nf_chain chain, const struct plan_rule *from,
			       uint32_t protocol, enum nf_family family)
{
	struct draft d = {
		.b = b,
		.all_of = from->all_of,
		.none_of = from->none_of,
		.rule = {.chain = chain,
			 .family = family,
			 .id = from->id,
			 .comment = rule_comment(from->id)},
	};
	bool outbound = is_outbound(b, from);

	if (protocol)
		add_value(&d, NF_MATCH_PROTOCOL, protocol);
	add_interface_facts(&d, outbound);
	add_address_facts(&d);
	add_port_facts(&d, outbound);
	add_owner_facts(&d);
	add_mark_facts(&d);
	return d;
}

/* ---- one rule of the plan, as often as netfilter needs it ------------------------------------ */

typedef void (*render_fn)(struct draft *d, const struct plan_rule *from);

static uint32_t facts_of(const struct plan_rule *from)
{
	return from->all_of | from->none_of;
}

static bool is_about_addresses(const struct plan_rule *from)
{
	return facts_of(from) & (FACT_SRC_P6 | FACT_DST_LO | FACT_SRC_PROBE | FACT_DST_PROBE |
				 FACT_CIDR_EXCLUDED | FACT_CIDR_INCLUDED);
}

static bool is_about_ports(const struct plan_rule *from)
{
	return facts_of(from) &
	       (FACT_PORT_DNS | FACT_PORT_TUNNEL | FACT_PORT_EXCLUDED | FACT_PORT_INCLUDED);
}

/* Which of any, TCP and UDP the rule becomes: a plan is about no other protocol than these two. */
static size_t protocols_of(const struct plan_rule *from, uint32_t ret[static 2])
{
	bool tcp = !(from->all_of & FACT_UDP) && !(from->none_of & FACT_TCP);
	bool udp = !(from->all_of & FACT_TCP) && !(from->none_of & FACT_UDP);
	size_t n = 0;

	if (tcp && udp && !is_about_ports(from)) {
		ret[n++] = 0;
		return n;
	}
	if (tcp)
		ret[n++] = IPPROTO_TCP;
	if (udp)
		ret[n++] = IPPROTO_UDP;
	return n;
}

static size_t families_of(const struct builder *b, bool addresses, enum nf_family ret[static 2])
{
	size_t n = 0;

	if (!addresses) {
		ret[n++] = NF_ANY_FAMILY;
		return n;
	}
	ret[n++] = NF_IPV4;
	if (b->rules->captures_ipv6)
		ret[n++] = NF_IPV6;
	return n;
}

static void add_plan_rule(struct builder *b, enum nf_chain chain, const struct plan_rule *from,
			  bool addresses, render_fn render)
{
	enum nf_family families[2];
	uint32_t protocols[2];
	size_t n_families = families_of(b, addresses, families);
	size_t n_protocols = protocols_of(from, protocols);

	for (size_t f = 0; f < n_families; f++)
		for (size_t p = 0; p < n_protocols; p++) {
			struct draft d = plan_draft(b, chain, from, protocols[p], families[f]);

			render(&d, from);
		}
}

static void render_return(struct draft *d, const struct plan_rule *from)
{
	(void)from;
	finish(d, NF_RETURN, 0);
}

static void render_nat(struct draft *d, const struct plan_rule *from)
{
	if (from->verdict == PLAN_REDIRECT)
		finish(d, NF_REDIRECT, from->port);
	else
		finish(d, NF_RETURN, 0);
}

static void render_mark_self(struct draft *d, const struct plan_rule *from)
{
	(void)from;
	/* In the plan, as in the nat chain, this exemption comes first. */
	d->all_of = 0;
	d->none_of = FACT_PORT_EXCLUDED;
	add_fact(d, FACT_PORT_EXCLUDED,
		 (struct nf_match){.type = NF_MATCH_DESTINATION_PORT,
				   .ports = &d->b->plan->outbound_exclude_ports});
	finish(d, NF_SET_MARK, NF_MARK_TPROXY_SELF);
}

static void render_divert(struct draft *d, const struct plan_rule *from)
{
	(void)from;
	d->rule.id = RULE_NONE;
	d->rule.comment = "tproxy-divert";
	add_value(d, NF_MATCH_STATE, NF_STATE_RELATED_ESTABLISHED);
	finish(d, NF_SET_MARK, NF_MARK_TPROXY);
}

static void render_tproxy(struct draft *d, const struct plan_rule *from)
{
	/*
	 * A connection that was open before conntrack was looks new in its middle, but is the
	 * app's: iptables would even drop it, because the app's socket is not transparent.
	 */
	add_value(d, NF_MATCH_FIRST_SYN, 0);
	d->all_of = 0;
	d->none_of = FACT_DST_LO;
	add_fact(d, FACT_DST_LO,
		 (struct nf_match){.type = NF_MATCH_DESTINATION,
				   .prefix = d->rule.family == NF_IPV6 ? loopback_v6
								       : d->b->plan->loopback4});
	finish(d, NF_TPROXY, from->port);
	/*
	 * In nftables a TPROXY without a listener is no match, and the packet would go to the app;
	 * in iptables this rule is never reached.
	 */
	d->rule.id = RULE_NONE;
	d->rule.comment = "tproxy-no-listener";
	finish(d, NF_DROP, 0);
}

/* ---- chains ---------------------------------------------------------------------------------- */

/* At the head of a chain: rules about any family are then about IPv4. */
static void add_ipv6_off(struct builder *b, enum nf_chain chain)
{
	struct draft d = own_rule(b, chain, rule_comment(RULE_IPV6_OFF));

	if (b->rules->captures_ipv6)
		return;
	d.rule.id = RULE_IPV6_OFF;
	d.rule.family = NF_IPV6;
	finish(&d, NF_RETURN, 0);
}

static void add_zone(struct builder *b, enum nf_chain chain, const char *comment,
		     struct nf_match port, struct nf_match owner, uint32_t zone)
{
	struct draft d = own_rule(b, chain, comment);

	add_value(&d, NF_MATCH_PROTOCOL, IPPROTO_UDP);
	add(&d, port);
	if (owner.ids && owner.ids->n == 0)
		return;
	if (owner.ids || owner.type == NF_MATCH_MARK)
		add(&d, owner);
	finish(&d, NF_ZONE, zone);
}

/* The same in ambient, where ztunnel is known by its mark: 3.8 of Istio's rules. */
static void add_ambient_raw(struct builder *b)
{
	struct nf_match to_dns = {.type = NF_MATCH_DESTINATION_PORT, .value = PORT_DNS};
	struct nf_match from_dns = {.type = NF_MATCH_SOURCE_PORT, .value = PORT_DNS};
	struct nf_match proxy = mark_match(NF_MATCH_MARK, AMBIENT_MARK_PROXY), others = proxy;

	others.negated = true;
	add_ipv6_off(b, NF_RAW_PREROUTING);
	add_zone(b, NF_RAW_PREROUTING, "dns-zone-upstream-answer", from_dns, others, ZONE_UPSTREAM);
	add_ipv6_off(b, NF_RAW_OUTPUT);
	add_zone(b, NF_RAW_OUTPUT, "dns-zone-upstream-mark", to_dns, proxy, ZONE_UPSTREAM);
}

/*
 * A captured question and the proxy's own one may have the same addresses and ports: each gets a
 * conntrack zone of its own (section 2.2 of Istio's rules).
 */
static void add_raw(struct builder *b)
{
	const struct redirect_plan *plan = b->plan;
	struct nf_match to_dns = {.type = NF_MATCH_DESTINATION_PORT, .value = PORT_DNS};
	struct nf_match from_dns = {.type = NF_MATCH_SOURCE_PORT, .value = PORT_DNS};
	struct nf_match from_proxy = {.type = NF_MATCH_SOURCE_PORT, .value = plan->dns_port};
	struct nf_match uid = {.type = NF_MATCH_UID, .ids = &plan->proxy_uids};
	struct nf_match gid = {.type = NF_MATCH_GID, .ids = &plan->proxy_gids};
	struct nf_match anyone = {0};

	if (!plan->dns_port)
		return;
	if (plan->ambient) {
		add_ambient_raw(b);
		return;
	}
	add_ipv6_off(b, NF_RAW_PREROUTING);
	add_zone(b, NF_RAW_PREROUTING, "dns-zone-upstream-answer", from_dns, anyone, ZONE_UPSTREAM);
	add_ipv6_off(b, NF_RAW_OUTPUT);
	add_zone(b, NF_RAW_OUTPUT, "dns-zone-upstream-uid", to_dns, uid, ZONE_UPSTREAM);
	add_zone(b, NF_RAW_OUTPUT, "dns-zone-proxy-answer-uid", from_proxy, uid, ZONE_CAPTURED);
	add_zone(b, NF_RAW_OUTPUT, "dns-zone-upstream-gid", to_dns, gid, ZONE_UPSTREAM);
	add_zone(b, NF_RAW_OUTPUT, "dns-zone-proxy-answer-gid", from_proxy, gid, ZONE_CAPTURED);
	add_zone(b, NF_RAW_OUTPUT, "dns-zone-captured", to_dns, anyone, ZONE_CAPTURED);
}

static bool is_about_interfaces(const struct plan_rule *from)
{
	return facts_of(from) & (FACT_IF_EXCLUDED | FACT_IF_REROUTED);
}

/*
 * ztunnel's connections to the app have the client's address, so that answers would leave by eth0.
 * A mark in conntrack knows them: it brings the mark back to which netfilter_routes.h has a rule.
 *
 * Where something else captures or nothing does, only connections that ztunnel opened are marked,
 * and not all that it answers. Where another engine has taken over none are: what has the mark must
 * end some day.
 */
static void add_ambient_save(struct builder *b)
{
	struct draft save = own_rule(b, NF_MANGLE_PREROUTING, "ambient-save-mark");

	if (b->stage == NF_DRAIN)
		return;
	add(&save, mark_match(NF_MATCH_MARK, AMBIENT_MARK_PROXY));
	if (b->stage != NF_CAPTURE)
		add_value(&save, NF_MATCH_FROM_OPENER, 0);
	save.rule.mask = AMBIENT_MARK_MASK;
	finish(&save, NF_SET_CONNECTION_MARK, AMBIENT_MARK_REPLY);
}

static void add_ambient_restore(struct builder *b)
{
	struct draft restore = own_rule(b, NF_MANGLE_OUTPUT, "ambient-restore-mark");

	add_ipv6_off(b, NF_MANGLE_OUTPUT);
	add(&restore, mark_match(NF_MATCH_CONNECTION_MARK, AMBIENT_MARK_REPLY));
	restore.rule.mask = AMBIENT_MARK_MASK;
	finish(&restore, NF_SET_MARK, AMBIENT_MARK_REPLY);
}

static void add_mangle_prerouting(struct builder *b)
{
	const struct redirect_plan *plan = b->plan;
	struct draft invalid = own_rule(b, NF_MANGLE_PREROUTING, "drop-invalid");
	struct draft jump = own_rule(b, NF_MANGLE_PREROUTING, "tproxy");
	struct draft save = own_rule(b, NF_MANGLE_PREROUTING, "tproxy-save-mark");

	if (!plan->drop_invalid && !plan->ambient && !uses_tproxy(b))
		return;
	add_ipv6_off(b, NF_MANGLE_PREROUTING);
	add_value(&invalid, NF_MATCH_STATE, NF_STATE_INVALID);
	if (plan->drop_invalid)
		finish(&invalid, NF_DROP, 0);
	if (plan->ambient)
		add_ambient_save(b);
	if (!uses_tproxy(b))
		return;
	/* A guest's packets go to the outbound port, by nat; here they must be left alone. */
	for (size_t i = 0; i < plan->n_inbound; i++)
		if (is_about_interfaces(&plan->inbound[i]) && plan->inbound[i].verdict == PLAN_PASS)
			add_plan_rule(b, NF_MANGLE_PREROUTING, &plan->inbound[i], false,
				      render_return);
	add_value(&jump, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	finish(&jump, NF_JUMP_TPROXY, 0);
	/* Marked by the proxy itself, as a connection with the client's own address to the app. */
	add_value(&save, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add_value(&save, NF_MATCH_MARK, NF_MARK_TPROXY);
	finish(&save, NF_SAVE_MARK, 0);
}

static void add_tproxy_heads(struct builder *b)
{
	struct draft marked = own_rule(b, NF_MANGLE_TPROXY, "tproxy-marked");
	struct draft others = own_rule(b, NF_MANGLE_TPROXY, "tproxy-own-calls");
	enum nf_family families[2];
	size_t n = families_of(b, true, families);

	add_value(&marked, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add_value(&marked, NF_MATCH_MARK, NF_MARK_TPROXY);
	finish(&marked, NF_RETURN, 0);
	for (size_t i = 0; i < n; i++) {
		struct draft d = own_rule(b, NF_MANGLE_TPROXY, "tproxy-passthrough");

		d.rule.family = families[i];
		add_value(&d, NF_MATCH_PROTOCOL, IPPROTO_TCP);
		add(&d, (struct nf_match){.type = NF_MATCH_IN_INTERFACE, .names = &lo});
		add(&d, (struct nf_match){.type = NF_MATCH_SOURCE,
					  .prefix = families[i] == NF_IPV6 ? passthrough_v6
									   : passthrough_v4});
		finish(&d, NF_RETURN, 0);
	}
	add_value(&others, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add(&others, (struct nf_match){.type = NF_MATCH_IN_INTERFACE, .names = &lo});
	add(&others, (struct nf_match){
			     .type = NF_MATCH_MARK, .value = NF_MARK_TPROXY_SELF, .negated = true});
	finish(&others, NF_RETURN, 0);
}

static void add_tproxy(struct builder *b)
{
	const struct redirect_plan *plan = b->plan;

	if (!uses_tproxy(b))
		return;
	add_tproxy_heads(b);
	for (size_t i = 0; i < plan->n_inbound; i++) {
		const struct plan_rule *from = &plan->inbound[i];
		struct draft divert = own_rule(b, NF_MANGLE_TPROXY, "tproxy-diverted");

		if (is_about_interfaces(from) || from->id == RULE_IPV6_OFF)
			continue;
		if (from->verdict != PLAN_TPROXY) {
			add_plan_rule(b, NF_MANGLE_TPROXY, from, is_about_addresses(from),
				      render_return);
			continue;
		}
		add_plan_rule(b, NF_MANGLE_TPROXY, from, is_about_addresses(from), render_divert);
		/* Whatever came with this mark has left above. */
		add_value(&divert, NF_MATCH_PROTOCOL, IPPROTO_TCP);
		add_value(&divert, NF_MATCH_MARK, NF_MARK_TPROXY);
		finish(&divert, NF_ACCEPT, 0);
		if (!is_draining(b))
			add_plan_rule(b, NF_MANGLE_TPROXY, from, true, render_tproxy);
	}
}

static void add_mangle_output(struct builder *b)
{
	const struct redirect_plan *plan = b->plan;
	struct draft marked = own_rule(b, NF_MANGLE_OUTPUT, "tproxy-marked");
	struct draft restore = own_rule(b, NF_MANGLE_OUTPUT, "tproxy-restore-mark");

	if (plan->ambient)
		add_ambient_restore(b);
	if (!uses_tproxy(b))
		return;
	add_ipv6_off(b, NF_MANGLE_OUTPUT);
	for (size_t i = 0; i < plan->n_outbound; i++)
		if (is_about_interfaces(&plan->outbound[i]))
			add_plan_rule(b, NF_MANGLE_OUTPUT, &plan->outbound[i], false,
				      render_return);
	add_value(&marked, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add(&marked, (struct nf_match){.type = NF_MATCH_OUT_INTERFACE, .names = &lo});
	add_value(&marked, NF_MATCH_MARK, NF_MARK_TPROXY);
	finish(&marked, NF_RETURN, 0);
	for (size_t i = 0; i < plan->n_outbound; i++)
		if (plan->outbound[i].verdict == PLAN_TPROXY)
			add_plan_rule(b, NF_MANGLE_OUTPUT, &plan->outbound[i], true,
				      render_mark_self);
	/* The app's answers to the proxy's connections with the client's address. */
	add_value(&restore, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add_value(&restore, NF_MATCH_CONNECTION_MARK, NF_MARK_TPROXY);
	finish(&restore, NF_RESTORE_MARK, 0);
}

/* Nat chains see the first packet that conntrack sees, which need not be a connection's first. */
static void add_established(struct builder *b, enum nf_chain chain)
{
	struct draft d = own_rule(b, chain, "established");

	add_value(&d, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add(&d, (struct nf_match){.type = NF_MATCH_FIRST_SYN, .negated = true});
	finish(&d, NF_RETURN, 0);
}

static void add_beside_port(struct builder *b, uint32_t protocol, uint16_t port)
{
	struct draft d = own_rule(b, NF_NAT_OUTPUT, "beside-ebpf");

	if (!port)
		return;
	add_value(&d, NF_MATCH_PROTOCOL, protocol);
	add(&d, (struct nf_match){.type = NF_MATCH_OUT_INTERFACE, .names = &lo});
	add_value(&d, NF_MATCH_DESTINATION_PORT, port);
	finish(&d, NF_RETURN, 0);
}

static void add_beside_ebpf(struct builder *b, enum nf_chain chain)
{
	struct draft d = own_rule(b, chain, "beside-ebpf");

	if (b->stage != NF_CAPTURE_BESIDE_EBPF)
		return;
	if (chain == NF_NAT_PREROUTING) {
		add(&d, (struct nf_match){.type = NF_MATCH_IN_INTERFACE, .names = &lo});
		finish(&d, NF_RETURN, 0);
		return;
	}
	/* ztunnel's connections to the app, which eBPF has given the mark of the answers. */
	if (b->plan->ambient) {
		add(&d, mark_match(NF_MATCH_MARK, AMBIENT_MARK_REPLY));
		finish(&d, NF_RETURN, 0);
	}
	add_beside_port(b, IPPROTO_TCP, b->plan->outbound_port);
	add_beside_port(b, IPPROTO_TCP, b->plan->inbound_port);
	add_beside_port(b, IPPROTO_TCP, b->plan->dns_port);
	add_beside_port(b, IPPROTO_UDP, b->plan->dns_port);
}

/* Left out when it would redirect nothing. */
static void add_nat(struct builder *b, enum nf_chain chain, const struct plan_rule *rules, size_t n)
{
	bool redirects = false;

	for (size_t i = 0; i < n; i++)
		redirects |= rules[i].verdict == PLAN_REDIRECT;
	if (!redirects)
		return;
	add_ipv6_off(b, chain);
	add_established(b, chain);
	add_beside_ebpf(b, chain);
	for (size_t i = 0; i < n; i++) {
		/*
		 * What TPROXY is for is mangle's; where a nat rule catches an own call as well, the
		 * proxy sees what nat makes of it, as with Istio's rules.
		 */
		if (rules[i].id == RULE_IPV6_OFF || rules[i].verdict == PLAN_TPROXY)
			continue;
		add_plan_rule(b, chain, &rules[i], is_about_addresses(&rules[i]), render_nat);
	}
}

/* A rule with a nat verdict, even one that never matches, keeps conntrack and the nat hooks. */
static void add_nat_holder(struct builder *b)
{
	struct draft d = own_rule(b, NF_NAT_OUTPUT, "keep-translating");

	add_value(&d, NF_MATCH_PROTOCOL, IPPROTO_TCP);
	add_value(&d, NF_MATCH_NEVER, 0);
	finish(&d, NF_REDIRECT, b->plan->outbound_port ? b->plan->outbound_port : 1);
}

/* ---- prefixes of one family ------------------------------------------------------------------ */

/*
 * In a sorted list what covers a prefix stands before it, and of what has been kept, which is
 * disjoint, only the last can.
 */
static int copy_family(const struct prefix_list *from, bool v6, struct prefix_list *ret)
{
	if (from->n == 0)
		return 0;
	ret->prefixes = calloc(from->n, sizeof(*ret->prefixes));
	if (!ret->prefixes)
		return -ENOMEM;
	for (size_t i = 0; i < from->n; i++) {
		const struct ip_prefix *p = &from->prefixes[i];

		if (ip_address_is_v4(&p->address) == v6)
			continue;
		if (ret->n > 0 && ip_prefix_covers(&ret->prefixes[ret->n - 1], p))
			continue;
		ret->prefixes[ret->n++] = *p;
	}
	return 0;
}

static int own_prefixes(const struct redirect_plan *plan, struct nf_rules *rules)
{
	rules->owned = calloc(OWNED_COUNT, sizeof(*rules->owned));
	if (!rules->owned)
		return -ENOMEM;
	rules->n_owned = OWNED_COUNT;
	if (copy_family(&plan->exclude_prefixes, false, &rules->owned[OWNED_EXCLUDE_V4]) < 0 ||
	    copy_family(&plan->exclude_prefixes, true, &rules->owned[OWNED_EXCLUDE_V6]) < 0 ||
	    copy_family(&plan->include_prefixes, false, &rules->owned[OWNED_INCLUDE_V4]) < 0 ||
	    copy_family(&plan->include_prefixes, true, &rules->owned[OWNED_INCLUDE_V6]) < 0)
		return -ENOMEM;
	return 0;
}

/* Without inbound capture nothing is given to the proxy by TPROXY, so nothing needs its marks. */
static enum netfilter_routes routes_of(const struct redirect_plan *plan)
{
	if (plan->ambient)
		return NETFILTER_ROUTES_AMBIENT;
	for (size_t i = 0; i < plan->n_inbound; i++)
		if (plan->inbound[i].verdict == PLAN_TPROXY)
			return NETFILTER_ROUTES_TPROXY;
	return NETFILTER_ROUTES_NONE;
}

int netfilter_rules_build(const struct redirect_plan *plan, enum nf_stage stage,
			  struct nf_rules *ret, struct error *err)
{
	struct nf_rules rules = {
		.routes = routes_of(plan),
		.captures_ipv6 = plan->capture_ipv6,
		.wants_passthrough = plan->capture_ipv6 && !plan->ambient,
	};
	struct builder b = {.plan = plan, .stage = stage, .rules = &rules};

	if (own_prefixes(plan, &rules) < 0) {
		b.code = ENOMEM;
	} else {
		add_raw(&b);
		add_mangle_prerouting(&b);
		add_tproxy(&b);
		add_mangle_output(&b);
		if (is_draining(&b)) {
			add_nat_holder(&b);
		} else {
			add_nat(&b, NF_NAT_PREROUTING, plan->inbound, plan->n_inbound);
			add_nat(&b, NF_NAT_OUTPUT, plan->outbound, plan->n_outbound);
		}
	}
	if (b.code) {
		netfilter_rules_done(&rules);
		return error_set(err, b.code, "make netfilter rules of the pod's plan");
	}
	*ret = rules;
	return 0;
}

void netfilter_rules_done(struct nf_rules *rules)
{
	for (size_t i = 0; i < rules->n_owned; i++)
		free(rules->owned[i].prefixes);
	free(rules->owned);
	free(rules->rules);
	*rules = (struct nf_rules){0};
}
