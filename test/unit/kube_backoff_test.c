/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_backoff.h"

#include "test.h"

TEST(waits_grow_to_the_maximum_with_full_jitter)
{
	uint32_t low[12], high[12];

	for (unsigned n = 0; n < 12; n++) {
		low[n] = UINT32_MAX;
		high[n] = 0;
	}
	for (unsigned round = 0; round < 2000; round++) {
		struct kube_backoff b;

		kube_backoff_init(&b, 100, 10000);
		for (unsigned n = 0; n < 12; n++) {
			uint32_t wait = kube_backoff_next(&b, -1);

			low[n] = wait < low[n] ? wait : low[n];
			high[n] = wait > high[n] ? wait : high[n];
		}
	}
	CHECK(low[0] >= 12 && high[0] > 90 && high[0] <= 100);
	CHECK(high[3] > 700 && high[3] <= 800);
	CHECK(low[11] < 1000 && high[11] > 9000 && high[11] <= 10000);
	return TEST_OK;
}

TEST(a_reset_begins_anew)
{
	struct kube_backoff b;

	kube_backoff_init(&b, 100, 10000);
	for (unsigned n = 0; n < 10; n++)
		kube_backoff_next(&b, -1);
	kube_backoff_reset(&b);
	CHECK(kube_backoff_next(&b, -1) <= 100);
	return TEST_OK;
}

TEST(the_servers_wish_is_kept_but_not_for_ever)
{
	struct kube_backoff b;

	kube_backoff_init(&b, 100, 10000);
	for (unsigned n = 0; n < 1000; n++) {
		uint32_t wait = kube_backoff_next(&b, 3000);

		CHECK(wait >= 3000 && wait <= 4000);
		wait = kube_backoff_next(&b, 1000000000);
		CHECK(wait >= KUBE_RETRY_AFTER_MAX_MS && wait <= KUBE_RETRY_AFTER_MAX_MS + 1000);
	}
	return TEST_OK;
}

TEST(jitter_covers_its_range_and_no_more)
{
	struct kube_backoff b;
	unsigned seen[4] = {0};

	kube_backoff_init(&b, 0, 0);
	CHECK_EQ(b.base_ms, KUBE_BACKOFF_BASE_MS);
	for (unsigned n = 0; n < 1000; n++) {
		uint32_t x = kube_backoff_jitter(&b, 7, 10);

		CHECK(x >= 7 && x <= 10);
		seen[x - 7]++;
	}
	CHECK(seen[0] && seen[1] && seen[2] && seen[3]);
	CHECK_EQ(kube_backoff_jitter(&b, 5, 5), 5);
	CHECK_EQ(kube_backoff_jitter(&b, 5, 3), 5);
	return TEST_OK;
}
