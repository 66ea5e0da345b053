// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Inbound: one instance of this program per pod, attached to the pod's network namespace, steers
 * what comes from outside to the proxy's listener. No address is rewritten, so every address that
 * the pod has or will have is covered, and the accepted socket's local address is the original
 * destination. Without a listener the connection is refused; it never falls through to the
 * application.
 */
#include "decide.bpf.h"

#include <bpf/bpf_endian.h>

char _license[] SEC("license") = "Dual BSD/GPL";

const volatile __u64 pod_netns;

enum { IPPROTO_TCP_ = 6, TCP_LISTEN_STATE = 10 };

/*
 * Traffic that never left the pod: from loopback or from an own address, of which the passthrough
 * source ::6 is one when it is on lo. The ingress interface cannot tell: traffic to the pod's own
 * address shows eth0. The kernel drops packets from outside with such a source, or answers them to
 * ourselves.
 */
static __always_inline int is_local(const struct addr16 *remote, const struct addr16 *local)
{
	return addr16_is_loopback(remote) || addr16_equal(remote, local) ||
	       is_own_address(pod_netns, remote);
}

static __always_inline int is_listening_on(struct bpf_sock *sk, __u16 port)
{
	volatile struct bpf_sock *s = sk;
	__u32 state = s->state, src_port = s->src_port;

	return state == TCP_LISTEN_STATE && src_port == port;
}

static __always_inline int steer(struct bpf_sk_lookup *ctx, __u16 inbound_port)
{
	struct listener_key key = {.netns = pod_netns};

	for (__u32 slot = 0; slot < LISTENER_SLOTS; slot++) {
		struct bpf_sock *sk;
		int err = -1;

		key.slot = slot;
		sk = bpf_map_lookup_elem(&listeners, &key);
		if (!sk)
			continue;
		/*
		 * Fails for a listener of the other family; a dual-stack one serves both. One on
		 * another port registered under an earlier configuration.
		 */
		if (is_listening_on(sk, inbound_port))
			err = bpf_sk_assign(ctx, sk, 0);
		bpf_sk_release(sk);
		if (!err)
			return SK_PASS;
	}
	report_event(pod_netns, EVENT_NO_LISTENER);
	return SK_DROP;
}

/*
 * Ambient: what comes from elsewhere, or looks like it, and is still meant for the application:
 * ztunnel that speaks for a client, and kubelet's probes. Returns its rule; 0: like any other.
 */
static __always_inline __u32 announced_as(const struct addr16 *remote, __u16 remote_port,
					  const struct addr16 *local, __u16 local_port)
{
	struct handover_key key = {
		.netns = pod_netns,
		.local = *remote,
		.remote = *local,
		.local_port = remote_port,
		.remote_port = local_port,
	};
	const struct handover *entry = bpf_map_lookup_elem(&handovers, &key);
	struct probe *probe;

	if (entry && entry->kind == HANDOVER_TO_APP)
		return RULE_OUT_PROXY_MARK;
	key.netns = 0;
	probe = bpf_map_lookup_elem(&probes, &key);
	if (!probe || bpf_ktime_get_ns() - probe->at_ns > PROBE_NS)
		return 0;
	if (!probe->recognised)
		count_probe(PROBE_RECOGNISED);
	probe->recognised = 1;
	return RULE_IN_PROBE;
}

static __always_inline __u32 inbound_facts(const struct pod_config *pod, const struct addr16 *local,
					   __u16 port)
{
	__u32 facts = FACT_TCP | port_facts(pod, port, 1);

	if (!addr16_is_v4(local))
		return facts | FACT_IPV6 | (addr16_is_low_v6(local, 1) ? FACT_DST_LO : 0);
	if ((local->w[3] & pod->loopback4_mask_be) == pod->loopback4_be)
		facts |= FACT_DST_LO;
	return facts;
}

SEC("sk_lookup")
int sockmesh_inbound(struct bpf_sk_lookup *ctx)
{
	volatile struct bpf_sk_lookup *c = ctx;
	__u32 family = c->family, protocol = c->protocol, port = c->local_port;
	__u16 remote_port = bpf_ntohs(c->remote_port);
	struct addr16 remote, local;
	const struct pod_config *pod;
	__u64 netns = pod_netns;
	struct decision d;
	__u32 facts;
	__u16 inbound_port;

	if (protocol != IPPROTO_TCP_)
		return SK_PASS;
	if (family == AF_INET) {
		remote = addr16_from_v4(c->remote_ip4);
		local = addr16_from_v4(c->local_ip4);
	} else {
		remote.w[0] = c->remote_ip6[0];
		remote.w[1] = c->remote_ip6[1];
		remote.w[2] = c->remote_ip6[2];
		remote.w[3] = c->remote_ip6[3];
		local.w[0] = c->local_ip6[0];
		local.w[1] = c->local_ip6[1];
		local.w[2] = c->local_ip6[2];
		local.w[3] = c->local_ip6[3];
	}
	if (is_local(&remote, &local))
		return SK_PASS;
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod || !(pod->flags & POD_ACTIVE))
		return SK_PASS;
	if (pod->flags & POD_IS_AMBIENT) {
		__u32 rule = announced_as(&remote, remote_port, &local, port);

		if (rule) {
			count_rule(netns, rule);
			return SK_PASS;
		}
	}
	facts = inbound_facts(pod, &local, port);
	d = first_match(pod->inbound, pod->n_inbound, POD_RULES_INBOUND_MAX, facts);
	inbound_port = pod->inbound_port;
	if (!pod_is_still(pod, netns)) {
		report_event(netns, EVENT_RECORD_FAILED);
		return SK_DROP;
	}
	count_rule(netns, d.rule);
	return d.redirect ? steer(ctx, inbound_port) : SK_PASS;
}
