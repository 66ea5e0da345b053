/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CONNTRACK_H
#define SOCKMESH_CONNTRACK_H

/* A namespace's connection tracking, by ctnetlink. */
#include <libmnl/libmnl.h>
#include <stddef.h>
#include <stdint.h>

struct error;

/*
 * Lists the entries of the thread's own namespace, of both families and of every zone: fn and reset
 * as netlink_dump() has them. -EOPNOTSUPP where the kernel has no ctnetlink.
 */
int conntrack_list(mnl_cb_t fn, void (*reset)(void *arg), void *arg, struct error *err);

/*
 * How many tracked flows of the namespace have been translated (IPS_DST_NAT or IPS_SRC_NAT) or
 * carry `mark` in the bits of `mask` (0: do not look) as connection mark: those that break when nat
 * hooks or the rules of TPROXY or ambient go. -EOPNOTSUPP: it cannot be known, as above.
 */
int conntrack_count_captured(int netns_fd, uint32_t mark, uint32_t mask, size_t *ret,
			     struct error *err);

#endif
