/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETFILTER_PROBE_H
#define SOCKMESH_NETFILTER_PROBE_H

/*
 * What this node can do of the nftables and the iptables engine, found by trying: each facility in
 * a transaction, or a run of iptables-restore, of its own, in a network namespace that is made for
 * this and ends with it. Bounded to a few seconds, whatever the programs do.
 */
#include "kernel_probe.h"

#include <stdbool.h>
#include <stddef.h>

struct error;

struct netfilter_probe {
	struct probe_facility *facilities; /* of both engines, in the order of the table */
	size_t n_facilities;
	bool nftables, iptables; /* everything required is there */
	char nftables_summary[256], iptables_summary[256];
};

/*
 * iptables: "auto", "legacy" or "nft", as redirect_config has it. -errno only when nothing could be
 * tried at all, as where network namespaces cannot be made.
 */
int netfilter_probe_run(const char *iptables, struct netfilter_probe **ret, struct error *err);
void netfilter_probe_free(struct netfilter_probe *probe);

#endif
