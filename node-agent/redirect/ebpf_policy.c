/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_policy.h"

#include "error.h"
#include "redirect_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct addr16 addr16_of(const struct ip_address *address)
{
	struct addr16 a;

	_Static_assert(sizeof(a) == sizeof(address->bytes), "one address shape");
	memcpy(&a, address->bytes, sizeof(a));
	return a;
}

/* ---- uids, gids, groups --------------------------------------------------------------------- */

static void add_ids(struct ebpf_policy *p, __u32 policy, const struct id_list *ids, __u32 bit)
{
	for (size_t i = 0; i < ids->n; i++) {
		size_t at = 0;

		while (at < p->n_ids && p->ids[at].key.id != ids->ids[i])
			at++;
		if (at == p->n_ids)
			p->ids[p->n_ids++].key = (struct id_set_key){policy, ids->ids[i]};
		p->ids[at].bits |= bit;
	}
}

static int build_ids(const struct redirect_plan *plan, __u32 policy, struct ebpf_policy *p)
{
	size_t n = plan->proxy_uids.n + plan->proxy_gids.n + plan->groups.n;

	p->ids = calloc(n ? n : 1, sizeof(*p->ids));
	if (!p->ids)
		return -ENOMEM;
	add_ids(p, policy, &plan->proxy_uids, ID_PROXY_UID);
	add_ids(p, policy, &plan->proxy_gids, ID_PROXY_GID);
	add_ids(p, policy, &plan->groups, ID_GROUP);
	return 0;
}

/* ---- ports ---------------------------------------------------------------------------------- */

static int build_ports(const struct redirect_plan *plan, __u32 policy, struct ebpf_policy *p)
{
	const struct {
		const struct port_list *list;
		__u8 bit;
	} sets[] = {
		{&plan->outbound_exclude_ports, PORT_OUT_EXCLUDED},
		{&plan->outbound_include_ports, PORT_OUT_INCLUDED},
		{&plan->inbound_exclude_ports, PORT_IN_EXCLUDED},
		{&plan->inbound_include_ports, PORT_IN_INCLUDED},
	};
	__u8 *bits = calloc(1 << 16, 1);
	size_t n = 0;

	if (!bits)
		return -ENOMEM;
	for (size_t s = 0; s < sizeof(sets) / sizeof(sets[0]); s++)
		for (size_t i = 0; i < sets[s].list->n; i++) {
			n += !bits[sets[s].list->ports[i]];
			bits[sets[s].list->ports[i]] |= sets[s].bit;
		}
	p->ports = calloc(n ? n : 1, sizeof(*p->ports));
	for (size_t port = 0; p->ports && port < 1 << 16; port++)
		if (bits[port])
			p->ports[p->n_ports++] = (struct policy_port){
				.key = {.policy = policy, .port = (__u16)port},
				.bits = bits[port],
			};
	free(bits);
	return p->ports ? 0 : -ENOMEM;
}

/* ---- prefixes ------------------------------------------------------------------------------- */

struct marked_prefix {
	struct ip_prefix prefix;
	__u32 bits;
};

/* IPv6 before IPv4, then by address, then the shorter first: a prefix follows all that cover it. */
static int compare_prefixes(const void *a, const void *b)
{
	const struct ip_prefix *x = &((const struct marked_prefix *)a)->prefix;
	const struct ip_prefix *y = &((const struct marked_prefix *)b)->prefix;
	int family = (int)ip_address_is_v4(&x->address) - (int)ip_address_is_v4(&y->address);
	int bytes = memcmp(x->address.bytes, y->address.bytes, sizeof(x->address.bytes));

	return family ? family : bytes ? bytes : (int)x->length - (int)y->length;
}

/* In a prefix's address; an IPv6 prefix that is shorter than 96 bits can look like one. */
static bool is_v4_prefix(const struct ip_prefix *p)
{
	return p->length >= IP_V4_PREFIX_BITS && ip_address_is_v4(&p->address);
}

static void mark_list(struct marked_prefix *all, size_t *n, const struct prefix_list *list,
		      __u32 bit)
{
	for (size_t i = 0; i < list->n; i++)
		all[(*n)++] = (struct marked_prefix){list->prefixes[i], bit};
}

/* Same prefix twice becomes one; each inherits the bits of what covers it. */
static size_t merge_and_inherit(struct marked_prefix *all, size_t n)
{
	size_t out = 0, depth = 0, stack[129];

	for (size_t i = 0; i < n; i++) {
		struct marked_prefix m = all[i];

		while (depth && !ip_prefix_covers(&all[stack[depth - 1]].prefix, &m.prefix))
			depth--;
		if (depth) {
			struct marked_prefix *outer = &all[stack[depth - 1]];

			m.bits |= outer->bits;
			if (outer->prefix.length == m.prefix.length) {
				outer->bits = m.bits;
				continue;
			}
		}
		all[out] = m;
		stack[depth++] = out++;
	}
	return out;
}

static int build_prefixes(const struct redirect_plan *plan, __u32 policy, struct ebpf_policy *p)
{
	size_t n = 0, max = plan->exclude_prefixes.n + plan->include_prefixes.n;
	struct marked_prefix *all = calloc(max ? max : 1, sizeof(*all));

	p->prefixes = calloc(max ? max : 1, sizeof(*p->prefixes));
	if (!all || !p->prefixes) {
		free(all);
		return -ENOMEM;
	}
	mark_list(all, &n, &plan->exclude_prefixes, PREFIX_EXCLUDED);
	mark_list(all, &n, &plan->include_prefixes, PREFIX_INCLUDED);
	qsort(all, n, sizeof(*all), compare_prefixes);
	n = merge_and_inherit(all, n);
	for (size_t i = 0; i < n; i++)
		p->prefixes[p->n_prefixes++] = (struct policy_prefix){
			.key =
				{
					.prefixlen = 32u + all[i].prefix.length,
					.policy_family = prefix_policy_family(
						policy, is_v4_prefix(&all[i].prefix)),
					.addr = addr16_of(&all[i].prefix.address),
				},
			.bits = all[i].bits,
		};
	free(all);
	return 0;
}

int ebpf_policy_build(const struct redirect_plan *plan, __u32 policy, struct ebpf_policy *ret,
		      struct error *err)
{
	struct ebpf_policy p = {0};

	if (build_ids(plan, policy, &p) || build_ports(plan, policy, &p) ||
	    build_prefixes(plan, policy, &p)) {
		ebpf_policy_done(&p);
		return error_set(err, ENOMEM, "build the pod's sets");
	}
	*ret = p;
	return 0;
}

void ebpf_policy_done(struct ebpf_policy *policy)
{
	free(policy->ids);
	free(policy->ports);
	free(policy->prefixes);
	memset(policy, 0, sizeof(*policy));
}

/* ---- the pod's configuration ---------------------------------------------------------------- */

static int compile_rules(const struct plan_rule *rules, size_t n, struct pod_rule *ret, size_t max,
			 struct error *err)
{
	if (n > max)
		return error_set(err, E2BIG, "the plan has %zu rules, a pod's limit is %zu", n,
				 max);
	for (size_t i = 0; i < n; i++)
		ret[i] = (struct pod_rule){
			.all_of = rules[i].all_of,
			.none_of = rules[i].none_of,
			.port = rules[i].port,
			.redirect = rules[i].verdict == PLAN_REDIRECT,
			.id = (__u8)rules[i].id,
		};
	return 0;
}

static void choose_sources(const struct ip_address *addresses, size_t n, struct pod_config *ret)
{
	const struct addr16 none = {0};

	for (size_t i = 0; i < n; i++) {
		struct addr16 *source =
			ip_address_is_v4(&addresses[i]) ? &ret->source4 : &ret->source6;

		if (ip_address_is_loopback(&addresses[i]) ||
		    ip_address_is_link_local(&addresses[i]) ||
		    memcmp(source, &none, sizeof(none)) != 0)
			continue;
		*source = addr16_of(&addresses[i]);
	}
}

int ebpf_pod_config_build(const struct redirect_plan *plan, __u32 policy,
			  const struct ip_address *addresses, size_t n_addresses,
			  struct pod_config *ret, struct error *err)
{
	struct pod_config cfg = {
		.policy = policy,
		.outbound_port = plan->outbound_port,
		.inbound_port = plan->inbound_port,
		.dns_port = plan->dns_port,
		.tunnel_port = plan->tunnel_port,
		.n_outbound = (__u32)plan->n_outbound,
		.n_inbound = (__u32)plan->n_inbound,
	};
	unsigned bits = plan->loopback4.length - (unsigned)IP_V4_PREFIX_BITS;
	int r;

	cfg.loopback4_mask_be = bits ? __builtin_bswap32(0xffffffffu << (32 - bits)) : 0;
	cfg.loopback4_be = ip_address_v4_be(&plan->loopback4.address) & cfg.loopback4_mask_be;
	/* A list of captured groups may be empty: then nobody is captured. */
	if (plan->groups.n || !plan->groups_exempt)
		cfg.flags |= POD_HAS_GROUPS;
	if (plan->groups_exempt)
		cfg.flags |= POD_GROUPS_EXEMPT;
	if (plan->outbound_exclude_ports.n || plan->outbound_include_ports.n ||
	    plan->inbound_exclude_ports.n || plan->inbound_include_ports.n)
		cfg.flags |= POD_HAS_PORTS;
	if (plan->exclude_prefixes.n || plan->include_prefixes.n)
		cfg.flags |= POD_HAS_PREFIXES;
	if (plan->ambient)
		cfg.flags |= POD_IS_AMBIENT;
	if (plan->node_proxy) {
		cfg.flags |= POD_NODE_PROXY;
		cfg.proxy4 = addr16_of(&plan->proxy4);
		cfg.proxy6 = addr16_of(&plan->proxy6);
	}
	choose_sources(addresses, n_addresses, &cfg);
	r = compile_rules(plan->outbound, plan->n_outbound, cfg.outbound, POD_RULES_OUTBOUND_MAX,
			  err);
	if (!r)
		r = compile_rules(plan->inbound, plan->n_inbound, cfg.inbound,
				  POD_RULES_INBOUND_MAX, err);
	if (!r)
		*ret = cfg;
	return r;
}
