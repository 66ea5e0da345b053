/* SPDX-License-Identifier: Apache-2.0 */
#include "nft_expr.h"

#include <stdio.h> /* libnftnl's headers need it */

#include <errno.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>

enum { TCP_FIN_SYN_RST_ACK = 0x17, TCP_SYN = 0x02 };

static const struct {
	enum nft_payload_bases base;
	uint32_t offset, length;
} fields[] = {
	[NFT_IPV4_SOURCE] = {NFT_PAYLOAD_NETWORK_HEADER, 12, 4},
	[NFT_IPV4_DESTINATION] = {NFT_PAYLOAD_NETWORK_HEADER, 16, 4},
	[NFT_IPV6_SOURCE] = {NFT_PAYLOAD_NETWORK_HEADER, 8, 16},
	[NFT_IPV6_DESTINATION] = {NFT_PAYLOAD_NETWORK_HEADER, 24, 16},
	[NFT_PORT_SOURCE] = {NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2},
	[NFT_PORT_DESTINATION] = {NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2},
	[NFT_TCP_FLAGS] = {NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1},
};

uint32_t nft_field_length(enum nft_packet_field field)
{
	return fields[field].length;
}

struct nftnl_expr *nft_expr(struct nft_exprs *e, const char *name)
{
	struct nftnl_expr *made = e->code ? NULL : nftnl_expr_alloc(name);

	if (made)
		nftnl_rule_add_expr(e->rule, made);
	else if (!e->code)
		e->code = ENOMEM;
	return made;
}

void nft_expr_load_meta(struct nft_exprs *e, enum nft_meta_keys key)
{
	struct nftnl_expr *meta = nft_expr(e, "meta");

	if (!meta)
		return;
	nftnl_expr_set_u32(meta, NFTNL_EXPR_META_KEY, key);
	nftnl_expr_set_u32(meta, NFTNL_EXPR_META_DREG, NFT_REG_1);
}

void nft_expr_store_mark(struct nft_exprs *e)
{
	struct nftnl_expr *meta = nft_expr(e, "meta");

	if (!meta)
		return;
	nftnl_expr_set_u32(meta, NFTNL_EXPR_META_KEY, NFT_META_MARK);
	nftnl_expr_set_u32(meta, NFTNL_EXPR_META_SREG, NFT_REG_1);
}

static void use_ct(struct nft_exprs *e, enum nft_ct_keys key, uint16_t register_attr)
{
	struct nftnl_expr *ct = nft_expr(e, "ct");

	if (!ct)
		return;
	nftnl_expr_set_u32(ct, NFTNL_EXPR_CT_KEY, key);
	nftnl_expr_set_u32(ct, register_attr, NFT_REG_1);
}

void nft_expr_load_ct(struct nft_exprs *e, enum nft_ct_keys key)
{
	use_ct(e, key, NFTNL_EXPR_CT_DREG);
}

void nft_expr_store_ct(struct nft_exprs *e, enum nft_ct_keys key)
{
	use_ct(e, key, NFTNL_EXPR_CT_SREG);
}

void nft_expr_load_field_to(struct nft_exprs *e, enum nft_packet_field field, uint32_t reg)
{
	struct nftnl_expr *payload = nft_expr(e, "payload");

	if (!payload)
		return;
	nftnl_expr_set_u32(payload, NFTNL_EXPR_PAYLOAD_DREG, reg);
	nftnl_expr_set_u32(payload, NFTNL_EXPR_PAYLOAD_BASE, fields[field].base);
	nftnl_expr_set_u32(payload, NFTNL_EXPR_PAYLOAD_OFFSET, fields[field].offset);
	nftnl_expr_set_u32(payload, NFTNL_EXPR_PAYLOAD_LEN, fields[field].length);
}

void nft_expr_load_field(struct nft_exprs *e, enum nft_packet_field field)
{
	nft_expr_load_field_to(e, field, NFT_REG_1);
}

void nft_expr_compare(struct nft_exprs *e, bool negated, const void *data, uint32_t length)
{
	struct nftnl_expr *cmp = nft_expr(e, "cmp");

	if (!cmp)
		return;
	nftnl_expr_set_u32(cmp, NFTNL_EXPR_CMP_SREG, NFT_REG_1);
	nftnl_expr_set_u32(cmp, NFTNL_EXPR_CMP_OP, negated ? NFT_CMP_NEQ : NFT_CMP_EQ);
	nftnl_expr_set(cmp, NFTNL_EXPR_CMP_DATA, data, length);
}

void nft_expr_compare_u32(struct nft_exprs *e, bool negated, uint32_t value)
{
	nft_expr_compare(e, negated, &value, sizeof(value));
}

void nft_expr_bitwise(struct nft_exprs *e, const void *and_bits, const void *xor_bits,
		      uint32_t length)
{
	struct nftnl_expr *bitwise = nft_expr(e, "bitwise");

	if (!bitwise)
		return;
	nftnl_expr_set_u32(bitwise, NFTNL_EXPR_BITWISE_SREG, NFT_REG_1);
	nftnl_expr_set_u32(bitwise, NFTNL_EXPR_BITWISE_DREG, NFT_REG_1);
	nftnl_expr_set_u32(bitwise, NFTNL_EXPR_BITWISE_LEN, length);
	nftnl_expr_set(bitwise, NFTNL_EXPR_BITWISE_MASK, and_bits, length);
	nftnl_expr_set(bitwise, NFTNL_EXPR_BITWISE_XOR, xor_bits, length);
}

void nft_expr_mask(struct nft_exprs *e, const void *bits, uint32_t length)
{
	static const uint8_t zero[16];

	nft_expr_bitwise(e, bits, zero, length);
}

void nft_expr_immediate(struct nft_exprs *e, const void *data, uint32_t length)
{
	struct nftnl_expr *immediate = nft_expr(e, "immediate");

	if (!immediate)
		return;
	nftnl_expr_set_u32(immediate, NFTNL_EXPR_IMM_DREG, NFT_REG_1);
	nftnl_expr_set(immediate, NFTNL_EXPR_IMM_DATA, data, length);
}

void nft_expr_verdict(struct nft_exprs *e, int code, const char *chain)
{
	struct nftnl_expr *immediate = nft_expr(e, "immediate");

	if (!immediate)
		return;
	nftnl_expr_set_u32(immediate, NFTNL_EXPR_IMM_DREG, NFT_REG_VERDICT);
	nftnl_expr_set_u32(immediate, NFTNL_EXPR_IMM_VERDICT, (uint32_t)code);
	if (chain && nftnl_expr_set_str(immediate, NFTNL_EXPR_IMM_CHAIN, chain) < 0)
		e->code = ENOMEM;
}

void nft_expr_first_syn(struct nft_exprs *e, bool negated)
{
	static const uint8_t bits = TCP_FIN_SYN_RST_ACK, syn = TCP_SYN;

	nft_expr_load_field(e, NFT_TCP_FLAGS);
	nft_expr_mask(e, &bits, sizeof(bits));
	nft_expr_compare(e, negated, &syn, sizeof(syn));
}
