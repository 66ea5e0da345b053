/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ABI_H
#define SOCKMESH_ABI_H

/*
 * Types that the BPF programs share with user space: every map's key and value. They are part of
 * what is pinned, so a change of any of them raises SOCKMESH_ABI_VERSION, which names the pin
 * directory. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in host
 * order unless the name ends in _be.
 */
#include <linux/types.h>

#include "plan_facts.h"

/* A policy's id is below this, so that its id and a family fit one 32-bit word. */
#define POLICY_ID_MAX 0x7fffffffu

enum {
	SOCKMESH_ABI_VERSION = 2,

	POD_RULES_OUTBOUND_MAX = 24,
	POD_RULES_INBOUND_MAX = 8,
	HANDOVER_SLACK = 4096, /* room in the map beyond the limit, see handover.bpf.h */
	LISTENER_SLOTS = 16,   /* listeners of one pod that inbound steering chooses from */
	DNS_ASKED_MAX = 16,    /* unanswered questions remembered per socket and family */
	RULE_COUNTERS = 64,
};

struct addr16 {
	__u32 w[4];
};

struct endpoint {
	struct addr16 addr;
	__u16 port;
	__u16 pad;
};

struct pod_rule {
	__u32 all_of, none_of;
	__u16 port;
	__u8 redirect; /* 0: pass */
	__u8 id;       /* enum plan_rule_id */
};

enum pod_flags {
	POD_ACTIVE = 1 << 0,	    /* without it, listeners register but nothing is captured */
	POD_HAS_GROUPS = 1 << 1,    /* there is an owner-group filter */
	POD_GROUPS_EXEMPT = 1 << 2, /* it lists who is exempt, not who is captured */
	POD_HAS_PORTS = 1 << 3,	    /* the port sets are worth a lookup */
	POD_HAS_PREFIXES = 1 << 4,
	/* What the agent has changed in the namespace, and changes back. */
	POD_ADDED_PASSTHROUGH = 1 << 5, /* ::6/128 on lo */
	POD_IS_AMBIENT = 1 << 6,	/* the proxy is ztunnel, known by its sockets' mark */
	POD_SET_FWMARK_ACCEPT = 1 << 7, /* the sysctl of that name was 0 */
	POD_SET_REFLECT4 = 1 << 8,	/* fwmark_reflect was 0 */
	POD_SET_REFLECT6 = 1 << 9,
	POD_ADDED_ROUTES = 1 << 10, /* the rule and the route of AMBIENT_MARK_REPLY */
	POD_NODE_PROXY = 1 << 11,   /* the proxy is in another namespace of the node: proxy4/6 */
	POD_LEAVES =
		1 << 12, /* not active, for no other engine: ztunnel still speaks for clients */
};

/* Which of them say what was changed; the others follow from the plan. */
#define POD_CHANGES                                                                                \
	(POD_ADDED_PASSTHROUGH | POD_SET_FWMARK_ACCEPT | POD_SET_REFLECT4 | POD_SET_REFLECT6 |     \
	 POD_ADDED_ROUTES)

/* pods: key is the network namespace's cookie. Replaced as a whole, so a change is atomic. */
struct pod_config {
	__u64 netns;  /* its own key: see pod_is_still() */
	__u32 policy; /* id of its entries in id_sets, port_sets and prefix_sets */
	__u32 flags;
	__u16 outbound_port, inbound_port, dns_port, tunnel_port;
	__u32 loopback4_be, loopback4_mask_be;
	__u32 n_outbound, n_inbound;
	struct addr16 source4, source6; /* the pod's primary addresses; all zero: none */
	struct addr16 proxy4, proxy6;	/* with POD_NODE_PROXY the proxy's; all zero: none */
	struct pod_rule outbound[POD_RULES_OUTBOUND_MAX];
	struct pod_rule inbound[POD_RULES_INBOUND_MAX];
};

/* local_addresses: the addresses that are the pod's own, any prefix length, any interface. */
struct local_address_key {
	__u64 netns;
	struct addr16 addr;
};

/* id_sets: what a uid or gid, as the initial user namespace numbers it, is to a policy. */
enum id_set_bits {
	ID_PROXY_UID = 1 << 0,
	ID_PROXY_GID = 1 << 1,
	ID_GROUP = 1 << 2, /* in the owner-group filter */
};

struct id_set_key {
	__u32 policy;
	__u32 id;
};

/* port_sets: which sets of a policy a port is in. */
enum port_set_bits {
	PORT_OUT_EXCLUDED = 1 << 0,
	PORT_OUT_INCLUDED = 1 << 1,
	PORT_IN_EXCLUDED = 1 << 2,
	PORT_IN_INCLUDED = 1 << 3,
};

struct port_set_key {
	__u32 policy;
	__u16 port;
	__u16 pad;
};

/*
 * prefix_sets: longest prefix match. User space stores with each prefix the bits of all prefixes
 * that cover it, so one lookup answers for every set.
 */
enum prefix_set_bits {
	PREFIX_EXCLUDED = 1 << 0,
	PREFIX_INCLUDED = 1 << 1,
};

struct prefix_set_key {
	__u32 prefixlen;     /* 32 (policy_family) + 0..128 */
	__u32 policy_family; /* families never mix: ::/0 holds no IPv4 address */
	struct addr16 addr;
};

static inline __u32 prefix_policy_family(__u32 policy, int is_v4)
{
	return policy * 2 + (is_v4 ? 1 : 0);
}

/*
 * handovers: one entry from the moment a captured connection's ports are known until its other
 * end, the proxy's accepted socket, has taken the original destination over. The tuple is the
 * connecting socket's. Of an ambient pod also: one for each connection that ztunnel opens to the
 * application with a client's address as its source, until the application's end is there. Where
 * the kernel looks for a listener, nothing else tells it from a client's.
 *
 * HANDOVER_TO_NODE: the other end is in another network namespace. The key has none then, and the
 * sequence number of the SYN instead, which only the two ends of that one connection know: neither
 * a later connection with the same tuple nor one of a namespace that somebody has given the same
 * addresses finds the entry.
 */
enum handover_kind { HANDOVER_ORIGINAL, HANDOVER_TO_APP, HANDOVER_TO_NODE };

struct handover_key {
	__u64 netns; /* HANDOVER_TO_NODE: 0 */
	struct addr16 local, remote;
	__u16 local_port, remote_port;
	__u32 isn; /* HANDOVER_TO_NODE; else 0 */
};

struct handover {
	struct endpoint original;
	__u32 kind;
	__u64 cookie; /* of the connecting socket: only it may withdraw the entry */
	__u64 netns;  /* of the connecting socket, whose place it is */
};

/*
 * probes: connections that kubelet opens to ambient pods, from before their SYN until the pod's end
 * is there or kubelet's is gone. The key's namespace is 0, its tuple kubelet's. An older entry than
 * PROBE_NS is nobody's: a connection ends earlier, and what a missed end leaves must not be a hole.
 */
#define PROBE_NS 180000000000ull

struct probe {
	__u64 cookie; /* of kubelet's socket: only it withdraws the entry */
	__u64 at_ns;
	__u32 recognised; /* the pod has let it pass */
	__u32 pad;
};

/* probe_counters, per CPU. */
enum probe_event {
	PROBE_ANNOUNCED,
	PROBE_RECOGNISED,
	PROBE_NOT_RECOGNISED, /* established, but not as it left: somebody rewrites its source */
	PROBE_NO_ROOM,	      /* it goes the way of any other connection */
	PROBE_EVENTS,
};

/* gauges: hand-over places taken; key 0 is the node, others are namespace cookies. */
struct gauge {
	__u32 handovers;
	__u32 pad;
};

enum event_counter {
	EVENT_RECORD_FAILED,	   /* refused: no memory for the socket's record */
	EVENT_HANDOVER_NODE_LIMIT, /* refused: the node's hand-over places are taken */
	EVENT_HANDOVER_POD_LIMIT,  /* refused: the pod's hand-over places are taken */
	EVENT_HANDOVER_LOST,	   /* entry could not be made: the proxy gets ENOENT */
	EVENT_HANDOVER_MISS,	   /* accepted a local connection that nobody handed over */
	EVENT_NO_LISTENER,	   /* inbound refused: the proxy does not listen */
	EVENT_LISTENER_SLOTS_FULL, /* a listener took over another one's slot */
	EVENT_LISTENER_FAILED,	   /* a listener could not be registered */
	EVENT_LISTENER_NOT_PROXY,  /* the inbound port is listened on by somebody else */
	EVENT_SOURCE_NOT_BOUND,	   /* captured, but the peer that the proxy sees is loopback */
	EVENT_DNS_OVERFLOW,	   /* an unanswered question was forgotten */
	EVENT_ORIGINAL_DST,	   /* SO_ORIGINAL_DST answered */
	EVENT_NO_PROXY_ADDRESS,	   /* refused: the node proxy has no address of that family */
	EVENT_HANDOVER_UNTAKEN,	   /* the node proxy has answered, and never took the entry */
	EVENT_COUNTERS,
};

/* pod_counters (key: cookie) and node_counters (for what belongs to no pod), per CPU. */
struct counters {
	__u64 rule[RULE_COUNTERS]; /* by enum plan_rule_id */
	__u64 event[EVENT_COUNTERS];
};

struct listener_key {
	__u64 netns;
	__u32 slot;
	__u32 pad;
};

/* Ring buffer to the agent: things that it has to act on or say. Losing one loses no traffic. */
enum notice_type {
	NOTICE_LISTENER_LEFT = 1,
	NOTICE_EVENT = 2,
	NOTICE_LISTENER_UNMARKED = 3, /* of an ambient pod: may get its mark now that it listens */
};

struct notice {
	__u32 type;
	__u32 event; /* enum event_counter, for NOTICE_EVENT */
	__u64 netns;
};

/* ---- socket storage: state that dies with its socket ---------------------------------------- */

enum capture_state {
	CAPTURE_NONE,
	CAPTURE_PENDING,  /* decided in connect(), ports not known yet */
	CAPTURE_HANDED,	  /* the hand-over entry was made */
	CAPTURE_DATAGRAM, /* connected UDP: no hand-over */
};

/* captures: on the connecting socket. */
struct capture {
	struct endpoint original;
	struct endpoint rewritten; /* what the kernel believes the peer is */
	__u64 netns;
	struct handover_key key;
	__u32 state;
	__u32 kind; /* enum handover_kind */
};

/* accepted_dsts: on the socket that the proxy accepted. */
enum accepted_kind { ACCEPTED_RECORD = 1, ACCEPTED_MISS = 2 };

struct accepted_dst {
	struct endpoint original;
	__u32 kind;
};

/* kubelet_sockets: on kubelet's sockets that connect to a pod. */
struct kubelet_socket {
	struct handover_key key; /* in probes */
	__u32 announced;
	__u32 pad;
};

/* listener_marks: on the proxy's inbound listeners, cloned to what they accept. */
struct listener_mark {
	__u32 inbound;
};

/* dns_asked: on unconnected UDP sockets: whom they asked, oldest first, for each family. */
struct dns_question {
	__u64 at_ns;
	struct endpoint server;
	__u32 pad;
};

struct dns_ring {
	__u32 first, n;
	struct endpoint last; /* the server of the last answer, for one too many */
	struct endpoint via;  /* where the questions went instead */
	struct dns_question asked[DNS_ASKED_MAX];
};

struct dns_asked {
	__u32 lock; /* struct bpf_spin_lock */
	__u32 pad;
	struct dns_ring v4, v6;
};

_Static_assert(sizeof(struct endpoint) == 20, "endpoint layout");
_Static_assert(sizeof(struct pod_rule) == 12, "pod_rule layout");
_Static_assert(sizeof(struct local_address_key) == 24, "local_address_key layout");
_Static_assert(sizeof(struct port_set_key) == 8, "port_set_key layout");
_Static_assert(sizeof(struct prefix_set_key) == 24, "prefix_set_key layout");
_Static_assert(sizeof(struct handover_key) == 48, "handover_key layout");
_Static_assert(sizeof(struct handover) == 40, "handover layout");
_Static_assert(sizeof(struct probe) == 24, "probe layout");
_Static_assert(sizeof(struct listener_key) == 16, "listener_key layout");
_Static_assert((int)RULE_ID_COUNT_ <= (int)RULE_COUNTERS, "a counter for every rule");

#endif
