/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The nftables engine. A pod's rules are one table of its network namespace, replaced as a whole in
 * one transaction: `inet sockmesh`, or where the kernel has no nat for inet (before Linux 5.2) the
 * two tables `ip sockmesh` and `ip6 sockmesh`. What must be remembered about a pod stands in the
 * table as an empty chain (nft_compile.h), and only whose ::6 is ours also here, for a table that
 * somebody else deletes.
 *
 * In the host's namespace there is what kubelet's probes of ambient pods need: probe_snat.h.
 *
 * Beside rules the engine makes ::6/128 on lo, and for TPROXY and ambient a routing rule and a
 * route. The table is there before they are, and goes after them, so that it always tells what
 * there may be.
 */
#include "redirect_engine.h"

#include "conntrack.h"
#include "error.h"
#include "netfilter_join.h"
#include "netfilter_routes.h"
#include "netlink.h"
#include "netns.h"
#include "nft_read.h"
#include "nft_transaction.h"
#include "nft_verify.h"
#include "probe_snat.h"
#include "scoped.h"

#include <errno.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <stdio.h>
#include <string.h>

struct nftables {
	bool split; /* ip and ip6, not inet */
	uint32_t instance;
	uint64_t *passthrough_owners; /* cookies */
	size_t n_owners;
	struct probe_snat *snat; /* of ambient pods, in our own namespace */
};

#define scoped_rules  scoped(netfilter_rules_done)
#define scoped_tables scoped(nft_tables_done)
#define scoped_image  scoped(nft_image_done)

static size_t families_of(bool split, const enum nft_family **ret)
{
	*ret = split ? &nft_families[1] : &nft_families[0];
	return split ? 2 : 1;
}

static bool is_used(const struct nftables *n, enum nft_family family)
{
	return (family != NFT_INET) == n->split;
}

/* What the tables say together: all that are there were made by the same transactions. */
struct record {
	bool any, draining, passthrough, tproxy, routes, ambient;
};

static struct record record_of(const struct nft_tables *tables)
{
	struct record record = {.any = tables->any};

	for (size_t i = 0; i < NFT_FAMILIES; i++) {
		const struct nft_table *t = &tables->tables[i];

		record.draining |= t->draining;
		record.passthrough |= t->passthrough;
		record.tproxy |= t->has_tproxy;
		record.routes |= t->routes;
		record.ambient |= t->ambient;
	}
	return record;
}

static enum redirect_presence presence_of(const struct nft_tables *tables)
{
	const struct nft_table *inet = &tables->tables[0], *ip = &tables->tables[1],
			       *ip6 = &tables->tables[2];

	if (!tables->any)
		return REDIRECT_ABSENT;
	if (record_of(tables).draining)
		return REDIRECT_DRAINING;
	if (inet->captures || (ip->captures && ip6->captures))
		return REDIRECT_ACTIVE;
	return REDIRECT_PARTIAL;
}

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "make an nftables transaction");
}

static void add_agent_mark(struct nft_batch *batch, enum nft_family family, uint32_t instance)
{
	char name[NFT_MARK_MAX];

	snprintf(name, sizeof(name), NFT_MARK_AGENT "%08x", instance);
	nft_add_mark(batch, family, name);
}

static int add_rules(struct nft_batch *batch, enum nft_family family, const struct nf_rules *rules,
		     struct error *err)
{
	scoped_image struct nft_image image = {0};
	int r = nft_compile(rules, family, &image, err);

	if (!r)
		nft_add_image(batch, &image);
	return r;
}

static void delete_tables(struct nft_batch *batch, const struct nft_tables *tables)
{
	for (size_t i = 0; i < NFT_FAMILIES; i++)
		if (tables->tables[i].present)
			nft_delete_table(batch, tables->tables[i].family);
}

static int commit_deletion(int netns_fd, const struct nft_tables *tables, struct error *err)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();

	if (!batch)
		return no_memory(err);
	if (!tables->any)
		return 0;
	delete_tables(batch, tables);
	return nft_batch_commit(batch, netns_fd, err);
}

/* ---- open ------------------------------------------------------------------------------------ */

static int try_rules(int netns_fd, bool split, const struct nf_rules *rules, struct error *err)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();
	const enum nft_family *families;
	size_t n = families_of(split, &families);
	int r = 0;

	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < n; i++) {
		nft_add_table(batch, families[i]);
		r = add_rules(batch, families[i], rules, err);
	}
	return r ? r : nft_batch_commit(batch, netns_fd, err);
}

/* A pod that makes use of everything that one without TPROXY can need. */
static int probe_plan(struct redirect_plan **ret, struct error *err)
{
	uint32_t ids[] = {1, 2};
	uint16_t ports[] = {1, 2};
	struct ip_prefix prefixes[] = {
		{{{[10] = 0xff, [11] = 0xff, [12] = 10}}, IP_V4_PREFIX_BITS + 8},
		{{{[0] = 0xfd}}, 8},
	};
	struct redirect_settings settings = {
		.outbound_port = 15001,
		.inbound_port = 15006,
		.dns_port = 15053,
		.dns_capture = true,
		.capture_ipv6 = true,
		.drop_invalid = true,
		.outbound_include_all = true,
		.inbound_include_all = true,
		.loopback4 = {{{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}}, 128},
		.proxy_uids = {ids, 2},
		.proxy_gids = {ids, 2},
		.outbound_exclude_ports = {ports, 2},
		.exclude_prefixes = {prefixes, 2},
	};

	return redirect_plan_build(&settings, ret, err);
}

static int probe(bool *ret_split, struct error *err)
{
	scoped_rules struct nf_rules rules = {0};
	scoped_fd int netns_fd = -1;
	struct redirect_plan *plan = NULL;
	int r = netns_new(&netns_fd, err);

	if (r)
		return r;
	r = probe_plan(&plan, err);
	if (!r)
		r = netfilter_rules_build(plan, NF_CAPTURE, &rules, err);
	if (!r) {
		*ret_split = false;
		r = try_rules(netns_fd, false, &rules, err);
	}
	/* Without nat for inet the nat chain is refused; the kernel's word for it has changed. */
	if (r == -ENOENT || r == -EOPNOTSUPP || r == -EAFNOSUPPORT || r == -EINVAL) {
		*ret_split = true;
		r = try_rules(netns_fd, true, &rules, err);
	}
	redirect_plan_free(plan);
	return r;
}

static int nftables_open(const struct redirect_config *cfg, struct event_loop *loop,
			 void **ret_state, struct error *err)
{
	struct nftables *n;
	bool split;
	int r = probe(&split, err);

	if (r)
		return r;
	n = calloc(1, sizeof(*n));
	if (!n)
		return error_set(err, ENOMEM, "open the nftables engine");
	n->split = split;
	n->instance = cfg->instance;
	r = probe_snat_open(PROBE_SNAT_NFTABLES, cfg, loop, &n->snat, err);
	if (r)
		free(n);
	else
		*ret_state = n;
	return r;
}

static void nftables_close(void *state)
{
	struct nftables *n = state;

	if (!n)
		return;
	probe_snat_close(n->snat);
	free(n->passthrough_owners);
	free(n);
}

static const char *nftables_cannot(const struct redirect_plan *plan)
{
	return redirect_plan_needs_ebpf(plan);
}

static bool is_owner(const struct nftables *n, uint64_t cookie)
{
	for (size_t i = 0; i < n->n_owners; i++)
		if (n->passthrough_owners[i] == cookie)
			return true;
	return false;
}

static void forget_owner(struct nftables *n, uint64_t cookie)
{
	for (size_t i = 0; i < n->n_owners; i++)
		if (n->passthrough_owners[i] == cookie) {
			n->passthrough_owners[i] = n->passthrough_owners[--n->n_owners];
			return;
		}
}

/* Without memory only the table knows. */
static void remember_owner(struct nftables *n, uint64_t cookie)
{
	uint64_t *grown;

	if (is_owner(n, cookie))
		return;
	grown = reallocarray(n->passthrough_owners, n->n_owners + 1, sizeof(*grown));
	if (!grown)
		return;
	n->passthrough_owners = grown;
	grown[n->n_owners++] = cookie;
}

/* ---- apply ----------------------------------------------------------------------------------- */

struct application {
	const struct nftables *engine;
	const struct redirect_pod *pod;
	struct nf_rules rules;
	struct nft_tables before;
	struct record was;
	bool add_passthrough, add_routes; /* not there before */
	bool claimed;
};

static int look(struct application *a, struct error *err)
{
	const struct redirect_pod *pod = a->pod;
	bool there = true, ignored;
	struct error missing;
	int r = nft_read(pod->netns_fd, NFT_READ_CHAINS, &a->before, err);

	if (r)
		return r;
	a->was = record_of(&a->before);
	if (a->rules.wants_passthrough)
		r = netlink_find_passthrough_address(pod->netns_fd, &there, &ignored, err);
	a->add_passthrough = !there;
	a->add_routes = netfilter_routes_verify(pod->netns_fd, a->rules.routes,
						a->rules.captures_ipv6, &missing) != 0;
	return r;
}

/* What says that there are routes of this kind, before there are. */
static const char *routes_mark(enum netfilter_routes routes)
{
	return routes == NETFILTER_ROUTES_AMBIENT ? NFT_MARK_AMBIENT : NFT_MARK_ROUTES;
}

static bool has_routes_mark(const struct record *record, enum netfilter_routes routes)
{
	return routes == NETFILTER_ROUTES_AMBIENT ? record->ambient : record->routes;
}

/* The table, or a first form of it, says what is about to be made. */
static int claim(struct application *a, struct error *err)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();
	int r;

	if (!(a->add_passthrough && !a->was.passthrough) &&
	    !(a->add_routes && !has_routes_mark(&a->was, a->rules.routes)))
		return 0;
	if (!batch)
		return no_memory(err);
	for (size_t i = 0; i < NFT_FAMILIES; i++) {
		const struct nft_table *t = &a->before.tables[i];

		if (!is_used(a->engine, t->family))
			continue;
		nft_add_table(batch, t->family);
		if (!t->present)
			add_agent_mark(batch, t->family, a->engine->instance);
		if (a->add_passthrough)
			nft_add_mark(batch, t->family, NFT_MARK_PASSTHROUGH);
		if (a->add_routes)
			nft_add_mark(batch, t->family, routes_mark(a->rules.routes));
	}
	r = nft_batch_commit(batch, a->pod->netns_fd, err);
	a->claimed = !r;
	return r;
}

static bool owns_passthrough_after(const struct application *a)
{
	return a->rules.wants_passthrough &&
	       (a->add_passthrough || a->was.passthrough || a->pod->passthrough_is_ours ||
		is_owner(a->engine, a->pod->cookie));
}

static int replace_tables(struct application *a, struct error *err)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();
	bool passthrough = owns_passthrough_after(a);
	int r = 0;

	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < NFT_FAMILIES; i++) {
		const struct nft_table *t = &a->before.tables[i];

		if (!is_used(a->engine, t->family)) {
			if (t->present)
				nft_delete_table(batch, t->family);
			continue;
		}
		/* A table that claim() has just made is filled. */
		if (t->present)
			nft_delete_table(batch, t->family);
		nft_add_table(batch, t->family);
		add_agent_mark(batch, t->family, a->engine->instance);
		if (passthrough)
			nft_add_mark(batch, t->family, NFT_MARK_PASSTHROUGH);
		if (a->pod->beside_ebpf)
			nft_add_mark(batch, t->family, NFT_MARK_BESIDE);
		if (a->rules.routes == NETFILTER_ROUTES_AMBIENT)
			nft_add_mark(batch, t->family, NFT_MARK_AMBIENT);
		r = add_rules(batch, t->family, &a->rules, err);
	}
	return r ? r : nft_batch_commit(batch, a->pod->netns_fd, err);
}

/* Both kinds of routes, but for one that is still needed. */
static int remove_routes(int netns_fd, const struct record *record, enum netfilter_routes needed,
			 struct error *err)
{
	int r = 0;

	if ((record->tproxy || record->routes) && needed != NETFILTER_ROUTES_TPROXY)
		r = netfilter_routes_set(netns_fd, NETFILTER_ROUTES_TPROXY, false, true, err);
	if (!r && record->ambient && needed != NETFILTER_ROUTES_AMBIENT)
		r = netfilter_routes_set(netns_fd, NETFILTER_ROUTES_AMBIENT, false, true, err);
	return r;
}

/* What an earlier plan needed and this one does not. Rules no longer lead there. */
static int tidy(const struct application *a, struct error *err)
{
	int fd = a->pod->netns_fd;
	int r = remove_routes(fd, &a->was, a->rules.routes, err);

	if (!r && (a->was.passthrough || a->pod->passthrough_is_ours) &&
	    !a->rules.wants_passthrough)
		r = netlink_set_passthrough_address(fd, false, NULL, err);
	return r;
}

static void unclaim(const struct application *a)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();
	struct error ignored;

	if (!a->claimed || !batch)
		return;
	for (size_t i = 0; i < NFT_FAMILIES; i++) {
		const struct nft_table *t = &a->before.tables[i];

		if (!is_used(a->engine, t->family))
			continue;
		if (!t->present)
			nft_delete_table(batch, t->family);
		if (t->present && a->add_passthrough && !t->passthrough)
			nft_delete_chain(batch, t->family, NFT_MARK_PASSTHROUGH);
		if (t->present && a->add_routes && !has_routes_mark(&a->was, a->rules.routes))
			nft_delete_chain(batch, t->family, routes_mark(a->rules.routes));
	}
	nft_batch_commit(batch, a->pod->netns_fd, &ignored);
}

static int install(struct application *a, struct error *err)
{
	int fd = a->pod->netns_fd;
	bool passthrough_added = false;
	struct error ignored;
	int r = claim(a, err);

	if (r)
		return r;
	if (a->add_passthrough)
		r = netlink_set_passthrough_address(fd, true, &passthrough_added, err);
	if (!r && a->add_routes)
		r = netfilter_routes_set(fd, a->rules.routes, true, a->rules.captures_ipv6, err);
	if (!r)
		r = replace_tables(a, err);
	if (!r)
		return 0;
	if (a->add_routes)
		netfilter_routes_set(fd, a->rules.routes, false, true, &ignored);
	if (passthrough_added)
		netlink_set_passthrough_address(fd, false, NULL, &ignored);
	unclaim(a);
	return r;
}

static enum nf_stage stage_of(const struct redirect_pod *pod)
{
	return pod->beside_ebpf ? NF_CAPTURE_BESIDE_EBPF : NF_CAPTURE;
}

static int apply_rules(struct application *a, struct error *err)
{
	int r = netfilter_rules_build(a->pod->pod_plan, stage_of(a->pod), &a->rules, err);

	if (!r)
		r = look(a, err);
	if (r)
		return r;
	netfilter_join_begin(a->pod);
	r = install(a, err);
	if (r && !a->was.any)
		netfilter_join_undo(a->pod->netns_fd);
	if (r)
		return r;
	if (presence_of(&a->before) != REDIRECT_ACTIVE)
		netfilter_join_end(a->pod);
	return tidy(a, err);
}

/* The host first: from when the pod has rules on, kubelet is known to them by its source only. */
static int nftables_apply(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct nftables *n = state;
	struct application a = {.engine = n, .pod = pod};
	struct error ignored;
	int r = probe_snat_pod(n->snat, pod, err);

	if (r)
		return r;
	r = apply_rules(&a, err);
	if (!r && owns_passthrough_after(&a))
		remember_owner(n, pod->cookie);
	else if (!r)
		forget_owner(n, pod->cookie);
	if (r && !a.was.any)
		probe_snat_drop(n->snat, pod->cookie, &ignored);
	nft_tables_done(&a.before);
	netfilter_rules_done(&a.rules);
	return r;
}

/* ---- remove and retire ----------------------------------------------------------------------- */

static int remove_from(int netns_fd, struct error *err)
{
	scoped_tables struct nft_tables tables = {0};
	struct record record;
	int r = nft_read(netns_fd, NFT_READ_CHAINS, &tables, err);

	if (r)
		return r;
	record = record_of(&tables);
	r = remove_routes(netns_fd, &record, NETFILTER_ROUTES_NONE, err);
	if (!r && record.passthrough)
		r = netlink_set_passthrough_address(netns_fd, false, NULL, err);
	if (!r && tables.any)
		netfilter_join_undo(netns_fd);
	return r ? r : commit_deletion(netns_fd, &tables, err);
}

static int nftables_remove(void *state, uint64_t cookie, int netns_fd, struct error *err)
{
	const struct nftables *n = state;
	int r = netns_fd < 0 ? 0 : remove_from(netns_fd, err);

	if (r)
		return r;
	forget_owner(state, cookie);
	return probe_snat_drop(n->snat, cookie, err);
}

static bool ends_with_capture(const struct nftnl_rule *rule)
{
	char comment[64];

	nft_rule_comment(rule, comment, sizeof(comment));
	/* The marks of ambient come back in the form of the stage. */
	return nft_rule_has(rule, "tproxy") || !strcmp(comment, "tproxy-no-listener") ||
	       !strncmp(comment, "ambient-", strlen("ambient-"));
}

static void delete_capturing_rules(struct nft_batch *batch, const struct nft_table *t)
{
	for (size_t i = 0; i < t->n_rules; i++) {
		const char *chain = nftnl_rule_get_str(t->rules[i], NFTNL_RULE_CHAIN);

		if (chain && ends_with_capture(t->rules[i]))
			nft_delete_rule(batch, t->family, chain,
					nftnl_rule_get_u64(t->rules[i], NFTNL_RULE_HANDLE));
	}
}

/*
 * What captures goes and what keeps stays, out of the table as it is: whatever its plan was, which
 * need not be known any more. The result is that of NF_DRAIN for the same plan.
 */
static int drain_table(struct nft_batch *batch, const struct nft_table *t, enum nf_stage stage,
		       struct error *err)
{
	const struct redirect_plan nothing = {.ambient = t->ambient, .capture_ipv6 = true};
	scoped_rules struct nf_rules rules = {0};
	int r = netfilter_rules_build(&nothing, stage, &rules, err);

	if (r)
		return r;
	if (t->has_nat_prerouting)
		nft_flush_chain(batch, t->family, nft_chains[NF_NAT_PREROUTING].name);
	if (t->captures)
		nft_flush_chain(batch, t->family, nft_chains[NF_NAT_OUTPUT].name);
	delete_capturing_rules(batch, t);
	if (t->beside)
		nft_delete_chain(batch, t->family, NFT_MARK_BESIDE);
	nft_add_mark(batch, t->family, NFT_MARK_DRAINING);
	return add_rules(batch, t->family, &rules, err);
}

static int drain(const struct redirect_pod *pod, const struct nft_tables *tables, struct error *err)
{
	enum nf_stage stage = pod->leaves ? NF_DRAIN_LEAVING : NF_DRAIN;
	scoped_batch struct nft_batch *batch = nft_batch_new();
	int r = 0;

	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < NFT_FAMILIES; i++)
		if (tables->tables[i].present)
			r = drain_table(batch, &tables->tables[i], stage, err);
	return r ? r : nft_batch_commit(batch, pod->netns_fd, err);
}

/*
 * ::6 stays, whoever added it: the next engine has it from us (owns_passthrough). So do routes,
 * unless it is known that the next engine needs none.
 */
static int end_draining(const struct redirect_pod *pod, const struct nft_tables *tables,
			struct error *err)
{
	struct record record = record_of(tables);
	int r = 0;

	if (record.tproxy && pod->plan && !pod->plan->tproxy)
		r = netfilter_routes_set(pod->netns_fd, NETFILTER_ROUTES_TPROXY, false, true, err);
	if (!r && record.ambient && pod->plan && !pod->plan->ambient)
		r = netfilter_routes_set(pod->netns_fd, NETFILTER_ROUTES_AMBIENT, false, true, err);
	if (!r && !pod->nat_goes_on)
		netfilter_join_undo(pod->netns_fd);
	return r ? r : commit_deletion(pod->netns_fd, tables, err);
}

static int count_captured(int netns_fd, const struct record *record, size_t *ret, struct error *err)
{
	if (record->ambient)
		return conntrack_count_captured(netns_fd, AMBIENT_MARK_REPLY, AMBIENT_MARK_MASK,
						ret, err);
	return conntrack_count_captured(netns_fd, NF_MARK_TPROXY, record->tproxy ? UINT32_MAX : 0,
					ret, err);
}

static int retire_rules(void *state, const struct redirect_pod *pod, bool *ret_done,
			struct error *err)
{
	scoped_tables struct nft_tables tables = {0};
	struct record record;
	size_t captured = 0;
	int r = 0;

	if (pod->netns_fd >= 0)
		r = nft_read(pod->netns_fd, NFT_READ_RULES, &tables, err);
	if (r)
		return r;
	if (!tables.any) {
		forget_owner(state, pod->cookie);
		*ret_done = true;
		return 0;
	}
	record = record_of(&tables);
	if (!record.draining) {
		r = drain(pod, &tables, err);
		if (r)
			return r;
	}
	if (pod->lingers) {
		*ret_done = false;
		return 0;
	}
	if (!pod->nat_goes_on)
		r = count_captured(pod->netns_fd, &record, &captured, err);
	/* Who cannot count must keep translating for ever. */
	if (r == -EOPNOTSUPP || (!r && captured > 0)) {
		*ret_done = false;
		return 0;
	}
	if (!r)
		r = pod->leaves ? remove_from(pod->netns_fd, err) : end_draining(pod, &tables, err);
	if (!r) {
		forget_owner(state, pod->cookie);
		*ret_done = true;
	}
	return r;
}

static int nftables_retire(void *state, const struct redirect_pod *pod, bool *ret_done,
			   struct error *err)
{
	const struct nftables *n = state;
	int r = retire_rules(state, pod, ret_done, err);

	return r ? r : probe_snat_drop(n->snat, pod->cookie, err);
}

/* ---- looking --------------------------------------------------------------------------------- */

static int nftables_presence(void *state, uint64_t cookie, int netns_fd,
			     enum redirect_presence *ret, struct error *err)
{
	scoped_tables struct nft_tables tables = {0};
	int r = nft_read(netns_fd, NFT_READ_CHAINS, &tables, err);

	(void)state;
	(void)cookie;
	if (!r)
		*ret = presence_of(&tables);
	return r;
}

static bool nftables_owns_passthrough(void *state, uint64_t cookie, int netns_fd)
{
	scoped_tables struct nft_tables tables = {0};
	struct error ignored;

	(void)state;
	(void)cookie;
	return !nft_read(netns_fd, NFT_READ_CHAINS, &tables, &ignored) &&
	       record_of(&tables).passthrough;
}

static bool nftables_is_ours(const struct redirect_config *cfg, int netns_fd)
{
	scoped_tables struct nft_tables tables = {0};
	struct error ignored;
	bool ours = false;

	if (nft_read(netns_fd, NFT_READ_CHAINS, &tables, &ignored))
		return false;
	for (size_t i = 0; i < NFT_FAMILIES; i++)
		ours |= tables.tables[i].has_instance && tables.tables[i].instance == cfg->instance;
	return ours;
}

static int verify_marks(const struct nftables *n, const struct redirect_pod *pod,
			const struct nft_table *t, struct error *err)
{
	if (t->draining)
		return error_set(err, ENODEV, "nftables: table " NFT_TABLE " only drains");
	if (t->ambient != pod->plan->ambient)
		return error_set(err, ENODEV, "nftables: the note about ambient is %s",
				 t->ambient ? "not ours" : "missing");
	if (t->beside != pod->beside_ebpf)
		return error_set(err, ENODEV, "nftables: the rules %s made to be beside eBPF's",
				 t->beside ? "are" : "are not");
	if (!t->has_instance || t->instance != n->instance)
		return error_set(err, ENODEV, "nftables: table " NFT_TABLE " is not this agent's");
	return 0;
}

static int verify_tables(const struct nftables *n, const struct redirect_pod *pod,
			 const struct nft_tables *tables, const struct nf_rules *rules,
			 struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < NFT_FAMILIES; i++) {
		const struct nft_table *t = &tables->tables[i];
		scoped_image struct nft_image image = {0};

		if (!is_used(n, t->family)) {
			if (t->present)
				r = error_set(err, ENODEV,
					      "nftables: a second table " NFT_TABLE " is there");
			continue;
		}
		r = nft_compile(rules, t->family, &image, err);
		if (!r)
			r = nft_verify_table(t, &image, err);
		if (!r)
			r = verify_marks(n, pod, t, err);
	}
	return r;
}

static int verify_rest(const struct redirect_pod *pod, const struct nf_rules *rules,
		       struct error *err)
{
	int r = netfilter_routes_verify(pod->netns_fd, rules->routes, rules->captures_ipv6, err);

	if (!r && rules->wants_passthrough)
		r = netlink_verify_passthrough_address(pod->netns_fd, err);
	return r;
}

static int nftables_verify(void *state, const struct redirect_pod *pod, struct error *err)
{
	const struct nftables *n = state;
	scoped_rules struct nf_rules rules = {0};
	scoped_tables struct nft_tables tables = {0};
	int r = netfilter_rules_build(pod->pod_plan, stage_of(pod), &rules, err);

	if (!r)
		r = nft_read(pod->netns_fd, NFT_READ_ALL, &tables, err);
	if (!r)
		r = verify_tables(state, pod, &tables, &rules, err);
	if (!r)
		r = verify_rest(pod, &rules, err);
	return r ? r : probe_snat_verify(n->snat, pod, err);
}

/* ---- counters -------------------------------------------------------------------------------- */

/* Chains in which a rule counts connections, not every packet of them. */
static bool counts_connections(const struct nftnl_rule *rule)
{
	const char *chain = nftnl_rule_get_str(rule, NFTNL_RULE_CHAIN);

	return chain && (!strcmp(chain, nft_chains[NF_NAT_OUTPUT].name) ||
			 !strcmp(chain, nft_chains[NF_NAT_PREROUTING].name) ||
			 !strcmp(chain, nft_chains[NF_MANGLE_TPROXY].name));
}

static uint64_t packets_of(const struct nftnl_rule *rule)
{
	struct nftnl_expr_iter *iter = nftnl_expr_iter_create(rule);
	const struct nftnl_expr *e;
	uint64_t packets = 0;

	while (iter && (e = nftnl_expr_iter_next(iter))) {
		const char *name = nftnl_expr_get_str(e, NFTNL_EXPR_NAME);

		if (name && !strcmp(name, "counter"))
			packets += nftnl_expr_get_u64(e, NFTNL_EXPR_CTR_PACKETS);
	}
	if (iter)
		nftnl_expr_iter_destroy(iter);
	return packets;
}

static bool is_plan_rule(const char *comment)
{
	for (enum plan_rule_id id = RULE_NONE + 1; id < RULE_ID_COUNT_; id++)
		if (!strcmp(plan_rule_name(id), comment))
			return true;
	return false;
}

static int count_table(const struct nft_table *t, json_t *verdicts)
{
	for (size_t i = 0; i < t->n_rules; i++) {
		char comment[64];
		const char *name = nft_rule_comment(t->rules[i], comment, sizeof(comment));
		json_int_t sum = (json_int_t)packets_of(t->rules[i]);

		if (!counts_connections(t->rules[i]) || !is_plan_rule(name))
			continue;
		sum += json_integer_value(json_object_get(verdicts, name));
		if (json_object_set_new(verdicts, name, json_integer(sum)))
			return -ENOMEM;
	}
	return 0;
}

static json_t *nftables_pod_counters(void *state, uint64_t cookie, int netns_fd)
{
	scoped_tables struct nft_tables tables = {0};
	struct error ignored;
	json_t *verdicts;
	int r = 0;

	(void)state;
	(void)cookie;
	if (netns_fd < 0 || nft_read(netns_fd, NFT_READ_RULES, &tables, &ignored) || !tables.any)
		return NULL;
	verdicts = json_object();
	for (size_t i = 0; !r && i < NFT_FAMILIES; i++)
		r = count_table(&tables.tables[i], verdicts);
	if (!r)
		return json_pack("{s:o, s:{}}", "verdicts", verdicts, "events");
	json_decref(verdicts);
	return NULL;
}

/* ---- uninstall ------------------------------------------------------------------------------- */

struct uninstallation {
	const struct redirect_config *cfg;
	struct error first; /* one that fails does not keep the others */
};

static void uninstall_from(struct uninstallation *u, int netns_fd)
{
	struct error err = {0};

	if (remove_from(netns_fd, &err) && !u->first.code)
		u->first = err;
}

/* Another agent's pods are not ours to touch. */
static int uninstall_found(int netns_fd, void *arg, struct error *err)
{
	struct uninstallation *u = arg;

	(void)err;
	if (nftables_is_ours(u->cfg, netns_fd))
		uninstall_from(u, netns_fd);
	return 0;
}

static int nftables_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
			      size_t n_pods, struct error *err)
{
	struct uninstallation u = {.cfg = cfg};
	int r;

	for (size_t i = 0; i < n_pods; i++)
		if (pods[i].netns_fd >= 0)
			uninstall_from(&u, pods[i].netns_fd);
	r = netns_each(uninstall_found, &u, err);
	if (!u.first.code && r)
		u.first = *err;
	r = probe_snat_uninstall(PROBE_SNAT_NFTABLES, cfg, err);
	if (!u.first.code)
		return r;
	*err = u.first;
	return -err->code;
}

static int nftables_leave_host(const struct redirect_config *cfg, struct error *err)
{
	return probe_snat_uninstall(PROBE_SNAT_NFTABLES, cfg, err);
}

static enum kubelet_known nftables_kubelet(void *state, struct kubelet *ret)
{
	struct nftables *n = state;

	return probe_snat_kubelet(n->snat, ret);
}

const struct redirect_engine_ops redirect_nftables_ops = {
	.name = "nftables",
	.is_ours = nftables_is_ours,
	.cannot = nftables_cannot,
	.open = nftables_open,
	.close = nftables_close,
	.apply = nftables_apply,
	.remove = nftables_remove,
	.retire = nftables_retire,
	.presence = nftables_presence,
	.owns_passthrough = nftables_owns_passthrough,
	.verify = nftables_verify,
	.pod_counters = nftables_pod_counters,
	.kubelet = nftables_kubelet,
	.leave_host = nftables_leave_host,
	.uninstall = nftables_uninstall,
};
