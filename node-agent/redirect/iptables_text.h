/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_IPTABLES_TEXT_H
#define SOCKMESH_IPTABLES_TEXT_H

/*
 * Rules of ours in the notation of iptables-save and iptables-restore, one family at a time: made
 * from a plan's netfilter rules, read back from what the kernel has, compared, and the input that
 * turns the one into the other. Ours is every chain whose name starts with SOCKMESH_, and every
 * rule of another chain that jumps to one. Pure.
 */
#include "netfilter_rules.h"

struct error;

#define IPTABLES_CHAIN_PREFIX "SOCKMESH_"

enum { IPTABLES_CHAIN_MAX = 32, IPTABLES_TABLE_MAX = 16 };

struct iptables_rule {
	char *spec; /* what follows "-A CHAIN " */
	uint64_t packets;
};

struct iptables_chain {
	char table[IPTABLES_TABLE_MAX], name[IPTABLES_CHAIN_MAX];
	struct iptables_rule *rules;
	size_t n_rules;
	char **jumps; /* to this chain from others: "OUTPUT -j NAME" */
	size_t n_jumps;
	bool is_behind; /* a rule of somebody else's comes before one of the jumps */
};

struct iptables_set {
	struct iptables_chain *chains;
	size_t n;
};
void iptables_set_done(struct iptables_set *set);

const struct iptables_chain *iptables_set_find(const struct iptables_set *set, const char *name);

/* Forgets every chain but this one. */
void iptables_set_keep(struct iptables_set *set, const char *name);

/* The value of an option of a rule, NULL when it has it not; *ret_copy, to be freed, holds it. */
const char *iptables_option_value(const char *spec, const char *option, char **ret_copy);

/* Adds an empty chain to table nat: a note to later agents, which no packet sees. -ENOMEM. */
int iptables_set_add_mark(struct iptables_set *set, const char *name, struct error *err);

/*
 * What the rules of one family become. A rule that needs several lines (lists) becomes them.
 * comments: with the rule's comment in each line, by which counters are found again. -EINVAL when
 * an interface's name cannot be written; -E2BIG.
 */
struct iptables_form {
	bool ipv6, comments;
};
int iptables_text_render(const struct nf_rules *rules, struct iptables_form form,
			 struct iptables_set *ret, struct error *err);

/* What iptables-save printed, with or without counters; other people's rules are passed over. */
int iptables_text_parse(const char *saved, struct iptables_set *ret, struct error *err);

/*
 * Input for iptables-restore --noflush that turns `from` into `to`, NULL when there is nothing to
 * do. Each table is one commit. Tables in the order raw, mangle, nat, or the other way round when
 * the rules go, so that nothing is translated without the zones and marks that it needs.
 */
enum iptables_order { IPTABLES_NAT_LAST, IPTABLES_NAT_FIRST };
int iptables_text_change(const struct iptables_set *from, const struct iptables_set *to,
			 enum iptables_order order, char **ret, struct error *err);

/* -ENODEV, naming the first difference. The order of options within a rule is none. */
int iptables_text_compare(const struct iptables_set *kernel, const struct iptables_set *wanted,
			  struct error *err);

/*
 * What is left of captured connections when it is not known what captured them: nothing new is
 * redirected and marked but by `drain`, which are the rules of that stage for what is known; what
 * else there is outside of nat stays.
 */
int iptables_text_drain(const struct iptables_set *captured, const struct nf_rules *drain,
			struct iptables_form form, struct iptables_set *ret, struct error *err);

/* Packets of all rules with this comment. */
uint64_t iptables_set_packets(const struct iptables_set *set, const char *comment);

#endif
