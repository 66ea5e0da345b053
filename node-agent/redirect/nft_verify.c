/* SPDX-License-Identifier: Apache-2.0 */
#include "nft_verify.h"

#include "error.h"
#include "scoped.h"

#include <errno.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <linux/netfilter/nf_tables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMMENT_MAX = 128, EXPRESSION_MAX = 1024, POLICY_ACCEPT = 1 };

/* ---- rules as text -------------------------------------------------------------------------- */

static const struct nft_set *set_of(const struct nftnl_expr *lookup, const struct nft_set *sets,
				    size_t n)
{
	const char *name = nftnl_expr_get_str(lookup, NFTNL_EXPR_LOOKUP_SET);
	bool by_id = nftnl_expr_is_set(lookup, NFTNL_EXPR_LOOKUP_SET_ID);
	uint32_t id = nftnl_expr_get_u32(lookup, NFTNL_EXPR_LOOKUP_SET_ID);

	for (size_t i = 0; i < n; i++)
		if (by_id ? sets[i].id == id : name && !strcmp(sets[i].name, name))
			return &sets[i];
	return NULL;
}

/* The kernel gives an anonymous set its name; what counts is what is in it. */
static void print_lookup(FILE *out, const struct nftnl_expr *lookup, const struct nft_set *sets,
			 size_t n)
{
	const struct nft_set *set = set_of(lookup, sets, n);

	fprintf(out, "lookup %u %u", nftnl_expr_get_u32(lookup, NFTNL_EXPR_LOOKUP_SREG),
		nftnl_expr_get_u32(lookup, NFTNL_EXPR_LOOKUP_FLAGS));
	if (!set) { /* one with a name, or none at all */
		fprintf(out, " %s\n", nftnl_expr_get_str(lookup, NFTNL_EXPR_LOOKUP_SET));
		return;
	}
	fprintf(out, " in %u %u %u {", set->key_type, set->key_len, set->flags);
	for (size_t i = 0; i < set->n; i++) {
		fputs(set->elements[i].interval_end ? " -" : " ", out);
		for (size_t k = 0; k < set->key_len && k < sizeof(set->elements[i].key); k++)
			fprintf(out, "%02x", set->elements[i].key[k]);
	}
	fputs(" }\n", out);
}

static void print_expressions(FILE *out, const struct nftnl_rule *rule, const struct nft_set *sets,
			      size_t n)
{
	struct nftnl_expr_iter *iter = nftnl_expr_iter_create(rule);
	struct nftnl_expr *e;
	char buf[EXPRESSION_MAX];

	while (iter && (e = nftnl_expr_iter_next(iter))) {
		const char *name = nftnl_expr_get_str(e, NFTNL_EXPR_NAME);

		if (name && !strcmp(name, "lookup")) {
			print_lookup(out, e, sets, n);
			continue;
		}
		buf[0] = '\0';
		if (!name || strcmp(name, "counter") != 0)
			nftnl_expr_snprintf(buf, sizeof(buf), e, NFTNL_OUTPUT_DEFAULT, 0);
		fprintf(out, "%s %s\n", name ? name : "?", buf);
	}
	if (iter)
		nftnl_expr_iter_destroy(iter);
}

static char *rule_text(const struct nftnl_rule *rule, const struct nft_set *sets, size_t n)
{
	char *text = NULL, comment[COMMENT_MAX];
	size_t size;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return NULL;
	fprintf(out, "%s:\n", nft_rule_comment(rule, comment, sizeof(comment)));
	print_expressions(out, rule, sets, n);
	if (fclose(out) != 0) {
		free(text);
		return NULL;
	}
	return text;
}

bool nft_same_rule(const struct nftnl_rule *a, const struct nftnl_rule *b)
{
	const char *chains[] = {nftnl_rule_get_str(a, NFTNL_RULE_CHAIN),
				nftnl_rule_get_str(b, NFTNL_RULE_CHAIN)};
	scoped_free char *left = rule_text(a, NULL, 0), *right = rule_text(b, NULL, 0);

	return left && right && !strcmp(left, right) && chains[0] && chains[1] &&
	       !strcmp(chains[0], chains[1]);
}

/* ---- one chain ------------------------------------------------------------------------------ */

struct rule_texts {
	char **texts;
	size_t n;
};

static void rule_texts_done(struct rule_texts *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->texts[i]);
	free(list->texts);
}

static int append(struct rule_texts *list, const struct nftnl_rule *rule,
		  const struct nft_set *sets, size_t n_sets)
{
	char *text = rule_text(rule, sets, n_sets), **grown;

	grown = reallocarray(list->texts, list->n + 1, sizeof(*grown));
	if (grown)
		list->texts = grown;
	if (!grown || !text) {
		free(text);
		return -ENOMEM;
	}
	list->texts[list->n++] = text;
	return 0;
}

static int texts_in_kernel(const struct nft_table *t, const char *chain, struct rule_texts *list)
{
	for (size_t i = 0; i < t->n_rules; i++) {
		const char *in = nftnl_rule_get_str(t->rules[i], NFTNL_RULE_CHAIN);

		if (in && !strcmp(in, chain) && append(list, t->rules[i], t->sets, t->n_sets) < 0)
			return -ENOMEM;
	}
	return 0;
}

static int texts_of_image(const struct nft_image *want, const char *chain, struct rule_texts *list)
{
	for (size_t i = 0; i < want->n_rules; i++)
		if (!strcmp(want->rules[i].chain, chain) &&
		    append(list, want->rules[i].rule, want->sets, want->n_sets) < 0)
			return -ENOMEM;
	return 0;
}

static bool is_in(const struct rule_texts *list, size_t from, const char *text)
{
	for (size_t i = from; i < list->n; i++)
		if (!strcmp(list->texts[i], text))
			return true;
	return false;
}

/* A text begins with the rule's comment and a colon. */
static int difference(struct error *err, const char *text, const char *chain, const char *what)
{
	int length = (int)strcspn(text, ":");

	if (length == 0)
		return error_set(err, ENODEV, "nftables: a rule in chain %s %s", chain, what);
	return error_set(err, ENODEV, "nftables: rule %.*s in chain %s %s", length, text, chain,
			 what);
}

static int compare_texts(const struct rule_texts *want, const struct rule_texts *have,
			 const char *chain, struct error *err)
{
	for (size_t i = 0; i < want->n || i < have->n; i++) {
		const char *wanted = i < want->n ? want->texts[i] : NULL;
		const char *found = i < have->n ? have->texts[i] : NULL;

		if (wanted && found && !strcmp(wanted, found))
			continue;
		if (wanted && (!found || is_in(want, i + 1, found)))
			return difference(err, wanted, chain, "is missing");
		if (found && (!wanted || is_in(have, i + 1, wanted)))
			return difference(err, found, chain, "is not ours");
		if (wanted)
			return difference(err, wanted, chain, "is not as planned");
	}
	return 0;
}

static int compare_rules(const struct nft_table *t, const struct nft_image *want, const char *chain,
			 struct error *err)
{
	struct rule_texts wanted = {0}, found = {0};
	int r;

	if (texts_of_image(want, chain, &wanted) < 0 || texts_in_kernel(t, chain, &found) < 0)
		r = error_set(err, ENOMEM, "compare nftables rules");
	else
		r = compare_texts(&wanted, &found, chain, err);
	rule_texts_done(&wanted);
	rule_texts_done(&found);
	return r;
}

/* ---- chains and the table ------------------------------------------------------------------- */

static const struct nftnl_chain *find_chain(const struct nft_table *t, const char *name)
{
	for (size_t i = 0; i < t->n_chains; i++) {
		const char *in = nftnl_chain_get_str(t->chains[i], NFTNL_CHAIN_NAME);

		if (in && !strcmp(in, name))
			return t->chains[i];
	}
	return NULL;
}

static bool is_of_kind(const struct nftnl_chain *chain, const struct nft_chain_kind *kind)
{
	const char *type = nftnl_chain_get_str(chain, NFTNL_CHAIN_TYPE);

	if (!kind->type)
		return !nftnl_chain_is_set(chain, NFTNL_CHAIN_HOOKNUM);
	return nftnl_chain_is_set(chain, NFTNL_CHAIN_HOOKNUM) && type &&
	       !strcmp(type, kind->type) &&
	       nftnl_chain_get_u32(chain, NFTNL_CHAIN_HOOKNUM) == kind->hook &&
	       nftnl_chain_get_s32(chain, NFTNL_CHAIN_PRIO) == kind->priority &&
	       nftnl_chain_get_u32(chain, NFTNL_CHAIN_POLICY) == POLICY_ACCEPT;
}

static bool is_mark(const char *name)
{
	return !strcmp(name, NFT_MARK_DRAINING) || !strcmp(name, NFT_MARK_BESIDE) ||
	       !strcmp(name, NFT_MARK_PASSTHROUGH) || !strcmp(name, NFT_MARK_ROUTES) ||
	       !strcmp(name, NFT_MARK_AMBIENT) ||
	       !strncmp(name, NFT_MARK_AGENT, strlen(NFT_MARK_AGENT));
}

static bool is_expected(const struct nft_image *want, const char *name)
{
	for (size_t i = 0; i < NF_CHAIN_COUNT_; i++)
		if (want->has_chain[i] && !strcmp(nft_chains[i].name, name))
			return true;
	return is_mark(name);
}

static int compare_chains(const struct nft_table *t, const struct nft_image *want,
			  struct error *err)
{
	for (size_t i = 0; i < NF_CHAIN_COUNT_; i++) {
		const struct nftnl_chain *chain = find_chain(t, nft_chains[i].name);

		if (!want->has_chain[i])
			continue;
		if (!chain)
			return error_set(err, ENODEV, "nftables: chain %s is missing",
					 nft_chains[i].name);
		if (!is_of_kind(chain, &nft_chains[i]))
			return error_set(err, ENODEV,
					 "nftables: hook, priority or policy of chain %s is not as "
					 "planned",
					 nft_chains[i].name);
	}
	for (size_t i = 0; i < t->n_chains; i++) {
		const char *name = nftnl_chain_get_str(t->chains[i], NFTNL_CHAIN_NAME);

		if (!name || !is_expected(want, name))
			return error_set(err, ENODEV, "nftables: chain %s is not ours",
					 name ? name : "?");
		if (is_mark(name) && nftnl_chain_is_set(t->chains[i], NFTNL_CHAIN_HOOKNUM))
			return error_set(err, ENODEV, "nftables: chain %s is not as planned", name);
	}
	return 0;
}

static int compare_mark_rules(const struct nft_table *t, const struct nft_image *want,
			      struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < t->n_chains; i++) {
		const char *name = nftnl_chain_get_str(t->chains[i], NFTNL_CHAIN_NAME);

		if (is_mark(name))
			r = compare_rules(t, want, name, err);
	}
	return r;
}

int nft_verify_table(const struct nft_table *t, const struct nft_image *want, struct error *err)
{
	int r;

	if (!t->present)
		return error_set(err, ENODEV, "nftables: table " NFT_TABLE " is missing");
	if (t->flags)
		return error_set(err, ENODEV, "nftables: the flags of table " NFT_TABLE " are %#x",
				 t->flags);
	r = compare_chains(t, want, err);
	for (size_t i = 0; !r && i < NF_CHAIN_COUNT_; i++)
		if (want->has_chain[i])
			r = compare_rules(t, want, nft_chains[i].name, err);
	if (!r)
		r = compare_mark_rules(t, want, err);
	if (r)
		return r;
	/*
	 * The rest that a table can hold: named sets, objects, flow tables. An anonymous set is not
	 * in the table's count once a rule has it.
	 */
	if (t->n_sets != want->n_sets || t->use != t->n_chains)
		return error_set(err, ENODEV,
				 "nftables: table " NFT_TABLE " has sets or objects that are not "
				 "ours");
	return 0;
}
