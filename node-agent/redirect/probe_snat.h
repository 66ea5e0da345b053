/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_PROBE_SNAT_H
#define SOCKMESH_PROBE_SNAT_H

/*
 * The host's side of kubelet's probes, for the engines of netfilter. In the pod a probe looks like
 * any other connection from the node; so the host gives what kubelet opens to an ambient pod a
 * source that stands for kubelet and nobody else (plan_probe_source4, 6), and the pod's rules let
 * that through. This keeps, in our own network namespace, which addresses those are, and who
 * kubelet is (kubelet.h). What it makes in the kernel is there only while there is such a pod.
 */
#include "ip_address.h"
#include "kubelet.h"

#include <stddef.h>
#include <stdint.h>

struct error;
struct event_loop;
struct probe_snat;
struct redirect_config;
struct redirect_pod;

enum probe_snat_kind {
	PROBE_SNAT_NFTABLES,
	PROBE_SNAT_IPTABLES_LEGACY,
	PROBE_SNAT_IPTABLES_NFT,
};

/*
 * Takes over what an agent before this one left; of it, what belongs to pods that are not known
 * goes when the event loop runs. Makes nothing yet. cfg must live as long.
 */
int probe_snat_open(enum probe_snat_kind kind, const struct redirect_config *cfg,
		    struct event_loop *loop, struct probe_snat **ret, struct error *err);
void probe_snat_close(struct probe_snat *snat); /* what is in the kernel stays; NULL is fine */

/*
 * pod: its addresses are in from now on if its plan asks for it, else not. drop: they are not, by
 * cookie alone. All or nothing; already so is success.
 */
int probe_snat_pod(struct probe_snat *snat, const struct redirect_pod *pod, struct error *err);
int probe_snat_drop(struct probe_snat *snat, uint64_t cookie, struct error *err);

/*
 * -ENODEV, naming the first difference, when the pod is not in as its plan asks, or the kernel's
 * rules are not as they should be; probe_snat_pod() puts that right.
 */
int probe_snat_verify(struct probe_snat *snat, const struct redirect_pod *pod, struct error *err);

/* Who kubelet is at this moment, and by what its connections are known. */
enum kubelet_known probe_snat_kubelet(struct probe_snat *snat, struct kubelet *ret);

/* Everything of this instance goes, without an open one; of iptables, of both backends. */
int probe_snat_uninstall(enum probe_snat_kind kind, const struct redirect_config *cfg,
			 struct error *err);

#endif
