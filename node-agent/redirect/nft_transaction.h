/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NFT_TRANSACTION_H
#define SOCKMESH_NFT_TRANSACTION_H

/*
 * One nf_tables transaction: messages are gathered, then the kernel takes all of them or none, and
 * packets see either what was before or what is after.
 */
#include <stdint.h>

struct error;
struct nft_batch;
struct nlmsghdr;

/* What libnftnl may put into one message: it does not look for the end of the buffer. */
enum { NFT_MESSAGE_MAX = 32 * 1024 };

struct nft_batch *nft_batch_new(void); /* NULL: no memory */
void nft_batch_free(struct nft_batch *batch);
void nft_batch_free_at(struct nft_batch **batch);
#define scoped_batch scoped(nft_batch_free_at)

/*
 * Starts a message (NFT_MSG_*); the caller appends its attributes before the next call. `what`
 * names it in errors ("add rule out-all"). NULL: no memory; the commit will say so.
 */
struct nlmsghdr *nft_batch_add(struct nft_batch *batch, uint16_t type, uint16_t family,
			       uint16_t flags, const char *what_fmt, ...)
	__attribute__((format(printf, 5, 6)));

/*
 * In the namespace given. A failure has the errno of the first message that the kernel refused, and
 * in its text which one that was and what the kernel said about it (NETLINK_EXT_ACK, Linux 4.12).
 */
int nft_batch_commit(struct nft_batch *batch, int netns_fd, struct error *err);

#endif
