/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NFT_VERIFY_H
#define SOCKMESH_NFT_VERIFY_H

/*
 * Compares a table that the kernel has with the one that would be made. Rules are compared
 * expression by expression and sets element by element; counters do not matter.
 */
#include "nft_read.h"

/* Read with NFT_READ_ALL. -ENODEV names the first difference; anything that is not ours is one. */
int nft_verify_table(const struct nft_table *table, const struct nft_image *want,
		     struct error *err);

/* The same chain, comment and expressions; sets are told apart by their names. */
bool nft_same_rule(const struct nftnl_rule *a, const struct nftnl_rule *b);

#endif
