/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kubelet's probes with nftables: a table of the host's own namespace, `inet sockmesh-host-...`, or
 * where the kernel has no nat for inet one for each family. Whose cgroup a socket is in can only be
 * asked where the packet leaves the socket, and the source can only be changed later: so the first
 * packet of a connection of kubelet's is noted by its addresses and ports, for a moment.
 */
#include "probe_snat_private.h"

#include "error.h"
#include "netlink_talk.h"
#include "netns.h"
#include "nft_compile.h"
#include "nft_expr.h"
#include "nft_read.h"
#include "nft_transaction.h"
#include "nft_verify.h"
#include "redirect.h"
#include "scoped.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <libmnl/libmnl.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <libnftnl/udata.h>
#include <linux/netfilter/nfnetlink.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Of linux/netfilter.h and nf_nat.h. */
enum { HOOK_LOCAL_OUT = 3, HOOK_POST_ROUTING = 4, NAT_RANGE_MAP_IPS = 1 << 0 };
enum { TYPE_IPADDR = 7, TYPE_IP6ADDR = 8, TYPE_INET_SERVICE = 13, TYPE_BITS = 6 };
enum {
	/* After those that change the destination; before what others do to the source. */
	OUTPUT_PRIORITY = 0,
	POSTROUTING_PRIORITY = 99,
	NOTE_MS =
		5000, /* between a packet's leaving its socket and postrouting is next to nothing */
	NOTES_MAX = 65536,
	ELEMENTS_PER_MESSAGE = 128,
	COMMENT_MAX = 64,
	TABLE_NAME_MAX = 32,
	RULES_MAX = 4,
};

#define OUTPUT_CHAIN	  "output"
#define POSTROUTING_CHAIN "postrouting"
#define POD_COMMENT	  "netns "

struct nft_host {
	char table[TABLE_NAME_MAX];
	bool probed, split, can_match_cgroup;
	int netns_fd;
};

static const char *const pods_set[] = {"pods-v4", "pods-v6"};
static const char *const notes_set[] = {"probes-v4", "probes-v6"};

static uint32_t address_length(bool v6)
{
	return v6 ? 16 : 4;
}

static const uint8_t *address_bytes(const struct ip_address *a, bool v6)
{
	return a->bytes + (v6 ? 0 : 12);
}

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "nftables: make the host's table");
}

static void table_name(uint32_t instance, char ret[static TABLE_NAME_MAX])
{
	snprintf(ret, TABLE_NAME_MAX, NFT_TABLE "-host-%08x", instance);
}

/* ---- messages -------------------------------------------------------------------------------- */

static void put_table(struct nft_batch *batch, enum nft_family family, const char *table,
		      uint16_t type)
{
	bool add = type == NFT_MSG_NEWTABLE;
	struct nlmsghdr *nlh = nft_batch_add(batch, type, family, add ? NLM_F_CREATE : 0,
					     "%s the host's table", add ? "add" : "delete");

	if (nlh)
		mnl_attr_put_strz(nlh, NFTA_TABLE_NAME, table);
}

struct base_chain {
	const char *name, *type;
	uint32_t hook;
	int32_t priority;
};

static const struct base_chain output_chain = {OUTPUT_CHAIN, "filter", HOOK_LOCAL_OUT,
					       OUTPUT_PRIORITY};
static const struct base_chain postrouting_chain = {POSTROUTING_CHAIN, "nat", HOOK_POST_ROUTING,
						    POSTROUTING_PRIORITY};

static void put_chain(struct nft_batch *batch, enum nft_family family, const char *table,
		      const struct base_chain *base)
{
	struct nlmsghdr *nlh = nft_batch_add(batch, NFT_MSG_NEWCHAIN, family, NLM_F_CREATE,
					     "add chain %s", base->name);
	struct nftnl_chain *chain = nftnl_chain_alloc();

	/* A message without its attributes is refused, and the transaction with it. */
	if (nlh && chain) {
		nftnl_chain_set_str(chain, NFTNL_CHAIN_TABLE, table);
		nftnl_chain_set_str(chain, NFTNL_CHAIN_NAME, base->name);
		nftnl_chain_set_str(chain, NFTNL_CHAIN_TYPE, base->type);
		nftnl_chain_set_u32(chain, NFTNL_CHAIN_HOOKNUM, base->hook);
		nftnl_chain_set_s32(chain, NFTNL_CHAIN_PRIO, base->priority);
		nftnl_chain_set_u32(chain, NFTNL_CHAIN_POLICY, NFT_ACCEPT_PACKET);
		nftnl_chain_nlmsg_build_payload(nlh, chain);
	}
	if (chain)
		nftnl_chain_free(chain);
}

/* pods: addresses. notes: source, source port, destination, destination port; kept for a moment. */
static void put_set(struct nft_batch *batch, enum nft_family family, const char *table,
		    const char *name, bool v6, bool notes)
{
	uint32_t address = v6 ? TYPE_IP6ADDR : TYPE_IPADDR, length = address_length(v6);
	uint32_t pair = address << TYPE_BITS | TYPE_INET_SERVICE;
	struct nlmsghdr *nlh =
		nft_batch_add(batch, NFT_MSG_NEWSET, family, NLM_F_CREATE, "add set %s", name);
	struct nftnl_set *set = nftnl_set_alloc();
	static uint32_t id; /* of a set within its transaction */

	if (set && nlh) {
		nftnl_set_set_str(set, NFTNL_SET_TABLE, table);
		nftnl_set_set_str(set, NFTNL_SET_NAME, name);
		nftnl_set_set_u32(set, NFTNL_SET_ID, ++id);
		nftnl_set_set_u32(set, NFTNL_SET_FLAGS, notes ? NFT_SET_EVAL | NFT_SET_TIMEOUT : 0);
		nftnl_set_set_u32(set, NFTNL_SET_KEY_TYPE,
				  notes ? pair << 2 * TYPE_BITS | pair : address);
		nftnl_set_set_u32(set, NFTNL_SET_KEY_LEN, notes ? 2 * (length + 4) : length);
		if (notes) {
			nftnl_set_set_u64(set, NFTNL_SET_TIMEOUT, NOTE_MS);
			nftnl_set_set_u32(set, NFTNL_SET_DESC_SIZE, NOTES_MAX);
		}
		nftnl_set_nlmsg_build_payload(nlh, set);
	}
	if (set)
		nftnl_set_free(set);
}

/* The pod's namespace beside each address, for the next agent. */
static int add_element(struct nftnl_set *set, const struct snat_entry *entry, bool v6)
{
	struct nftnl_udata_buf *userdata = nftnl_udata_buf_alloc(COMMENT_MAX + 8);
	struct nftnl_set_elem *e = nftnl_set_elem_alloc();
	char comment[COMMENT_MAX];

	snprintf(comment, sizeof(comment), POD_COMMENT "%" PRIu64, entry->cookie);
	if (!userdata || !e ||
	    nftnl_set_elem_set(e, NFTNL_SET_ELEM_KEY, address_bytes(&entry->address, v6),
			       address_length(v6)) < 0 ||
	    !nftnl_udata_put_strz(userdata, NFTNL_UDATA_SET_ELEM_COMMENT, comment) ||
	    nftnl_set_elem_set(e, NFTNL_SET_ELEM_USERDATA, nftnl_udata_buf_data(userdata),
			       nftnl_udata_buf_len(userdata)) < 0) {
		if (e)
			nftnl_set_elem_free(e);
		e = NULL;
	}
	if (userdata)
		nftnl_udata_buf_free(userdata);
	if (!e)
		return -ENOMEM;
	nftnl_set_elem_add(set, e);
	return 0;
}

/* The entries of one family from *at on, as many as one message takes; NULL without memory. */
static struct nftnl_set *next_elements(const char *table, const struct snat_list *list, bool v6,
				       size_t *at, size_t *ret_n)
{
	struct nftnl_set *set = nftnl_set_alloc();

	*ret_n = 0;
	if (!set || nftnl_set_set_str(set, NFTNL_SET_TABLE, table) < 0 ||
	    nftnl_set_set_str(set, NFTNL_SET_NAME, pods_set[v6]) < 0)
		goto fail;
	for (; *at < list->n && *ret_n < ELEMENTS_PER_MESSAGE; ++*at) {
		if (ip_address_is_v4(&list->entries[*at].address) == v6)
			continue;
		if (add_element(set, &list->entries[*at], v6) < 0)
			goto fail;
		++*ret_n;
	}
	return set;
fail:
	if (set)
		nftnl_set_free(set);
	return NULL;
}

static int put_elements(struct nft_batch *batch, enum nft_family family, const char *table,
			uint16_t type, const struct snat_list *list, bool v6)
{
	bool add = type == NFT_MSG_NEWSETELEM;
	size_t at = 0;

	while (at < list->n) {
		size_t n;
		struct nftnl_set *set = next_elements(table, list, v6, &at, &n);
		struct nlmsghdr *nlh;

		if (!set)
			return -ENOMEM;
		nlh = n ? nft_batch_add(batch, type, family, add ? NLM_F_CREATE : 0,
					"%s %zu pods' addresses", add ? "add" : "delete", n)
			: NULL;
		if (nlh)
			nftnl_set_elems_nlmsg_build_payload(nlh, set);
		nftnl_set_free(set);
	}
	return 0;
}

/* ---- rules ----------------------------------------------------------------------------------- */

static void match_family(struct nft_exprs *e, enum nft_family family, bool v6)
{
	uint8_t nfproto = v6 ? NFT_IP6 : NFT_IP, tcp = IPPROTO_TCP;

	if (family == NFT_INET) {
		nft_expr_load_meta(e, NFT_META_NFPROTO);
		nft_expr_compare(e, false, &nfproto, sizeof(nfproto));
	}
	nft_expr_load_meta(e, NFT_META_L4PROTO);
	nft_expr_compare(e, false, &tcp, sizeof(tcp));
}

static void look_up(struct nft_exprs *e, const char *set)
{
	struct nftnl_expr *lookup = nft_expr(e, "lookup");

	if (!lookup)
		return;
	nftnl_expr_set_u32(lookup, NFTNL_EXPR_LOOKUP_SREG, NFT_REG_1);
	if (nftnl_expr_set_str(lookup, NFTNL_EXPR_LOOKUP_SET, set) < 0)
		e->code = ENOMEM;
}

static void match_pod(struct nft_exprs *e, bool v6)
{
	nft_expr_load_field(e, v6 ? NFT_IPV6_DESTINATION : NFT_IPV4_DESTINATION);
	look_up(e, pods_set[v6]);
}

static void match_cgroup(struct nft_exprs *e, const struct kubelet *kubelet)
{
	struct nftnl_expr *socket = nft_expr(e, "socket");

	if (!socket)
		return;
	nftnl_expr_set_u32(socket, NFTNL_EXPR_SOCKET_KEY, NFT_SOCKET_CGROUPV2);
	nftnl_expr_set_u32(socket, NFTNL_EXPR_SOCKET_DREG, NFT_REG_1);
	nftnl_expr_set_u32(socket, NFTNL_EXPR_SOCKET_LEVEL, kubelet->level);
	nft_expr_compare(e, false, &kubelet->cgroup_id, sizeof(kubelet->cgroup_id));
}

/* A register of four bytes, by the name that the kernel gives it back by. */
static uint32_t word_register(uint32_t word)
{
	return word % 4 ? NFT_REG32_00 + word : NFT_REG_1 + word / 4;
}

/* Each part takes whole registers of four bytes. */
static void load_connection(struct nft_exprs *e, bool v6)
{
	uint32_t words = address_length(v6) / 4;

	nft_expr_load_field_to(e, v6 ? NFT_IPV6_SOURCE : NFT_IPV4_SOURCE, word_register(0));
	nft_expr_load_field_to(e, NFT_PORT_SOURCE, word_register(words));
	nft_expr_load_field_to(e, v6 ? NFT_IPV6_DESTINATION : NFT_IPV4_DESTINATION,
			       word_register(words + 1));
	nft_expr_load_field_to(e, NFT_PORT_DESTINATION, word_register(2 * words + 1));
}

static void note_connection(struct nft_exprs *e, bool v6)
{
	struct nftnl_expr *dynset = nft_expr(e, "dynset");

	if (!dynset)
		return;
	nftnl_expr_set_u32(dynset, NFTNL_EXPR_DYNSET_SREG_KEY, NFT_REG_1);
	nftnl_expr_set_u32(dynset, NFTNL_EXPR_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
	nftnl_expr_set_u64(dynset, NFTNL_EXPR_DYNSET_TIMEOUT, NOTE_MS);
	if (nftnl_expr_set_str(dynset, NFTNL_EXPR_DYNSET_SET_NAME, notes_set[v6]) < 0)
		e->code = ENOMEM;
}

static void snat(struct nft_exprs *e, bool v6)
{
	const struct ip_address *source = v6 ? &plan_probe_source6 : &plan_probe_source4;
	struct nftnl_expr *nat;

	nft_expr_immediate(e, address_bytes(source, v6), address_length(v6));
	nat = nft_expr(e, "nat");
	if (!nat)
		return;
	nftnl_expr_set_u32(nat, NFTNL_EXPR_NAT_TYPE, NFT_NAT_SNAT);
	nftnl_expr_set_u32(nat, NFTNL_EXPR_NAT_FAMILY, v6 ? NFT_IP6 : NFT_IP);
	nftnl_expr_set_u32(nat, NFTNL_EXPR_NAT_REG_ADDR_MIN, NFT_REG_1);
	nftnl_expr_set_u32(nat, NFTNL_EXPR_NAT_REG_ADDR_MAX, NFT_REG_1);
	/* Said in full, so that what the kernel reads back is the same whatever its version. */
	nftnl_expr_set_u32(nat, NFTNL_EXPR_NAT_FLAGS, NAT_RANGE_MAP_IPS);
}

static void fill_output(struct nft_exprs *e, const struct snat_rules *rules, bool v6)
{
	nft_expr_first_syn(e, false);
	match_pod(e, v6);
	match_cgroup(e, rules->kubelet);
	nft_expr(e, "counter");
	load_connection(e, v6);
	note_connection(e, v6);
}

static void fill_postrouting(struct nft_exprs *e, const struct snat_rules *rules, bool v6)
{
	if (rules->who == SNAT_CGROUP) {
		load_connection(e, v6);
		look_up(e, notes_set[v6]);
	} else {
		match_pod(e, v6);
		nft_expr_load_meta(e, NFT_META_SKUID);
		nft_expr_compare_u32(e, false, rules->kubelet->uid);
	}
	nft_expr(e, "counter");
	snat(e, v6);
}

static int name_rule(struct nftnl_rule *rule, const char *table, const char *chain,
		     const char *comment)
{
	struct nftnl_udata_buf *userdata = nftnl_udata_buf_alloc(COMMENT_MAX);
	int r = -ENOMEM;

	if (userdata && nftnl_udata_put_strz(userdata, NFTNL_UDATA_RULE_COMMENT, comment) &&
	    nftnl_rule_set_data(rule, NFTNL_RULE_USERDATA, nftnl_udata_buf_data(userdata),
				nftnl_udata_buf_len(userdata)) == 0 &&
	    nftnl_rule_set_str(rule, NFTNL_RULE_TABLE, table) == 0 &&
	    nftnl_rule_set_str(rule, NFTNL_RULE_CHAIN, chain) == 0)
		r = 0;
	if (userdata)
		nftnl_udata_buf_free(userdata);
	return r;
}

typedef void (*fill_fn)(struct nft_exprs *e, const struct snat_rules *rules, bool v6);

/* NULL without memory. */
static struct nftnl_rule *make_rule(const char *table, enum nft_family family, fill_fn fill,
				    const struct snat_rules *rules, bool v6)
{
	bool output = fill == fill_output;
	struct nft_exprs e = {.rule = nftnl_rule_alloc()};

	if (!e.rule)
		return NULL;
	nftnl_rule_set_u32(e.rule, NFTNL_RULE_FAMILY, family);
	match_family(&e, family, v6);
	fill(&e, rules, v6);
	if (e.code || name_rule(e.rule, table, output ? OUTPUT_CHAIN : POSTROUTING_CHAIN,
				output ? "kubelet-opens" : "kubelet-source") < 0) {
		nftnl_rule_free(e.rule);
		return NULL;
	}
	return e.rule;
}

struct rule_list {
	struct nftnl_rule *rules[RULES_MAX];
	size_t n;
};

static void rule_list_done(struct rule_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		nftnl_rule_free(list->rules[i]);
}
#define scoped_rule_list scoped(rule_list_done)

static bool has_ip_version(enum nft_family family, bool v6)
{
	return family == NFT_INET || (family == NFT_IP6) == v6;
}

/* In order, output's first. */
static int make_rules(const char *table, enum nft_family family, const struct snat_rules *rules,
		      struct rule_list *ret)
{
	static const fill_fn fills[] = {fill_output, fill_postrouting};

	for (size_t i = 0; i < 2; i++)
		for (int v6 = 0; v6 <= 1; v6++) {
			bool wanted =
				i == 0 ? rules->who == SNAT_CGROUP : rules->who != SNAT_NOBODY;

			if (!wanted || !has_ip_version(family, v6))
				continue;
			ret->rules[ret->n] = make_rule(table, family, fills[i], rules, v6);
			if (!ret->rules[ret->n])
				return -ENOMEM;
			ret->n++;
		}
	return 0;
}

static int put_contents(struct nft_batch *batch, enum nft_family family, const char *table,
			const struct snat_rules *rules, const struct snat_list *want)
{
	scoped_rule_list struct rule_list list = {0};
	int r = make_rules(table, family, rules, &list);

	put_table(batch, family, table, NFT_MSG_NEWTABLE);
	put_chain(batch, family, table, &output_chain);
	put_chain(batch, family, table, &postrouting_chain);
	for (int v6 = 0; !r && v6 <= 1; v6++) {
		if (!has_ip_version(family, v6))
			continue;
		put_set(batch, family, table, pods_set[v6], v6, false);
		put_set(batch, family, table, notes_set[v6], v6, true);
		r = put_elements(batch, family, table, NFT_MSG_NEWSETELEM, want, v6);
	}
	for (size_t i = 0; !r && i < list.n; i++) {
		struct nlmsghdr *nlh =
			nft_batch_add(batch, NFT_MSG_NEWRULE, family, NLM_F_CREATE | NLM_F_APPEND,
				      "add a rule about kubelet");

		if (nlh)
			nftnl_rule_nlmsg_build_payload(nlh, list.rules[i]);
	}
	return r;
}

/* ---- reading --------------------------------------------------------------------------------- */

struct reading {
	const char *table, *set; /* of rules, and of elements */
	bool present, v6;
	struct rule_list found;
	bool too_many; /* rules */
	struct snat_list *entries;
};

static struct nlmsghdr *start_request(struct netlink_request *request, uint16_t type,
				      enum nft_family family)
{
	struct nfgenmsg *nfgen;
	struct nlmsghdr *nlh =
		netlink_request_start(request, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type),
				      NLM_F_DUMP, sizeof(*nfgen), &nfgen);

	nfgen->nfgen_family = (uint8_t)family;
	nfgen->version = NFNETLINK_V0;
	return nlh;
}

static int out_of_memory(void)
{
	errno = ENOMEM;
	return MNL_CB_ERROR;
}

static int see_table(const struct nlmsghdr *nlh, void *arg)
{
	struct nftnl_table *table = nftnl_table_alloc();
	struct reading *reading = arg;

	if (!table)
		return out_of_memory();
	if (nftnl_table_nlmsg_parse(nlh, table) == 0) {
		const char *name = nftnl_table_get_str(table, NFTNL_TABLE_NAME);

		reading->present |= name && !strcmp(name, reading->table);
	}
	nftnl_table_free(table);
	return MNL_CB_OK;
}

static int see_rule(const struct nlmsghdr *nlh, void *arg)
{
	struct nftnl_rule *rule = nftnl_rule_alloc();
	struct reading *reading = arg;
	const char *table;

	if (!rule)
		return out_of_memory();
	(void)nftnl_rule_nlmsg_parse(nlh, rule);
	table = nftnl_rule_get_str(rule, NFTNL_RULE_TABLE);
	if (table && !strcmp(table, reading->table) && reading->found.n < RULES_MAX) {
		reading->found.rules[reading->found.n++] = rule;
		return MNL_CB_OK;
	}
	reading->too_many |= table && !strcmp(table, reading->table);
	nftnl_rule_free(rule);
	return MNL_CB_OK;
}

static void forget_rules(void *arg)
{
	struct reading *reading = arg;

	rule_list_done(&reading->found);
	reading->found.n = 0;
	reading->too_many = false;
}

/* 0 where somebody else has put it there. */
static uint64_t cookie_of(struct nftnl_set_elem *e)
{
	uint32_t length = 0;
	const struct nftnl_udata *first = nftnl_set_elem_get(e, NFTNL_SET_ELEM_USERDATA, &length);
	char comment[COMMENT_MAX] = "";

	if (!first || length < 2 || nftnl_udata_type(first) != NFTNL_UDATA_SET_ELEM_COMMENT ||
	    nftnl_udata_len(first) > length - 2 || nftnl_udata_len(first) >= sizeof(comment))
		return 0;
	memcpy(comment, nftnl_udata_get(first), nftnl_udata_len(first));
	if (strncmp(comment, POD_COMMENT, strlen(POD_COMMENT)) != 0)
		return 0;
	return strtoull(comment + strlen(POD_COMMENT), NULL, 10);
}

static int see_element(struct nftnl_set_elem *e, void *arg)
{
	static const uint8_t mapped[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	struct reading *reading = arg;
	struct snat_entry entry = {0};
	uint32_t length = 0;
	const void *key = nftnl_set_elem_get(e, NFTNL_SET_ELEM_KEY, &length);

	if (!key || length != address_length(reading->v6))
		return 0;
	memcpy(entry.address.bytes, mapped, sizeof(mapped));
	memcpy(entry.address.bytes + (reading->v6 ? 0 : 12), key, length);
	entry.cookie = cookie_of(e);
	return snat_list_add(reading->entries, &entry);
}

static int see_elements(const struct nlmsghdr *nlh, void *arg)
{
	struct nftnl_set *part = nftnl_set_alloc();
	int r = 0;

	if (!part)
		return out_of_memory();
	if (nftnl_set_elems_nlmsg_parse(nlh, part) == 0)
		r = nftnl_set_elem_foreach(part, see_element, arg);
	nftnl_set_free(part);
	return r < 0 ? out_of_memory() : MNL_CB_OK;
}

static int read_table(struct reading *reading, enum nft_family family, struct error *err)
{
	struct netlink_request request;
	struct nlmsghdr *nlh = start_request(&request, NFT_MSG_GETTABLE, family);
	int r = netlink_dump(NETLINK_NETFILTER, nlh, see_table, NULL, reading);

	/* Without nf_tables there is no table. */
	if (r == -EPROTONOSUPPORT || r == -EOPNOTSUPP || r == -EINVAL || (!r && !reading->present))
		return 0;
	if (r)
		return error_set(err, -r, "nftables: look for table %s", reading->table);
	nlh = start_request(&request, NFT_MSG_GETRULE, family);
	mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, reading->table);
	r = netlink_dump(NETLINK_NETFILTER, nlh, see_rule, forget_rules, reading);
	return r ? error_set(err, -r, "nftables: read table %s", reading->table) : 0;
}

static int read_elements(struct reading *reading, enum nft_family family, bool v6,
			 struct error *err)
{
	size_t before = reading->entries->n;
	struct netlink_request request;
	int r = -EINTR;

	reading->v6 = v6;
	for (int i = 0; i < 5 && r == -EINTR; i++) {
		struct nlmsghdr *nlh = start_request(&request, NFT_MSG_GETSETELEM, family);

		reading->entries->n = before;
		mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_TABLE, reading->table);
		mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_SET, pods_set[v6]);
		r = netlink_talk(NETLINK_NETFILTER, nlh, see_elements, reading);
	}
	return r == -ENOENT ? 0 : r ? error_set(err, -r, "nftables: read set %s", pods_set[v6]) : 0;
}

static size_t families_of(bool split, const enum nft_family **ret)
{
	*ret = split ? &nft_families[1] : &nft_families[0];
	return split ? 2 : 1;
}

static int host_load(void *state, struct snat_list *ret, bool *ret_any, struct error *err)
{
	const struct nft_host *host = state;
	struct snat_list list = {0};
	int r = 0;

	for (size_t i = 0; !r && i < NFT_FAMILIES; i++) {
		struct reading reading = {.table = host->table, .entries = &list};

		r = read_table(&reading, nft_families[i], err);
		for (int v6 = 0; !r && reading.present && v6 <= 1; v6++)
			if (has_ip_version(nft_families[i], v6))
				r = read_elements(&reading, nft_families[i], v6, err);
		*ret_any |= reading.present;
		rule_list_done(&reading.found);
	}
	if (r)
		free(list.entries);
	else
		*ret = list;
	return r;
}

/* ---- committing ------------------------------------------------------------------------------ */

struct commit {
	struct nft_batch *batch;
	int netns_fd;
	bool sees_cgroups;
};

/* The thread that the transaction is sent by is this one's, and in the same cgroup namespace. */
static int commit_inside(void *arg, struct error *err)
{
	struct commit *commit = arg;

	commit->sees_cgroups = kubelet_see_cgroups_of_node();
	return nft_batch_commit(commit->batch, commit->netns_fd, err);
}

static int commit_batch(struct nft_batch *batch, int netns_fd, bool *ret_sees_cgroups,
			struct error *err)
{
	struct commit commit = {.batch = batch, .netns_fd = netns_fd};
	int r = netns_run(netns_fd, commit_inside, &commit, err);

	if (!r && ret_sees_cgroups)
		*ret_sees_cgroups = commit.sees_cgroups;
	return r;
}

/* ---- what the kernel can do ------------------------------------------------------------------ */

/* In a namespace that nobody uses. */
static int try_contents(bool split, enum snat_who who, bool *ret_sees_cgroups, struct error *err)
{
	static const struct kubelet nobody = {.cgroup_id = 1, .level = 1};
	const struct snat_rules rules = {.who = who, .kubelet = &nobody};
	const struct snat_list nothing = {0};
	scoped_batch struct nft_batch *batch = nft_batch_new();
	const enum nft_family *families;
	size_t n = families_of(split, &families);
	scoped_fd int netns_fd = -1;
	int r = netns_new(&netns_fd, err);

	if (r)
		return r;
	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < n; i++)
		r = put_contents(batch, families[i], NFT_TABLE, &rules, &nothing);
	return r ? no_memory(err) : commit_batch(batch, netns_fd, ret_sees_cgroups, err);
}

/* Once, when it is first needed. */
static int make_ready(struct nft_host *host, struct error *err)
{
	struct error ignored = {0};
	bool sees = false;
	int r;

	if (host->probed)
		return 0;
	r = try_contents(false, SNAT_USER, NULL, err);
	if (r == -ENOENT || r == -EOPNOTSUPP || r == -EAFNOSUPPORT || r == -EINVAL) {
		host->split = true;
		r = try_contents(true, SNAT_USER, NULL, err);
	}
	if (r)
		return r;
	host->can_match_cgroup = !try_contents(host->split, SNAT_CGROUP, &sees, &ignored) && sees;
	host->probed = true;
	return 0;
}

/* ---- changing -------------------------------------------------------------------------------- */

/* A table that may or may not be there is added first, so that it can be deleted. */
static void put_deletion(struct nft_batch *batch, enum nft_family family, const char *table)
{
	put_table(batch, family, table, NFT_MSG_NEWTABLE);
	put_table(batch, family, table, NFT_MSG_DELTABLE);
}

static int host_replace(void *state, const struct snat_rules *rules, const struct snat_list *want,
			struct error *err)
{
	struct nft_host *host = state;
	scoped_batch struct nft_batch *batch = nft_batch_new();
	const enum nft_family *families;
	int r = make_ready(host, err);
	size_t n = families_of(host->split, &families);

	if (r)
		return r;
	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < n; i++) {
		put_deletion(batch, families[i], host->table);
		if (want->n > 0)
			r = put_contents(batch, families[i], host->table, rules, want);
	}
	return r ? no_memory(err) : commit_batch(batch, host->netns_fd, NULL, err);
}

static int host_change(void *state, const struct snat_rules *rules, const struct snat_list *gone,
		       const struct snat_list *come, struct error *err)
{
	struct nft_host *host = state;
	scoped_batch struct nft_batch *batch = nft_batch_new();
	const enum nft_family *families;
	int r = make_ready(host, err);
	size_t n = families_of(host->split, &families);

	(void)rules;
	if (r)
		return r;
	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < n; i++)
		for (int v6 = 0; !r && v6 <= 1; v6++) {
			if (!has_ip_version(families[i], v6))
				continue;
			r = put_elements(batch, families[i], host->table, NFT_MSG_DELSETELEM, gone,
					 v6);
			if (!r)
				r = put_elements(batch, families[i], host->table,
						 NFT_MSG_NEWSETELEM, come, v6);
		}
	return r ? no_memory(err) : commit_batch(batch, host->netns_fd, NULL, err);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static int compare_rules(const struct reading *reading, const struct rule_list *want,
			 struct error *err)
{
	bool same = reading->found.n == want->n && !reading->too_many;

	for (size_t i = 0; same && i < want->n; i++)
		same = nft_same_rule(reading->found.rules[i], want->rules[i]);
	return same ? 0
		    : error_set(err, ENODEV, "nftables: the rules of table %s are not as planned",
				reading->table);
}

static int verify_family(const struct nft_host *host, enum nft_family family,
			 const struct snat_rules *rules, struct snat_list *ret_found,
			 struct error *err)
{
	scoped_rule_list struct rule_list want = {0};
	struct reading reading = {.table = host->table, .entries = ret_found};
	int r = make_rules(host->table, family, rules, &want) ? no_memory(err) : 0;

	if (!r)
		r = read_table(&reading, family, err);
	if (!r && !reading.present)
		r = error_set(err, ENODEV, "nftables: table %s is missing", host->table);
	if (!r)
		r = compare_rules(&reading, &want, err);
	for (int v6 = 0; !r && v6 <= 1; v6++)
		if (has_ip_version(family, v6))
			r = read_elements(&reading, family, v6, err);
	rule_list_done(&reading.found);
	return r;
}

static int host_verify(void *state, const struct snat_rules *rules, const struct snat_list *want,
		       struct error *err)
{
	struct nft_host *host = state;
	struct snat_list found = {0};
	const enum nft_family *families;
	int r = make_ready(host, err);
	size_t n = families_of(host->split, &families);

	for (size_t i = 0; !r && i < n; i++)
		r = verify_family(host, families[i], rules, &found, err);
	if (!r && snat_list_compare(&found, want, true, err))
		r = error_wrap(err, "nftables");
	free(found.entries);
	return r;
}

/* ---- life ------------------------------------------------------------------------------------ */

static void host_close(void *state)
{
	struct nft_host *host = state;

	scoped_close(&host->netns_fd);
	free(host);
}

static int host_open(const struct redirect_config *cfg, enum probe_snat_kind kind, void **ret,
		     struct error *err)
{
	struct nft_host *host = calloc(1, sizeof(*host));
	int r;

	(void)kind;
	if (!host)
		return no_memory(err);
	table_name(cfg->instance, host->table);
	host->netns_fd = -1;
	r = netns_open("/proc/thread-self/ns/net", &host->netns_fd, err);
	if (r)
		host_close(host);
	else
		*ret = host;
	return r;
}

static bool host_can_match_cgroup(void *state)
{
	struct nft_host *host = state;
	struct error ignored = {0};

	return !make_ready(host, &ignored) && host->can_match_cgroup;
}

static int host_uninstall(const struct redirect_config *cfg, struct error *err)
{
	scoped_batch struct nft_batch *batch = nft_batch_new();
	char table[TABLE_NAME_MAX];
	scoped_fd int netns_fd = -1;
	bool any = false;
	int r = netns_open("/proc/thread-self/ns/net", &netns_fd, err);

	table_name(cfg->instance, table);
	if (!batch)
		return no_memory(err);
	for (size_t i = 0; !r && i < NFT_FAMILIES; i++) {
		struct reading reading = {.table = table};

		r = read_table(&reading, nft_families[i], err);
		rule_list_done(&reading.found);
		if (!r && reading.present)
			put_table(batch, nft_families[i], table, NFT_MSG_DELTABLE);
		any |= reading.present;
	}
	return r || !any ? r : nft_batch_commit(batch, netns_fd, err);
}

const struct snat_backend snat_nftables = {
	.name = "nftables",
	.open = host_open,
	.close = host_close,
	.can_match_cgroup = host_can_match_cgroup,
	.load = host_load,
	.replace = host_replace,
	.change = host_change,
	.verify = host_verify,
	.uninstall = host_uninstall,
};
