/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_PLAN_H
#define SOCKMESH_REDIRECT_PLAN_H

/*
 * What must happen to a pod's connections, in a form that names no engine: two ordered rule lists
 * (first match wins, no match passes), each rule a conjunction of facts about one connection, and
 * the sets that some facts look into. Every engine compiles exactly this; redirect_plan_decide()
 * is the meaning that they are tested against and what `sockmeshctl explain` prints.
 *
 * Rules O1-O15 and I3-I5 of Istio's chains (docs/engines.md) are rows of these lists. Pure.
 */
#include "ip_address.h"
#include "plan_facts.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

/*
 * PLAN_TPROXY is a redirect that leaves the addresses as they are (2.6 of Istio's rules); its rules
 * are not about netfilter's nat tables.
 */
enum plan_verdict { PLAN_PASS, PLAN_REDIRECT, PLAN_TPROXY };

struct plan_rule {
	enum plan_rule_id id;
	uint32_t all_of;  /* facts that must hold */
	uint32_t none_of; /* facts that must not hold */
	enum plan_verdict verdict;
	uint16_t port; /* but for PLAN_PASS: the proxy's port, host order */
};

struct port_list {
	uint16_t *ports; /* host order, sorted, each once */
	size_t n;
};

struct prefix_list {
	struct ip_prefix *prefixes; /* sorted, each once */
	size_t n;
};

struct id_list { /* uids or gids as the pod's user namespace numbers them */
	uint32_t *ids;
	size_t n;
};

struct name_list {    /* interface names, each shorter than IFNAMSIZ and without "+" at its end */
	char **names; /* sorted, each once */
	size_t n;
};

enum { PLAN_RULES_MAX = 28 };

struct redirect_plan {
	struct plan_rule outbound[PLAN_RULES_MAX];
	size_t n_outbound;
	struct plan_rule inbound[PLAN_RULES_MAX];
	size_t n_inbound;

	uint16_t outbound_port, inbound_port; /* host order */
	uint16_t dns_port;		      /* 0: no DNS capture */
	uint16_t tunnel_port;		      /* 15008 for istio; 0: the mesh has none */
	bool capture_ipv6;
	bool ambient;	 /* the proxy is ztunnel: it is known by its mark, not by ids */
	bool node_proxy; /* it is in another namespace of the node, at these addresses */
	struct ip_address proxy4, proxy6; /* unspecified: none of that family */
	bool tproxy;			  /* inbound: TPROXY, not REDIRECT */
	bool drop_invalid; /* drop what conntrack calls INVALID; no engine without it needs to */
	struct ip_prefix loopback4; /* what counts as IPv4 loopback, 127.0.0.1/32 */

	struct id_list proxy_uids, proxy_gids;
	struct id_list groups; /* owner-group filter */
	bool groups_exempt;    /* true: groups are exempt; false: only groups are captured */

	struct port_list outbound_exclude_ports, outbound_include_ports;
	struct port_list inbound_exclude_ports, inbound_include_ports;
	struct prefix_list exclude_prefixes, include_prefixes;
	struct name_list exclude_interfaces, reroute_interfaces;
};

/*
 * Ambient on netfilter: the source that the host gives to kubelet's probes, and by which the pod
 * knows them (Istio's HOST_PROBE_SNAT_IP).
 */
extern const struct ip_address plan_probe_source4, plan_probe_source6;

/*
 * Settings of one pod as pod_policy read them; redirect_plan_build() turns them into rules. Here
 * lists have any order and may repeat; building sorts them.
 */
struct redirect_settings {
	uint16_t outbound_port, inbound_port, dns_port, tunnel_port;
	bool dns_capture;
	bool capture_ipv6;
	bool ambient;	 /* of the lists below only reroute_interfaces matters then */
	bool node_proxy; /* the same; not `ambient`, which is about a proxy in the pod */
	struct ip_address proxy4, proxy6;
	bool tproxy, drop_invalid;
	struct ip_prefix loopback4;
	struct id_list proxy_uids, proxy_gids;
	struct id_list groups;
	bool groups_set, groups_exempt;
	bool outbound_include_all; /* includeOutboundIPRanges: "*" */
	bool inbound_include_all;  /* includeInboundPorts: "*" */
	struct port_list outbound_exclude_ports, outbound_include_ports;
	struct port_list inbound_exclude_ports, inbound_include_ports;
	struct prefix_list exclude_prefixes, include_prefixes;
	struct name_list exclude_interfaces, reroute_interfaces;
};
void redirect_settings_done(struct redirect_settings *s);

/* Copies what it needs from `s`. -ENOMEM only. *ret needs redirect_plan_free(). */
int redirect_plan_build(const struct redirect_settings *s, struct redirect_plan **ret,
			struct error *err);
void redirect_plan_free(struct redirect_plan *plan);
bool redirect_plan_equal(const struct redirect_plan *a, const struct redirect_plan *b);

/* One connection as explain, tests and reference decisions describe it. */
struct plan_flow {
	bool inbound;
	bool udp;
	struct ip_address source;      /* outbound: bound source; unspecified: none, not known */
	struct ip_address destination; /* as the opener dialled it */
	uint16_t port;
	bool destination_is_local; /* an address of the pod; 127/8 and ::1 are known anyway */
	uint32_t uid, gid;	   /* the opener's, outbound only */
	uint32_t mark;		   /* outbound: the socket's; inbound: the packet's */
	bool knows_kubelet;	   /* by an engine to which no address stands for kubelet */
	const char *interface;	   /* it leaves or comes in by; NULL: one that no rule names */
};
uint32_t redirect_plan_facts(const struct redirect_plan *plan, const struct plan_flow *flow);

/* Does the pod's proxy need ::6 on lo? Only one in the pod hands inbound traffic on from there. */
static inline bool redirect_plan_wants_passthrough(const struct redirect_plan *plan)
{
	return plan->capture_ipv6 && !plan->ambient && !plan->node_proxy;
}

/* Why only eBPF can do this plan; NULL: others can as well. */
const char *redirect_plan_needs_ebpf(const struct redirect_plan *plan);

/* The deciding rule; a static RULE_NONE/PLAN_PASS rule when none matches. Never NULL. */
const struct plan_rule *redirect_plan_decide(const struct redirect_plan *plan,
					     const struct plan_flow *flow);

/* "out-port-excluded" (metrics, JSON) and a sentence for people. */
const char *plan_rule_name(enum plan_rule_id id);
const char *plan_rule_sentence(enum plan_rule_id id);

#endif
