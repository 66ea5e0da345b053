/* SPDX-License-Identifier: Apache-2.0 */
#include "iptables_text.h"

#include "error.h"
#include "scoped.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	MULTIPORT_MAX = 15,	   /* XT_MULTI_PORTS */
	RULES_MAX = 64 * 1024,	   /* of one family of one pod */
	RENDERED_RULE_MAX = 16384, /* bytes; long ones come from negated lists */
	OPTIONS_MAX = 128,	   /* of one rule, to compare it by */
};

static const char *const table_names[] = {"raw", "mangle", "nat"};
enum { TABLES = sizeof(table_names) / sizeof(table_names[0]) };

static const struct {
	const char *table, *name, *hook;
} nf_chains[NF_CHAIN_COUNT_] = {
	[NF_RAW_PREROUTING] = {"raw", "SOCKMESH_RAW_PREROUTING", "PREROUTING"},
	[NF_RAW_OUTPUT] = {"raw", "SOCKMESH_RAW_OUTPUT", "OUTPUT"},
	[NF_MANGLE_PREROUTING] = {"mangle", "SOCKMESH_MANGLE_PREROUTING", "PREROUTING"},
	[NF_MANGLE_TPROXY] = {"mangle", "SOCKMESH_MANGLE_TPROXY", NULL},
	[NF_MANGLE_OUTPUT] = {"mangle", "SOCKMESH_MANGLE_OUTPUT", "OUTPUT"},
	[NF_NAT_PREROUTING] = {"nat", "SOCKMESH_NAT_PREROUTING", "PREROUTING"},
	[NF_NAT_OUTPUT] = {"nat", "SOCKMESH_NAT_OUTPUT", "OUTPUT"},
};

/* ---- sets ----------------------------------------------------------------------------------- */

static void chain_done(struct iptables_chain *chain)
{
	for (size_t j = 0; j < chain->n_rules; j++)
		free(chain->rules[j].spec);
	for (size_t j = 0; j < chain->n_jumps; j++)
		free(chain->jumps[j]);
	free(chain->rules);
	free(chain->jumps);
}

void iptables_set_done(struct iptables_set *set)
{
	for (size_t i = 0; i < set->n; i++)
		chain_done(&set->chains[i]);
	free(set->chains);
	*set = (struct iptables_set){0};
}

void iptables_set_keep(struct iptables_set *set, const char *name)
{
	size_t kept = 0;

	for (size_t i = 0; i < set->n; i++)
		if (!strcmp(set->chains[i].name, name))
			set->chains[kept++] = set->chains[i];
		else
			chain_done(&set->chains[i]);
	set->n = kept;
}

const struct iptables_chain *iptables_set_find(const struct iptables_set *set, const char *name)
{
	for (size_t i = 0; i < set->n; i++)
		if (!strcmp(set->chains[i].name, name))
			return &set->chains[i];
	return NULL;
}

static struct iptables_chain *find_in_table(const struct iptables_set *set, const char *table,
					    const char *name)
{
	for (size_t i = 0; i < set->n; i++)
		if (!strcmp(set->chains[i].name, name) && !strcmp(set->chains[i].table, table))
			return &set->chains[i];
	return NULL;
}

/* Room for one more in an array that doubles at each power of two. */
static bool grow(void *items, size_t n, size_t size)
{
	void **array = items;
	void *grown;

	if (n && (n & (n - 1)))
		return true;
	grown = reallocarray(*array, n ? 2 * n : 1, size);
	if (grown)
		*array = grown;
	return grown;
}

static struct iptables_chain *add_chain(struct iptables_set *set, const char *table,
					const char *name)
{
	struct iptables_chain *chain = find_in_table(set, table, name);

	if (chain)
		return chain;
	if (!grow(&set->chains, set->n, sizeof(*set->chains)))
		return NULL;
	chain = &set->chains[set->n++];
	*chain = (struct iptables_chain){0};
	snprintf(chain->table, sizeof(chain->table), "%s", table);
	snprintf(chain->name, sizeof(chain->name), "%s", name);
	return chain;
}

static bool add_rule(struct iptables_chain *chain, const char *spec, uint64_t packets)
{
	char *copy;

	if (!grow(&chain->rules, chain->n_rules, sizeof(*chain->rules)))
		return false;
	copy = strdup(spec);
	if (!copy)
		return false;
	chain->rules[chain->n_rules++] = (struct iptables_rule){.spec = copy, .packets = packets};
	return true;
}

static bool add_jump(struct iptables_chain *chain, const char *from)
{
	char *copy;

	if (!grow(&chain->jumps, chain->n_jumps, sizeof(*chain->jumps)))
		return false;
	copy = strdup(from);
	if (!copy)
		return false;
	chain->jumps[chain->n_jumps++] = copy;
	return true;
}

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "iptables rules");
}

int iptables_set_add_mark(struct iptables_set *set, const char *name, struct error *err)
{
	return add_chain(set, "nat", name) ? 0 : no_memory(err);
}

/* ---- a plan's rules as text ----------------------------------------------------------------- */

struct renderer {
	struct iptables_form form;
	struct iptables_chain *chain;
	const struct nf_rule *rule;
	size_t total;
	struct error *err;
};

/* What the rule is so far; each level of the expansion goes back to where it started. */
struct line {
	char text[RENDERED_RULE_MAX];
	size_t used;
};

static void PRINTF_LIKE(2, 3) put(struct line *line, const char *fmt, ...)
{
	size_t room = sizeof(line->text) - line->used;
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(line->text + line->used, room, fmt, args);
	va_end(args);
	line->used = (size_t)n < room ? line->used + (size_t)n : sizeof(line->text) - 1;
}

static bool overflowed(const struct line *line)
{
	return line->used >= sizeof(line->text) - 1;
}

static void put_verdict(struct line *line, const struct nf_rule *rule, bool ipv6)
{
	static const char all_bits[] = "--nfmask 0xffffffff --ctmask 0xffffffff";
	uint32_t bits = rule->mask ? rule->mask : UINT32_MAX;

	switch (rule->verdict) {
	case NF_RETURN:
		put(line, "-j RETURN");
		break;
	case NF_ACCEPT:
		put(line, "-j ACCEPT");
		break;
	case NF_DROP:
		put(line, "-j DROP");
		break;
	case NF_REDIRECT:
		put(line, "-j REDIRECT --to-ports %u", rule->value);
		break;
	case NF_TPROXY:
		put(line, "-j TPROXY --on-port %u --on-ip %s --tproxy-mark 0x%x/0xffffffff",
		    rule->value, ipv6 ? "::" : "0.0.0.0", NF_MARK_TPROXY);
		break;
	case NF_ZONE:
		put(line, "-j CT --zone %u", rule->value);
		break;
	case NF_SET_MARK:
		put(line, "-j MARK --set-xmark 0x%x/0x%x", rule->value, bits);
		break;
	case NF_SET_CONNECTION_MARK:
		put(line, "-j CONNMARK --set-xmark 0x%x/0x%x", rule->value, bits);
		break;
	case NF_SAVE_MARK:
		put(line, "-j CONNMARK --save-mark %s", all_bits);
		break;
	case NF_RESTORE_MARK:
		put(line, "-j CONNMARK --restore-mark %s", all_bits);
		break;
	case NF_JUMP_TPROXY:
		put(line, "-j %s", nf_chains[NF_MANGLE_TPROXY].name);
		break;
	}
}

static int finish_line(struct renderer *r, struct line *line)
{
	if (r->form.comments && r->rule->comment)
		put(line, "-m comment --comment \"%s\" ", r->rule->comment);
	put_verdict(line, r->rule, r->form.ipv6);
	if (overflowed(line) || ++r->total > RULES_MAX)
		return error_set(r->err, E2BIG, "%s needs more than iptables can be given",
				 r->rule->comment ? r->rule->comment : "a rule");
	return add_rule(r->chain, line->text, 0) ? 0 : no_memory(r->err);
}

static int render_match(struct renderer *r, struct line *line, size_t at);

/* The rest of the rule behind what the line has now, and back to `start`. */
static int render_rest(struct renderer *r, struct line *line, size_t at, size_t start)
{
	int result = render_match(r, line, at + 1);

	line->used = start;
	line->text[start] = '\0';
	return result;
}

static bool is_whole(const struct ip_prefix *p)
{
	return p->length == (ip_address_is_v4(&p->address) ? IP_V4_PREFIX_BITS : 0);
}

static int render_prefixes(struct renderer *r, struct line *line, size_t at)
{
	const struct nf_match *m = &r->rule->matches[at];
	const struct ip_prefix *list = m->prefixes ? m->prefixes->prefixes : &m->prefix;
	size_t n = m->prefixes ? m->prefixes->n : 1, start = line->used;
	const char *option = m->type == NF_MATCH_SOURCE ? "-s" : "-d";
	char text[IP_PREFIX_TEXT_MAX];
	int result = 0;

	if (m->negated && n == 0)
		return render_rest(r, line, at, start);
	if (m->negated && n > 1)
		return error_set(r->err, EOPNOTSUPP, "iptables has no \"none of these prefixes\"");
	for (size_t i = 0; !result && i < n; i++) {
		if (ip_address_is_v4(&list[i].address) == r->form.ipv6)
			continue;
		if (is_whole(&list[i]) && m->negated)
			continue;
		if (!is_whole(&list[i]))
			put(line, "%s%s %s ", m->negated ? "! " : "", option,
			    ip_prefix_format(&list[i], text));
		result = render_rest(r, line, at, start);
	}
	return result;
}

/* iptables-save writes names as they are, and its reader splits at these. */
static bool name_can_be_written(const char *name)
{
	if (*name == '-' || *name == '!' || !*name)
		return false;
	for (; *name; name++)
		if (!isgraph((unsigned char)*name) || strchr("\"'\\", *name))
			return false;
	return true;
}

static int render_names(struct renderer *r, struct line *line, size_t at)
{
	const struct nf_match *m = &r->rule->matches[at];
	const char *option = m->type == NF_MATCH_IN_INTERFACE ? "-i" : "-o";
	size_t start = line->used;
	int result = 0;

	if (m->negated && m->names->n == 0)
		return render_rest(r, line, at, start);
	if (m->negated && m->names->n > 1)
		return error_set(r->err, EOPNOTSUPP,
				 "iptables has no \"none of these interfaces\"");
	for (size_t i = 0; !result && i < m->names->n; i++) {
		if (!name_can_be_written(m->names->names[i]))
			return error_set(r->err, EINVAL,
					 "iptables cannot be given the interface name %s",
					 m->names->names[i]);
		put(line, "%s%s %s ", m->negated ? "! " : "", option, m->names->names[i]);
		result = render_rest(r, line, at, start);
	}
	return result;
}

/*
 * xt_owner says "not this uid" of a packet without a socket; such a packet has no owner at all, so
 * it is asked for as well.
 */
static int render_ids(struct renderer *r, struct line *line, size_t at)
{
	const struct nf_match *m = &r->rule->matches[at];
	const char *option = m->type == NF_MATCH_UID ? "--uid-owner" : "--gid-owner";
	size_t n = m->ids ? m->ids->n : 1, start = line->used;
	const uint32_t *ids = m->ids ? m->ids->ids : &m->value;
	int result = 0;

	if (m->negated) {
		put(line, "-m owner --socket-exists ");
		for (size_t i = 0; i < n; i++)
			put(line, "%s! %s %" PRIu32 " ", i ? "-m owner " : "", option, ids[i]);
		return render_rest(r, line, at, start);
	}
	for (size_t i = 0; !result && i < n; i++) {
		put(line, "-m owner %s %" PRIu32 " ", option, ids[i]);
		result = render_rest(r, line, at, start);
	}
	return result;
}

static const char *protocol_of(const struct nf_rule *rule)
{
	for (size_t i = 0; i < rule->n_matches; i++)
		if (rule->matches[i].type == NF_MATCH_PROTOCOL)
			return rule->matches[i].value == IPPROTO_UDP ? "udp" : "tcp";
	return "tcp";
}

/*
 * Two matches of -m tcp are one in the nft backend's notation, and iptables-save shows only the
 * last; matches of multiport stay apart.
 */
static bool needs_multiport(const struct nf_rule *rule)
{
	size_t n = 0;

	for (size_t i = 0; i < rule->n_matches; i++)
		n += rule->matches[i].type == NF_MATCH_DESTINATION_PORT ||
		     rule->matches[i].type == NF_MATCH_SOURCE_PORT ||
		     rule->matches[i].type == NF_MATCH_FIRST_SYN;
	return n > 1;
}

static void put_ports(struct line *line, const struct nf_match *m, const uint16_t *ports, size_t n)
{
	put(line, "-m multiport %s--%cports ", m->negated ? "! " : "",
	    m->type == NF_MATCH_SOURCE_PORT ? 's' : 'd');
	for (size_t i = 0; i < n; i++)
		put(line, "%s%u", i ? "," : "", ports[i]);
	put(line, " ");
}

static int render_ports(struct renderer *r, struct line *line, size_t at)
{
	const struct nf_match *m = &r->rule->matches[at];
	const uint16_t port = (uint16_t)m->value, *ports = m->ports ? m->ports->ports : &port;
	size_t n = m->ports ? m->ports->n : 1, start = line->used;
	int result = 0;

	if (!m->ports && !needs_multiport(r->rule)) {
		put(line, "-m %s %s--%cport %u ", protocol_of(r->rule), m->negated ? "! " : "",
		    m->type == NF_MATCH_SOURCE_PORT ? 's' : 'd', m->value);
		return render_rest(r, line, at, start);
	}
	for (size_t i = 0; !result && i < n; i += MULTIPORT_MAX) {
		put_ports(line, m, ports + i, n - i < MULTIPORT_MAX ? n - i : MULTIPORT_MAX);
		if (!m->negated)
			result = render_rest(r, line, at, start);
	}
	return m->negated ? render_rest(r, line, at, start) : result;
}

static void put_mark(struct line *line, const struct nf_match *m)
{
	if (m->mask)
		put(line, "--mark 0x%x/0x%x ", m->value, m->mask);
	else
		put(line, "--mark 0x%x ", m->value);
}

static void put_plain_match(struct line *line, const struct nf_match *m)
{
	const char *not = m->negated ? "! " : "";

	switch (m->type) {
	case NF_MATCH_PROTOCOL:
		put(line, "%s-p %s ", not, m->value == IPPROTO_UDP ? "udp" : "tcp");
		break;
	case NF_MATCH_FIRST_SYN:
		put(line, "-m tcp %s--tcp-flags FIN,SYN,RST,ACK SYN ", not );
		break;
	case NF_MATCH_MARK:
		put(line, "-m mark %s", not );
		put_mark(line, m);
		break;
	case NF_MATCH_CONNECTION_MARK:
		put(line, "-m connmark %s", not );
		put_mark(line, m);
		break;
	case NF_MATCH_FROM_OPENER:
		put(line, "-m conntrack --ctdir %s ", m->negated ? "REPLY" : "ORIGINAL");
		break;
	case NF_MATCH_STATE:
		put(line, "-m conntrack %s--ctstate %s ", not,
		    m->value == NF_STATE_INVALID ? "INVALID" : "RELATED,ESTABLISHED");
		break;
	case NF_MATCH_NEVER:
		/* A contradiction is all that every hook and both backends take as it is. */
		put(line, "-m mark --mark 0x1 -m mark ! --mark 0x1 ");
		break;
	default:
		break;
	}
}

static int render_match(struct renderer *r, struct line *line, size_t at)
{
	size_t start = line->used;

	if (at == r->rule->n_matches)
		return finish_line(r, line);
	switch (r->rule->matches[at].type) {
	case NF_MATCH_SOURCE:
	case NF_MATCH_DESTINATION:
		return render_prefixes(r, line, at);
	case NF_MATCH_IN_INTERFACE:
	case NF_MATCH_OUT_INTERFACE:
		return render_names(r, line, at);
	case NF_MATCH_UID:
	case NF_MATCH_GID:
		return render_ids(r, line, at);
	case NF_MATCH_DESTINATION_PORT:
	case NF_MATCH_SOURCE_PORT:
		return render_ports(r, line, at);
	default:
		put_plain_match(line, &r->rule->matches[at]);
		return render_rest(r, line, at, start);
	}
}

static struct iptables_chain *chain_of(struct iptables_set *set, enum nf_chain id)
{
	struct iptables_chain *chain = add_chain(set, nf_chains[id].table, nf_chains[id].name);
	char jump[2 * IPTABLES_CHAIN_MAX];

	if (!chain || !nf_chains[id].hook || chain->n_jumps)
		return chain;
	snprintf(jump, sizeof(jump), "%s -j %s", nf_chains[id].hook, nf_chains[id].name);
	return add_jump(chain, jump) ? chain : NULL;
}

static int render_all(const struct nf_rules *rules, struct renderer *r, struct iptables_set *set)
{
	enum nf_family other = r->form.ipv6 ? NF_IPV4 : NF_IPV6;
	scoped_free struct line *line = calloc(1, sizeof(*line));
	int result = 0;

	/* Even a plan that captures nothing has this chain, so that it can be seen to be there. */
	if (!line || !chain_of(set, NF_NAT_OUTPUT))
		return no_memory(r->err);
	for (size_t i = 0; !result && i < rules->n; i++) {
		if (rules->rules[i].family == other)
			continue;
		r->rule = &rules->rules[i];
		if (r->rule->verdict == NF_JUMP_TPROXY && !chain_of(set, NF_MANGLE_TPROXY))
			return no_memory(r->err);
		r->chain = chain_of(set, r->rule->chain);
		if (!r->chain)
			return no_memory(r->err);
		line->used = 0;
		line->text[0] = '\0';
		result = render_match(r, line, 0);
	}
	return result;
}

int iptables_text_render(const struct nf_rules *rules, struct iptables_form form,
			 struct iptables_set *ret, struct error *err)
{
	struct renderer r = {.form = form, .err = err};
	struct iptables_set set = {0};
	int result = render_all(rules, &r, &set);

	if (result)
		iptables_set_done(&set);
	else
		*ret = set;
	return result;
}

/* ---- options of a rule ---------------------------------------------------------------------- */

/* One word of a rule, without its quotes. */
struct word {
	char *text;
	bool quoted;
};

static size_t split_words(char *text, struct word *words, size_t max)
{
	size_t n = 0;
	char *in = text;

	while (*in && n < max) {
		char *out;
		bool inside = false;

		in += strspn(in, " ");
		if (!*in)
			break;
		words[n] = (struct word){.text = in, .quoted = *in == '"'};
		out = in;
		for (; *in && (inside || *in != ' '); in++) {
			if (*in == '"') {
				inside = !inside;
				continue;
			}
			if (*in == '\\' && inside && in[1])
				in++;
			*out++ = *in;
		}
		if (*in)
			in++;
		*out = '\0';
		n++;
	}
	return n;
}

static bool is_option(const struct word *w)
{
	return !w->quoted && (w->text[0] == '-' || !strcmp(w->text, "!"));
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static const char *usual_value(const char *option, const char *value)
{
	if (strcmp(option, "-p") != 0)
		return value;
	return !strcmp(value, "6") ? "tcp" : !strcmp(value, "17") ? "udp" : value;
}

/* Which table of ports is meant follows from -p. */
static bool is_implied(const char *option)
{
	return !strcmp(option, "-m tcp") || !strcmp(option, "-m udp");
}

/* "! --dport 53": from words[*at] on, which moves behind it. NULL without memory. */
static char *one_option(const struct word *words, size_t n, size_t *at)
{
	char *text = NULL;
	size_t size = 0, first = *at, i = *at;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return NULL;
	if (!strcmp(words[i].text, "!") && i + 1 < n) {
		fputs("! ", out);
		first = ++i;
	}
	fputs(words[i++].text, out);
	for (; i < n && !is_option(&words[i]); i++)
		fprintf(out, " %s", usual_value(words[first].text, words[i].text));
	*at = i;
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

/* The rule's options sorted, as one text: equal for two ways to write the same rule. */
static char *canonical(const char *spec)
{
	scoped_free char *copy = strdup(spec);
	scoped_free struct word *words = calloc(OPTIONS_MAX * 2, sizeof(*words));
	char *options[OPTIONS_MAX], *text = NULL;
	size_t n_words, n = 0, at = 0, size = 0;
	bool complete = copy && words;
	FILE *out;

	n_words = complete ? split_words(copy, words, OPTIONS_MAX * 2) : 0;
	while (complete && at < n_words && n < OPTIONS_MAX) {
		options[n] = one_option(words, n_words, &at);
		complete = options[n];
		if (complete && is_implied(options[n]))
			free(options[n]);
		else if (complete)
			n++;
	}
	if (n == OPTIONS_MAX || n_words == OPTIONS_MAX * 2) { /* too long: as it is written */
		for (size_t i = 0; i < n; i++)
			free(options[i]);
		return strdup(spec);
	}
	if (n)
		qsort(options, n, sizeof(options[0]), compare_texts);
	out = complete ? open_memstream(&text, &size) : NULL;
	for (size_t i = 0; i < n; i++) {
		if (out)
			fprintf(out, "%s%s", i ? " " : "", options[i]);
		free(options[i]);
	}
	if (out && fclose(out) != 0) {
		free(text);
		return NULL;
	}
	return text;
}

static bool same_rule(const char *a, const char *b)
{
	scoped_free char *left = NULL, *right = NULL;

	if (!strcmp(a, b))
		return true;
	left = canonical(a);
	right = canonical(b);
	return left && right && !strcmp(left, right);
}

const char *iptables_option_value(const char *spec, const char *option, char **ret_copy)
{
	struct word words[OPTIONS_MAX];
	size_t n;

	*ret_copy = strdup(spec);
	if (!*ret_copy)
		return NULL;
	n = split_words(*ret_copy, words, OPTIONS_MAX);
	for (size_t i = 0; i + 1 < n; i++)
		if (!words[i].quoted && !strcmp(words[i].text, option))
			return words[i + 1].text;
	return NULL;
}

/* ---- what iptables-save printed ------------------------------------------------------------- */

static bool is_ours(const char *name)
{
	return !strncmp(name, IPTABLES_CHAIN_PREFIX, strlen(IPTABLES_CHAIN_PREFIX));
}

static bool add_reference(struct iptables_set *set, const char *table, const char *from,
			  bool is_behind)
{
	static const char *const options[] = {"-j", "-g"};

	for (size_t i = 0; i < 2; i++) {
		scoped_free char *copy = NULL;
		const char *to = iptables_option_value(from, options[i], &copy);
		struct iptables_chain *chain;

		if (!copy)
			return false;
		if (!to || !is_ours(to))
			continue;
		chain = add_chain(set, table, to);
		if (!chain || !add_jump(chain, from))
			return false;
		chain->is_behind |= is_behind;
	}
	return true;
}

struct position {
	char table[IPTABLES_TABLE_MAX];
	char foreign[IPTABLES_CHAIN_MAX]; /* the chain of the last rule that is not about ours */
};

/* A chain's rules come one after the other. */
static bool parse_foreign(struct iptables_set *set, struct position *at, const char *line)
{
	size_t length = strcspn(line, " ");

	if (strstr(line, IPTABLES_CHAIN_PREFIX))
		return add_reference(set, at->table, line,
				     strlen(at->foreign) == length &&
					     !strncmp(line, at->foreign, length));
	snprintf(at->foreign, sizeof(at->foreign), "%.*s", (int)length, line);
	return true;
}

/* "CHAIN SPEC", behind "-A ". */
static bool parse_rule(struct iptables_set *set, struct position *at, char *line, uint64_t packets)
{
	const char *table = at->table;
	struct iptables_chain *chain;
	char *spec;

	if (!is_ours(line))
		return parse_foreign(set, at, line);
	spec = strchr(line, ' ');
	if (spec)
		*spec++ = '\0';
	if (strlen(line) >= IPTABLES_CHAIN_MAX)
		return true;
	chain = add_chain(set, table, line);
	return chain && add_rule(chain, spec ? spec : "", packets);
}

static bool parse_line(struct iptables_set *set, struct position *at, char *line)
{
	uint64_t packets = 0;
	char *end;

	if (*line == '[') {
		packets = strtoull(line + 1, NULL, 10);
		end = strstr(line, "] ");
		line = end ? end + 2 : line;
	}
	if (*line == '*') {
		snprintf(at->table, sizeof(at->table), "%s", line + 1);
		at->foreign[0] = '\0';
	} else if (*line == ':' && is_ours(line + 1)) {
		line[strcspn(line, " ")] = '\0';
		return strlen(line + 1) >= IPTABLES_CHAIN_MAX ||
		       add_chain(set, at->table, line + 1);
	} else if (!strncmp(line, "-A ", 3)) {
		return parse_rule(set, at, line + 3, packets);
	}
	return true;
}

int iptables_text_parse(const char *saved, struct iptables_set *ret, struct error *err)
{
	scoped_free char *copy = strdup(saved);
	char *line = copy, *next;
	struct position at = {0};
	struct iptables_set set = {0};
	bool complete = copy;

	for (; complete && line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		complete = parse_line(&set, &at, line);
	}
	if (!complete) {
		iptables_set_done(&set);
		return no_memory(err);
	}
	*ret = set;
	return 0;
}

/* ---- from one set to another ---------------------------------------------------------------- */

static bool same_jumps(const struct iptables_chain *a, const struct iptables_chain *b)
{
	if (a->n_jumps != b->n_jumps || a->is_behind != b->is_behind)
		return false;
	for (size_t i = 0; i < a->n_jumps; i++)
		if (!same_rule(a->jumps[i], b->jumps[i]))
			return false;
	return true;
}

static bool same_rules(const struct iptables_chain *a, const struct iptables_chain *b)
{
	if (a->n_rules != b->n_rules)
		return false;
	for (size_t i = 0; i < a->n_rules; i++)
		if (!same_rule(a->rules[i].spec, b->rules[i].spec))
			return false;
	return true;
}

static bool same_chain(const struct iptables_chain *a, const struct iptables_chain *b)
{
	return same_jumps(a, b) && same_rules(a, b);
}

/* Are all of the table's chains in `a` the same in `b`? */
static bool table_is_within(const struct iptables_set *a, const struct iptables_set *b,
			    const char *table)
{
	for (size_t i = 0; i < a->n; i++) {
		const struct iptables_chain *chain = &a->chains[i], *other;

		if (strcmp(chain->table, table) != 0)
			continue;
		other = find_in_table(b, table, chain->name);
		if (!other || !same_chain(chain, other))
			return false;
	}
	return true;
}

/* The built-in chain takes its jump at the head: what is ours comes before what is there. */
static void put_jumps(FILE *out, const struct iptables_chain *from, const struct iptables_chain *to)
{
	if (from && to && same_jumps(from, to))
		return;
	for (size_t i = 0; from && i < from->n_jumps; i++)
		fprintf(out, "-D %s\n", from->jumps[i]);
	for (size_t i = to ? to->n_jumps : 0; i > 0; i--) {
		const char *jump = to->jumps[i - 1];
		int hook = (int)strcspn(jump, " ");

		fprintf(out, "-I %.*s 1%s\n", hook, jump, jump + hook);
	}
}

static void put_table(FILE *out, const struct iptables_set *from, const struct iptables_set *to,
		      const char *table)
{
	fprintf(out, "*%s\n", table);
	/* Declaring a chain of a user's makes or empties it. */
	for (size_t i = 0; i < to->n; i++)
		if (!strcmp(to->chains[i].table, table))
			fprintf(out, ":%s - [0:0]\n", to->chains[i].name);
	for (size_t i = 0; i < from->n; i++)
		if (!strcmp(from->chains[i].table, table) &&
		    !find_in_table(to, table, from->chains[i].name))
			fprintf(out, ":%s - [0:0]\n", from->chains[i].name);
	for (size_t i = 0; i < to->n; i++) {
		const struct iptables_chain *chain = &to->chains[i];

		if (strcmp(chain->table, table) != 0)
			continue;
		put_jumps(out, find_in_table(from, table, chain->name), chain);
		for (size_t j = 0; j < chain->n_rules; j++)
			fprintf(out, "-A %s %s\n", chain->name, chain->rules[j].spec);
	}
	for (size_t i = 0; i < from->n; i++) {
		const struct iptables_chain *chain = &from->chains[i];

		if (strcmp(chain->table, table) != 0 || find_in_table(to, table, chain->name))
			continue;
		put_jumps(out, chain, NULL);
		fprintf(out, "-X %s\n", chain->name);
	}
	fputs("COMMIT\n", out);
}

/* A table that we never use can still hold a chain that looks like ours: it goes as well. */
static void put_strange_tables(FILE *out, const struct iptables_set *from,
			       const struct iptables_set *to)
{
	static const char *const others[] = {"filter", "security"};

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (!table_is_within(from, to, others[i]))
			put_table(out, from, to, others[i]);
}

int iptables_text_change(const struct iptables_set *from, const struct iptables_set *to,
			 enum iptables_order order, char **ret, struct error *err)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return no_memory(err);
	for (size_t i = 0; i < TABLES; i++) {
		const char *table = table_names[order == IPTABLES_NAT_LAST ? i : TABLES - 1 - i];

		if (!table_is_within(from, to, table) || !table_is_within(to, from, table))
			put_table(out, from, to, table);
	}
	put_strange_tables(out, from, to);
	if (fclose(out) != 0) {
		free(text);
		return no_memory(err);
	}
	if (size == 0) {
		free(text);
		text = NULL;
	}
	*ret = text;
	return 0;
}

/* ---- differences ---------------------------------------------------------------------------- */

static int compare_jumps(const struct iptables_chain *kernel, const struct iptables_chain *wanted,
			 struct error *err)
{
	if (same_jumps(kernel, wanted))
		return 0;
	if (wanted->n_jumps == 0)
		return error_set(err, ENODEV, "table %s: \"%s\" does not belong there",
				 wanted->table, kernel->jumps[0]);
	if (kernel->n_jumps == 0)
		return error_set(err, ENODEV, "table %s: the jump \"%s\" is missing", wanted->table,
				 wanted->jumps[0]);
	if (kernel->is_behind && kernel->n_jumps == wanted->n_jumps)
		return error_set(err, ENODEV, "table %s: the jump \"%s\" is behind another's rule",
				 wanted->table, wanted->jumps[0]);
	return error_set(err, ENODEV, "table %s: the jump \"%s\" is changed or doubled",
			 wanted->table, wanted->jumps[0]);
}

static int compare_chain(const struct iptables_chain *kernel, const struct iptables_chain *wanted,
			 struct error *err)
{
	size_t n = kernel->n_rules > wanted->n_rules ? kernel->n_rules : wanted->n_rules;

	for (size_t i = 0; i < n; i++) {
		const char *is = i < kernel->n_rules ? kernel->rules[i].spec : NULL;
		const char *must = i < wanted->n_rules ? wanted->rules[i].spec : NULL;

		if (!is)
			return error_set(err, ENODEV, "%s: the rule \"%.160s\" is missing",
					 wanted->name, must);
		if (!must)
			return error_set(err, ENODEV, "%s: \"%.160s\" does not belong there",
					 wanted->name, is);
		if (!same_rule(is, must))
			return error_set(err, ENODEV, "%s: rule %zu is \"%.160s\", not \"%.160s\"",
					 wanted->name, i + 1, is, must);
	}
	return compare_jumps(kernel, wanted, err);
}

int iptables_text_compare(const struct iptables_set *kernel, const struct iptables_set *wanted,
			  struct error *err)
{
	for (size_t i = 0; i < wanted->n; i++) {
		const struct iptables_chain *chain = &wanted->chains[i], *is;
		int r;

		is = find_in_table(kernel, chain->table, chain->name);
		if (!is)
			return error_set(err, ENODEV, "table %s: chain %s is missing", chain->table,
					 chain->name);
		r = compare_chain(is, chain, err);
		if (r)
			return r;
	}
	for (size_t i = 0; i < kernel->n; i++)
		if (!find_in_table(wanted, kernel->chains[i].table, kernel->chains[i].name))
			return error_set(err, ENODEV, "table %s: chain %s does not belong there",
					 kernel->chains[i].table, kernel->chains[i].name);
	return 0;
}

/* ---- draining without a plan ---------------------------------------------------------------- */

static bool has_jump(const struct iptables_chain *chain, const char *from)
{
	for (size_t i = 0; i < chain->n_jumps; i++)
		if (same_rule(chain->jumps[i], from))
			return true;
	return false;
}

/* Among its first n. */
static bool has_rule(const struct iptables_chain *chain, size_t n, const char *spec)
{
	for (size_t i = 0; i < n; i++)
		if (same_rule(chain->rules[i].spec, spec))
			return true;
	return false;
}

/* The marks of ambient come back in the form of the stage. */
static bool ends_with_capture(const char *spec)
{
	return strstr(spec, "-j TPROXY ") || strstr(spec, "-j CONNMARK --set-xmark ");
}

/* What is not there yet. */
static bool copy_chain(const struct iptables_chain *from, struct iptables_set *set, bool rules)
{
	struct iptables_chain *to = add_chain(set, from->table, from->name);
	size_t n = to ? to->n_rules : 0;

	for (size_t i = 0; to && i < from->n_jumps; i++)
		if (!has_jump(to, from->jumps[i]) && !add_jump(to, from->jumps[i]))
			return false;
	for (size_t i = 0; to && rules && i < from->n_rules; i++)
		if (!ends_with_capture(from->rules[i].spec) &&
		    !has_rule(to, n, from->rules[i].spec) && !add_rule(to, from->rules[i].spec, 0))
			return false;
	return to;
}

int iptables_text_drain(const struct iptables_set *captured, const struct nf_rules *drain,
			struct iptables_form form, struct iptables_set *ret, struct error *err)
{
	struct iptables_set set = {0};
	int r = iptables_text_render(drain, form, &set, err);

	for (size_t i = 0; !r && i < captured->n; i++) {
		const struct iptables_chain *chain = &captured->chains[i];
		bool nat = !strcmp(chain->table, "nat");

		if (nat && (chain->n_rules || find_in_table(&set, chain->table, chain->name)))
			continue;
		if (!copy_chain(chain, &set, !nat))
			r = no_memory(err);
	}
	if (r)
		iptables_set_done(&set);
	else
		*ret = set;
	return r;
}

uint64_t iptables_set_packets(const struct iptables_set *set, const char *comment)
{
	uint64_t packets = 0;

	for (size_t i = 0; i < set->n; i++)
		for (size_t j = 0; j < set->chains[i].n_rules; j++) {
			const struct iptables_rule *rule = &set->chains[i].rules[j];
			scoped_free char *copy = NULL;
			const char *is = iptables_option_value(rule->spec, "--comment", &copy);

			if (is && !strcmp(is, comment))
				packets += rule->packets;
		}
	return packets;
}
