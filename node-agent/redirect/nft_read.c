/* SPDX-License-Identifier: Apache-2.0 */
#include "nft_read.h"

#include "error.h"
#include "netlink_talk.h"
#include "netns.h"

#include <errno.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <libnftnl/udata.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

const enum nft_family nft_families[NFT_FAMILIES] = {NFT_INET, NFT_IP, NFT_IP6};

struct reading {
	struct nft_tables *tables;
	enum nft_depth depth;
	struct nft_table *table; /* of rules and sets */
	struct nft_set *set;	 /* of elements */
};

static struct nft_table *table_of(struct nft_tables *tables, const struct nlmsghdr *nlh)
{
	const struct nfgenmsg *nfgen = mnl_nlmsg_get_payload(nlh);

	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(*nfgen))
		return NULL;
	for (size_t i = 0; i < NFT_FAMILIES; i++)
		if (tables->tables[i].family == (enum nft_family)nfgen->nfgen_family)
			return &tables->tables[i];
	return NULL;
}

static int out_of_memory(void)
{
	errno = ENOMEM;
	return MNL_CB_ERROR;
}

/* ---- freeing -------------------------------------------------------------------------------- */

static void forget_chains(struct nft_table *t)
{
	for (size_t i = 0; i < t->n_chains; i++)
		nftnl_chain_free(t->chains[i]);
	free(t->chains);
	t->chains = NULL;
	t->n_chains = 0;
}

static void forget_rules(struct nft_table *t)
{
	for (size_t i = 0; i < t->n_rules; i++)
		nftnl_rule_free(t->rules[i]);
	free(t->rules);
	t->rules = NULL;
	t->n_rules = 0;
}

static void forget_sets(struct nft_table *t)
{
	for (size_t i = 0; i < t->n_sets; i++)
		free(t->sets[i].elements);
	free(t->sets);
	t->sets = NULL;
	t->n_sets = 0;
}

void nft_tables_done(struct nft_tables *tables)
{
	for (size_t i = 0; i < NFT_FAMILIES; i++) {
		forget_chains(&tables->tables[i]);
		forget_rules(&tables->tables[i]);
		forget_sets(&tables->tables[i]);
	}
}

static void reset_tables(void *arg)
{
	struct reading *reading = arg;

	nft_tables_done(reading->tables);
	*reading->tables = (struct nft_tables){0};
	for (size_t i = 0; i < NFT_FAMILIES; i++)
		reading->tables->tables[i].family = nft_families[i];
}

static void reset_chains(void *arg)
{
	struct reading *reading = arg;

	for (size_t i = 0; i < NFT_FAMILIES; i++)
		forget_chains(&reading->tables->tables[i]);
}

static void reset_rules(void *arg)
{
	forget_rules(((struct reading *)arg)->table);
}

static void reset_sets(void *arg)
{
	forget_sets(((struct reading *)arg)->table);
}

static void reset_elements(void *arg)
{
	((struct reading *)arg)->set->n = 0;
}

/* ---- tables and chains ---------------------------------------------------------------------- */

static int see_table(const struct nlmsghdr *nlh, void *arg)
{
	struct reading *reading = arg;
	struct nft_table *t = table_of(reading->tables, nlh);
	struct nftnl_table *table = t ? nftnl_table_alloc() : NULL;
	const char *name;

	if (!t)
		return MNL_CB_OK;
	if (!table)
		return out_of_memory();
	if (nftnl_table_nlmsg_parse(nlh, table) == 0) {
		name = nftnl_table_get_str(table, NFTNL_TABLE_NAME);
		if (name && strcmp(name, NFT_TABLE) == 0) {
			t->present = reading->tables->any = true;
			t->flags = nftnl_table_get_u32(table, NFTNL_TABLE_FLAGS);
			t->use = nftnl_table_get_u32(table, NFTNL_TABLE_USE);
		}
	}
	nftnl_table_free(table);
	return MNL_CB_OK;
}

static bool is_ours(const char *table)
{
	return table && strcmp(table, NFT_TABLE) == 0;
}

static int see_chain(const struct nlmsghdr *nlh, void *arg)
{
	struct reading *reading = arg;
	struct nft_table *t = table_of(reading->tables, nlh);
	struct nftnl_chain *chain = t ? nftnl_chain_alloc() : NULL, **grown;

	if (!t)
		return MNL_CB_OK;
	if (!chain)
		return out_of_memory();
	if (nftnl_chain_nlmsg_parse(nlh, chain) < 0 ||
	    !is_ours(nftnl_chain_get_str(chain, NFTNL_CHAIN_TABLE))) {
		nftnl_chain_free(chain);
		return MNL_CB_OK;
	}
	grown = reallocarray(t->chains, t->n_chains + 1, sizeof(struct nftnl_chain *));
	if (!grown) {
		nftnl_chain_free(chain);
		return out_of_memory();
	}
	t->chains = grown;
	t->chains[t->n_chains++] = chain;
	return MNL_CB_OK;
}

static void read_instance(struct nft_table *t, const char *name)
{
	const char *digits = name + strlen(NFT_MARK_AGENT);
	char *end;
	unsigned long instance = strtoul(digits, &end, 16);

	if (end != digits && !*end && instance <= UINT32_MAX) {
		t->has_instance = true;
		t->instance = (uint32_t)instance;
	}
}

static void understand_chains(struct nft_table *t)
{
	for (size_t i = 0; i < t->n_chains; i++) {
		const char *name = nftnl_chain_get_str(t->chains[i], NFTNL_CHAIN_NAME);

		if (!name)
			continue;
		t->draining |= !strcmp(name, NFT_MARK_DRAINING);
		t->beside |= !strcmp(name, NFT_MARK_BESIDE);
		t->passthrough |= !strcmp(name, NFT_MARK_PASSTHROUGH);
		t->routes |= !strcmp(name, NFT_MARK_ROUTES);
		t->ambient |= !strcmp(name, NFT_MARK_AMBIENT);
		t->captures |= !strcmp(name, nft_chains[NF_NAT_OUTPUT].name);
		t->has_nat_prerouting |= !strcmp(name, nft_chains[NF_NAT_PREROUTING].name);
		t->has_tproxy |= !strcmp(name, nft_chains[NF_MANGLE_TPROXY].name);
		if (!strncmp(name, NFT_MARK_AGENT, strlen(NFT_MARK_AGENT)))
			read_instance(t, name);
	}
}

/* ---- rules and sets ------------------------------------------------------------------------- */

static int see_rule(const struct nlmsghdr *nlh, void *arg)
{
	struct nft_table *t = ((struct reading *)arg)->table;
	struct nftnl_rule *rule = nftnl_rule_alloc(), **grown;

	if (!rule)
		return out_of_memory();
	/* What libnftnl does not know is not ours: kept as far as it was understood, it differs. */
	(void)nftnl_rule_nlmsg_parse(nlh, rule);
	if (!is_ours(nftnl_rule_get_str(rule, NFTNL_RULE_TABLE))) {
		nftnl_rule_free(rule);
		return MNL_CB_OK;
	}
	grown = reallocarray(t->rules, t->n_rules + 1, sizeof(struct nftnl_rule *));
	if (!grown) {
		nftnl_rule_free(rule);
		return out_of_memory();
	}
	t->rules = grown;
	t->rules[t->n_rules++] = rule;
	return MNL_CB_OK;
}

static int see_set(const struct nlmsghdr *nlh, void *arg)
{
	struct nft_table *t = ((struct reading *)arg)->table;
	struct nftnl_set *set = nftnl_set_alloc();
	struct nft_set *grown;
	int r = MNL_CB_OK;

	if (!set)
		return out_of_memory();
	if (nftnl_set_nlmsg_parse(nlh, set) == 0 &&
	    is_ours(nftnl_set_get_str(set, NFTNL_SET_TABLE))) {
		grown = reallocarray(t->sets, t->n_sets + 1, sizeof(*grown));
		if (grown) {
			struct nft_set *to = &grown[t->n_sets];
			const char *name = nftnl_set_get_str(set, NFTNL_SET_NAME);

			t->sets = grown;
			*to = (struct nft_set){
				.key_type = nftnl_set_get_u32(set, NFTNL_SET_KEY_TYPE),
				.key_len = nftnl_set_get_u32(set, NFTNL_SET_KEY_LEN),
				.flags = nftnl_set_get_u32(set, NFTNL_SET_FLAGS),
			};
			snprintf(to->name, sizeof(to->name), "%s", name ? name : "");
			t->n_sets++;
		} else {
			r = out_of_memory();
		}
	}
	nftnl_set_free(set);
	return r;
}

static int see_element(struct nftnl_set_elem *e, void *arg)
{
	struct nft_set *set = arg;
	struct nft_element element = {0}, *grown;
	uint32_t length = 0;
	const void *key = nftnl_set_elem_get(e, NFTNL_SET_ELEM_KEY, &length);

	if (!key || length > sizeof(element.key))
		return 0;
	memcpy(element.key, key, length);
	element.interval_end =
		nftnl_set_elem_is_set(e, NFTNL_SET_ELEM_FLAGS) &&
		(nftnl_set_elem_get_u32(e, NFTNL_SET_ELEM_FLAGS) & NFT_SET_ELEM_INTERVAL_END);
	grown = reallocarray(set->elements, set->n + 1, sizeof(*grown));
	if (!grown)
		return -1;
	set->elements = grown;
	set->elements[set->n++] = element;
	return 0;
}

static int see_elements(const struct nlmsghdr *nlh, void *arg)
{
	struct nft_set *set = ((struct reading *)arg)->set;
	struct nftnl_set *part = nftnl_set_alloc();
	int r = 0;

	if (!part)
		return out_of_memory();
	if (nftnl_set_elems_nlmsg_parse(nlh, part) == 0)
		r = nftnl_set_elem_foreach(part, see_element, set);
	nftnl_set_free(part);
	return r < 0 ? out_of_memory() : MNL_CB_OK;
}

/* ---- asking --------------------------------------------------------------------------------- */

static struct nlmsghdr *start(struct netlink_request *request, uint16_t type, uint8_t family)
{
	struct nfgenmsg *nfgen;
	struct nlmsghdr *nlh =
		netlink_request_start(request, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type),
				      NLM_F_DUMP, sizeof(*nfgen), &nfgen);

	nfgen->nfgen_family = family;
	nfgen->version = NFNETLINK_V0;
	return nlh;
}

static int dump(struct reading *reading, const struct nlmsghdr *nlh, mnl_cb_t fn,
		void (*reset)(void *arg), const char *what, struct error *err)
{
	int r = netlink_dump(NETLINK_NETFILTER, nlh, fn, reset, reading);

	return r ? error_set(err, -r, "read nftables %s", what) : 0;
}

static int read_sets(struct reading *reading, struct error *err)
{
	struct nft_table *t = reading->table;
	struct netlink_request request;
	struct nlmsghdr *nlh = start(&request, NFT_MSG_GETSET, (uint8_t)t->family);
	int r;

	mnl_attr_put_strz(nlh, NFTA_SET_TABLE, NFT_TABLE);
	r = dump(reading, nlh, see_set, reset_sets, "sets", err);
	for (size_t i = 0; !r && i < t->n_sets; i++) {
		reading->set = &t->sets[i];
		nlh = start(&request, NFT_MSG_GETSETELEM, (uint8_t)t->family);
		mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_TABLE, NFT_TABLE);
		mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_SET, t->sets[i].name);
		r = dump(reading, nlh, see_elements, reset_elements, "set elements", err);
		if (!r)
			nft_set_sort(&t->sets[i]);
	}
	return r;
}

static int read_rules(struct reading *reading, struct error *err)
{
	struct nft_table *t = reading->table;
	struct netlink_request request;
	struct nlmsghdr *nlh = start(&request, NFT_MSG_GETRULE, (uint8_t)t->family);
	int r;

	mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, NFT_TABLE);
	r = dump(reading, nlh, see_rule, reset_rules, "rules", err);
	return r || reading->depth == NFT_READ_RULES ? r : read_sets(reading, err);
}

static int read_inside(void *arg, struct error *err)
{
	struct reading *reading = arg;
	struct nft_tables *tables = reading->tables;
	struct netlink_request request;
	const struct nlmsghdr *nlh = start(&request, NFT_MSG_GETTABLE, AF_UNSPEC);
	int r;

	reset_tables(reading);
	r = netlink_dump(NETLINK_NETFILTER, nlh, see_table, reset_tables, reading);
	/* Without nfnetlink there is no such socket, without nf_tables no such subsystem in it. */
	if (r == -EPROTONOSUPPORT || r == -EOPNOTSUPP || r == -EINVAL || (!r && !tables->any))
		return 0;
	if (r)
		return error_set(err, -r, "read nftables tables");
	nlh = start(&request, NFT_MSG_GETCHAIN, AF_UNSPEC);
	r = dump(reading, nlh, see_chain, reset_chains, "chains", err);
	for (size_t i = 0; !r && i < NFT_FAMILIES; i++) {
		reading->table = &tables->tables[i];
		understand_chains(reading->table);
		if (reading->table->present && reading->depth != NFT_READ_CHAINS)
			r = read_rules(reading, err);
	}
	return r;
}

int nft_read(int netns_fd, enum nft_depth depth, struct nft_tables *ret, struct error *err)
{
	struct nft_tables tables = {0};
	struct reading reading = {.tables = &tables, .depth = depth};
	int r = netns_run(netns_fd, read_inside, &reading, err);

	if (r)
		nft_tables_done(&tables);
	else
		*ret = tables;
	return r;
}

bool nft_rule_has(const struct nftnl_rule *rule, const char *expression)
{
	struct nftnl_expr_iter *iter = nftnl_expr_iter_create(rule);
	const struct nftnl_expr *e;
	bool found = false;

	while (iter && !found && (e = nftnl_expr_iter_next(iter))) {
		const char *name = nftnl_expr_get_str(e, NFTNL_EXPR_NAME);

		found = name && !strcmp(name, expression);
	}
	if (iter)
		nftnl_expr_iter_destroy(iter);
	return found;
}

const char *nft_rule_comment(const struct nftnl_rule *rule, char *buf, size_t size)
{
	uint32_t length = 0;
	const struct nftnl_udata *first = nftnl_rule_get_data(rule, NFTNL_RULE_USERDATA, &length);

	buf[0] = '\0';
	/* Each is a byte of type, one of length, and the value. */
	if (first && length >= 2 && nftnl_udata_type(first) == NFTNL_UDATA_RULE_COMMENT &&
	    nftnl_udata_len(first) <= length - 2 && nftnl_udata_len(first) < size) {
		memcpy(buf, nftnl_udata_get(first), nftnl_udata_len(first));
		buf[nftnl_udata_len(first)] = '\0';
	}
	return buf;
}
