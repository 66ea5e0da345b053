/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_LISTENER_BPF_H
#define SOCKMESH_LISTENER_BPF_H

/*
 * Which listening sockets inbound connections may be steered to: the proxy identity's, on the
 * inbound port, and not bound to loopback (a redirect by NAT would not reach such a one either).
 */
#include "address.bpf.h"
#include "identity.bpf.h"
#include "sockmesh_maps.bpf.h"

static __always_inline int is_inbound_listener(const struct pod_config *pod, __u16 port,
					       const struct addr16 *addr, const struct opener *who)
{
	if (port != pod->inbound_port || addr16_is_loopback(addr) || !who->known)
		return 0;
	return !!(identity_facts(pod, who) & (FACT_UID_PROXY | FACT_GID_PROXY | FACT_MARK_PROXY));
}

#endif
