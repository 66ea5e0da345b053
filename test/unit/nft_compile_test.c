/* SPDX-License-Identifier: Apache-2.0 */
/* Rules as nftables objects, given to the kernel and read back, for both forms of table. */
#include "nft_compile.h"

#include "error.h"
#include "nft_read.h"
#include "nft_transaction.h"
#include "nft_verify.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void *unshare_net(void *arg)
{
	int *fd = arg;

	*fd = unshare(CLONE_NEWNET) ? -1 : open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	return NULL;
}

static int namespace_new(void)
{
	pthread_t thread;
	int fd = -1;

	if (!pthread_create(&thread, NULL, unshare_net, &fd))
		pthread_join(thread, NULL);
	return fd;
}

/* One rule with a list of prefixes; borrowed. */
static int compile_prefixes(const struct prefix_list *list, enum nf_family family,
			    struct nft_image *ret)
{
	struct nf_rule rule = {
		.chain = NF_NAT_OUTPUT,
		.family = family,
		.comment = "test",
		.matches = {{.type = NF_MATCH_DESTINATION, .prefixes = list}},
		.n_matches = 1,
	};
	const struct nf_rules rules = {.rules = &rule, .n = 1};
	struct error err = {0};

	return nft_compile(&rules, NFT_INET, ret, &err);
}

static const struct {
	enum nf_family family;
	const char *prefixes[4];
	const char *elements; /* keys in hex, ends with a minus */
} intervals[] = {
	{NF_IPV4, {"10.0.0.0/8"}, " 0a000000 -0b000000"},
	{NF_IPV4, {"10.0.0.0/16", "10.1.0.0/16"}, " 0a000000 -0a020000"},
	{NF_IPV4, {"10.0.0.0/16", "10.2.0.0/16"}, " 0a000000 -0a010000 0a020000 -0a030000"},
	{NF_IPV4, {"10.0.0.255/32", "10.0.1.0/32"}, " 0a0000ff -0a000101"},
	{NF_IPV4, {"0.0.0.0/1", "128.0.0.0/1"}, " 00000000"},
	{NF_IPV4, {"255.255.255.255/32"}, " ffffffff"},
	{NF_IPV4, {"127.255.255.255/32"}, " 7fffffff -80000000"},
	{NF_IPV6,
	 {"fd00::/8"},
	 " fd000000000000000000000000000000 -fe000000000000000000000000000000"},
	{NF_IPV6, {"ff00::/8"}, " ff000000000000000000000000000000"},
	{NF_IPV6,
	 {"::ffff/128"},
	 " 0000000000000000000000000000ffff -00000000000000000000000000010000"},
};

static void format_set(const struct nft_set *set, char *buf)
{
	for (size_t i = 0; i < set->n; i++) {
		buf += sprintf(buf, set->elements[i].interval_end ? " -" : " ");
		for (size_t k = 0; k < set->key_len; k++)
			buf += sprintf(buf, "%02x", set->elements[i].key[k]);
	}
}

TEST(prefixes_become_intervals_and_neighbours_one)
{
	for (size_t i = 0; i < COUNT(intervals); i++) {
		struct ip_prefix prefixes[4];
		struct prefix_list list = {.prefixes = prefixes};
		struct nft_image image;
		struct error err = {0};
		char text[512] = "";

		for (; list.n < 4 && intervals[i].prefixes[list.n]; list.n++)
			CHECK(!ip_prefix_parse(intervals[i].prefixes[list.n], &prefixes[list.n],
					       &err));
		CHECK(!compile_prefixes(&list, intervals[i].family, &image));
		CHECK_EQ(image.n_sets, 1);
		format_set(&image.sets[0], text);
		CHECK_STR(text, intervals[i].elements);
		nft_image_done(&image);
	}
	return TEST_OK;
}

/* ---- with the kernel ------------------------------------------------------------------------- */

enum { MANY = 1000 };

static uint16_t many_ports[MANY];
static struct ip_prefix many_prefixes[2 * MANY];

/* A plan with every kind of rule and long lists. */
static struct redirect_plan *large_plan(bool ipv6, bool ambient)
{
	static uint32_t ids[] = {1, 2, 1337};
	static char name1[] = "eth1", name2[] = "a-name-of-fif15", *names[] = {name1, name2};
	struct redirect_settings s = {
		.outbound_port = 15001,
		.inbound_port = 15006,
		.dns_port = 15053,
		.dns_capture = true,
		.tunnel_port = 15008,
		.capture_ipv6 = ipv6,
		.ambient = ambient,
		.tproxy = !ambient,
		.drop_invalid = true,
		.proxy_uids = {ids, COUNT(ids)},
		.proxy_gids = {ids, COUNT(ids)},
		.groups = {ids, 2},
		.groups_set = true,
		.outbound_include_all = true,
		.inbound_include_all = true,
		.outbound_exclude_ports = {many_ports, MANY},
		.inbound_exclude_ports = {many_ports, MANY},
		.exclude_prefixes = {many_prefixes, COUNT(many_prefixes)},
		.exclude_interfaces = {names, COUNT(names)},
		.reroute_interfaces = {names, COUNT(names)},
	};
	struct redirect_plan *plan = NULL;
	struct error err = {0};
	char text[64];

	for (unsigned i = 0; i < MANY; i++) {
		many_ports[i] = (uint16_t)(3 * i + 1);
		snprintf(text, sizeof(text), "10.%u.%u.0/24", i / 100, 2 * (i % 100));
		if (ip_prefix_parse(text, &many_prefixes[i], &err))
			abort();
		snprintf(text, sizeof(text), "fd00:%x::/48", 2 * i + 1);
		if (ip_prefix_parse(text, &many_prefixes[MANY + i], &err))
			abort();
	}
	if (ip_prefix_parse("127.0.0.0/8", &s.loopback4, &err) ||
	    redirect_plan_build(&s, &plan, &err))
		abort();
	return plan;
}

static enum test_result survives_as(bool ambient, enum nft_family family, bool ipv6,
				    enum nf_stage stage)
{
	struct redirect_plan *plan = large_plan(ipv6, ambient);
	struct nft_batch *batch = nft_batch_new();
	struct nft_tables tables;
	struct nft_image image;
	struct nf_rules rules;
	struct error err = {0};
	int netns_fd = namespace_new();

	CHECK(netns_fd >= 0 && batch);
	CHECK(!netfilter_rules_build(plan, stage, &rules, &err));
	CHECK(!nft_compile(&rules, family, &image, &err));
	nft_add_table(batch, family);
	nft_add_image(batch, &image);
	if (nft_batch_commit(batch, netns_fd, &err))
		printf("# %s\n", err.text);
	CHECK_EQ(err.code, 0);
	CHECK(!nft_read(netns_fd, NFT_READ_ALL, &tables, &err));
	for (size_t i = 0; i < NFT_FAMILIES; i++) {
		CHECK(tables.tables[i].present == (nft_families[i] == family));
		if (tables.tables[i].present && nft_verify_table(&tables.tables[i], &image, &err))
			printf("# %s\n", err.text);
	}
	CHECK_EQ(err.code, 0);
	nft_tables_done(&tables);
	nft_image_done(&image);
	netfilter_rules_done(&rules);
	nft_batch_free(batch);
	redirect_plan_free(plan);
	close(netns_fd);
	return TEST_OK;
}

static enum test_result survives(enum nft_family family, bool ipv6, enum nf_stage stage)
{
	return survives_as(false, family, ipv6, stage);
}

TEST(an_inet_table_reads_back_as_it_was_made)
{
	return survives(NFT_INET, true, NF_CAPTURE);
}

TEST(an_inet_table_without_ipv6_reads_back_as_it_was_made)
{
	return survives(NFT_INET, false, NF_CAPTURE_BESIDE_EBPF);
}

TEST(an_ip_table_reads_back_as_it_was_made)
{
	return survives(NFT_IP, true, NF_CAPTURE);
}

TEST(an_ip6_table_reads_back_as_it_was_made)
{
	return survives(NFT_IP6, true, NF_CAPTURE);
}

TEST(draining_rules_read_back_as_they_were_made)
{
	return survives(NFT_INET, true, NF_DRAIN);
}

TEST(rules_of_ambient_read_back_as_they_were_made)
{
	static const enum nf_stage stages[] = {NF_CAPTURE, NF_CAPTURE_BESIDE_EBPF, NF_DRAIN,
					       NF_DRAIN_LEAVING};

	for (size_t i = 0; i < COUNT(stages); i++) {
		CHECK_EQ(survives_as(true, NFT_INET, true, stages[i]), TEST_OK);
		CHECK_EQ(survives_as(true, NFT_IP, false, stages[i]), TEST_OK);
		CHECK_EQ(survives_as(true, NFT_IP6, true, stages[i]), TEST_OK);
	}
	return TEST_OK;
}

TEST(a_refused_transaction_names_its_rule_and_changes_nothing)
{
	struct nf_rule rule = {
		.chain = NF_MANGLE_OUTPUT, /* where nothing can be redirected */
		.id = RULE_OUT_ALL,
		.comment = "out-all",
		.matches = {{.type = NF_MATCH_PROTOCOL, .value = 6}},
		.n_matches = 1,
		.verdict = NF_REDIRECT,
		.value = 15001,
	};
	const struct nf_rules rules = {.rules = &rule, .n = 1};
	struct nft_batch *batch = nft_batch_new();
	struct nft_tables tables;
	struct nft_image image;
	struct error err = {0};
	int netns_fd = namespace_new();

	CHECK(!nft_compile(&rules, NFT_INET, &image, &err));
	nft_add_table(batch, NFT_INET);
	nft_add_image(batch, &image);
	CHECK_EQ(nft_batch_commit(batch, netns_fd, &err), -EOPNOTSUPP);
	CHECK_HAS(err.text, "add rule out-all");
	CHECK(!nft_read(netns_fd, NFT_READ_CHAINS, &tables, &err));
	CHECK(!tables.any);
	nft_tables_done(&tables);
	nft_batch_free(batch);
	nft_image_done(&image);

	/* What the kernel says in words is in the error. */
	batch = nft_batch_new();
	nft_add_table(batch, NFT_INET);
	nft_add_mark(batch, NFT_INET, "kept");
	nft_delete_chain(batch, NFT_INET, "gone");
	CHECK_EQ(nft_batch_commit(batch, netns_fd, &err), -ENOENT);
	CHECK_HAS(err.text, "delete chain gone");
	nft_batch_free(batch);
	close(netns_fd);
	return TEST_OK;
}
