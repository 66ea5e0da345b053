/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_IPTABLES_RUN_H
#define SOCKMESH_IPTABLES_RUN_H

/*
 * iptables-restore and iptables-save in a pod's network namespace: with the pod's own user
 * namespace, a lock that no other namespace shares, without name services, and within a deadline.
 */
#include <limits.h>
#include <stdbool.h>

struct error;

enum iptables_backend { IPTABLES_LEGACY, IPTABLES_NFT, IPTABLES_BACKENDS };

/* [0] for IPv4, [1] for IPv6; "" where there is no such program. */
struct iptables_programs {
	char restore[2][PATH_MAX], save[2][PATH_MAX];
};

const char *iptables_backend_name(enum iptables_backend backend); /* "legacy", "nft" */

/*
 * Looks in PATH for the programs of a backend: by their own names, else iptables-restore and the
 * like when they say that they are of this backend.
 */
void iptables_find_programs(enum iptables_backend backend, struct iptables_programs *ret);

/*
 * The error has what the program wrote to its standard error. -ENOENT without a program. netns_fd
 * -1: in our own namespace, with everybody's lock.
 */
int iptables_run_restore(const struct iptables_programs *programs, bool ipv6, int netns_fd,
			 const char *text, struct error *err);
/* With counters, all tables that there are; *ret is the caller's to free. */
int iptables_run_save(const struct iptables_programs *programs, bool ipv6, int netns_fd, char **ret,
		      struct error *err);

/* ipset -exist restore, and ipset save of all sets; -ENOENT without the program. */
int iptables_run_ipset_restore(int netns_fd, const char *text, struct error *err);
int iptables_run_ipset_save(int netns_fd, char **ret, struct error *err);

/*
 * Can anything of ours be in the namespace's tables, per family? Without running a program: legacy,
 * are there tables at all; nft, is there a chain of ours. What cannot be found out may be.
 */
void iptables_may_be_there(enum iptables_backend backend, int netns_fd, bool ret[static 2]);

#endif
