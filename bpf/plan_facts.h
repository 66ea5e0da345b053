/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_PLAN_FACTS_H
#define SOCKMESH_PLAN_FACTS_H

/*
 * The vocabulary of redirect plans: facts about a connection and the rules that are made of them.
 * One definition for user space and for the BPF programs, which compile without libc headers.
 */

/* Facts about one connection (TCP) or datagram (UDP). Bit numbers are shared with bpf/ (abi). */
enum plan_fact {
	FACT_TCP = 1u << 0,
	FACT_UDP = 1u << 1,
	FACT_IPV6 = 1u << 2,	       /* not v4-mapped */
	FACT_OUT_LO = 1u << 3,	       /* the destination is local: 127/8, ::1 or an own address */
	FACT_SRC_P6 = 1u << 4,	       /* the source is bound to 127.0.0.6 or ::6 */
	FACT_DST_LO = 1u << 5,	       /* inside plan->loopback4, or ::1 */
	FACT_PORT_DNS = 1u << 6,       /* destination port 53 */
	FACT_PORT_TUNNEL = 1u << 7,    /* destination port is plan->tunnel_port */
	FACT_UID_PROXY = 1u << 8,      /* the opener's uid is a proxy uid */
	FACT_GID_PROXY = 1u << 9,      /* the opener's gid is a proxy gid */
	FACT_GROUP_EXEMPT = 1u << 10,  /* owner-group filter says: not captured */
	FACT_PORT_EXCLUDED = 1u << 11, /* port in the list's exclude set */
	FACT_PORT_INCLUDED = 1u << 12, /* port in the list's include set */
	FACT_CIDR_EXCLUDED = 1u << 13, /* outbound: destination in an excluded prefix */
	FACT_CIDR_INCLUDED = 1u << 14, /* destination in an included prefix */
	/* Of the device that the packet leaves by or comes in by; sockets do not know it. */
	FACT_IF_EXCLUDED = 1u << 15,
	FACT_IF_REROUTED = 1u << 16, /* inbound: it carries a guest's outbound packets */
	/* Ambient: the mark of the socket (outbound) or of the packet. */
	FACT_MARK_PROXY = 1u << 17, /* ztunnel's own sockets: 0x539 under mask 0xfff */
	FACT_MARK_REPLY = 1u << 18, /* answers to ztunnel's: 0x111 under mask 0xfff */
	/*
	 * Ambient on netfilter: the address that stands for kubelet. The eBPF engine recognises
	 * kubelet's connections themselves; to it these two never hold.
	 */
	FACT_SRC_PROBE = 1u << 19,
	FACT_DST_PROBE = 1u << 20,
	FACT_DST_PROXY = 1u << 21, /* an address of the node proxy; no other plan knows one */
};

/* What marks mean to ztunnel and to routing in an ambient pod (architecture of Istio's ambient). */
enum ambient_mark {
	AMBIENT_MARK_MASK = 0xfff,
	AMBIENT_MARK_PROXY = 0x539,
	AMBIENT_MARK_REPLY = 0x111,
	AMBIENT_ROUTE_TABLE = 100,
	AMBIENT_RULE_PREFERENCE = 32764,
};

/* Which rule it is, for counters, explain and tests. Counters are pinned: new ones go last. */
enum plan_rule_id {
	RULE_NONE, /* no rule matched: passes */
	RULE_IPV6_OFF,
	RULE_OUT_PORT_EXCLUDED,	    /* O2 */
	RULE_OUT_SRC_P6,	    /* O3 */
	RULE_OUT_PROXY_UID_TO_SELF, /* O4, to the inbound port */
	RULE_OUT_APP_TO_SELF_UID,   /* O5 */
	RULE_OUT_PROXY_UID,	    /* O6 */
	RULE_OUT_PROXY_GID_TO_SELF, /* O7, to the inbound port */
	RULE_OUT_APP_TO_SELF_GID,   /* O8 */
	RULE_OUT_PROXY_GID,	    /* O9 */
	RULE_OUT_GROUP_EXEMPT,	    /* O10 */
	RULE_OUT_DNS_TCP,	    /* O11, to the DNS port */
	RULE_OUT_DNS_UDP,	    /* O11, to the DNS port */
	RULE_OUT_LOOPBACK,	    /* O12 */
	RULE_OUT_CIDR_EXCLUDED,	    /* O13 */
	RULE_OUT_PORT_INCLUDED,	    /* O14, to the outbound port */
	RULE_OUT_ALL,		    /* O15, to the outbound port */
	RULE_OUT_CIDR_INCLUDED,	    /* O15 with a list */
	RULE_IN_TUNNEL,		    /* I3 */
	RULE_IN_PORT_EXCLUDED,	    /* I4 */
	RULE_IN_ALL,		    /* I5, to the inbound port */
	RULE_IN_PORT_INCLUDED,	    /* I5 with a list */
	RULE_OUT_IF_EXCLUDED,	    /* O1 */
	RULE_OUT_TPROXY_SELF,	    /* TPROXY: what is left of own calls, to the inbound port */
	RULE_IN_IF_REROUTED,	    /* I0, to the outbound port */
	RULE_IN_IF_REROUTED_REST,   /* I0, what is left of such an interface's packets */
	RULE_IN_IF_EXCLUDED,	    /* I1 */
	RULE_OUT_PROXY_MARK,	    /* ambient: ztunnel's own */
	RULE_OUT_PROBE,		    /* ambient: to the address that stands for kubelet */
	RULE_OUT_REPLY_MARK,	    /* ambient: an answer to ztunnel */
	RULE_OUT_TO_SELF,	    /* ambient: to the pod's own address */
	RULE_IN_PROBE,		    /* ambient: kubelet's probe */
	RULE_OUT_TO_NODE_PROXY,	    /* ambient by the node proxy: to that proxy itself */
	RULE_ID_COUNT_,
};

#endif
