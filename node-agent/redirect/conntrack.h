/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CONNTRACK_H
#define SOCKMESH_CONNTRACK_H

/* A namespace's connection tracking, by ctnetlink. */
#include <stddef.h>
#include <stdint.h>

struct error;

/*
 * How many tracked flows of the namespace have been translated (IPS_DST_NAT or IPS_SRC_NAT) or
 * carry `mark` in the bits of `mask` (0: do not look) as connection mark: those that break when nat
 * hooks or the rules of TPROXY or ambient go. -EOPNOTSUPP where the kernel has no ctnetlink: it
 * cannot be known.
 */
int conntrack_count_captured(int netns_fd, uint32_t mark, uint32_t mask, size_t *ret,
			     struct error *err);

#endif
