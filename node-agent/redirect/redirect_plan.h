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

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

/* Facts about one connection (TCP) or datagram (UDP). Bit numbers are shared with bpf/ (abi). */
enum plan_fact {
	FACT_TCP = 1u << 0,
	FACT_UDP = 1u << 1,
	FACT_IPV6 = 1u << 2,	      /* not v4-mapped */
	FACT_OUT_LO = 1u << 3,	      /* the destination is local: 127/8, ::1 or an own address */
	FACT_SRC_P6 = 1u << 4,	      /* the source is bound to 127.0.0.6 or ::6 */
	FACT_DST_LO = 1u << 5,	      /* inside plan->loopback4, or ::1 */
	FACT_PORT_DNS = 1u << 6,      /* destination port 53 */
	FACT_PORT_TUNNEL = 1u << 7,   /* destination port is plan->tunnel_port */
	FACT_UID_PROXY = 1u << 8,     /* the opener's uid is a proxy uid */
	FACT_GID_PROXY = 1u << 9,     /* the opener's gid is a proxy gid */
	FACT_GROUP_EXEMPT = 1u << 10, /* owner-group filter says: not captured */
	FACT_PORT_EXCLUDED = 1u << 11, /* port in the list's exclude set */
	FACT_PORT_INCLUDED = 1u << 12, /* port in the list's include set */
	FACT_CIDR_EXCLUDED = 1u << 13, /* outbound: destination in an excluded prefix */
	FACT_CIDR_INCLUDED = 1u << 14, /* outbound: destination in an included prefix */
};

enum plan_verdict { PLAN_PASS, PLAN_REDIRECT };

/* Which rule it is, for counters, explain and tests; the order is the order of evaluation. */
enum plan_rule_id {
	RULE_NONE, /* no rule matched: passes */
	RULE_IPV6_OFF,
	RULE_OUT_PORT_EXCLUDED,	     /* O2 */
	RULE_OUT_SRC_P6,	     /* O3 */
	RULE_OUT_PROXY_UID_TO_SELF,  /* O4, to the inbound port */
	RULE_OUT_APP_TO_SELF_UID,    /* O5 */
	RULE_OUT_PROXY_UID,	     /* O6 */
	RULE_OUT_PROXY_GID_TO_SELF,  /* O7, to the inbound port */
	RULE_OUT_APP_TO_SELF_GID,    /* O8 */
	RULE_OUT_PROXY_GID,	     /* O9 */
	RULE_OUT_GROUP_EXEMPT,	     /* O10 */
	RULE_OUT_DNS_TCP,	     /* O11, to the DNS port */
	RULE_OUT_DNS_UDP,	     /* O11, to the DNS port */
	RULE_OUT_LOOPBACK,	     /* O12 */
	RULE_OUT_CIDR_EXCLUDED,	     /* O13 */
	RULE_OUT_PORT_INCLUDED,	     /* O14, to the outbound port */
	RULE_OUT_ALL,		     /* O15, to the outbound port */
	RULE_OUT_CIDR_INCLUDED,	     /* O15 with a list */
	RULE_IN_TUNNEL,		     /* I3 */
	RULE_IN_PORT_EXCLUDED,	     /* I4 */
	RULE_IN_ALL,		     /* I5, to the inbound port */
	RULE_IN_PORT_INCLUDED,	     /* I5 with a list */
	RULE_ID_COUNT_,
};

struct plan_rule {
	enum plan_rule_id id;
	uint32_t all_of;  /* facts that must hold */
	uint32_t none_of; /* facts that must not hold */
	enum plan_verdict verdict;
	uint16_t port; /* PLAN_REDIRECT: the proxy's port, host order */
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

enum { PLAN_RULES_MAX = 24 };

struct redirect_plan {
	struct plan_rule outbound[PLAN_RULES_MAX];
	size_t n_outbound;
	struct plan_rule inbound[PLAN_RULES_MAX];
	size_t n_inbound;

	uint16_t outbound_port, inbound_port; /* host order */
	uint16_t dns_port;		      /* 0: no DNS capture */
	uint16_t tunnel_port;		      /* 15008 for istio; 0: the mesh has none */
	bool capture_ipv6;
	struct ip_prefix loopback4; /* what counts as IPv4 loopback, 127.0.0.1/32 */

	struct id_list proxy_uids, proxy_gids;
	struct id_list groups; /* owner-group filter */
	bool groups_exempt;    /* true: groups are exempt; false: only groups are captured */

	struct port_list outbound_exclude_ports, outbound_include_ports;
	struct port_list inbound_exclude_ports, inbound_include_ports;
	struct prefix_list exclude_prefixes, include_prefixes;
};

/* Settings of one pod as pod_policy read them; redirect_plan_build() turns them into rules. */
struct redirect_settings {
	uint16_t outbound_port, inbound_port, dns_port, tunnel_port;
	bool dns_capture;
	bool capture_ipv6;
	struct ip_prefix loopback4;
	struct id_list proxy_uids, proxy_gids;
	struct id_list groups;
	bool groups_set, groups_exempt;
	bool outbound_include_all;	 /* includeOutboundIPRanges: "*" */
	bool inbound_include_all;	 /* includeInboundPorts: "*" */
	struct port_list outbound_exclude_ports, outbound_include_ports;
	struct port_list inbound_exclude_ports, inbound_include_ports;
	struct prefix_list exclude_prefixes, include_prefixes;
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
	struct ip_address source;      /* outbound: bound source, unspecified when not bound */
	struct ip_address destination; /* as the opener dialled it */
	uint16_t port;
	bool destination_is_local; /* an address of the pod; 127/8 and ::1 are known anyway */
	uint32_t uid, gid;	   /* the opener's, outbound only */
};
uint32_t redirect_plan_facts(const struct redirect_plan *plan, const struct plan_flow *flow);

/* The deciding rule; a static RULE_NONE/PLAN_PASS rule when none matches. Never NULL. */
const struct plan_rule *redirect_plan_decide(const struct redirect_plan *plan,
					     const struct plan_flow *flow);

/* "out-port-excluded" (metrics, JSON) and a sentence for people. */
const char *plan_rule_name(enum plan_rule_id id);
const char *plan_rule_sentence(enum plan_rule_id id);

#endif
