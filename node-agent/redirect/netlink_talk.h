/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETLINK_TALK_H
#define SOCKMESH_NETLINK_TALK_H

/* One netlink request and its answers, within a deadline, in the thread's own namespace. */
#include <libmnl/libmnl.h>
#include <stddef.h>
#include <stdint.h>

struct netlink_request {
	_Alignas(NLMSG_ALIGNTO) char bytes[512]; /* room for a header and some attributes */
};

/*
 * Starts a request with a zeroed family header of `extra_size` bytes, which *ret_extra points to;
 * NLM_F_REQUEST is set anyway. The return value is what attributes are put to.
 */
struct nlmsghdr *netlink_request_start(struct netlink_request *request, uint16_t type,
				       uint16_t flags, size_t extra_size, void *ret_extra);

/*
 * Sends it on a socket of its own and calls fn, which may be NULL, for each answer. The request
 * needs NLM_F_ACK or NLM_F_DUMP. -errno is the kernel's own answer, the callback's or the
 * socket's; -EINTR: a dump met a change and is to be asked for again, with what fn has gathered
 * forgotten; -ETIMEDOUT: no end within two seconds.
 */
int netlink_talk(int bus, const struct nlmsghdr *request, mnl_cb_t fn, void *arg);

/*
 * The same for a dump that is asked for again when it is interrupted, a few times; reset, which may
 * be NULL, makes `arg` forget before every attempt.
 */
int netlink_dump(int bus, const struct nlmsghdr *request, mnl_cb_t fn, void (*reset)(void *arg),
		 void *arg);

#endif
