/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETFILTER_JOIN_H
#define SOCKMESH_NETFILTER_JOIN_H

/*
 * What stands beside the rules, in both netfilter engines, so that no new connection of a pod that
 * joins while it runs goes past the proxy by an entry that conntrack has of an older one
 * (conntrack_stale.h). A pod is redirected without it as well: what fails is a line in the log.
 */
#include <stdbool.h>

struct redirect_pod;

/* Before the rules: from now on no entry is made of a connection that was open before. */
void netfilter_join_begin(const struct redirect_pod *pod);
/* When the rules are there, and were not before. */
void netfilter_join_end(const struct redirect_pod *pod);
/* The rules are gone, and none of the other engine's come. */
void netfilter_join_undo(int netns_fd);

#endif
