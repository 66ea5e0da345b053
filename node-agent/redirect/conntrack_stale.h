/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CONNTRACK_STALE_H
#define SOCKMESH_CONNTRACK_STALE_H

/*
 * What conntrack remembers of connections that a pod had before it was captured. Nat decides once
 * for each entry, and a first SYN that finds an entry of its addresses and ports brings that one
 * back to life instead of making a new one: the entry of a connection that has ended, but whose end
 * conntrack has not seen, lets the next connection with the same ports past the proxy. There are
 * two ways to such an entry, and something against each.
 */
#include <stdbool.h>
#include <stddef.h>

struct error;

/*
 * net.netfilter.nf_conntrack_tcp_loose of the namespace: does a packet from the middle of a
 * connection that is not known make an entry? It need not be one from the middle: the last
 * acknowledgement makes an entry that lasts five minutes. -ENOENT: this kernel has no such sysctl.
 */
int conntrack_set_loose(int netns_fd, bool loose, struct error *err);

/*
 * Forgets the TCP entries without translation whose connection neither has a socket in the
 * namespace nor passes through it: they are of a time in which conntrack was active in the
 * namespace, and their end came when it was not. *ret_n: how many. -EOPNOTSUPP: the kernel has no
 * ctnetlink.
 */
int conntrack_forget_ended(int netns_fd, size_t *ret_n, struct error *err);

#endif
