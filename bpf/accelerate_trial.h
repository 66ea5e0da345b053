/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_TRIAL_H
#define SOCKMESH_ACCELERATE_TRIAL_H

/*
 * Is the short way faster than TCP between these two? Pure functions over what was measured, for
 * the BPF programs, which decide, and for user space, which tests them.
 *
 * It costs less CPU time than TCP, always. But where the two ends run on two CPUs and several
 * connections are busy at once, the exchanges can take longer all the same: whoever receives is
 * done before the next message has been sent, goes to sleep, and is woken up again across CPUs; and
 * the batches that epoll makes of many connections move from one CPU to the other as one, so that
 * the CPUs work in turns. How much of that happens depends on the load, the programs and what a
 * wake-up costs on the machine, so it is measured and not guessed.
 */
#include "accelerate_abi.h"

enum {
	TRIAL_FIRST_SHIFT = 10, /* the first doubling ends at 2048 ns */
	TRIAL_STEP_SHIFT = 3,	/* 8 steps each */
	TRIAL_STEPS = 1 << TRIAL_STEP_SHIFT,
	TRIAL_ANSWERS_MIN = 16,
	/* The short way has to be faster by so much; equal is TCP. */
	TRIAL_FASTER_PERCENT = 97,
	/* An exchange that takes no longer than so many answers is asked anew at once. */
	TRIAL_BUSY_RATIO = 4,
};

/* floor(log2(n)), 0 of 0 */
static inline __u32 trial_log2(__u64 n)
{
	__u32 shift = 0;

	if (n >> 32)
		shift += 32, n >>= 32;
	if (n >> 16)
		shift += 16, n >>= 16;
	if (n >> 8)
		shift += 8, n >>= 8;
	if (n >> 4)
		shift += 4, n >>= 4;
	if (n >> 2)
		shift += 2, n >>= 2;
	return shift + (n >> 1 ? 1 : 0);
}

/* How many at once, as trials tell them apart. */
static inline __u32 trial_level(__u64 live)
{
	__u32 level = trial_log2(live);

	return level < TRIAL_LEVELS ? level : TRIAL_LEVELS - 1;
}

static inline __u32 trial_bucket(__u64 ns)
{
	__u32 shift = trial_log2(ns), bucket;

	if (shift < TRIAL_FIRST_SHIFT)
		return 0;
	bucket = (shift - TRIAL_FIRST_SHIFT) * TRIAL_STEPS +
		 ((ns >> (shift - TRIAL_STEP_SHIFT)) & (TRIAL_STEPS - 1));
	return bucket < TRIAL_BUCKETS ? bucket : TRIAL_BUCKETS - 1;
}

/* Where a bucket begins. */
static inline __u64 trial_bucket_ns(__u32 bucket)
{
	__u32 shift = TRIAL_FIRST_SHIFT + bucket / TRIAL_STEPS;

	return (__u64)(TRIAL_STEPS + bucket % TRIAL_STEPS) << (shift - TRIAL_STEP_SHIFT);
}

/* Within a bucket times are taken to be spread evenly. 0: there are none. */
static inline __u32 trial_median(const __u32 *times, __u32 *ret_n)
{
	__u64 below = 0, n = 0;

	for (__u32 i = 0; i < TRIAL_BUCKETS; i++)
		n += times[i];
	*ret_n = n;
	for (__u32 i = 0; i < TRIAL_BUCKETS; i++) {
		__u64 here = times[i];

		if (here && 2 * (below + here) >= n) {
			__u64 from = trial_bucket_ns(i), to = trial_bucket_ns(i + 1);

			return from + (to - from) * (n - 2 * below) / (2 * here);
		}
		below += here;
	}
	return 0;
}

static inline __u32 trial_is_faster(__u32 shrt, __u32 tcp)
{
	return (__u64)shrt * 100 <= (__u64)tcp * TRIAL_FASTER_PERCENT;
}

/*
 * Whole exchanges count where they follow each other; there they say how long a client waits. Where
 * the clients do something else in between, it is answers that count.
 */
static inline __u32 trial_counts_answers(const struct trial_figures *tcp)
{
	return tcp->exchange_ns / TRIAL_BUSY_RATIO > tcp->answer_ns;
}

static inline __u32 trial_judge(const struct trial_figures *tcp, const struct trial_figures *shrt)
{
	if (tcp->answers < TRIAL_ANSWERS_MIN || shrt->answers < TRIAL_ANSWERS_MIN)
		return TRIAL_SLOWER; /* nothing to judge by */
	if (trial_counts_answers(tcp))
		return trial_is_faster(shrt->answer_ns, tcp->answer_ns) ? TRIAL_FASTER
									: TRIAL_SLOWER;
	return trial_is_faster(shrt->exchange_ns, tcp->exchange_ns) ? TRIAL_FASTER : TRIAL_SLOWER;
}

static inline __u32 trial_min(__u32 a, __u32 b)
{
	return a < b ? a : b;
}

/*
 * A window may be disturbed, by what else the machine does, or because programs are still getting
 * into their stride. So the best one counts for TCP, and the worst one for the short way: to be
 * taken for slower by mistake loses a gain, to be taken for faster would make connections slower.
 */
static inline void trial_take_best(struct trial_figures *best, const struct trial_figures *window)
{
	if (!best->exchanges) {
		*best = *window;
		return;
	}
	best->exchange_ns = trial_min(best->exchange_ns, window->exchange_ns);
	best->answer_ns = trial_min(best->answer_ns, window->answer_ns);
	best->exchanges += window->exchanges;
	best->answers = trial_min(best->answers, window->answers);
}

static inline void trial_take_worst(struct trial_figures *worst, const struct trial_figures *window)
{
	if (!worst->exchanges) {
		*worst = *window;
		return;
	}
	if (worst->exchange_ns < window->exchange_ns)
		worst->exchange_ns = window->exchange_ns;
	if (worst->answer_ns < window->answer_ns)
		worst->answer_ns = window->answer_ns;
	worst->exchanges += window->exchanges;
	worst->answers = trial_min(worst->answers, window->answers);
}

/*
 * What is known of so many connections at once: what was measured with as many; else nothing is
 * risked when the short way was slower with any other number, and it may be taken when it was
 * faster even with more.
 */
static inline __u32 trial_known(const struct trial_result *results, __u32 level, __u64 now_ns)
{
	__u32 known = TRIAL_UNKNOWN;

	for (__u32 i = 1; i < TRIAL_LEVELS; i++) {
		__u32 verdict = results[i].until_ns > now_ns ? results[i].verdict : TRIAL_UNKNOWN;

		if (i == level && verdict)
			return verdict;
		if (verdict == TRIAL_SLOWER || (verdict && i > level && !known))
			known = verdict;
	}
	return known;
}

#endif
