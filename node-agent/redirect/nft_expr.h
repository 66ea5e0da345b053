/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NFT_EXPR_H
#define SOCKMESH_NFT_EXPR_H

/*
 * The expressions that our nftables rules are made of, appended to one rule. They work on register
 * 1 where nothing else is said. Pure.
 */
#include <linux/netfilter/nf_tables.h>
#include <stdbool.h>
#include <stdint.h>

struct nftnl_expr;
struct nftnl_rule;

struct nft_exprs {
	struct nftnl_rule *rule;
	int code; /* the first errno; nothing is appended after it */
};

/* Of linux/netfilter.h, which cannot be included beside netfilter_rules.h. */
enum { NFT_DROP_PACKET = 0, NFT_ACCEPT_PACKET = 1 };

enum nft_packet_field {
	NFT_IPV4_SOURCE,
	NFT_IPV4_DESTINATION,
	NFT_IPV6_SOURCE,
	NFT_IPV6_DESTINATION,
	NFT_PORT_SOURCE,
	NFT_PORT_DESTINATION,
	NFT_TCP_FLAGS,
};
uint32_t nft_field_length(enum nft_packet_field field);

struct nftnl_expr *nft_expr(struct nft_exprs *e, const char *name); /* NULL: see code */
void nft_expr_load_meta(struct nft_exprs *e, enum nft_meta_keys key);
void nft_expr_store_mark(struct nft_exprs *e);
void nft_expr_load_ct(struct nft_exprs *e, enum nft_ct_keys key);
void nft_expr_store_ct(struct nft_exprs *e, enum nft_ct_keys key);
void nft_expr_load_field(struct nft_exprs *e, enum nft_packet_field field);
void nft_expr_load_field_to(struct nft_exprs *e, enum nft_packet_field field, uint32_t reg);
void nft_expr_compare(struct nft_exprs *e, bool negated, const void *data, uint32_t length);
void nft_expr_compare_u32(struct nft_exprs *e, bool negated, uint32_t value);
void nft_expr_bitwise(struct nft_exprs *e, const void *and_bits, const void *xor_bits,
		      uint32_t length);
void nft_expr_mask(struct nft_exprs *e, const void *bits, uint32_t length);
void nft_expr_immediate(struct nft_exprs *e, const void *data, uint32_t length);
void nft_expr_verdict(struct nft_exprs *e, int code, const char *chain);

/* SYN set; FIN, RST and ACK not. */
void nft_expr_first_syn(struct nft_exprs *e, bool negated);

#endif
