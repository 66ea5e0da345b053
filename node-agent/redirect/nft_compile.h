/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NFT_COMPILE_H
#define SOCKMESH_NFT_COMPILE_H

/*
 * Netfilter rules as one nftables table: chains, rules made of libnftnl's expressions, and the
 * constant sets that they look into. Nothing here talks to the kernel.
 */
#include "netfilter_rules.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct nft_batch;
struct nftnl_rule;

#define NFT_TABLE "sockmesh"

/* Empty chains that no packet comes to: what the kernel remembers for us about the table. */
#define NFT_MARK_DRAINING    "draining"
#define NFT_MARK_BESIDE	     "beside"
#define NFT_MARK_PASSTHROUGH "passthrough" /* ::6 on lo is ours to take away */
#define NFT_MARK_ROUTES	     "routes"	   /* routes for TPROXY may be there, its rules not yet */
#define NFT_MARK_AMBIENT     "ambient"	   /* routes for ambient may be there */
#define NFT_MARK_AGENT	     "agent-"	   /* and the instance in eight hex digits */
enum { NFT_MARK_MAX = 32 };

/* NFPROTO_*; linux/netfilter.h itself would redefine NF_ACCEPT and NF_DROP of netfilter_rules.h. */
enum nft_family { NFT_INET = 1, NFT_IP = 2, NFT_IP6 = 10 };

struct nft_element {
	uint8_t key[16];
	bool interval_end; /* the first key that is no longer in the interval */
};

struct nft_set {
	char name[32];
	uint32_t id; /* within its transaction */
	uint32_t key_type, key_len, flags;
	bool big_endian;	      /* only for how `nft list` shows keys */
	struct nft_element *elements; /* sorted by key */
	size_t n;
};

struct nft_rule {
	const char *chain, *comment;
	struct nftnl_rule *rule;
};

struct nft_image {
	enum nft_family family;
	bool has_chain[NF_CHAIN_COUNT_];
	struct nft_rule *rules;
	size_t n_rules;
	struct nft_set *sets;
	size_t n_sets;
};

struct nft_chain_kind {
	const char *name;
	const char *type; /* NULL: not a base chain */
	uint32_t hook;
	int32_t priority;
};
extern const struct nft_chain_kind nft_chains[NF_CHAIN_COUNT_];

/* The rules of one family of table: in an ip table those about IPv4 or any family. */
int nft_compile(const struct nf_rules *rules, enum nft_family family, struct nft_image *ret,
		struct error *err);
void nft_image_done(struct nft_image *image);

/* Messages of a transaction. The chains of an image may be there already; its rules are appended.
 */
void nft_add_table(struct nft_batch *batch, enum nft_family family);
void nft_delete_table(struct nft_batch *batch, enum nft_family family);
void nft_add_mark(struct nft_batch *batch, enum nft_family family, const char *name);
void nft_delete_chain(struct nft_batch *batch, enum nft_family family, const char *name);
void nft_flush_chain(struct nft_batch *batch, enum nft_family family, const char *name);
void nft_delete_rule(struct nft_batch *batch, enum nft_family family, const char *chain,
		     uint64_t handle);
void nft_add_image(struct nft_batch *batch, const struct nft_image *image);

/* By key, the end of an interval before the start of another. */
void nft_set_sort(struct nft_set *set);

#endif
