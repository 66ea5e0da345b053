/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NFT_READ_H
#define SOCKMESH_NFT_READ_H

/* What a namespace has of our tables, as the kernel tells it. */
#include "nft_compile.h"

struct nftnl_chain;

enum { NFT_FAMILIES = 3 };
extern const enum nft_family nft_families[NFT_FAMILIES];

struct nft_table {
	enum nft_family family;
	bool present;
	uint32_t flags, use; /* use: how many chains, named sets and other objects it has */

	/* Of its chains. */
	bool draining, beside, passthrough, routes, ambient;
	bool captures; /* it has the chain in which outbound connections are captured */
	bool has_nat_prerouting, has_tproxy;
	bool has_instance;
	uint32_t instance; /* of the agent that made it */
	struct nftnl_chain **chains;
	size_t n_chains;

	/* In order within each chain; with NFT_READ_RULES. */
	struct nftnl_rule **rules;
	size_t n_rules;
	struct nft_set *sets; /* elements sorted; with NFT_READ_ALL */
	size_t n_sets;
};

struct nft_tables {
	struct nft_table tables[NFT_FAMILIES]; /* in the order of nft_families */
	bool any;
};

enum nft_depth { NFT_READ_CHAINS, NFT_READ_RULES, NFT_READ_ALL };

/* A kernel without nf_tables has no table. */
int nft_read(int netns_fd, enum nft_depth depth, struct nft_tables *ret, struct error *err);
void nft_tables_done(struct nft_tables *tables);

/* The rule's comment; "" when it has none. buf is for a copy. */
bool nft_rule_has(const struct nftnl_rule *rule, const char *expression);
const char *nft_rule_comment(const struct nftnl_rule *rule, char *buf, size_t size);

#endif
