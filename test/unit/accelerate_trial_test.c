/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_trial.h"

#include "test.h"

#include <stdint.h>

#define SECOND_NS 1000000000ull

TEST(levels_are_doublings_of_connections)
{
	static const struct {
		uint64_t live;
		unsigned level;
	} rows[] = {
		{0, 0},	 {1, 0},   {2, 1},   {3, 1},	   {4, 2},
		{7, 2},	 {8, 3},   {15, 3},  {16, 4},	   {63, 5},
		{64, 6}, {127, 6}, {128, 7}, {1 << 20, 7}, {UINT64_MAX, 7},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		CHECK_EQ(trial_level(rows[i].live), rows[i].level);
	for (unsigned bit = 0; bit < 64; bit++) {
		CHECK_EQ(trial_log2(1ull << bit), bit);
		CHECK_EQ(trial_log2((1ull << bit) | ((1ull << bit) - 1)), bit);
	}
	return TEST_OK;
}

/* Each time is in the bucket that begins at or before it, and no bucket is wider than an eighth. */
TEST(buckets_hold_what_they_say)
{
	uint64_t last = trial_bucket_ns(TRIAL_BUCKETS);

	for (uint64_t ns = 1024; ns < last; ns += 1 + ns / 50) {
		unsigned bucket = trial_bucket(ns);

		CHECK(bucket < TRIAL_BUCKETS);
		CHECK(trial_bucket_ns(bucket) <= ns && ns < trial_bucket_ns(bucket + 1));
		CHECK(trial_bucket_ns(bucket + 1) - trial_bucket_ns(bucket) <= ns / 8 + 1);
	}
	CHECK_EQ(trial_bucket(0), 0);
	CHECK_EQ(trial_bucket(1023), 0);
	CHECK_EQ(trial_bucket(last), TRIAL_BUCKETS - 1);
	CHECK_EQ(trial_bucket(UINT64_MAX), TRIAL_BUCKETS - 1);
	return TEST_OK;
}

static uint32_t median_of(uint64_t from_ns, uint64_t to_ns, unsigned n)
{
	uint32_t times[TRIAL_BUCKETS] = {0}, counted, median;

	for (unsigned i = 0; i < n; i++)
		times[trial_bucket(from_ns + (to_ns - from_ns) * i / n)]++;
	median = trial_median(times, &counted);
	return counted == n ? median : 0;
}

TEST(medians_are_within_two_per_cent)
{
	static const struct {
		uint64_t from, to, median;
	} rows[] = {
		{40000, 60000, 50000},	  {100000, 300000, 200000},
		{190000, 210000, 200000}, {1000000, 1200000, 1100000},
		{2000, 20000, 11000},	  {30000000, 50000000, 40000000},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		uint64_t found = median_of(rows[i].from, rows[i].to, 1000);

		CHECK(found * 50 > rows[i].median * 49 && found * 50 < rows[i].median * 51);
	}
	return TEST_OK;
}

TEST(a_median_of_few_or_none)
{
	uint32_t times[TRIAL_BUCKETS] = {0}, n;

	CHECK_EQ(trial_median(times, &n), 0);
	CHECK_EQ(n, 0);
	times[TRIAL_BUCKETS - 1] = 1;
	CHECK(trial_median(times, &n) >= trial_bucket_ns(TRIAL_BUCKETS - 1));
	CHECK_EQ(n, 1);
	/* One that stalls for 50 ms changes nothing. */
	times[trial_bucket(100000)] = 99;
	CHECK(trial_median(times, &n) < 110000);
	return TEST_OK;
}

struct outcome {
	const char *what;
	uint32_t verdict;
	struct trial_figures tcp, shrt;
};

static const struct outcome outcomes[] = {
	{"64 connections on two CPUs",
	 TRIAL_SLOWER,
	 {700000, 400000, 900, 900},
	 {826000, 420000, 800, 800}},
	{"faster by a fifth", TRIAL_FASTER, {100000, 60000, 500, 500}, {80000, 50000, 500, 500}},
	{"equal", TRIAL_SLOWER, {100000, 60000, 500, 500}, {100000, 60000, 500, 500}},
	{"faster by three per cent",
	 TRIAL_FASTER,
	 {100000, 60000, 500, 500},
	 {97000, 60000, 500, 500}},
	{"not quite", TRIAL_SLOWER, {100000, 60000, 500, 500}, {97001, 60000, 500, 500}},
	{"answers are faster, exchanges are not",
	 TRIAL_SLOWER,
	 {100000, 60000, 500, 500},
	 {101000, 50000, 500, 500}},
	/* Where clients pause, what an exchange takes is how long they pause. */
	{"clients that pause, answered faster",
	 TRIAL_FASTER,
	 {9000000, 60000, 500, 500},
	 {9900000, 50000, 500, 500}},
	{"clients that pause, answered slower",
	 TRIAL_SLOWER,
	 {9000000, 60000, 500, 500},
	 {8000000, 65000, 500, 500}},
	{"no answers by TCP", TRIAL_SLOWER, {100000, 0, 500, 0}, {50000, 30000, 500, 500}},
	{"no answers the short way", TRIAL_SLOWER, {100000, 60000, 500, 500}, {50000, 0, 500, 15}},
	{"nothing at all", TRIAL_SLOWER, {0}, {0}},
	{"times beyond all bounds",
	 TRIAL_FASTER,
	 {UINT32_MAX, UINT32_MAX, 500, 500},
	 {1, 1, 500, 500}},
};

TEST(verdicts)
{
	for (size_t i = 0; i < sizeof(outcomes) / sizeof(*outcomes); i++) {
		const struct outcome *o = &outcomes[i];

		if (trial_judge(&o->tcp, &o->shrt) != o->verdict) {
			printf("# %s\n", o->what);
			CHECK(0);
		}
	}
	return TEST_OK;
}

enum { NOW = 1000 };

static struct trial_result found(uint32_t verdict)
{
	return (struct trial_result){.until_ns = NOW + 1, .verdict = verdict};
}

TEST(what_was_measured_with_as_many_counts_first)
{
	struct trial_result results[TRIAL_LEVELS] = {
		[2] = found(TRIAL_FASTER), [4] = found(TRIAL_SLOWER), [6] = found(TRIAL_FASTER)};

	CHECK_EQ(trial_known(results, 2, NOW), TRIAL_FASTER);
	CHECK_EQ(trial_known(results, 4, NOW), TRIAL_SLOWER);
	CHECK_EQ(trial_known(results, 6, NOW), TRIAL_FASTER);
	/* Else nothing is risked. */
	CHECK_EQ(trial_known(results, 1, NOW), TRIAL_SLOWER);
	CHECK_EQ(trial_known(results, 5, NOW), TRIAL_SLOWER);
	CHECK_EQ(trial_known(results, 7, NOW), TRIAL_SLOWER);
	return TEST_OK;
}

TEST(faster_with_more_is_faster_with_fewer)
{
	struct trial_result results[TRIAL_LEVELS] = {[4] = found(TRIAL_FASTER)};

	CHECK_EQ(trial_known(results, 3, NOW), TRIAL_FASTER);
	CHECK_EQ(trial_known(results, 5, NOW), TRIAL_UNKNOWN);
	return TEST_OK;
}

TEST(verdicts_come_to_an_end)
{
	struct trial_result results[TRIAL_LEVELS] = {
		[1] = found(TRIAL_FASTER), [4] = found(TRIAL_SLOWER)};

	CHECK_EQ(trial_known(results, 5, NOW), TRIAL_SLOWER);
	CHECK_EQ(trial_known(results, 4, NOW + 1), TRIAL_UNKNOWN);
	CHECK_EQ(trial_known(results, 1, NOW + 1), TRIAL_UNKNOWN);
	return TEST_OK;
}
