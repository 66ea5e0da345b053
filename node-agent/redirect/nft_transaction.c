/* SPDX-License-Identifier: Apache-2.0 */
#include "nft_transaction.h"

#include "error.h"
#include "netns.h"
#include "scoped.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { ANSWER_BYTES = 64 * 1024, DEADLINE_S = 2, WHAT_MAX = 64, CLOSER_STACK_BYTES = 128 * 1024 };

struct nft_batch {
	char *bytes;
	size_t used, capacity;
	struct nlmsghdr *last;	/* not yet counted in `used`: its attributes are still coming */
	char (*what)[WHAT_MAX]; /* of the message with sequence number i + 1 */
	size_t n;
	bool no_memory;
};

static struct nlmsghdr *start(struct nft_batch *b, uint16_t type, uint16_t family, uint16_t res_id,
			      uint16_t flags, uint32_t seq)
{
	struct nlmsghdr *nlh;
	struct nfgenmsg *nfgen;

	if (b->last)
		b->used += MNL_ALIGN(b->last->nlmsg_len);
	b->last = NULL;
	if (b->capacity - b->used < NFT_MESSAGE_MAX) {
		size_t capacity = 2 * b->capacity + 2 * (size_t)NFT_MESSAGE_MAX;
		char *grown = realloc(b->bytes, capacity);

		if (!grown) {
			b->no_memory = true;
			return NULL;
		}
		b->bytes = grown;
		b->capacity = capacity;
	}
	nlh = mnl_nlmsg_put_header(b->bytes + b->used);
	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	nlh->nlmsg_seq = seq;
	nfgen = mnl_nlmsg_put_extra_header(nlh, sizeof(*nfgen));
	nfgen->nfgen_family = (uint8_t)family;
	nfgen->version = NFNETLINK_V0;
	nfgen->res_id = htons(res_id);
	b->last = nlh;
	return nlh;
}

struct nft_batch *nft_batch_new(void)
{
	struct nft_batch *b = calloc(1, sizeof(*b));

	if (b)
		start(b, NFNL_MSG_BATCH_BEGIN, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, 0, 0);
	return b;
}

void nft_batch_free(struct nft_batch *b)
{
	if (!b)
		return;
	free(b->what);
	free(b->bytes);
	free(b);
}

void nft_batch_free_at(struct nft_batch **batch)
{
	nft_batch_free(*batch);
}

struct nlmsghdr *nft_batch_add(struct nft_batch *b, uint16_t type, uint16_t family, uint16_t flags,
			       const char *what_fmt, ...)
{
	char(*grown)[WHAT_MAX] = reallocarray(b->what, b->n + 1, sizeof(*grown));
	va_list args;

	if (!grown) {
		b->no_memory = true;
		return NULL;
	}
	b->what = grown;
	va_start(args, what_fmt);
	vsnprintf(b->what[b->n], WHAT_MAX, what_fmt, args);
	va_end(args);
	b->n++;
	return start(b, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type), family, 0, flags,
		     (uint32_t)b->n);
}

/* ---- the kernel's answers ------------------------------------------------------------------- */

static const char *extended_text(const struct nlmsghdr *nlh)
{
	const struct nlmsgerr *answer = mnl_nlmsg_get_payload(nlh);
	const struct nlattr *attr;
	size_t offset = sizeof(*answer);

	if (!(nlh->nlmsg_flags & NLM_F_ACK_TLVS))
		return NULL;
	if (!(nlh->nlmsg_flags & NLM_F_CAPPED))
		offset += MNL_ALIGN(answer->msg.nlmsg_len) - sizeof(answer->msg);
	if (mnl_nlmsg_get_payload_len(nlh) < offset)
		return NULL;
	mnl_attr_for_each(attr, nlh, (unsigned int)offset)
	{
		if (mnl_attr_get_type(attr) == NLMSGERR_ATTR_MSG &&
		    mnl_attr_validate(attr, MNL_TYPE_NUL_STRING) >= 0)
			return mnl_attr_get_str(attr);
	}
	return NULL;
}

/* Later failures of a transaction are mostly consequences of the first. */
struct outcome {
	const struct nft_batch *batch;
	bool acknowledged, failed;
	struct error *err;
};

static void take_answer(struct outcome *o, const struct nlmsghdr *nlh)
{
	const struct nlmsgerr *answer = mnl_nlmsg_get_payload(nlh);
	const struct nft_batch *b = o->batch;
	const char *what = "transaction", *text;

	if (nlh->nlmsg_type != NLMSG_ERROR || mnl_nlmsg_get_payload_len(nlh) < sizeof(*answer))
		return;
	if (answer->error == 0) {
		o->acknowledged |= nlh->nlmsg_seq == b->n;
		return;
	}
	if (o->failed)
		return;
	o->failed = true;
	if (nlh->nlmsg_seq > 0 && nlh->nlmsg_seq <= b->n)
		what = b->what[nlh->nlmsg_seq - 1];
	text = extended_text(nlh);
	error_set(o->err, -answer->error, "nftables: %s%s%s", what, text ? ": " : "",
		  text ? text : "");
}

/* The kernel has put every answer into the socket before sendto() returned. */
static int receive(int fd, struct outcome *o)
{
	scoped_free char *buf = malloc(ANSWER_BYTES);
	int flags = 0;

	if (!buf)
		return error_set(o->err, ENOMEM, "read the answers to an nftables transaction");
	for (;;) {
		ssize_t n = recv(fd, buf, ANSWER_BYTES, flags);
		const struct nlmsghdr *nlh = (const void *)buf;
		int left = (int)n;

		if (n < 0 && (errno == EINTR || errno == ENOBUFS))
			continue; /* ENOBUFS: answers were lost, but not the first */
		if (n < 0)
			break;
		for (; mnl_nlmsg_ok(nlh, left); nlh = mnl_nlmsg_next(nlh, &left))
			take_answer(o, nlh);
		flags = MSG_DONTWAIT;
	}
	if (o->failed)
		return -o->err->code;
	if (o->acknowledged)
		return 0;
	return error_set(o->err, flags ? EIO : ETIMEDOUT,
			 "nftables: transaction without an answer");
}

struct commit {
	struct nft_batch *batch;
	int fd; /* the socket, to be closed by the caller */
};

static int open_socket(size_t bytes, int *ret, struct error *err)
{
	scoped_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	struct timeval timeout = {.tv_sec = DEADLINE_S};
	int on = 1, size = (int)bytes + 4096;

	if (fd < 0)
		return error_set(err, errno, "open a netfilter socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0)
		return error_set(err, errno, "set the netfilter socket's deadline");
	/* Better texts and shorter answers; not needed for being right. */
	setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
	setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
	/* A transaction is one datagram. */
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	*ret = take_fd(&fd);
	return 0;
}

static int commit_inside(void *arg, struct error *err)
{
	struct commit *commit = arg;
	struct nft_batch *b = commit->batch;
	struct outcome outcome = {.batch = b, .err = err};
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	int r = open_socket(b->used, &commit->fd, err);

	if (r)
		return r;
	if (sendto(commit->fd, b->bytes, b->used, 0, (struct sockaddr *)&kernel, sizeof(kernel)) <
	    0)
		return error_set(err, errno, "send an nftables transaction");
	return receive(commit->fd, &outcome);
}

static void *close_socket(void *arg)
{
	close((int)(intptr_t)arg);
	return NULL;
}

/*
 * The kernel lets who closes a netfilter socket wait until everything that transactions have
 * deleted is freed (nft_rcv_nl_event()), which is some RCU grace periods: 10 to 30 ms. Nothing of
 * the transaction itself depends on that, so that a thread of its own waits.
 */
static void close_later(int fd)
{
	pthread_attr_t attributes;
	pthread_t thread;
	bool started = false;

	if (fd < 0)
		return;
	if (pthread_attr_init(&attributes) == 0) {
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attributes, CLOSER_STACK_BYTES);
		started = pthread_create(&thread, &attributes, close_socket,
					 (void *)(intptr_t)fd) == 0;
		pthread_attr_destroy(&attributes);
	}
	if (!started)
		close(fd);
}

int nft_batch_commit(struct nft_batch *b, int netns_fd, struct error *err)
{
	struct commit commit = {.batch = b, .fd = -1};
	int r;

	/* The last message's answer comes after the commit. */
	if (b->last)
		b->last->nlmsg_flags |= NLM_F_ACK;
	start(b, NFNL_MSG_BATCH_END, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, 0, (uint32_t)b->n + 1);
	if (b->no_memory)
		return error_set(err, ENOMEM, "make an nftables transaction");
	b->used += MNL_ALIGN(b->last->nlmsg_len);
	b->last = NULL;
	r = netns_run(netns_fd, commit_inside, &commit, err);
	close_later(commit.fd);
	return r;
}
