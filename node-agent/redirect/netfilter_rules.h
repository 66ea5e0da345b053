/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETFILTER_RULES_H
#define SOCKMESH_NETFILTER_RULES_H

/*
 * A plan as netfilter rules, in a form that neither nftables nor iptables owns: chains, matches and
 * verdicts in order. Both engines render exactly this, so what they do differs only in notation.
 * docs/engines.md has the table that explains each rule. Pure.
 */
#include "netfilter_routes.h"
#include "redirect_plan.h"

struct error;

/* All in tables of our own (nftables) or chains of our own (iptables). */
enum nf_chain {
	NF_RAW_PREROUTING,    /* priority -300: conntrack zones of DNS */
	NF_RAW_OUTPUT,	      /* -300 */
	NF_MANGLE_PREROUTING, /* -150 */
	NF_MANGLE_TPROXY,     /* jumped to from NF_MANGLE_PREROUTING */
	NF_MANGLE_OUTPUT,     /* -150, type route: a changed mark routes again */
	NF_NAT_PREROUTING,    /* -100 */
	NF_NAT_OUTPUT,	      /* -100 */
	NF_CHAIN_COUNT_,
};

enum nf_match_type {
	NF_MATCH_PROTOCOL,  /* value: IPPROTO_TCP or IPPROTO_UDP */
	NF_MATCH_FIRST_SYN, /* TCP flags: SYN of FIN, SYN, RST, ACK; needs PROTOCOL TCP before it */
	NF_MATCH_DESTINATION_PORT, /* value or ports; after a PROTOCOL */
	NF_MATCH_SOURCE_PORT,	   /* value; after a PROTOCOL */
	NF_MATCH_SOURCE,	   /* prefix; the rule has a family */
	NF_MATCH_DESTINATION,	   /* prefix, or prefixes of the rule's family */
	NF_MATCH_IN_INTERFACE,	   /* names, or "lo" */
	NF_MATCH_OUT_INTERFACE,	   /* the same */
	NF_MATCH_UID,		   /* ids, of who opened the socket; no socket: no match */
	NF_MATCH_GID,		   /* ids */
	NF_MATCH_MARK,		   /* value, under mask */
	NF_MATCH_CONNECTION_MARK,  /* the same */
	NF_MATCH_STATE,		   /* value: enum nf_state */
	NF_MATCH_FROM_OPENER,	   /* goes the way that the connection's first packet went */
	NF_MATCH_NEVER,
};

enum nf_state { NF_STATE_INVALID, NF_STATE_RELATED_ESTABLISHED };

/* A list is "any of"; negated, "none of". Exactly one of value, prefix and list is meant. */
struct nf_match {
	enum nf_match_type type;
	bool negated;
	uint32_t value;
	uint32_t mask; /* of a mark; 0: all bits */
	struct ip_prefix prefix;
	const struct port_list *ports; /* lists borrow the plan's, but for prefixes */
	const struct id_list *ids;
	const struct name_list *names;
	const struct prefix_list
		*prefixes; /* of one family, none covers another; the rules own it */
};

enum nf_verdict {
	NF_RETURN, /* this chain is done with the packet; other people's rules go on */
	NF_ACCEPT, /* the hook is done with it */
	NF_DROP,
	NF_REDIRECT,		/* value: port */
	NF_TPROXY,		/* value: port; and sets mark NF_MARK_TPROXY */
	NF_ZONE,		/* value: conntrack zone */
	NF_SET_MARK,		/* value, to the bits of mask; goes on */
	NF_SET_CONNECTION_MARK, /* the same of the connection's */
	NF_SAVE_MARK,		/* packet's to connection's; goes on */
	NF_RESTORE_MARK,	/* connection's to packet's; goes on */
	NF_JUMP_TPROXY,		/* to NF_MANGLE_TPROXY */
};

enum { NF_MARK_TPROXY = 1337, NF_MARK_TPROXY_SELF = 1338, NF_TABLE_TPROXY = 133 };
enum { NF_MATCHES_MAX = 10 };

enum nf_family { NF_ANY_FAMILY, NF_IPV4, NF_IPV6 };

struct nf_rule {
	enum nf_chain chain;
	enum nf_family family;
	enum plan_rule_id id; /* RULE_NONE for what is not in the plan, like zones */
	const char *comment;  /* static; plan_rule_name(id), or what it is for: "dns-zone" */
	struct nf_match matches[NF_MATCHES_MAX];
	size_t n_matches;
	enum nf_verdict verdict;
	uint32_t value;
	uint32_t mask; /* of a mark that is set; 0: all bits */
};

enum nf_stage {
	NF_CAPTURE, /* the plan */
	/*
	 * The plan, while the eBPF engine has the pod as well: connections on lo to the proxy's own
	 * ports are left alone, because that engine has sent them there and has recorded why.
	 */
	NF_CAPTURE_BESIDE_EBPF,
	/*
	 * Captures nothing new; keeps conntrack, its zones, nat hooks and the marks of TPROXY and
	 * of ambient working for the connections that were captured before.
	 */
	NF_DRAIN,
	/*
	 * The same where no other engine takes over. Until ztunnel has heard of it, it still opens
	 * connections to the app; they get their answers too.
	 */
	NF_DRAIN_LEAVING,
};

struct nf_rules {
	struct nf_rule *rules; /* in order within each chain; chains in enum order */
	size_t n;
	enum netfilter_routes routes; /* that the rules need */
	bool captures_ipv6;	      /* false: IPv6 rules may be left out altogether */
	bool wants_passthrough;	      /* ::6 on lo, which Envoy binds and ztunnel does not */
	struct prefix_list *owned;    /* what prefix matches point to */
	size_t n_owned;
};

/*
 * Borrows from `plan`, which must live as long. Ids are as the pod's own user namespace numbers
 * them: netfilter compares in the user namespace of the packet's network namespace.
 */
int netfilter_rules_build(const struct redirect_plan *plan, enum nf_stage stage,
			  struct nf_rules *ret, struct error *err);
void netfilter_rules_done(struct nf_rules *rules);

#endif
