/* SPDX-License-Identifier: Apache-2.0 */
#include "nft_compile.h"

#include "error.h"
#include "nft_expr.h"
#include "nft_transaction.h"
#include "scoped.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <libnftnl/chain.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <libnftnl/udata.h>
#include <limits.h>
#include <linux/netfilter/nf_tables.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

/* Of linux/netfilter.h and nf_nat.h, see nft_compile.h. */
enum { HOOK_PRE_ROUTING = 0, HOOK_LOCAL_OUT = 3 };
enum { NAT_RANGE_PROTO_SPECIFIED = 1 << 1 };

const struct nft_chain_kind nft_chains[NF_CHAIN_COUNT_] = {
	[NF_RAW_PREROUTING] = {"raw-prerouting", "filter", HOOK_PRE_ROUTING, -300},
	[NF_RAW_OUTPUT] = {"raw-output", "filter", HOOK_LOCAL_OUT, -300},
	[NF_MANGLE_PREROUTING] = {"mangle-prerouting", "filter", HOOK_PRE_ROUTING, -150},
	[NF_MANGLE_TPROXY] = {"mangle-tproxy", NULL, 0, 0},
	[NF_MANGLE_OUTPUT] = {"mangle-output", "route", HOOK_LOCAL_OUT, -150},
	[NF_NAT_PREROUTING] = {"nat-prerouting", "nat", HOOK_PRE_ROUTING, -100},
	[NF_NAT_OUTPUT] = {"nat-output", "nat", HOOK_LOCAL_OUT, -100},
};

/* What `nft list` shows a set's keys as: numbers of nftables' own (include/datatype.h there). */
enum nft_datatype {
	DATATYPE_IPADDR = 7,
	DATATYPE_IP6ADDR = 8,
	DATATYPE_INET_SERVICE = 13,
	DATATYPE_UID = 24,
	DATATYPE_GID = 25,
	DATATYPE_IFNAME = 41,
};
enum { SHOWN_HOST_ENDIAN = 1, SHOWN_BIG_ENDIAN = 2 };

enum {
	STATE_INVALID = 1,
	STATE_ESTABLISHED = 2,
	STATE_RELATED = 4,
	DIRECTION_ORIGINAL = 0,
};
#define ALL_BITS UINT32_MAX
enum { ELEMENTS_PER_MESSAGE = 256, USERDATA_MAX = 128 };

struct compiler {
	struct nft_image *image;
	struct nft_exprs e; /* of the rule being made */
};

/* ---- expressions ----------------------------------------------------------------------------- */

static void redirect(struct compiler *c, uint16_t port)
{
	uint16_t port_be = htons(port);
	struct nftnl_expr *e;

	nft_expr_immediate(&c->e, &port_be, sizeof(port_be));
	e = nft_expr(&c->e, "redir");
	if (!e)
		return;
	/* Said in full, so that what the kernel reads back is the same whatever its version. */
	nftnl_expr_set_u32(e, NFTNL_EXPR_REDIR_REG_PROTO_MIN, NFT_REG_1);
	nftnl_expr_set_u32(e, NFTNL_EXPR_REDIR_REG_PROTO_MAX, NFT_REG_1);
	nftnl_expr_set_u32(e, NFTNL_EXPR_REDIR_FLAGS, NAT_RANGE_PROTO_SPECIFIED);
}

static void set_mark(struct compiler *c, uint32_t mark)
{
	nft_expr_immediate(&c->e, &mark, sizeof(mark));
	nft_expr_store_mark(&c->e);
}

/* Register 1 with the bits of `bits` being those of `value`. */
static void change_bits(struct compiler *c, uint32_t bits, uint32_t value)
{
	uint32_t kept = ~bits;

	nft_expr_bitwise(&c->e, &kept, &value, sizeof(kept));
}

static void set_packet_mark(struct compiler *c, const struct nf_rule *from)
{
	if (!from->mask) {
		set_mark(c, from->value);
		return;
	}
	nft_expr_load_meta(&c->e, NFT_META_MARK);
	change_bits(c, from->mask, from->value);
	nft_expr_store_mark(&c->e);
}

static void set_connection_mark(struct compiler *c, const struct nf_rule *from)
{
	nft_expr_load_ct(&c->e, NFT_CT_MARK);
	change_bits(c, from->mask ? from->mask : ALL_BITS, from->value);
	nft_expr_store_ct(&c->e, NFT_CT_MARK);
}

/* Without a listener that wants foreign addresses the rule ends here, as one that did not match. */
static void tproxy(struct compiler *c, enum nf_family family, uint16_t port)
{
	uint16_t port_be = htons(port);
	struct nftnl_expr *e;

	nft_expr_immediate(&c->e, &port_be, sizeof(port_be));
	e = nft_expr(&c->e, "tproxy");
	if (!e)
		return;
	nftnl_expr_set_u32(e, NFTNL_EXPR_TPROXY_FAMILY, family == NF_IPV6 ? NFT_IP6 : NFT_IP);
	nftnl_expr_set_u32(e, NFTNL_EXPR_TPROXY_REG_PORT, NFT_REG_1);
	set_mark(c, NF_MARK_TPROXY);
	nft_expr_verdict(&c->e, NFT_ACCEPT_PACKET, NULL);
}

/* ---- sets ------------------------------------------------------------------------------------ */

struct set_kind {
	enum nft_datatype type;
	uint32_t key_len;
	bool big_endian, interval;
};

static struct nft_set *new_set(struct compiler *c, const struct set_kind *kind, size_t capacity)
{
	struct nft_image *image = c->image;
	struct nft_set *grown = reallocarray(image->sets, image->n_sets + 1, sizeof(*grown)), *set;

	if (!grown) {
		c->e.code = ENOMEM;
		return NULL;
	}
	image->sets = grown;
	set = &grown[image->n_sets];
	*set = (struct nft_set){
		.name = "__set%d",
		.id = (uint32_t)image->n_sets + 1,
		.key_type = kind->type,
		.key_len = kind->key_len,
		.flags = NFT_SET_ANONYMOUS | NFT_SET_CONSTANT |
			 (kind->interval ? NFT_SET_INTERVAL : 0),
		.big_endian = kind->big_endian,
		.elements = calloc(capacity, sizeof(*set->elements)),
	};
	if (!set->elements) {
		c->e.code = ENOMEM;
		return NULL;
	}
	image->n_sets++;
	return set;
}

static void look_up(struct compiler *c, const struct nft_set *set, bool negated)
{
	struct nftnl_expr *e = nft_expr(&c->e, "lookup");

	if (!e)
		return;
	nftnl_expr_set_u32(e, NFTNL_EXPR_LOOKUP_SREG, NFT_REG_1);
	nftnl_expr_set_u32(e, NFTNL_EXPR_LOOKUP_SET_ID, set->id);
	if (nftnl_expr_set_str(e, NFTNL_EXPR_LOOKUP_SET, set->name) < 0)
		c->e.code = ENOMEM;
	if (negated)
		nftnl_expr_set_u32(e, NFTNL_EXPR_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
}

static int compare_elements(const void *a, const void *b)
{
	const struct nft_element *x = a, *y = b;
	int diff = memcmp(x->key, y->key, sizeof(x->key));

	return diff ? diff : y->interval_end - x->interval_end;
}

void nft_set_sort(struct nft_set *set)
{
	if (set->n > 0)
		qsort(set->elements, set->n, sizeof(*set->elements), compare_elements);
}

typedef void (*key_fn)(const void *list, size_t i, uint8_t key[static 16]);

/* Compares with the only key of a list, or looks into a set of all. */
static void match_list(struct compiler *c, const struct set_kind *kind, const void *list, size_t n,
		       key_fn key, bool negated)
{
	struct nft_element only = {0};
	struct nft_set *set;

	if (c->e.code)
		return;
	if (n == 1) {
		key(list, 0, only.key);
		nft_expr_compare(&c->e, negated, only.key, kind->key_len);
		return;
	}
	set = new_set(c, kind, n);
	if (!set)
		return;
	for (size_t i = 0; i < n; i++)
		key(list, i, set->elements[set->n++].key);
	nft_set_sort(set);
	look_up(c, set, negated);
}

static void port_key(const void *list, size_t i, uint8_t key[static 16])
{
	uint16_t port_be = htons(((const struct port_list *)list)->ports[i]);

	memcpy(key, &port_be, sizeof(port_be));
}

static void id_key(const void *list, size_t i, uint8_t key[static 16])
{
	memcpy(key, &((const struct id_list *)list)->ids[i], sizeof(uint32_t));
}

static void name_key(const void *list, size_t i, uint8_t key[static 16])
{
	const char *name = ((const struct name_list *)list)->names[i];

	memcpy(key, name, strnlen(name, IFNAMSIZ - 1));
}

/* The address after the last of the prefix; false when there is none. */
static bool prefix_end(const struct ip_prefix *p, size_t first_byte, uint8_t key[static 16])
{
	unsigned at = p->length; /* the bit after the last fixed one; carry goes upwards from it */

	memcpy(key, p->address.bytes, sizeof(p->address.bytes));
	while (at > 8 * first_byte) {
		uint8_t bit = (uint8_t)(0x80 >> ((at - 1) % 8));
		uint8_t *byte = &key[(at - 1) / 8];

		at--;
		*byte ^= bit;
		if (*byte & bit)
			return true;
	}
	return false;
}

/* Keys begin at byte `from` of the address in its common shape. */
static void add_element(struct nft_set *set, const uint8_t *address, size_t from, bool end)
{
	struct nft_element element = {.interval_end = end};
	size_t n = set->n;

	memcpy(element.key, address + from, set->key_len);
	if (!end && n > 0 && set->elements[n - 1].interval_end &&
	    !memcmp(set->elements[n - 1].key, element.key, set->key_len))
		set->n--; /* it begins where the one before ends: one interval */
	else
		set->elements[set->n++] = element;
}

static void match_prefixes(struct compiler *c, const struct prefix_list *list, bool v6,
			   bool negated)
{
	const struct set_kind kind = {
		.type = v6 ? DATATYPE_IP6ADDR : DATATYPE_IPADDR,
		.key_len = v6 ? 16 : 4,
		.big_endian = true,
		.interval = true,
	};
	size_t from = v6 ? 0 : 12;
	struct nft_set *set = c->e.code ? NULL : new_set(c, &kind, 2 * list->n);

	if (!set)
		return;
	for (size_t i = 0; i < list->n; i++) {
		uint8_t end[16];

		add_element(set, list->prefixes[i].address.bytes, from, false);
		if (prefix_end(&list->prefixes[i], from, end))
			add_element(set, end, from, true);
	}
	nft_set_sort(set);
	look_up(c, set, negated);
}

/* ---- matches --------------------------------------------------------------------------------- */

static void match_port(struct compiler *c, const struct nf_match *m, enum nft_packet_field field)
{
	static const struct set_kind kind = {
		.type = DATATYPE_INET_SERVICE, .key_len = sizeof(uint16_t), .big_endian = true};
	uint16_t port_be = htons((uint16_t)m->value);

	nft_expr_load_field(&c->e, field);
	if (m->ports)
		match_list(c, &kind, m->ports, m->ports->n, port_key, m->negated);
	else
		nft_expr_compare(&c->e, m->negated, &port_be, sizeof(port_be));
}

static void match_prefix(struct compiler *c, const struct ip_prefix *p, size_t from, bool negated)
{
	uint32_t length = (uint32_t)(sizeof(p->address.bytes) - from);
	uint8_t bits[16] = {0};

	for (unsigned i = 0; i < p->length; i++)
		bits[i / 8] |= (uint8_t)(0x80 >> (i % 8));
	if (p->length < 128)
		nft_expr_mask(&c->e, bits + from, length);
	nft_expr_compare(&c->e, negated, p->address.bytes + from, length);
}

static void match_address(struct compiler *c, const struct nf_match *m, bool v6)
{
	bool source = m->type == NF_MATCH_SOURCE;
	enum nft_packet_field field;

	if (v6)
		field = source ? NFT_IPV6_SOURCE : NFT_IPV6_DESTINATION;
	else
		field = source ? NFT_IPV4_SOURCE : NFT_IPV4_DESTINATION;
	nft_expr_load_field(&c->e, field);
	if (m->prefixes)
		match_prefixes(c, m->prefixes, v6, m->negated);
	else
		match_prefix(c, &m->prefix, v6 ? 0 : 12, m->negated);
}

static void match_interface(struct compiler *c, const struct nf_match *m, enum nft_meta_keys key)
{
	static const struct set_kind kind = {.type = DATATYPE_IFNAME, .key_len = IFNAMSIZ};

	nft_expr_load_meta(&c->e, key);
	match_list(c, &kind, m->names, m->names->n, name_key, m->negated);
}

static void match_owner(struct compiler *c, const struct nf_match *m)
{
	bool uid = m->type == NF_MATCH_UID;
	const struct set_kind kind = {.type = uid ? DATATYPE_UID : DATATYPE_GID,
				      .key_len = sizeof(uint32_t)};

	nft_expr_load_meta(&c->e, uid ? NFT_META_SKUID : NFT_META_SKGID);
	match_list(c, &kind, m->ids, m->ids->n, id_key, m->negated);
}

static void match_state(struct compiler *c, const struct nf_match *m)
{
	uint32_t bits =
		m->value == NF_STATE_INVALID ? STATE_INVALID : STATE_ESTABLISHED | STATE_RELATED;

	nft_expr_load_ct(&c->e, NFT_CT_STATE);
	nft_expr_mask(&c->e, &bits, sizeof(bits));
	nft_expr_compare_u32(&c->e, !m->negated, 0);
}

/* What is loaded is 32 bits. */
static void match_bits(struct compiler *c, const struct nf_match *m)
{
	if (m->mask)
		nft_expr_mask(&c->e, &m->mask, sizeof(m->mask));
	nft_expr_compare_u32(&c->e, m->negated, m->value);
}

static void match_from_opener(struct compiler *c, bool negated)
{
	static const uint8_t original = DIRECTION_ORIGINAL;

	nft_expr_load_ct(&c->e, NFT_CT_DIRECTION);
	nft_expr_compare(&c->e, negated, &original, sizeof(original));
}

static void match(struct compiler *c, const struct nf_match *m, bool v6)
{
	uint8_t protocol = (uint8_t)m->value;

	switch (m->type) {
	case NF_MATCH_PROTOCOL:
		nft_expr_load_meta(&c->e, NFT_META_L4PROTO);
		nft_expr_compare(&c->e, m->negated, &protocol, sizeof(protocol));
		return;
	case NF_MATCH_FIRST_SYN:
		nft_expr_first_syn(&c->e, m->negated);
		return;
	case NF_MATCH_DESTINATION_PORT:
		match_port(c, m, NFT_PORT_DESTINATION);
		return;
	case NF_MATCH_SOURCE_PORT:
		match_port(c, m, NFT_PORT_SOURCE);
		return;
	case NF_MATCH_SOURCE:
	case NF_MATCH_DESTINATION:
		match_address(c, m, v6);
		return;
	case NF_MATCH_IN_INTERFACE:
		match_interface(c, m, NFT_META_IIFNAME);
		return;
	case NF_MATCH_OUT_INTERFACE:
		match_interface(c, m, NFT_META_OIFNAME);
		return;
	case NF_MATCH_UID:
	case NF_MATCH_GID:
		match_owner(c, m);
		return;
	case NF_MATCH_MARK:
		nft_expr_load_meta(&c->e, NFT_META_MARK);
		match_bits(c, m);
		return;
	case NF_MATCH_CONNECTION_MARK:
		nft_expr_load_ct(&c->e, NFT_CT_MARK);
		match_bits(c, m);
		return;
	case NF_MATCH_FROM_OPENER:
		match_from_opener(c, m->negated);
		return;
	case NF_MATCH_STATE:
		match_state(c, m);
		return;
	case NF_MATCH_NEVER:
		nft_expr_load_meta(&c->e, NFT_META_LEN); /* no packet is empty */
		nft_expr_compare_u32(&c->e, m->negated, 0);
		return;
	}
	c->e.code = EINVAL;
}

/* ---- rules ----------------------------------------------------------------------------------- */

static void decide(struct compiler *c, const struct nf_rule *from)
{
	uint16_t zone = (uint16_t)from->value;

	switch (from->verdict) {
	case NF_RETURN:
		nft_expr_verdict(&c->e, NFT_RETURN, NULL);
		return;
	case NF_ACCEPT:
		nft_expr_verdict(&c->e, NFT_ACCEPT_PACKET, NULL);
		return;
	case NF_DROP:
		nft_expr_verdict(&c->e, NFT_DROP_PACKET, NULL);
		return;
	case NF_REDIRECT:
		redirect(c, (uint16_t)from->value);
		return;
	case NF_TPROXY:
		tproxy(c, from->family, (uint16_t)from->value);
		return;
	case NF_ZONE:
		nft_expr_immediate(&c->e, &zone, sizeof(zone));
		nft_expr_store_ct(&c->e, NFT_CT_ZONE);
		nft_expr_verdict(&c->e, NFT_RETURN, NULL);
		return;
	case NF_SET_MARK:
		set_packet_mark(c, from);
		return;
	case NF_SET_CONNECTION_MARK:
		set_connection_mark(c, from);
		return;
	case NF_SAVE_MARK:
		nft_expr_load_meta(&c->e, NFT_META_MARK);
		nft_expr_store_ct(&c->e, NFT_CT_MARK);
		return;
	case NF_RESTORE_MARK:
		nft_expr_load_ct(&c->e, NFT_CT_MARK);
		nft_expr_store_mark(&c->e);
		return;
	case NF_JUMP_TPROXY:
		nft_expr_verdict(&c->e, NFT_JUMP, nft_chains[NF_MANGLE_TPROXY].name);
		return;
	}
	c->e.code = EINVAL;
}

static void set_rule_names(struct compiler *c, const struct nf_rule *from)
{
	struct nftnl_udata_buf *userdata = nftnl_udata_buf_alloc(USERDATA_MAX);

	if (!userdata || !nftnl_udata_put_strz(userdata, NFTNL_UDATA_RULE_COMMENT, from->comment) ||
	    nftnl_rule_set_data(c->e.rule, NFTNL_RULE_USERDATA, nftnl_udata_buf_data(userdata),
				nftnl_udata_buf_len(userdata)) < 0 ||
	    nftnl_rule_set_str(c->e.rule, NFTNL_RULE_TABLE, NFT_TABLE) < 0 ||
	    nftnl_rule_set_str(c->e.rule, NFTNL_RULE_CHAIN, nft_chains[from->chain].name) < 0)
		c->e.code = ENOMEM;
	nftnl_rule_set_u32(c->e.rule, NFTNL_RULE_FAMILY, c->image->family);
	if (userdata)
		nftnl_udata_buf_free(userdata);
}

static void compile_rule(struct compiler *c, const struct nf_rule *from)
{
	struct nft_image *image = c->image;
	uint8_t nfproto = from->family == NF_IPV6 ? NFT_IP6 : NFT_IP;

	c->e.rule = nftnl_rule_alloc();
	if (!c->e.rule) {
		c->e.code = ENOMEM;
		return;
	}
	image->has_chain[from->chain] = true;
	image->rules[image->n_rules++] = (struct nft_rule){
		.chain = nft_chains[from->chain].name, .comment = from->comment, .rule = c->e.rule};
	set_rule_names(c, from);
	if (image->family == NFT_INET && from->family != NF_ANY_FAMILY) {
		nft_expr_load_meta(&c->e, NFT_META_NFPROTO);
		nft_expr_compare(&c->e, false, &nfproto, sizeof(nfproto));
	}
	for (size_t i = 0; i < from->n_matches; i++)
		match(c, &from->matches[i], from->family == NF_IPV6);
	nft_expr(&c->e, "counter");
	decide(c, from);
}

static bool is_of_family(const struct nf_rule *rule, enum nft_family family)
{
	if (family == NFT_INET || rule->family == NF_ANY_FAMILY)
		return true;
	return (rule->family == NF_IPV6) == (family == NFT_IP6);
}

int nft_compile(const struct nf_rules *rules, enum nft_family family, struct nft_image *ret,
		struct error *err)
{
	struct nft_image image = {.family = family};
	struct compiler c = {.image = &image};

	image.rules = calloc(rules->n ? rules->n : 1, sizeof(*image.rules));
	if (!image.rules)
		c.e.code = ENOMEM;
	for (size_t i = 0; !c.e.code && i < rules->n; i++)
		if (is_of_family(&rules->rules[i], family))
			compile_rule(&c, &rules->rules[i]);
	if (c.e.code) {
		nft_image_done(&image);
		return error_set(err, c.e.code, "make nftables rules");
	}
	*ret = image;
	return 0;
}

void nft_image_done(struct nft_image *image)
{
	for (size_t i = 0; i < image->n_rules; i++)
		nftnl_rule_free(image->rules[i].rule);
	for (size_t i = 0; i < image->n_sets; i++)
		free(image->sets[i].elements);
	free(image->rules);
	free(image->sets);
	memset(image, 0, sizeof(*image));
}

/* ---- messages -------------------------------------------------------------------------------- */

static void put_table(struct nft_batch *batch, enum nft_family family, uint16_t type,
		      uint16_t flags, const char *verb)
{
	struct nlmsghdr *nlh = nft_batch_add(batch, type, family, flags, "%s table", verb);

	if (nlh)
		mnl_attr_put_strz(nlh, NFTA_TABLE_NAME, NFT_TABLE);
}

void nft_add_table(struct nft_batch *batch, enum nft_family family)
{
	put_table(batch, family, NFT_MSG_NEWTABLE, NLM_F_CREATE, "add");
}

void nft_delete_table(struct nft_batch *batch, enum nft_family family)
{
	put_table(batch, family, NFT_MSG_DELTABLE, 0, "delete");
}

static struct nlmsghdr *put_chain(struct nft_batch *batch, enum nft_family family, uint16_t type,
				  const char *name)
{
	bool add = type == NFT_MSG_NEWCHAIN;
	struct nlmsghdr *nlh = nft_batch_add(batch, type, family, add ? NLM_F_CREATE : 0,
					     "%s chain %s", add ? "add" : "delete", name);

	if (!nlh)
		return NULL;
	mnl_attr_put_strz(nlh, NFTA_CHAIN_TABLE, NFT_TABLE);
	mnl_attr_put_strz(nlh, NFTA_CHAIN_NAME, name);
	return nlh;
}

void nft_add_mark(struct nft_batch *batch, enum nft_family family, const char *name)
{
	put_chain(batch, family, NFT_MSG_NEWCHAIN, name);
}

void nft_delete_chain(struct nft_batch *batch, enum nft_family family, const char *name)
{
	put_chain(batch, family, NFT_MSG_DELCHAIN, name);
}

static void add_chain(struct nft_batch *batch, enum nft_family family,
		      const struct nft_chain_kind *kind)
{
	struct nlmsghdr *nlh = put_chain(batch, family, NFT_MSG_NEWCHAIN, kind->name);
	struct nlattr *hook;

	if (!nlh || !kind->type)
		return;
	hook = mnl_attr_nest_start(nlh, NFTA_CHAIN_HOOK);
	mnl_attr_put_u32(nlh, NFTA_HOOK_HOOKNUM, htonl(kind->hook));
	mnl_attr_put_u32(nlh, NFTA_HOOK_PRIORITY, htonl((uint32_t)kind->priority));
	mnl_attr_nest_end(nlh, hook);
	mnl_attr_put_u32(nlh, NFTA_CHAIN_POLICY, htonl(NFT_ACCEPT_PACKET));
	mnl_attr_put_strz(nlh, NFTA_CHAIN_TYPE, kind->type);
}

static struct nlmsghdr *put_rule_deletion(struct nft_batch *batch, enum nft_family family,
					  const char *chain)
{
	struct nlmsghdr *nlh =
		nft_batch_add(batch, NFT_MSG_DELRULE, family, 0, "delete rules of chain %s", chain);

	if (!nlh)
		return NULL;
	mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, NFT_TABLE);
	mnl_attr_put_strz(nlh, NFTA_RULE_CHAIN, chain);
	return nlh;
}

void nft_flush_chain(struct nft_batch *batch, enum nft_family family, const char *name)
{
	put_rule_deletion(batch, family, name);
}

void nft_delete_rule(struct nft_batch *batch, enum nft_family family, const char *chain,
		     uint64_t handle)
{
	struct nlmsghdr *nlh = put_rule_deletion(batch, family, chain);

	if (nlh)
		mnl_attr_put_u64(nlh, NFTA_RULE_HANDLE, htobe64(handle));
}

static struct nftnl_set *make_set(const struct nft_set *set)
{
	struct nftnl_udata_buf *userdata = nftnl_udata_buf_alloc(USERDATA_MAX);
	struct nftnl_set *s = nftnl_set_alloc();
	uint32_t order = set->big_endian ? SHOWN_BIG_ENDIAN : SHOWN_HOST_ENDIAN;

	if (!s || !userdata || nftnl_set_set_str(s, NFTNL_SET_TABLE, NFT_TABLE) < 0 ||
	    nftnl_set_set_str(s, NFTNL_SET_NAME, set->name) < 0 ||
	    !nftnl_udata_put_u32(userdata, NFTNL_UDATA_SET_KEYBYTEORDER, order) ||
	    nftnl_set_set_data(s, NFTNL_SET_USERDATA, nftnl_udata_buf_data(userdata),
			       nftnl_udata_buf_len(userdata)) < 0) {
		nftnl_set_free(s);
		s = NULL;
	} else {
		nftnl_set_set_u32(s, NFTNL_SET_ID, set->id);
		nftnl_set_set_u32(s, NFTNL_SET_FLAGS, set->flags);
		nftnl_set_set_u32(s, NFTNL_SET_KEY_TYPE, set->key_type);
		nftnl_set_set_u32(s, NFTNL_SET_KEY_LEN, set->key_len);
		nftnl_set_set_u32(s, NFTNL_SET_DESC_SIZE, (uint32_t)set->n);
	}
	if (userdata)
		nftnl_udata_buf_free(userdata);
	return s;
}

static void add_elements(struct nft_batch *batch, enum nft_family family, const struct nft_set *set,
			 size_t from, size_t to)
{
	struct nlmsghdr *nlh = nft_batch_add(batch, NFT_MSG_NEWSETELEM, family, NLM_F_CREATE,
					     "add %zu elements to a set", to - from);
	struct nlattr *list;

	if (!nlh)
		return;
	mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_TABLE, NFT_TABLE);
	mnl_attr_put_strz(nlh, NFTA_SET_ELEM_LIST_SET, set->name);
	mnl_attr_put_u32(nlh, NFTA_SET_ELEM_LIST_SET_ID, htonl(set->id));
	list = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_LIST_ELEMENTS);
	for (size_t i = from; i < to; i++) {
		struct nlattr *element = mnl_attr_nest_start(nlh, NFTA_LIST_ELEM), *key;

		if (set->elements[i].interval_end)
			mnl_attr_put_u32(nlh, NFTA_SET_ELEM_FLAGS,
					 htonl(NFT_SET_ELEM_INTERVAL_END));
		key = mnl_attr_nest_start(nlh, NFTA_SET_ELEM_KEY);
		mnl_attr_put(nlh, NFTA_DATA_VALUE, set->key_len, set->elements[i].key);
		mnl_attr_nest_end(nlh, key);
		mnl_attr_nest_end(nlh, element);
	}
	mnl_attr_nest_end(nlh, list);
}

static void add_set(struct nft_batch *batch, enum nft_family family, const struct nft_set *set)
{
	struct nlmsghdr *nlh = nft_batch_add(batch, NFT_MSG_NEWSET, family, NLM_F_CREATE,
					     "add a set of %zu", set->n);
	struct nftnl_set *made = make_set(set);

	/* A message without its attributes is refused, and the transaction with it. */
	if (nlh && made)
		nftnl_set_nlmsg_build_payload(nlh, made);
	if (made)
		nftnl_set_free(made);
	for (size_t i = 0; i < set->n; i += ELEMENTS_PER_MESSAGE)
		add_elements(batch, family, set, i,
			     set->n - i < ELEMENTS_PER_MESSAGE ? set->n : i + ELEMENTS_PER_MESSAGE);
}

void nft_add_image(struct nft_batch *batch, const struct nft_image *image)
{
	for (size_t i = 0; i < NF_CHAIN_COUNT_; i++)
		if (image->has_chain[i])
			add_chain(batch, image->family, &nft_chains[i]);
	for (size_t i = 0; i < image->n_sets; i++)
		add_set(batch, image->family, &image->sets[i]);
	for (size_t i = 0; i < image->n_rules; i++) {
		struct nlmsghdr *nlh = nft_batch_add(batch, NFT_MSG_NEWRULE, image->family,
						     NLM_F_CREATE | NLM_F_APPEND, "add rule %s",
						     image->rules[i].comment);

		if (nlh)
			nftnl_rule_nlmsg_build_payload(nlh, image->rules[i].rule);
	}
}
