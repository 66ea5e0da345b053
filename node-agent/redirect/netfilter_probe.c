/* SPDX-License-Identifier: Apache-2.0 */
#include "netfilter_probe.h"

#include "error.h"
#include "iptables_run.h"
#include "monotonic.h"
#include "netns.h"
#include "nft_transaction.h"
#include "scoped.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_nat.h>
#include <linux/netfilter/nf_tables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_ELEMENTS(array) (sizeof(array) / sizeof((array)[0]))

enum {
	PROBE_TIMEOUT_MS = 5000, /* after which no program is run; each run has a deadline too */
};

/* ---- nftables: one transaction ----------------------------------------------------------------
 */

struct transaction {
	struct nft_batch *batch;
	char table[32];
};

/* NULL: no memory. */
static struct nlmsghdr *begin_message(struct transaction *t, uint16_t type, uint16_t family,
				      uint16_t flags)
{
	static const char *const names[] = {[NFT_MSG_NEWTABLE] = "table",
					    [NFT_MSG_NEWCHAIN] = "chain",
					    [NFT_MSG_NEWRULE] = "rule",
					    [NFT_MSG_NEWSET] = "set"};

	return nft_batch_add(t->batch, type, family, flags | NLM_F_CREATE, "add a %s", names[type]);
}

static bool add_table(struct transaction *t, uint16_t family)
{
	struct nlmsghdr *message = begin_message(t, NFT_MSG_NEWTABLE, family, 0);
	struct nftnl_table *table = nftnl_table_alloc();

	if (table && message) {
		nftnl_table_set_str(table, NFTNL_TABLE_NAME, t->table);
		nftnl_table_nlmsg_build_payload(message, table);
	}
	if (table)
		nftnl_table_free(table);
	return table && message;
}

struct base_chain {
	const char *type;
	uint32_t hook;
	int32_t priority;
};

static const struct base_chain nat_output = {"nat", NF_INET_LOCAL_OUT, -100};
static const struct base_chain raw_output = {"filter", NF_INET_LOCAL_OUT, -300};
static const struct base_chain filter_output = {"filter", NF_INET_LOCAL_OUT, 0};
static const struct base_chain mangle_prerouting = {"filter", NF_INET_PRE_ROUTING, -150};

static bool add_chain(struct transaction *t, uint16_t family, const struct base_chain *base)
{
	struct nlmsghdr *message = begin_message(t, NFT_MSG_NEWCHAIN, family, 0);
	struct nftnl_chain *chain = nftnl_chain_alloc();

	if (chain && message) {
		nftnl_chain_set_str(chain, NFTNL_CHAIN_TABLE, t->table);
		nftnl_chain_set_str(chain, NFTNL_CHAIN_NAME, "chain");
		nftnl_chain_set_str(chain, NFTNL_CHAIN_TYPE, base->type);
		nftnl_chain_set_u32(chain, NFTNL_CHAIN_HOOKNUM, base->hook);
		nftnl_chain_set_s32(chain, NFTNL_CHAIN_PRIO, base->priority);
		nftnl_chain_nlmsg_build_payload(message, chain);
	}
	if (chain)
		nftnl_chain_free(chain);
	return chain && message;
}

/* Takes over the rule. */
static bool add_rule(struct transaction *t, uint16_t family, struct nftnl_rule *rule)
{
	struct nlmsghdr *message = begin_message(t, NFT_MSG_NEWRULE, family, NLM_F_APPEND);

	if (rule && message) {
		nftnl_rule_set_str(rule, NFTNL_RULE_TABLE, t->table);
		nftnl_rule_set_str(rule, NFTNL_RULE_CHAIN, "chain");
		nftnl_rule_nlmsg_build_payload(message, rule);
	}
	if (rule)
		nftnl_rule_free(rule);
	return rule && message;
}

/* An expression of the rule; NULL without memory, or when libnftnl does not know it. */
static struct nftnl_expr *add_expr(struct nftnl_rule *rule, const char *name)
{
	struct nftnl_expr *expr = rule ? nftnl_expr_alloc(name) : NULL;

	if (expr)
		nftnl_rule_add_expr(rule, expr);
	return expr;
}

static void load_register(struct nftnl_rule *rule, const void *data, uint32_t size)
{
	struct nftnl_expr *expr = add_expr(rule, "immediate");

	if (!expr)
		return;
	nftnl_expr_set_u32(expr, NFTNL_EXPR_IMM_DREG, NFT_REG_1);
	nftnl_expr_set(expr, NFTNL_EXPR_IMM_DATA, data, size);
}

/* ---- nftables: what is tried ------------------------------------------------------------------
 */

typedef bool (*fill_fn)(struct transaction *t);

static bool fill_table(struct transaction *t)
{
	return add_table(t, NFPROTO_INET);
}

static bool fill_inet_nat(struct transaction *t)
{
	return add_table(t, NFPROTO_INET) && add_chain(t, NFPROTO_INET, &nat_output);
}

/* Where it has not, nothing of IPv6 can be redirected, nor needs to be. */
static bool kernel_has_ipv6(void)
{
	return access("/proc/self/net/if_inet6", F_OK) == 0;
}

static bool fill_nat_per_family(struct transaction *t)
{
	return add_table(t, NFPROTO_IPV4) && add_chain(t, NFPROTO_IPV4, &nat_output) &&
	       (!kernel_has_ipv6() ||
		(add_table(t, NFPROTO_IPV6) && add_chain(t, NFPROTO_IPV6, &nat_output)));
}

static bool fill_redirect(struct transaction *t)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	uint16_t port = 0x993a; /* any */
	struct nftnl_expr *redirect;

	load_register(rule, &port, sizeof(port));
	redirect = add_expr(rule, "redir");
	if (redirect) {
		nftnl_expr_set_u32(redirect, NFTNL_EXPR_REDIR_REG_PROTO_MIN, NFT_REG_1);
		nftnl_expr_set_u32(redirect, NFTNL_EXPR_REDIR_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED);
	}
	return add_table(t, NFPROTO_IPV4) && add_chain(t, NFPROTO_IPV4, &nat_output) &&
	       add_rule(t, NFPROTO_IPV4, rule) && redirect;
}

static bool fill_meta(struct transaction *t, uint32_t key)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct nftnl_expr *meta = add_expr(rule, "meta");

	if (meta) {
		nftnl_expr_set_u32(meta, NFTNL_EXPR_META_KEY, key);
		nftnl_expr_set_u32(meta, NFTNL_EXPR_META_DREG, NFT_REG_1);
	}
	return add_table(t, NFPROTO_INET) && add_chain(t, NFPROTO_INET, &raw_output) &&
	       add_rule(t, NFPROTO_INET, rule) && meta;
}

static bool fill_owner(struct transaction *t)
{
	return fill_meta(t, NFT_META_SKUID);
}

static bool fill_counter(struct transaction *t)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct nftnl_expr *counter = add_expr(rule, "counter");

	return add_table(t, NFPROTO_INET) && add_chain(t, NFPROTO_INET, &raw_output) &&
	       add_rule(t, NFPROTO_INET, rule) && counter;
}

static bool fill_ct_read(struct transaction *t, uint32_t key)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct nftnl_expr *ct = add_expr(rule, "ct");

	if (ct) {
		nftnl_expr_set_u32(ct, NFTNL_EXPR_CT_KEY, key);
		nftnl_expr_set_u32(ct, NFTNL_EXPR_CT_DREG, NFT_REG_1);
	}
	return add_table(t, NFPROTO_INET) && add_chain(t, NFPROTO_INET, &mangle_prerouting) &&
	       add_rule(t, NFPROTO_INET, rule) && ct;
}

static bool fill_ct_state(struct transaction *t)
{
	return fill_ct_read(t, NFT_CT_STATE);
}

static bool fill_ct_mark(struct transaction *t)
{
	return fill_ct_read(t, NFT_CT_MARK);
}

static bool fill_ct_zone(struct transaction *t)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct nftnl_expr *ct;
	uint16_t zone = 1;

	load_register(rule, &zone, sizeof(zone));
	ct = add_expr(rule, "ct");
	if (ct) {
		nftnl_expr_set_u32(ct, NFTNL_EXPR_CT_KEY, NFT_CT_ZONE);
		nftnl_expr_set_u32(ct, NFTNL_EXPR_CT_SREG, NFT_REG_1);
	}
	return add_table(t, NFPROTO_INET) && add_chain(t, NFPROTO_INET, &raw_output) &&
	       add_rule(t, NFPROTO_INET, rule) && ct;
}

static bool fill_socket_cgroup(struct transaction *t)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct nftnl_expr *socket = add_expr(rule, "socket");

	if (socket) {
		nftnl_expr_set_u32(socket, NFTNL_EXPR_SOCKET_KEY, NFT_SOCKET_CGROUPV2);
		nftnl_expr_set_u32(socket, NFTNL_EXPR_SOCKET_DREG, NFT_REG_1);
		nftnl_expr_set_u32(socket, NFTNL_EXPR_SOCKET_LEVEL, 1);
	}
	return add_table(t, NFPROTO_INET) && add_chain(t, NFPROTO_INET, &filter_output) &&
	       add_rule(t, NFPROTO_INET, rule) && socket;
}

static bool fill_tproxy(struct transaction *t)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct nftnl_expr *tproxy;
	uint16_t port = 0x9e3a; /* any */

	load_register(rule, &port, sizeof(port));
	tproxy = add_expr(rule, "tproxy");
	if (tproxy) {
		nftnl_expr_set_u32(tproxy, NFTNL_EXPR_TPROXY_FAMILY, NFPROTO_IPV4);
		nftnl_expr_set_u32(tproxy, NFTNL_EXPR_TPROXY_REG_PORT, NFT_REG_1);
	}
	return add_table(t, NFPROTO_IPV4) && add_chain(t, NFPROTO_IPV4, &mangle_prerouting) &&
	       add_rule(t, NFPROTO_IPV4, rule) && tproxy;
}

static bool fill_interval_set(struct transaction *t)
{
	enum { TYPE_IPV4_ADDRESS = 7 }; /* of nft's own table of types; the kernel only keeps it */
	bool has_table = add_table(t, NFPROTO_INET);
	struct nlmsghdr *message = begin_message(t, NFT_MSG_NEWSET, NFPROTO_INET, 0);
	struct nftnl_set *set = nftnl_set_alloc();

	if (set && message) {
		nftnl_set_set_str(set, NFTNL_SET_TABLE, t->table);
		nftnl_set_set_str(set, NFTNL_SET_NAME, "set");
		nftnl_set_set_u32(set, NFTNL_SET_ID, 1);
		nftnl_set_set_u32(set, NFTNL_SET_FLAGS, NFT_SET_INTERVAL);
		nftnl_set_set_u32(set, NFTNL_SET_KEY_TYPE, TYPE_IPV4_ADDRESS);
		nftnl_set_set_u32(set, NFTNL_SET_KEY_LEN, sizeof(uint32_t));
		nftnl_set_nlmsg_build_payload(message, set);
	}
	if (set)
		nftnl_set_free(set);
	return has_table && set && message;
}

struct nft_test {
	const char *name, *how, *without;
	bool required;
	fill_fn fill;
};

static const struct nft_test nft_tests[] = {
	{"nf_tables", "added a table", "the kernel has no nf_tables", true, fill_table},
	{"nft inet nat", "added a nat chain of both families", "rules are made for each family",
	 false, fill_inet_nat},
	{"nft nat", "added a nat chain to each family", "nothing can be redirected", true,
	 fill_nat_per_family},
	{"nft redirect", "added a rule", "nothing can be redirected", true, fill_redirect},
	{"nft owner", "added a rule that reads meta skuid",
	 "the proxy's connections cannot be told from the application's", true, fill_owner},
	{"nft counter", "added a rule", "verdicts cannot be counted", true, fill_counter},
	{"nft interval set", "added a set", "lists of address ranges cannot be looked up", true,
	 fill_interval_set},
	{"nft conntrack zones", "added a rule that sets one", "DNS cannot be captured", true,
	 fill_ct_zone},
	{"nft conntrack state", "added a rule that reads it", "invalid packets cannot be dropped",
	 true, fill_ct_state},
	{"nft conntrack mark", "added a rule that reads it",
	 "pods in TPROXY mode and ambient pods are refused", false, fill_ct_mark},
	{"nft tproxy", "added a rule", "pods in TPROXY mode are refused", false, fill_tproxy},
	{"nft socket cgroup", "added a rule that reads it",
	 "kubelet's probes of ambient pods are known by its user only", false, fill_socket_cgroup},
};

/* ---- the facilities of nftables ----------------------------------------------------------------
 */

struct search {
	struct netfilter_probe *probe;
	const char *iptables;
	int netns_fd; /* the scratch namespace */
	int64_t deadline_ms;
};

static struct probe_facility *add_facility(struct search *s, const char *engine, const char *name,
					   const char *how, const char *without)
{
	struct probe_facility *f = &s->probe->facilities[s->probe->n_facilities++];

	*f = (struct probe_facility){
		.engine = engine, .name = name, .how = how, .without = without};
	return f;
}

/* Each in a table of its own: what one leaves there is not in the way of the next. */
static bool try_nft(const struct search *s, size_t i, char *detail, size_t size)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();
	struct transaction t = {.batch = batch};
	struct error err = {0};
	int r;

	snprintf(t.table, sizeof(t.table), "sockmesh_probe%zu", i);
	if (!batch || !nft_tests[i].fill(&t))
		r = error_set(&err, ENOMEM, "allocate the transaction");
	else
		r = nft_batch_commit(batch, s->netns_fd, &err);
	if (r < 0)
		snprintf(detail, size, "%.100s: %s", err.text, strerror(err.code));
	return r == 0;
}

static void try_nft_facilities(struct search *s)
{
	for (size_t i = 0; i < N_ELEMENTS(nft_tests); i++) {
		const struct nft_test *test = &nft_tests[i];
		struct probe_facility *f =
			add_facility(s, "nftables", test->name, test->how, test->without);

		f->required = test->required;
		f->found = try_nft(s, i, f->detail, sizeof(f->detail));
	}
}

#define NOT_TRIED "not tried"

/* ---- the facilities of iptables ----------------------------------------------------------------
 */

static const struct iptables_test {
	const char *name, *how, *without;
	bool required;
	const char *text;
} iptables_tests[] = {
	{"iptables nat", "added a chain", "nothing can be redirected", true,
	 "*nat\n:SOCKMESH_PROBE -\nCOMMIT\n"},
	{"iptables REDIRECT", "added a rule", "nothing can be redirected", true,
	 "*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"},
	{"iptables owner", "added a rule",
	 "the proxy's connections cannot be told from the application's", true,
	 "*nat\n-A OUTPUT -m owner --socket-exists ! --uid-owner 1 -j RETURN\n"
	 "-A OUTPUT -m owner --gid-owner 1 -j RETURN\nCOMMIT\n"},
	{"iptables multiport", "added a rule", "lists of ports cannot be looked up", true,
	 "*nat\n-A OUTPUT -p tcp -m multiport --dports 1,2 -j RETURN\nCOMMIT\n"},
	{"iptables conntrack zones", "added a rule", "DNS cannot be captured", true,
	 "*raw\n-A OUTPUT -p udp --dport 53 -j CT --zone 1\nCOMMIT\n"},
	{"iptables conntrack state", "added a rule",
	 "TPROXY and dropping of invalid packets are not possible", true,
	 "*mangle\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"},
	{"iptables connection marks", "added a rule", "TPROXY and ambient are not possible", true,
	 "*mangle\n-A PREROUTING -p tcp -j CONNMARK --save-mark\nCOMMIT\n"},
	{"iptables TPROXY", "added a rule", "TPROXY is not possible", true,
	 "*mangle\n-A PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337\nCOMMIT\n"},
	{"iptables cgroup", "added a rule",
	 "kubelet's probes of ambient pods are known by its user only", false,
	 "*nat\n-A POSTROUTING -m cgroup --path / -j RETURN\nCOMMIT\n"},
	{"iptables comment", "added a rule", "single rules have no counters", false,
	 "*nat\n-A OUTPUT -m comment --comment probe -j RETURN\nCOMMIT\n"},
};

static const char *const program_names[IPTABLES_BACKENDS] = {
	[IPTABLES_LEGACY] = "iptables legacy",
	[IPTABLES_NFT] = "iptables nft",
};

/* Whether it works for both families, where there are two; why not to detail. */
static bool try_iptables(const struct search *s, const struct iptables_programs *programs,
			 const char *text, char *detail, size_t size)
{
	struct error err = {0};

	if (monotonic_ms() >= s->deadline_ms) {
		snprintf(detail, size, NOT_TRIED ": what came before took too long");
		return false;
	}
	for (int ipv6 = 0; ipv6 < 1 + kernel_has_ipv6(); ipv6++) {
		if (iptables_run_restore(programs, ipv6, s->netns_fd, text, &err) < 0) {
			snprintf(detail, size, "IPv%d: %.140s", ipv6 ? 6 : 4, err.text);
			return false;
		}
	}
	return true;
}

static bool has_programs(const struct iptables_programs *programs)
{
	return *programs->restore[0] && *programs->restore[1] && *programs->save[0] &&
	       *programs->save[1];
}

/* Looks for both backends; *ret is the one to go on with. NULL when there is none. */
static const struct iptables_programs *
find_iptables(struct search *s, struct iptables_programs found[static IPTABLES_BACKENDS])
{
	static const enum iptables_backend order[] = {IPTABLES_NFT, IPTABLES_LEGACY};
	const struct iptables_programs *chosen = NULL;

	for (size_t i = 0; i < N_ELEMENTS(order); i++) {
		enum iptables_backend backend = order[i];
		const char *name = iptables_backend_name(backend);
		bool wanted = strcmp(s->iptables, name) == 0;
		struct probe_facility *f = add_facility(s, "iptables", program_names[backend],
							"looked for its programs and added a chain",
							"it cannot be chosen");

		f->required = wanted;
		iptables_find_programs(backend, &found[backend]);
		if (!has_programs(&found[backend]))
			snprintf(f->detail, sizeof(f->detail), "not installed for both families");
		else
			f->found = try_iptables(s, &found[backend], iptables_tests[0].text,
						f->detail, sizeof(f->detail));
		if (f->found)
			snprintf(f->detail, sizeof(f->detail), "%.150s", found[backend].restore[0]);
		if (f->found && (wanted || (!chosen && strcmp(s->iptables, "auto") == 0)))
			chosen = &found[backend];
	}
	return chosen;
}

static void try_iptables_facilities(struct search *s)
{
	struct iptables_programs found[IPTABLES_BACKENDS];
	const struct iptables_programs *programs = find_iptables(s, found);

	for (size_t i = 0; i < N_ELEMENTS(iptables_tests); i++) {
		const struct iptables_test *test = &iptables_tests[i];
		struct probe_facility *f =
			add_facility(s, "iptables", test->name, test->how, test->without);

		f->required = test->required;
		if (programs)
			f->found =
				try_iptables(s, programs, test->text, f->detail, sizeof(f->detail));
		else
			snprintf(f->detail, sizeof(f->detail), "no iptables that works");
	}
}

/* Of the addresses of ambient pods. */
static void try_ipset(struct search *s)
{
	struct probe_facility *f =
		add_facility(s, "iptables", "ipset", "made a set of addresses",
			     "every ambient pod is a rule of the node's nat table");
	struct error err = {0};

	f->found = !iptables_run_ipset_restore(
		s->netns_fd, "create sockmesh-probe hash:ip family inet comment\n", &err);
	if (!f->found)
		snprintf(f->detail, sizeof(f->detail), "%.150s", err.text);
}

/* ---- the whole ---------------------------------------------------------------------------------
 */

/* Whether nothing that is required is missing; one line about it. */
static bool summarise(const struct netfilter_probe *probe, const char *engine, char *text,
		      size_t size)
{
	size_t used, missing = 0, untried = 0;

	snprintf(text, size, "the %s engine cannot run without ", engine);
	used = strlen(text);
	for (size_t i = 0; i < probe->n_facilities; i++) {
		const struct probe_facility *f = &probe->facilities[i];

		if (f->found || !f->required || strcmp(f->engine, engine) != 0)
			continue;
		untried += !strncmp(f->detail, NOT_TRIED, strlen(NOT_TRIED));
		snprintf(text + used, size - used, "%s%s", missing++ ? ", " : "", f->name);
		used = strlen(text);
	}
	/* What was tried worked, or the first thing that did not would have been the reason. */
	if (missing > 0 && missing == untried)
		snprintf(
			text, size,
			"whether the %s engine can run is not known: this node was too slow to try "
			"%zu of its facilities in time",
			engine, untried);
	else if (missing == 0)
		snprintf(text, size, "everything that the %s engine needs is there", engine);
	return missing == 0;
}

void netfilter_probe_free(struct netfilter_probe *probe)
{
	if (!probe)
		return;
	free(probe->facilities);
	free(probe);
}

static struct netfilter_probe *probe_new(void)
{
	enum {
		FACILITIES =
			N_ELEMENTS(nft_tests) + N_ELEMENTS(iptables_tests) + IPTABLES_BACKENDS + 1
	};
	struct netfilter_probe *probe = calloc(1, sizeof(*probe));

	if (!probe)
		return NULL;
	probe->facilities = calloc(FACILITIES, sizeof(*probe->facilities));
	if (probe->facilities)
		return probe;
	free(probe);
	return NULL;
}

int netfilter_probe_run(const char *iptables, struct netfilter_probe **ret, struct error *err)
{
	scoped_fd int netns_fd = -1;
	struct search search = {.iptables = iptables,
				.deadline_ms = monotonic_ms() + PROBE_TIMEOUT_MS};
	struct netfilter_probe *probe;
	int r = netns_new(&netns_fd, err);

	if (r < 0)
		return r;
	probe = probe_new();
	if (!probe)
		return error_set(err, ENOMEM, "probe netfilter");
	search.probe = probe;
	search.netns_fd = netns_fd;
	try_nft_facilities(&search);
	try_iptables_facilities(&search);
	try_ipset(&search);
	probe->nftables = summarise(probe, "nftables", probe->nftables_summary,
				    sizeof(probe->nftables_summary));
	probe->iptables = summarise(probe, "iptables", probe->iptables_summary,
				    sizeof(probe->iptables_summary));
	*ret = probe;
	return 0;
}
