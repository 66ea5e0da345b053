/* SPDX-License-Identifier: Apache-2.0 */
#include "iptables_text.h"

#include "error.h"
#include "redirect_plan.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>

static struct nf_rule rule(enum nf_chain chain, enum nf_verdict verdict, uint32_t value)
{
	return (struct nf_rule){
		.chain = chain, .verdict = verdict, .value = value, .comment = "some-rule"};
}

static void match(struct nf_rule *r, struct nf_match m)
{
	r->matches[r->n_matches++] = m;
}

static void tcp(struct nf_rule *r)
{
	match(r, (struct nf_match){.type = NF_MATCH_PROTOCOL, .value = IPPROTO_TCP});
}

static int render(struct nf_rule *r, bool ipv6, struct iptables_set *ret, struct error *err)
{
	const struct nf_rules rules = {.rules = r, .n = 1};
	const struct iptables_form form = {.ipv6 = ipv6};

	return iptables_text_render(&rules, form, ret, err);
}

/* The lines of one rule, each ended by a newline; "error: ..." when it cannot be. */
static const char *lines_of(struct nf_rule *r, bool ipv6)
{
	static char text[8192];
	struct iptables_set set = {0};
	struct error err = {0};
	size_t used = 0;

	text[0] = '\0';
	if (render(r, ipv6, &set, &err))
		snprintf(text, sizeof(text), "error: %s", err.text);
	for (size_t i = 0; i < set.n; i++)
		for (size_t j = 0; j < set.chains[i].n_rules; j++)
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\n",
						 set.chains[i].rules[j].spec);
	iptables_set_done(&set);
	return text;
}

TEST(a_redirect_is_one_line)
{
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_REDIRECT, 15001);

	tcp(&r);
	match(&r, (struct nf_match){.type = NF_MATCH_DESTINATION_PORT, .value = 80});
	CHECK_STR(lines_of(&r, false), "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15001\n");
	return TEST_OK;
}

TEST(a_list_of_ids_is_a_line_each_and_none_of_them_is_one_line)
{
	uint32_t ids[] = {1337, 1338};
	struct id_list list = {.ids = ids, .n = 2};
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);

	match(&r, (struct nf_match){.type = NF_MATCH_UID, .ids = &list});
	CHECK_STR(lines_of(&r, false), "-m owner --uid-owner 1337 -j RETURN\n"
				       "-m owner --uid-owner 1338 -j RETURN\n");
	r.matches[0].negated = true;
	CHECK_STR(lines_of(&r, false), "-m owner --socket-exists ! --uid-owner 1337 "
				       "-m owner ! --uid-owner 1338 -j RETURN\n");
	r.matches[0].type = NF_MATCH_GID;
	list.n = 0;
	CHECK_STR(lines_of(&r, false), "-m owner --socket-exists -j RETURN\n");
	r.matches[0].negated = false;
	CHECK_STR(lines_of(&r, false), "");
	return TEST_OK;
}

TEST(two_port_matches_in_one_rule_stay_apart)
{
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);

	tcp(&r);
	for (uint32_t port = 1; port <= 2; port++)
		match(&r, (struct nf_match){.type = NF_MATCH_DESTINATION_PORT,
					    .value = port,
					    .negated = true});
	CHECK_STR(lines_of(&r, false), "-p tcp -m multiport ! --dports 1 "
				       "-m multiport ! --dports 2 -j RETURN\n");
	return TEST_OK;
}

TEST(ports_go_fifteen_to_a_line)
{
	uint16_t ports[17];
	struct port_list list = {.ports = ports, .n = 17};
	struct nf_rule r = rule(NF_NAT_PREROUTING, NF_RETURN, 0);

	for (uint16_t i = 0; i < 17; i++)
		ports[i] = i + 1;
	tcp(&r);
	match(&r, (struct nf_match){.type = NF_MATCH_DESTINATION_PORT, .ports = &list});
	CHECK_STR(lines_of(&r, false),
		  "-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j RETURN\n"
		  "-p tcp -m multiport --dports 16,17 -j RETURN\n");
	r.matches[1].negated = true;
	CHECK_STR(lines_of(&r, false),
		  "-p tcp -m multiport ! --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 "
		  "-m multiport ! --dports 16,17 -j RETURN\n");
	return TEST_OK;
}

static struct ip_prefix prefix(const char *text)
{
	struct ip_prefix p = {0};
	struct error err = {0};

	return ip_prefix_parse(text, &p, &err) ? (struct ip_prefix){0} : p;
}

TEST(prefixes_are_a_line_each_of_their_own_family)
{
	struct ip_prefix list[] = {prefix("10.0.0.0/8"), prefix("192.0.2.1/32"),
				   prefix("fd00::/8")};
	struct prefix_list prefixes = {.prefixes = list, .n = 3};
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);

	match(&r, (struct nf_match){.type = NF_MATCH_DESTINATION, .prefixes = &prefixes});
	CHECK_STR(lines_of(&r, false), "-d 10.0.0.0/8 -j RETURN\n-d 192.0.2.1/32 -j RETURN\n");
	CHECK_STR(lines_of(&r, true), "-d fd00::/8 -j RETURN\n");
	r.matches[0].negated = true;
	CHECK_HAS(lines_of(&r, false), "error: ");
	r.matches[0] =
		(struct nf_match){.type = NF_MATCH_SOURCE, .prefix = list[1], .negated = true};
	CHECK_STR(lines_of(&r, false), "! -s 192.0.2.1/32 -j RETURN\n");
	return TEST_OK;
}

TEST(a_whole_family_needs_no_match_and_none_of_it_is_no_rule)
{
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);

	match(&r, (struct nf_match){.type = NF_MATCH_DESTINATION, .prefix = prefix("0.0.0.0/0")});
	CHECK_STR(lines_of(&r, false), "-j RETURN\n");
	r.matches[0].negated = true;
	CHECK_STR(lines_of(&r, false), "");
	return TEST_OK;
}

TEST(lists_are_multiplied)
{
	uint32_t ids[] = {1, 2};
	char *names[] = {"eth0", "eth1"};
	struct id_list id_list = {.ids = ids, .n = 2};
	struct name_list name_list = {.names = names, .n = 2};
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);

	match(&r, (struct nf_match){.type = NF_MATCH_OUT_INTERFACE, .names = &name_list});
	match(&r, (struct nf_match){.type = NF_MATCH_GID, .ids = &id_list});
	CHECK_STR(lines_of(&r, false), "-o eth0 -m owner --gid-owner 1 -j RETURN\n"
				       "-o eth0 -m owner --gid-owner 2 -j RETURN\n"
				       "-o eth1 -m owner --gid-owner 1 -j RETURN\n"
				       "-o eth1 -m owner --gid-owner 2 -j RETURN\n");
	return TEST_OK;
}

TEST(an_interface_name_that_would_break_the_text_is_refused)
{
	char *names[] = {"a\"b"};
	struct name_list list = {.names = names, .n = 1};
	struct nf_rule r = rule(NF_NAT_PREROUTING, NF_RETURN, 0);

	match(&r, (struct nf_match){.type = NF_MATCH_IN_INTERFACE, .names = &list});
	CHECK_HAS(lines_of(&r, false), "error: iptables cannot be given the interface name a\"b");
	names[0] = "-j";
	CHECK_HAS(lines_of(&r, false), "error: ");
	return TEST_OK;
}

TEST(verdicts_and_states)
{
	struct nf_rule r = rule(NF_MANGLE_TPROXY, NF_TPROXY, 15006);

	tcp(&r);
	match(&r, (struct nf_match){.type = NF_MATCH_FIRST_SYN, .negated = true});
	CHECK_STR(lines_of(&r, false),
		  "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j TPROXY --on-port 15006 "
		  "--on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff\n");
	r = rule(NF_MANGLE_PREROUTING, NF_JUMP_TPROXY, 0);
	match(&r, (struct nf_match){.type = NF_MATCH_STATE, .value = NF_STATE_RELATED_ESTABLISHED});
	CHECK_STR(lines_of(&r, true),
		  "-m conntrack --ctstate RELATED,ESTABLISHED -j SOCKMESH_MANGLE_TPROXY\n");
	r = rule(NF_RAW_OUTPUT, NF_ZONE, 2);
	match(&r, (struct nf_match){.type = NF_MATCH_NEVER});
	CHECK_STR(lines_of(&r, true), "-m mark --mark 0x1 -m mark ! --mark 0x1 -j CT --zone 2\n");
	return TEST_OK;
}

TEST(marks_of_some_bits)
{
	const struct nf_match mark = {.type = NF_MATCH_MARK, .value = 0x539, .mask = 0xfff};
	struct nf_rule r = rule(NF_MANGLE_PREROUTING, NF_SET_CONNECTION_MARK, 0x111);

	r.mask = 0xfff;
	match(&r, mark);
	CHECK_STR(lines_of(&r, false),
		  "-m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n");
	match(&r, (struct nf_match){.type = NF_MATCH_FROM_OPENER});
	CHECK_STR(lines_of(&r, false), "-m mark --mark 0x539/0xfff -m conntrack --ctdir ORIGINAL "
				       "-j CONNMARK --set-xmark 0x111/0xfff\n");
	r = rule(NF_MANGLE_OUTPUT, NF_SET_MARK, 0x111);
	r.mask = 0xfff;
	match(&r,
	      (struct nf_match){.type = NF_MATCH_CONNECTION_MARK, .value = 0x111, .mask = 0xfff});
	CHECK_STR(lines_of(&r, true),
		  "-m connmark --mark 0x111/0xfff -j MARK --set-xmark 0x111/0xfff\n");
	r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);
	match(&r, mark);
	r.matches[0].negated = true;
	CHECK_STR(lines_of(&r, true), "-m mark ! --mark 0x539/0xfff -j RETURN\n");
	return TEST_OK;
}

TEST(other_chains_are_forgotten)
{
	struct iptables_set set = {0};
	struct error err = {0};

	CHECK(!iptables_text_parse("*nat\n-A POSTROUTING -j SOCKMESH_A\n-A SOCKMESH_A -j RETURN\n"
				   "-A POSTROUTING -j SOCKMESH_B\n-A SOCKMESH_B -j RETURN\n",
				   &set, &err));
	CHECK_EQ(set.n, 2);
	iptables_set_keep(&set, "SOCKMESH_B");
	CHECK_EQ(set.n, 1);
	CHECK_STR(set.chains[0].name, "SOCKMESH_B");
	CHECK_EQ(set.chains[0].n_rules, 1);
	iptables_set_done(&set);
	return TEST_OK;
}

TEST(a_rule_longer_than_the_limit_is_an_error)
{
	uint32_t ids[2000];
	struct id_list list = {.ids = ids, .n = 2000};
	struct nf_rule r = rule(NF_NAT_OUTPUT, NF_RETURN, 0);

	for (uint32_t i = 0; i < 2000; i++)
		ids[i] = i;
	match(&r, (struct nf_match){.type = NF_MATCH_UID, .ids = &list, .negated = true});
	CHECK_HAS(lines_of(&r, false), "error: some-rule needs more");
	return TEST_OK;
}

/* ---- reading back --------------------------------------------------------------------------- */

static const char saved[] =
	"# Generated by iptables-save\n"
	"*nat\n"
	":OUTPUT ACCEPT [5:300]\n"
	":SOCKMESH_NAT_OUTPUT - [0:0]\n"
	":OTHER - [0:0]\n"
	"[7:420] -A OUTPUT -j SOCKMESH_NAT_OUTPUT\n"
	"[1:60] -A OUTPUT -j OTHER\n"
	"[3:180] -A SOCKMESH_NAT_OUTPUT -p tcp -m tcp --dport 80 "
	"-m comment --comment out-all -j REDIRECT --to-ports 15001\n"
	"[4:240] -A SOCKMESH_NAT_OUTPUT -m comment --comment \"out-all\" -j RETURN\n"
	"COMMIT\n";

TEST(what_is_saved_is_read_without_other_peoples_rules)
{
	struct iptables_set set = {0};
	struct error err = {0};
	const struct iptables_chain *chain;

	CHECK(!iptables_text_parse(saved, &set, &err));
	CHECK_EQ(set.n, 1);
	chain = iptables_set_find(&set, "SOCKMESH_NAT_OUTPUT");
	CHECK(chain);
	CHECK_EQ(chain->n_rules, 2);
	CHECK_EQ(chain->n_jumps, 1);
	CHECK_STR(chain->jumps[0], "OUTPUT -j SOCKMESH_NAT_OUTPUT");
	CHECK_EQ(iptables_set_packets(&set, "out-all"), 7);
	CHECK_EQ(iptables_set_packets(&set, "out"), 0);
	iptables_set_done(&set);
	return TEST_OK;
}

TEST(what_was_written_by_anybody_can_be_read)
{
	static const char *const texts[] = {
		"",
		"\n",
		"*",
		"-A",
		"-A SOCKMESH_\n",
		"[",
		"[1:2] ",
		":SOCKMESH",
		":SOCKMESH_X",
		"-A SOCKMESH_X \"\\\n",
		"-A X -j\n",
		"[9] -A SOCKMESH_X --comment \"a \\\" b\" -j\n",
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct iptables_set set = {0};
		struct error err = {0};

		CHECK(!iptables_text_parse(texts[i], &set, &err));
		CHECK(!iptables_text_compare(&set, &set, &err));
		iptables_set_done(&set);
	}
	return TEST_OK;
}

/* The first difference when `is` is there and the rules of `saved` should be; "" for none. */
static const char *difference(const char *is)
{
	static struct error err;
	struct iptables_set kernel = {0}, wanted = {0};
	int r;

	err = (struct error){0};
	r = iptables_text_parse(saved, &wanted, &err);
	if (!r)
		r = iptables_text_parse(is, &kernel, &err);
	if (!r)
		r = iptables_text_compare(&kernel, &wanted, &err);
	iptables_set_done(&kernel);
	iptables_set_done(&wanted);
	return r && r != -ENODEV ? "unexpected" : err.text;
}

/* `saved` with one part replaced. */
static const char *edited(const char *part, const char *by)
{
	static char text[sizeof(saved) + 256];
	const char *at = strstr(saved, part);

	if (!at)
		return "";
	snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - saved), saved, by, at + strlen(part));
	return text;
}

TEST(the_same_rules_in_another_notation_are_no_difference)
{
	CHECK_STR(difference(saved), "");
	CHECK_STR(difference(edited("-p tcp -m tcp --dport 80 -m comment --comment out-all",
				    "-m comment --comment \"out-all\" -p 6 --dport 80")),
		  "");
	CHECK_STR(difference(edited("[3:180] ", "")), "");
	CHECK_STR(difference(edited("-A OUTPUT -j OTHER", "-A OUTPUT -j ACCEPT")), "");
	return TEST_OK;
}

TEST(every_kind_of_tampering_is_named)
{
	CHECK_HAS(difference(edited("--dport 80", "--dport 81")), "rule 1 is");
	CHECK_HAS(difference(edited("--dport 80", "! --dport 80")), "rule 1 is");
	CHECK_HAS(difference(edited("-m comment --comment \"out-all\" -j RETURN",
				    "-m comment --comment \"-j RETURN\"")),
		  "rule 2 is");
	CHECK_HAS(difference(edited("[4:240] -A SOCKMESH_NAT_OUTPUT", "-A OTHER")), "is missing");
	CHECK_HAS(difference(edited("COMMIT", "-A SOCKMESH_NAT_OUTPUT -j ACCEPT\nCOMMIT")),
		  "\"-j ACCEPT\" does not belong there");
	CHECK_HAS(difference(edited("[7:420] -A OUTPUT -j SOCKMESH_NAT_OUTPUT\n", "")),
		  "the jump \"OUTPUT -j SOCKMESH_NAT_OUTPUT\" is missing");
	CHECK_HAS(difference(edited("COMMIT", "-A OUTPUT -j SOCKMESH_NAT_OUTPUT\nCOMMIT")),
		  "changed or doubled");
	CHECK_HAS(difference(edited("-A OUTPUT -j SOCK", "-A OUTPUT -p tcp -j SOCK")),
		  "changed or doubled");
	CHECK_HAS(difference(edited(":OTHER", ":SOCKMESH_X")), "SOCKMESH_X does not belong there");
	CHECK_HAS(difference("*nat\nCOMMIT\n"), "chain SOCKMESH_NAT_OUTPUT is missing");
	CHECK_HAS(difference(edited("*nat", "*mangle")), "is missing");
	return TEST_OK;
}

/* Whether our jump from OUTPUT is behind another's rule, in what iptables-save printed. */
static bool is_behind(const char *text)
{
	struct iptables_set set = {0};
	struct error err = {0};
	const struct iptables_chain *chain;
	bool behind;

	if (iptables_text_parse(text, &set, &err))
		return false;
	chain = iptables_set_find(&set, "SOCKMESH_A");
	behind = chain && chain->is_behind;
	iptables_set_done(&set);
	return behind;
}

TEST(a_rule_before_our_jump_is_seen_in_its_own_chain_and_table_only)
{
	CHECK(is_behind("*nat\n-A OUTPUT -p tcp -j ACCEPT\n-A OUTPUT -j SOCKMESH_A\n"));
	CHECK(is_behind("*nat\n[1:2] -A OUTPUT -j ACCEPT\n[3:4] -A OUTPUT -j SOCKMESH_A\n"));
	CHECK(!is_behind("*nat\n-A OUTPUT -j SOCKMESH_A\n-A OUTPUT -p tcp -j ACCEPT\n"));
	CHECK(!is_behind("*nat\n-A OUTPUT -j SOCKMESH_B\n-A OUTPUT -j SOCKMESH_A\n"));
	CHECK(!is_behind("*nat\n-A INPUT -j ACCEPT\n-A OUTPUT -j SOCKMESH_A\n"));
	CHECK(!is_behind("*nat\n-A OUTPUT_2 -j ACCEPT\n-A OUTPUT -j SOCKMESH_A\n"));
	CHECK(!is_behind("*nat\n-A OUT -j ACCEPT\n-A OUTPUT -j SOCKMESH_A\n"));
	CHECK(!is_behind("*raw\n-A OUTPUT -j ACCEPT\n*nat\n-A OUTPUT -j SOCKMESH_A\n"));
	return TEST_OK;
}

/* ---- from one to another -------------------------------------------------------------------- */

static const char *change(const char *from, const char *to, enum iptables_order order)
{
	static char text[4096];
	struct iptables_set before = {0}, after = {0};
	scoped_free char *input = NULL;
	struct error err = {0};

	if (iptables_text_parse(from, &before, &err) || iptables_text_parse(to, &after, &err) ||
	    iptables_text_change(&before, &after, order, &input, &err))
		return err.text[0] ? "error" : "";
	snprintf(text, sizeof(text), "%s", input ? input : "");
	iptables_set_done(&before);
	iptables_set_done(&after);
	return text;
}

TEST(no_difference_is_nothing_to_do)
{
	CHECK_STR(change(saved, saved, IPTABLES_NAT_LAST), "");
	CHECK_STR(change("", "", IPTABLES_NAT_LAST), "");
	return TEST_OK;
}

TEST(a_first_apply_makes_chain_jump_and_rules_in_one_commit)
{
	CHECK_STR(change("", "*nat\n-A OUTPUT -j SOCKMESH_A\n-A SOCKMESH_A -j RETURN\n",
			 IPTABLES_NAT_LAST),
		  "*nat\n:SOCKMESH_A - [0:0]\n-I OUTPUT 1 -j SOCKMESH_A\n"
		  "-A SOCKMESH_A -j RETURN\nCOMMIT\n");
	return TEST_OK;
}

TEST(a_jump_that_is_there_stays)
{
	CHECK_STR(change("*nat\n-A OUTPUT -j SOCKMESH_A\n-A SOCKMESH_A -j DROP\n",
			 "*nat\n-A OUTPUT -j SOCKMESH_A\n-A SOCKMESH_A -j RETURN\n",
			 IPTABLES_NAT_LAST),
		  "*nat\n:SOCKMESH_A - [0:0]\n-A SOCKMESH_A -j RETURN\nCOMMIT\n");
	return TEST_OK;
}

TEST(a_jump_that_was_changed_is_replaced)
{
	CHECK_STR(change("*nat\n-A OUTPUT -p tcp -j SOCKMESH_A\n-A POSTROUTING -g SOCKMESH_A\n",
			 "*nat\n-A OUTPUT -j SOCKMESH_A\n", IPTABLES_NAT_LAST),
		  "*nat\n:SOCKMESH_A - [0:0]\n-D OUTPUT -p tcp -j SOCKMESH_A\n"
		  "-D POSTROUTING -g SOCKMESH_A\n-I OUTPUT 1 -j SOCKMESH_A\nCOMMIT\n");
	return TEST_OK;
}

TEST(a_jump_behind_another_rule_is_a_difference_and_is_put_first)
{
	const char *behind = edited("[7:420] -A OUTPUT -j SOCKMESH_NAT_OUTPUT\n"
				    "[1:60] -A OUTPUT -j OTHER\n",
				    "[1:60] -A OUTPUT -j OTHER\n"
				    "[7:420] -A OUTPUT -j SOCKMESH_NAT_OUTPUT\n");

	CHECK_HAS(difference(behind), "SOCKMESH_NAT_OUTPUT\" is behind another's rule");
	CHECK_STR(change("*nat\n-A OUTPUT -j ACCEPT\n-A OUTPUT -j SOCKMESH_A\n"
			 "-A SOCKMESH_A -j RETURN\n",
			 "*nat\n-A OUTPUT -j SOCKMESH_A\n-A SOCKMESH_A -j RETURN\n",
			 IPTABLES_NAT_LAST),
		  "*nat\n:SOCKMESH_A - [0:0]\n-D OUTPUT -j SOCKMESH_A\n"
		  "-I OUTPUT 1 -j SOCKMESH_A\n-A SOCKMESH_A -j RETURN\nCOMMIT\n");
	return TEST_OK;
}

TEST(removal_starts_with_nat_and_empties_before_it_deletes)
{
	const char *text = change("*raw\n:SOCKMESH_R - [0:0]\n*nat\n-A OUTPUT -j SOCKMESH_A\n"
				  "-A SOCKMESH_A -j SOCKMESH_B\n:SOCKMESH_B - [0:0]\n",
				  "", IPTABLES_NAT_FIRST);

	CHECK_STR(text, "*nat\n:SOCKMESH_A - [0:0]\n:SOCKMESH_B - [0:0]\n"
			"-D OUTPUT -j SOCKMESH_A\n-X SOCKMESH_A\n-X SOCKMESH_B\nCOMMIT\n"
			"*raw\n:SOCKMESH_R - [0:0]\n-X SOCKMESH_R\nCOMMIT\n");
	return TEST_OK;
}

TEST(a_chain_of_ours_in_another_table_goes)
{
	CHECK_STR(change("*filter\n:SOCKMESH_A - [0:0]\n", "", IPTABLES_NAT_FIRST),
		  "*filter\n:SOCKMESH_A - [0:0]\n-X SOCKMESH_A\nCOMMIT\n");
	return TEST_OK;
}

/* Of a pod of whose plan is known only whether it was ambient. */
static int drain(const struct iptables_set *before, bool ambient, enum nf_stage stage,
		 struct iptables_set *ret)
{
	const struct redirect_plan nothing = {.ambient = ambient, .capture_ipv6 = true};
	struct nf_rules rules = {0};
	struct error err = {0};
	int r = netfilter_rules_build(&nothing, stage, &rules, &err);

	if (!r)
		r = iptables_text_drain(before, &rules, (struct iptables_form){0}, ret, &err);
	netfilter_rules_done(&rules);
	return r;
}

TEST(draining_without_a_plan_captures_nothing_and_keeps_marks)
{
	struct iptables_set before = {0}, after = {0};
	struct error err = {0};
	const struct iptables_chain *chain;

	CHECK(!iptables_text_parse("*mangle\n-A PREROUTING -j SOCKMESH_MANGLE_TPROXY\n"
				   "-A SOCKMESH_MANGLE_TPROXY -m mark --mark 0x539 -j RETURN\n"
				   "-A SOCKMESH_MANGLE_TPROXY -p tcp -j TPROXY --on-port 1\n"
				   "*nat\n:SOCKMESH_OWNER_1 - [0:0]\n"
				   "-A PREROUTING -j SOCKMESH_NAT_PREROUTING\n"
				   "-A SOCKMESH_NAT_PREROUTING -j REDIRECT --to-ports 1\n"
				   "-A OUTPUT -j SOCKMESH_NAT_OUTPUT\n"
				   "-A SOCKMESH_NAT_OUTPUT -j REDIRECT --to-ports 1\n",
				   &before, &err));
	CHECK(!drain(&before, false, NF_DRAIN, &after));
	chain = iptables_set_find(&after, "SOCKMESH_MANGLE_TPROXY");
	CHECK(chain && chain->n_rules == 1 && chain->n_jumps == 1);
	CHECK(!iptables_set_find(&after, "SOCKMESH_NAT_PREROUTING"));
	CHECK(iptables_set_find(&after, "SOCKMESH_OWNER_1"));
	chain = iptables_set_find(&after, "SOCKMESH_NAT_OUTPUT");
	CHECK(chain && chain->n_rules == 1 && chain->n_jumps == 1);
	CHECK_HAS(chain->rules[0].spec, "--mark 0x1 -m mark ! --mark 0x1 -j REDIRECT");
	iptables_set_done(&before);
	iptables_set_done(&after);
	return TEST_OK;
}

/* The pod may leave while ztunnel does not know it yet. */
TEST(draining_without_a_plan_marks_what_ztunnel_opens_in_a_pod_that_leaves)
{
	struct iptables_set before = {0}, moved = {0}, left = {0};
	struct error err = {0};
	const struct iptables_chain *chain;

	CHECK(!iptables_text_parse("*mangle\n-A PREROUTING -j SOCKMESH_MANGLE_PREROUTING\n"
				   "-A OUTPUT -j SOCKMESH_MANGLE_OUTPUT\n"
				   "-A SOCKMESH_MANGLE_PREROUTING -m mark --mark 0x539/0xfff "
				   "-j CONNMARK --set-xmark 0x111/0xfff\n"
				   "-A SOCKMESH_MANGLE_OUTPUT -m connmark --mark 0x111/0xfff "
				   "-j MARK --set-xmark 0x111/0xfff\n"
				   "-A SOCKMESH_MANGLE_OUTPUT -p udp -j RETURN\n",
				   &before, &err));
	CHECK(!drain(&before, true, NF_DRAIN, &moved));
	chain = iptables_set_find(&moved, "SOCKMESH_MANGLE_PREROUTING");
	CHECK(chain && chain->n_rules == 0 && chain->n_jumps == 1);
	CHECK(!drain(&before, true, NF_DRAIN_LEAVING, &left));
	chain = iptables_set_find(&left, "SOCKMESH_MANGLE_PREROUTING");
	CHECK(chain && chain->n_rules == 1 && chain->n_jumps == 1);
	CHECK_HAS(chain->rules[0].spec, "--ctdir ORIGINAL");
	CHECK_HAS(chain->rules[0].spec, "-j CONNMARK --set-xmark 0x111/0xfff");
	chain = iptables_set_find(&left, "SOCKMESH_MANGLE_OUTPUT");
	CHECK(chain && chain->n_rules == 2 && chain->n_jumps == 1);
	iptables_set_done(&before);
	iptables_set_done(&moved);
	iptables_set_done(&left);
	return TEST_OK;
}
