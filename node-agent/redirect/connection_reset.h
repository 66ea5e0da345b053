/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CONNECTION_RESET_H
#define SOCKMESH_CONNECTION_RESET_H

/*
 * Cuts the TCP connections that a pod has with others, so that what they carry goes through the
 * proxy once the pod is in the mesh: both ends get a reset and connect again. For operators who ask
 * for it; left alone, connections go on as they were until they end.
 */
#include <stddef.h>
#include <stdint.h>

struct error;

/*
 * All but listeners, connections within the pod (both ends are the same address, or loopback) and
 * the proxy's own, which are known by the mark. *ret_n: how many were cut; more than a bound that
 * no pod reaches are left. -EOPNOTSUPP: this kernel cannot (CONFIG_INET_DIAG_DESTROY).
 */
int connection_reset(int netns_fd, uint32_t mark, uint32_t mark_mask, size_t *ret_n,
		     struct error *err);

#endif
