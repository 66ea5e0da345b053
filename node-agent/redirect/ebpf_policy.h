/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_EBPF_POLICY_H
#define SOCKMESH_EBPF_POLICY_H

/*
 * A redirect plan in the shape of the BPF maps: the pod's configuration, and the entries of its
 * sets. Pure; redirect_ebpf.c writes the result to the kernel.
 */
#include "ip_address.h"
#include "sockmesh_abi.h"

#include <stddef.h>

struct error;
struct redirect_plan;

struct policy_id {
	struct id_set_key key;
	__u32 bits;
};

struct policy_port {
	struct port_set_key key;
	__u32 bits;
};

struct policy_prefix {
	struct prefix_set_key key;
	__u32 bits; /* those of every prefix that covers this one too */
};

struct ebpf_policy {
	struct policy_id *ids;
	struct policy_port *ports;
	struct policy_prefix *prefixes;
	size_t n_ids, n_ports, n_prefixes;
};

/* -E2BIG: more rules than a pod's configuration holds. *ret needs ebpf_policy_done(). */
int ebpf_policy_build(const struct redirect_plan *plan, __u32 policy, struct ebpf_policy *ret,
		      struct error *err);
void ebpf_policy_done(struct ebpf_policy *policy); /* frees what it holds; zeroed is fine */

/*
 * addresses: the pod's, the first usable one of each family becomes the source of its captured
 * connections. The result has neither POD_ACTIVE nor any of POD_CHANGES.
 */
int ebpf_pod_config_build(const struct redirect_plan *plan, __u32 policy,
			  const struct ip_address *addresses, size_t n_addresses,
			  struct pod_config *ret, struct error *err);

struct addr16 addr16_of(const struct ip_address *address);

#endif
