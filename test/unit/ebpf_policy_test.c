/* SPDX-License-Identifier: Apache-2.0 */
#include "address.bpf.h"
#include "ebpf_policy.h"
#include "error.h"
#include "redirect_plan.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

static struct ip_prefix prefix(const char *text)
{
	struct ip_prefix p = {0};
	struct error err = {0};

	if (ip_prefix_parse(text, &p, &err))
		printf("# %s\n", err.text);
	return p;
}

static struct ip_address address(const char *text)
{
	struct ip_address a = {0};
	struct error err = {0};

	if (ip_address_parse(text, &a, &err))
		printf("# %s\n", err.text);
	return a;
}

/* What the kernel's trie would answer: the entry with the longest prefix that matches. */
static __u32 longest_match(const struct ebpf_policy *p, __u32 policy, const char *text)
{
	struct ip_address a = address(text);
	const struct policy_prefix *best = NULL;

	for (size_t i = 0; i < p->n_prefixes; i++) {
		const struct policy_prefix *entry = &p->prefixes[i];
		struct ip_prefix range = {.length = (uint8_t)(entry->key.prefixlen - 32)};

		memcpy(&range.address, &entry->key.addr, sizeof(range.address));
		if (entry->key.policy_family != prefix_policy_family(policy, ip_address_is_v4(&a)))
			continue;
		/* Same family from here on, so the bits alone decide. */
		if (memcmp(range.address.bytes, a.bytes, range.length / 8) != 0)
			continue;
		if (range.length % 8 &&
		    (range.address.bytes[range.length / 8] ^ a.bytes[range.length / 8]) >>
			    (8 - range.length % 8))
			continue;
		if (!best || entry->key.prefixlen > best->key.prefixlen)
			best = entry;
	}
	return best ? best->bits : 0;
}

TEST(a_prefix_inherits_the_sets_of_every_prefix_around_it)
{
	struct ip_prefix exclude[] = {prefix("10.0.0.0/8"), prefix("10.1.2.0/24"),
				      prefix("fd00::/16"), prefix("192.0.2.1/32")};
	struct ip_prefix include[] = {prefix("10.1.0.0/16"), prefix("0.0.0.0/0"),
				      prefix("fd00:1::/32"), prefix("10.0.0.0/8")};
	struct redirect_plan plan = {
		.exclude_prefixes = {exclude, 4},
		.include_prefixes = {include, 4},
	};
	struct ebpf_policy p;
	struct error err = {0};

	CHECK_EQ(ebpf_policy_build(&plan, 7, &p, &err), 0);
	CHECK_EQ(p.n_prefixes, 7); /* 10.0.0.0/8 stands in both lists and once in the map */
	CHECK_EQ(longest_match(&p, 7, "10.1.2.3"), PREFIX_EXCLUDED | PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "10.1.9.9"), PREFIX_EXCLUDED | PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "10.9.9.9"), PREFIX_EXCLUDED | PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "8.8.8.8"), PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "192.0.2.1"), PREFIX_EXCLUDED | PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "192.0.2.2"), PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "fd00:1::1"), PREFIX_EXCLUDED | PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 7, "fd00:2::1"), PREFIX_EXCLUDED);
	CHECK_EQ(longest_match(&p, 7, "fd01::1"), 0);
	ebpf_policy_done(&p);
	return TEST_OK;
}

TEST(families_never_mix)
{
	struct ip_prefix exclude[] = {prefix("::/0")};
	struct ip_prefix include[] = {prefix("0.0.0.0/0")};
	struct redirect_plan plan = {
		.exclude_prefixes = {exclude, 1},
		.include_prefixes = {include, 1},
	};
	struct ebpf_policy p;
	struct error err = {0};

	CHECK_EQ(ebpf_policy_build(&plan, 1, &p, &err), 0);
	CHECK_EQ(longest_match(&p, 1, "192.0.2.1"), PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 1, "::ffff:192.0.2.1"), PREFIX_INCLUDED);
	CHECK_EQ(longest_match(&p, 1, "2001:db8::1"), PREFIX_EXCLUDED);
	ebpf_policy_done(&p);
	return TEST_OK;
}

TEST(ids_and_ports_of_several_sets_are_one_entry)
{
	uint32_t uids[] = {1337, 5}, gids[] = {1337}, groups[] = {5, 9};
	uint16_t out[] = {80, 443}, in[] = {80, 65535};
	struct redirect_plan plan = {
		.proxy_uids = {uids, 2},
		.proxy_gids = {gids, 1},
		.groups = {groups, 2},
		.outbound_exclude_ports = {out, 2},
		.inbound_exclude_ports = {in, 2},
	};
	struct ebpf_policy p;
	struct error err = {0};

	CHECK_EQ(ebpf_policy_build(&plan, 3, &p, &err), 0);
	CHECK_EQ(p.n_ids, 3);
	CHECK_EQ(p.ids[0].bits, ID_PROXY_UID | ID_PROXY_GID);
	CHECK_EQ(p.ids[1].bits, ID_PROXY_UID | ID_GROUP);
	CHECK_EQ(p.ids[2].bits, ID_GROUP);
	CHECK_EQ(p.n_ports, 3);
	CHECK_EQ(p.ports[0].key.port, 80);
	CHECK_EQ(p.ports[0].bits, PORT_OUT_EXCLUDED | PORT_IN_EXCLUDED);
	CHECK_EQ(p.ports[1].bits, PORT_OUT_EXCLUDED);
	CHECK_EQ(p.ports[2].key.port, 65535);
	ebpf_policy_done(&p);
	return TEST_OK;
}

TEST(the_first_usable_address_of_a_family_is_the_source)
{
	struct ip_address addresses[] = {address("127.0.0.1"), address("fe80::1"),
					 address("10.0.0.5"),  address("10.0.0.6"),
					 address("fd00::5"),   address("fd00::6")};
	struct redirect_plan plan = {.loopback4 = prefix("127.0.0.1/32"), .groups_exempt = true};
	struct addr16 want4 = addr16_of(&addresses[2]), want6 = addr16_of(&addresses[4]);
	struct pod_config cfg;
	struct error err = {0};

	CHECK_EQ(ebpf_pod_config_build(&plan, 1, addresses, 6, &cfg, &err), 0);
	CHECK(!memcmp(&cfg.source4, &want4, sizeof(want4)));
	CHECK(!memcmp(&cfg.source6, &want6, sizeof(want6)));
	CHECK_EQ(ntohl(cfg.loopback4_be), 0x7f000001);
	CHECK_EQ(cfg.loopback4_mask_be, 0xffffffff);
	CHECK_EQ(cfg.flags, POD_GROUPS_EXEMPT);
	plan.loopback4 = prefix("127.0.0.0/8");
	CHECK_EQ(ebpf_pod_config_build(&plan, 1, addresses, 1, &cfg, &err), 0);
	CHECK_EQ(ntohl(cfg.loopback4_mask_be), 0xff000000);
	return TEST_OK;
}

TEST(an_empty_list_of_captured_groups_captures_nobody)
{
	struct redirect_plan plan = {.loopback4 = prefix("127.0.0.1/32"), .groups_exempt = false};
	struct pod_config cfg;
	struct error err = {0};

	CHECK_EQ(ebpf_pod_config_build(&plan, 1, NULL, 0, &cfg, &err), 0);
	CHECK_EQ(cfg.flags, POD_HAS_GROUPS);
	return TEST_OK;
}

TEST(an_ambient_pod_is_known_by_marks_and_has_no_sets)
{
	struct redirect_settings settings = {.ambient = true,
					     .outbound_port = 15001,
					     .inbound_port = 15006,
					     .dns_port = 15053,
					     .tunnel_port = 15008,
					     .dns_capture = true,
					     .capture_ipv6 = true,
					     .outbound_include_all = true,
					     .inbound_include_all = true,
					     .loopback4 = prefix("127.0.0.1/32")};
	struct redirect_plan *plan = NULL;
	struct ebpf_policy policy = {0};
	struct pod_config cfg = {0};
	struct error err = {0};
	bool by_mark = false;

	CHECK_EQ(redirect_plan_build(&settings, &plan, &err), 0);
	CHECK_EQ(ebpf_policy_build(plan, 7, &policy, &err), 0);
	CHECK_EQ(policy.n_ids + policy.n_ports + policy.n_prefixes, 0);
	CHECK_EQ(ebpf_pod_config_build(plan, 7, NULL, 0, &cfg, &err), 0);
	CHECK(cfg.flags & POD_IS_AMBIENT);
	CHECK(!(cfg.flags & (POD_CHANGES | POD_ACTIVE)));
	for (__u32 i = 0; i < cfg.n_outbound; i++) {
		by_mark |= cfg.outbound[i].all_of & FACT_MARK_PROXY && !cfg.outbound[i].redirect;
		CHECK(!(cfg.outbound[i].all_of & (FACT_UID_PROXY | FACT_GID_PROXY)));
	}
	CHECK(by_mark);
	ebpf_policy_done(&policy);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(a_pod_of_the_nodes_proxy_knows_its_address)
{
	struct redirect_settings settings = {.node_proxy = true,
					     .outbound_port = 15001,
					     .capture_ipv6 = true,
					     .outbound_include_all = true,
					     .loopback4 = prefix("127.0.0.1/32"),
					     .proxy4 = prefix("10.245.0.2/32").address};
	struct addr16 proxy4 = addr16_of(&settings.proxy4), none = {0};
	struct redirect_plan *plan = NULL;
	struct pod_config cfg = {0};
	struct error err = {0};

	CHECK_EQ(redirect_plan_build(&settings, &plan, &err), 0);
	CHECK_EQ(ebpf_pod_config_build(plan, 7, NULL, 0, &cfg, &err), 0);
	CHECK((cfg.flags & POD_NODE_PROXY) && !(cfg.flags & POD_IS_AMBIENT));
	CHECK(!memcmp(&cfg.proxy4, &proxy4, sizeof(proxy4)));
	/* All zero: what goes there is refused. */
	CHECK(!memcmp(&cfg.proxy6, &none, sizeof(none)));
	CHECK_EQ(cfg.inbound_port, 0);
	CHECK_EQ(cfg.n_inbound, 0);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(too_many_rules_are_refused)
{
	struct redirect_plan plan = {.loopback4 = prefix("127.0.0.1/32")};
	struct pod_config cfg;
	struct error err = {0};

	plan.n_inbound = POD_RULES_INBOUND_MAX + 1;
	CHECK_EQ(ebpf_pod_config_build(&plan, 1, NULL, 0, &cfg, &err), -E2BIG);
	CHECK_HAS(err.text, "rules");
	return TEST_OK;
}

/* ---- the data path's address functions, the same text as in the kernel ---- */

static struct addr16 in_kernel(const char *text)
{
	struct ip_address a = address(text);

	return addr16_of(&a);
}

TEST(address_classes_hold_for_both_families)
{
	static const struct {
		const char *text;
		int loopback, passthrough, unspecified;
	} cases[] = {
		{"127.0.0.1", 1, 0, 0},
		{"127.255.255.255", 1, 0, 0},
		{"127.0.0.6", 1, 1, 0},
		{"128.0.0.1", 0, 0, 0},
		{"255.0.0.1", 0, 0, 0},
		{"0.0.0.0", 0, 0, 1},
		{"::", 0, 0, 1},
		{"::1", 1, 0, 0},
		{"::6", 0, 1, 0},
		{"::ffff:127.0.0.1", 1, 0, 0},
		{"fd00::1", 0, 0, 0},
		{"::7f00:1", 0, 0, 0},
		{"1::ffff:127.0.0.1", 0, 0, 0},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct addr16 a = in_kernel(cases[i].text);

		printf("# %s\n", cases[i].text);
		CHECK_EQ(!!addr16_is_loopback(&a), cases[i].loopback);
		CHECK_EQ(!!addr16_is_passthrough(&a), cases[i].passthrough);
		CHECK_EQ(!!addr16_is_unspecified(&a), cases[i].unspecified);
	}
	return TEST_OK;
}

TEST(connecting_to_nowhere_means_what_the_kernel_means)
{
	static const struct {
		const char *dst, *source, *want;
	} cases[] = {
		{"0.0.0.0", "::", "127.0.0.1"},
		{"0.0.0.0", "10.0.0.5", "10.0.0.5"},
		{"::", "::", "::1"},
		{"::", "fd00::5", "::1"},
		{"::", "10.0.0.5", "127.0.0.1"},
		{"192.0.2.1", "10.0.0.5", "192.0.2.1"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct addr16 dst = in_kernel(cases[i].dst), source = in_kernel(cases[i].source);
		struct addr16 want = in_kernel(cases[i].want);

		addr16_resolve_unspecified(&dst, &source);
		CHECK(addr16_equal(&dst, &want));
	}
	return TEST_OK;
}

TEST(captured_connections_spread_over_loopback_but_never_onto_its_edges)
{
	unsigned used[256] = {0}, addresses = 0;

	for (__u32 i = 0; i < 20000; i++) {
		struct endpoint original = {.addr = addr16_from_v4(htonl(0x0a000000 + i / 100)),
					    .port = (__u16)(i % 100)};
		__u32 host = ntohl(spread_loopback_be(&original));

		CHECK_EQ(host & 0xffffff00, 0x7f000000);
		used[host & 0xff]++;
	}
	CHECK_EQ(used[0] + used[1] + used[255], 0);
	for (int i = 0; i < 256; i++) {
		addresses += used[i] > 0;
		CHECK(used[i] < 20000 / 253 * 3);
	}
	CHECK_EQ(addresses, 253);
	return TEST_OK;
}
