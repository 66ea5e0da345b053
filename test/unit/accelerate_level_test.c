/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_level.h"
#include "test.h"

#include <string.h>

TEST(names_and_their_values_are_one_to_one)
{
	static const char *const policies[] = {"off", "proxy", "auto", "full-advised", "full"};
	enum accelerate_policy policy;
	enum accelerate_wish wish = ACCELERATE_WISH_OFF;

	for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
		CHECK(accelerate_policy_parse(policies[i], &policy));
		CHECK_EQ(policy, i);
		CHECK_STR(accelerate_policy_name(policy), policies[i]);
	}
	CHECK(!accelerate_policy_parse("", &policy));
	CHECK(!accelerate_policy_parse("Full", &policy));
	CHECK(accelerate_wish_parse("auto", &wish));
	CHECK_EQ(wish, ACCELERATE_WISH_NONE);
	CHECK(accelerate_wish_parse("full", &wish));
	CHECK_EQ(wish, ACCELERATE_WISH_FULL);
	CHECK(!accelerate_wish_parse("full-advised", &wish));
	CHECK_EQ(wish, ACCELERATE_WISH_FULL);
	CHECK_STR(accelerate_level_name(ACCEL_OFF), "off");
	CHECK_STR(accelerate_level_name(ACCEL_PROXY), "proxy");
	CHECK_STR(accelerate_level_name(ACCEL_FULL), "full");
	return TEST_OK;
}

TEST(a_wish_lowers_any_policy_and_raises_some)
{
	enum { POLICIES = ACCELERATE_FULL + 1, WISHES = ACCELERATE_WISH_FULL + 1 };
	/* Rows: --accelerate; columns: no annotation, off, proxy, full. */
	static const enum accel_level expected[POLICIES][WISHES] = {
		[ACCELERATE_PROXY] = {ACCEL_PROXY, ACCEL_OFF, ACCEL_PROXY, ACCEL_PROXY},
		[ACCELERATE_AUTO] = {ACCEL_PROXY, ACCEL_OFF, ACCEL_PROXY, ACCEL_FULL},
		[ACCELERATE_FULL_ADVISED] = {ACCEL_PROXY, ACCEL_OFF, ACCEL_PROXY, ACCEL_FULL},
		[ACCELERATE_FULL] = {ACCEL_FULL, ACCEL_OFF, ACCEL_PROXY, ACCEL_FULL},
	};

	for (int policy = ACCELERATE_PROXY; policy < POLICIES; policy++)
		for (int wish = 0; wish < WISHES; wish++) {
			const struct accelerate_facts facts = {
				.policy = (enum accelerate_policy)policy,
				.wish = (enum accelerate_wish)wish,
				.workload = "shop/cart",
			};
			char reason[ACCELERATE_REASON_MAX] = "";

			CHECK_EQ(accelerate_decide(&facts, reason), expected[policy][wish]);
			CHECK(*reason);
			CHECK(expected[policy][wish] <=
			      accelerate_most((enum accelerate_policy)policy));
		}
	CHECK_EQ(accelerate_most(ACCELERATE_OFF), ACCEL_OFF);
	CHECK_EQ(accelerate_most(ACCELERATE_PROXY), ACCEL_PROXY);
	return TEST_OK;
}

TEST(a_proxy_that_nobody_knows_is_accelerated_only_when_asked)
{
	struct accelerate_facts facts = {
		.policy = ACCELERATE_AUTO, .unknown_proxy = true, .workload = "shop/cart"};
	char reason[ACCELERATE_REASON_MAX] = "";

	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_OFF);
	CHECK_HAS(reason, "it is not known that this mesh's proxy reads until");
	facts.policy = ACCELERATE_FULL_ADVISED;
	facts.cleared = true;
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_OFF);
	facts.wish = ACCELERATE_WISH_FULL;
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_FULL);
	facts.wish = ACCELERATE_WISH_NONE;
	facts.policy = ACCELERATE_PROXY;
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_PROXY);
	return TEST_OK;
}

TEST(the_nodes_level_has_a_reason)
{
	static const char probed[] = "full is unsafe for programs that use FIONREAD, FIONREAD of "
				     "TCP's bytes, splice(), MSG_ZEROCOPY, MSG_WAITALL, "
				     "blocking recv()";
	char reason[ACCELERATE_REASON_MAX];

	for (int policy = ACCELERATE_AUTO; policy <= ACCELERATE_FULL; policy++)
		for (int unknown = 0; unknown < 2; unknown++) {
			accelerate_explain((enum accelerate_policy)policy, unknown, probed, reason);
			CHECK_HAS(reason, accelerate_policy_name((enum accelerate_policy)policy));
			/* All of it has room. */
			CHECK_HAS(reason, "; here full is unsafe");
			CHECK_HAS(reason, "blocking recv()");
		}
	accelerate_explain(ACCELERATE_AUTO, false, "x", reason);
	CHECK_STR(reason, "--accelerate auto: proxy for all pods, full for those that ask; here x");
	accelerate_explain(ACCELERATE_AUTO, true, "x", reason);
	CHECK_HAS(reason, "only pods that ask, as this mesh's proxy is not known");
	accelerate_explain(ACCELERATE_PROXY, true, "x", reason);
	CHECK_STR(reason, "--accelerate proxy: proxy for all pods, and full for none");
	return TEST_OK;
}

TEST(where_the_node_cannot_nothing_is_raised)
{
	for (int wish = 0; wish <= ACCELERATE_WISH_FULL; wish++) {
		const struct accelerate_facts facts = {
			.policy = ACCELERATE_FULL,
			.wish = (enum accelerate_wish)wish,
			.cleared = true,
			.not_here = "this kernel differs in order",
			.workload = "shop/cart",
		};
		char reason[ACCELERATE_REASON_MAX];

		CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_OFF);
		CHECK_STR(reason, "this kernel differs in order");
	}
	return TEST_OK;
}

TEST(the_adviser_counts_with_full_advised_only)
{
	struct accelerate_facts facts = {
		.policy = ACCELERATE_FULL_ADVISED, .cleared = true, .workload = "shop/cart"};
	char reason[ACCELERATE_REASON_MAX];

	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_FULL);
	CHECK_STR(reason, "the adviser has cleared workload shop/cart");
	facts.wish = ACCELERATE_WISH_PROXY;
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_PROXY);
	facts.wish = ACCELERATE_WISH_NONE;
	facts.policy = ACCELERATE_AUTO;
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_PROXY);
	facts.policy = ACCELERATE_PROXY;
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_PROXY);
	return TEST_OK;
}

TEST(a_reason_that_is_too_long_is_cut)
{
	char workload[600], reason[ACCELERATE_REASON_MAX];
	const struct accelerate_facts facts = {.policy = ACCELERATE_FULL_ADVISED,
					       .workload = workload};

	memset(workload, 'w', sizeof(workload) - 1);
	workload[sizeof(workload) - 1] = '\0';
	CHECK_EQ(accelerate_decide(&facts, reason), ACCEL_PROXY);
	CHECK_EQ(strlen(reason), ACCELERATE_REASON_MAX - 1);
	return TEST_OK;
}
