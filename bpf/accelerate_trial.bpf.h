/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_TRIAL_BPF_H
#define SOCKMESH_ACCELERATE_TRIAL_BPF_H

/*
 * The course of a trial (accelerate_trial.h has the question). A connection that is the only one of
 * its pair, or whose ends run on one CPU, needs none: there the short way is faster.
 *
 * Other streams are held on TCP at first, which they may leave once, while their exchanges are
 * measured; then they go the short way, and are measured again. If that is not faster, they go back
 * to TCP for good, and connections to come are left alone. A pair whose streams were short already
 * when they became several, or moved apart, is measured the other way round, if it is busy.
 *
 * Streams look at their trial at every LOOK_EVERYth message only, and one exchange of as many is
 * measured; so this costs the others next to nothing.
 */
#include "accelerate_bound.bpf.h"
#include "accelerate_trial.h"

enum {
	LOOK_EVERY = 8,	       /* messages; a power of two */
	WINDOW_NS = 100000000, /* at least */
	SETTLE_NS = 20000000,  /* until what was sent before the change has been read */
	STALE_S = 10,	       /* a trial that nobody takes part in begins anew */
	SAMPLES_MIN = 128,     /* of each window */
	WINDOWS = 3,	       /* of each phase */
	BUSY_MESSAGES = 2000,  /* a second, both ways: worth a trial that ends the short way */
	SLOWER_S = 600,	       /* so long a verdict holds at first */
	FASTER_S = 30,
	KNOWN_MAX_S = 7200,
};

static const __u64 second_ns = 1000000000;
const volatile __u32 learning = 1;

/* The head of a peer's stream. */
struct stream_head {
	__u64 cookie;
	__u32 way, wants_tcp;
	__u64 asked_ns, answered_ns;
	__u32 cpu;
};

_Static_assert(__builtin_offsetof(struct stream_head, cpu) ==
		       __builtin_offsetof(struct accel_stream, cpu),
	       "the head of a stream");

static __always_inline void read_peer(const struct accel_stream *s, struct stream_head *peer)
{
	bpf_probe_read_kernel(peer, sizeof(*peer), (const void *)(unsigned long)s->peer_stream);
}

static __always_inline __u64 live_of(const struct accel_pair *pair)
{
	__s64 live = *(volatile __u64 *)&pair->live;

	return live > 0 ? live : 0; /* the entry may be younger than its connections */
}

static __always_inline int most_are_alone(const struct accel_pair *pair)
{
	__s64 alone = *(volatile __u64 *)&pair->live_alone;

	return 2 * alone > (__s64)live_of(pair);
}

static __always_inline struct accel_trial *trial_get(const struct accel_pair_key *key)
{
	struct accel_trial *trial = bpf_map_lookup_elem(&accel_trials, key), *none;
	__u32 zero = 0;

	if (trial)
		return trial;
	none = bpf_map_lookup_elem(&accel_no_trial, &zero);
	if (!none)
		return NULL;
	bpf_map_update_elem(&accel_trials, key, none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&accel_trials, key);
}

/* ---- measuring ------------------------------------------------------------------------------ */

static __always_inline void times_clear(struct trial_times *times)
{
	/* Volatile, or the compiler would call memset(), which there is none of here. */
	for (__u32 i = 0; i < TRIAL_BUCKETS; i++) {
		*(volatile __u32 *)&times->exchange[i] = 0;
		*(volatile __u32 *)&times->answer[i] = 0;
	}
}

/* What is measured in each phase: other streams' times would say nothing. */
static __always_inline struct trial_times *times_of(struct accel_trial *trial, __u32 way)
{
	__u32 phase = *(volatile __u32 *)&trial->phase;

	if (way == WAY_SHORT)
		return phase == TRIAL_SHORT || phase == TRIAL_BY_TCP ? &trial->short_times : NULL;
	return phase == TRIAL_BY_TCP || phase == TRIAL_BACK ? &trial->tcp_times : NULL;
}

static __always_inline void count_time(__u32 *times, __u64 ns)
{
	__u32 bucket = trial_bucket(ns) & (TRIAL_BUCKETS - 1);

	__sync_fetch_and_add(&times[bucket], 1);
}

/* At a send of the connecting end: if it has been answered, the exchange that is measured is over.
 */
static __always_inline void maybe_over(struct accel_stream *s, const struct stream_head *peer)
{
	struct accel_trial *trial;
	struct trial_times *times;
	__u64 asked = s->asked_ns;

	if (!asked || peer->answered_ns != asked)
		return;
	s->asked_ns = 0;
	trial = bpf_map_lookup_elem(&accel_trials, &s->pair);
	if (!trial || (__s64)(asked - trial->began_ns) < 0)
		return;
	times = times_of(trial, s->way);
	if (!times)
		return;
	trial->last_ns = bpf_ktime_get_ns();
	count_time(times->exchange, trial->last_ns - asked);
	__sync_fetch_and_add(s->way == WAY_SHORT ? &trial->n_short : &trial->n_tcp, 1);
}

/* At a send of the accepting end: is it the answer to one that is measured? */
static __always_inline void maybe_answer(struct accel_stream *s, const struct stream_head *peer)
{
	struct accel_trial *trial;
	struct trial_times *times;

	if (s->is_active || !peer->asked_ns || peer->asked_ns == s->answered_ns)
		return;
	s->answered_ns = peer->asked_ns;
	trial = bpf_map_lookup_elem(&accel_trials, &s->pair);
	if (!trial || (__s64)(peer->asked_ns - trial->began_ns) < 0)
		return;
	times = times_of(trial, peer->way);
	if (times)
		count_time(times->answer, bpf_ktime_get_ns() - peer->asked_ns);
}

/* ---- phases --------------------------------------------------------------------------------- */

/* True for the one CPU that ends the phase. */
static __always_inline int phase_ends(struct accel_trial *trial, __u32 from, __u32 to, __u64 now)
{
	__u32 zero = 0;
	struct accel_lock *lock = bpf_map_lookup_elem(&accel_trial_lock, &zero);
	int mine = 0;

	if (!lock)
		return 0;
	bpf_spin_lock(&lock->lock);
	if (trial->phase == from) {
		trial->phase = to;
		trial->began_ns = trial->last_ns = now;
		mine = 1;
	}
	bpf_spin_unlock(&lock->lock);
	return mine;
}

union trial_key {
	struct accel_pair_key key;
	__u64 words[2];
};

/*
 * The figures of the window that is over. These two functions are not static, and have nothing but
 * numbers as arguments: so the verifier looks at them once, and not once for each way there.
 */
__noinline int trial_window(__u64 word0, __u64 word1, __u32 is_short)
{
	union trial_key key = {.words = {word0, word1}};
	struct accel_trial *trial = bpf_map_lookup_elem(&accel_trials, &key.key);
	const struct trial_times *times;
	struct trial_figures *window;

	if (!trial)
		return 0;
	times = is_short ? &trial->short_times : &trial->tcp_times;
	window = &trial->window;
	window->exchange_ns = trial_median(times->exchange, &window->exchanges);
	window->answer_ns = trial_median(times->answer, &window->answers);
	return 0;
}

/* Most of what was measured by now went the short way, because it did so before. */
static __always_inline int was_short_before(const struct accel_trial *trial)
{
	return trial->n_short >= SAMPLES_MIN && trial->n_short >= trial->n_tcp;
}

/* That streams may be slower is the worse mistake, so that verdict is soon measured again. */
static __always_inline __u32 keep_verdict(const struct accel_trial *trial,
					  struct trial_result *result, __u32 verdict, __u64 now)
{
	__u64 known_s = verdict == TRIAL_FASTER ? FASTER_S : SLOWER_S;

	result->repeats = result->verdict == verdict ? result->repeats + 1 : 0;
	for (__u32 i = 0; i < 8 && i < result->repeats; i++)
		known_s *= 2;
	result->verdict = verdict;
	if (trial->tcp.exchanges && trial->shrt.exchanges) {
		result->tcp = trial->tcp;
		result->shrt = trial->shrt;
	}
	result->until_ns = now + (known_s < KNOWN_MAX_S ? known_s : KNOWN_MAX_S) * second_ns;
	return TRIAL_NONE;
}

/* These return the next phase. */
static __always_inline __u32 after_tcp(struct accel_trial *trial, struct trial_result *result,
				       const struct trial_figures *window, __u32 phase, __u64 now)
{
	trial_take_best(&trial->tcp, window);
	if (++trial->windows < WINDOWS)
		return phase;
	if (phase == TRIAL_BY_TCP)
		return TRIAL_CHANGING;
	return keep_verdict(trial, result, trial_judge(&trial->tcp, &trial->shrt), now);
}

/* Streams would lose the short way for good to be compared with, so only if nothing is known. */
static __always_inline __u32 after_short_before(struct accel_trial *trial,
						struct trial_result *result,
						const struct trial_figures *window, __u64 now)
{
	if (result->verdict)
		return keep_verdict(trial, result, result->verdict, now);
	trial->shrt = *window;
	trial->tcp.exchanges = 0;
	return TRIAL_BACK;
}

static __always_inline __u32 after_short(struct accel_trial *trial, struct trial_result *result,
					 const struct trial_figures *window, __u64 now)
{
	__u32 verdict = trial_judge(&trial->tcp, window);

	trial_take_worst(&trial->shrt, window);
	if (verdict == TRIAL_FASTER && ++trial->windows < WINDOWS)
		return TRIAL_SHORT;
	return keep_verdict(trial, result, verdict, now);
}

static __always_inline __u32 next_phase(struct accel_trial *trial, const union trial_key *key,
					__u32 phase, __u64 now)
{
	struct trial_result *result = &trial->results[trial->level & (TRIAL_LEVELS - 1)];
	int was_short = phase == TRIAL_BY_TCP && was_short_before(trial);

	if (phase == TRIAL_CHANGING)
		return TRIAL_SHORT;
	trial_window(key->words[0], key->words[1], phase == TRIAL_SHORT || was_short);
	if (phase == TRIAL_SHORT)
		return after_short(trial, result, &trial->window, now);
	if (was_short)
		return after_short_before(trial, result, &trial->window, now);
	return after_tcp(trial, result, &trial->window, phase, now);
}

/*
 * What comes after the phase `was`, which is over; or, with a level, the beginning. The phase is
 * TRIAL_JUDGING, so nobody else is here.
 */
__noinline int trial_goes_on(__u64 word0, __u64 word1, __u64 level_and_was, __u64 now)
{
	union trial_key key = {.words = {word0, word1}};
	struct accel_trial *trial = bpf_map_lookup_elem(&accel_trials, &key.key);
	__u32 was = level_and_was, level = level_and_was >> 32, next = TRIAL_BY_TCP;

	if (!trial)
		return 0;
	if (level) {
		trial->level = level;
		trial->tcp.exchanges = trial->shrt.exchanges = 0;
	} else {
		next = next_phase(trial, &key, was, now);
	}
	times_clear(&trial->tcp_times);
	times_clear(&trial->short_times);
	trial->n_tcp = trial->n_short = 0;
	if (level || next != was) {
		trial->windows = 0;
		now += SETTLE_NS; /* the first times after a change say little */
	}
	phase_ends(trial, TRIAL_JUDGING, next, now);
	return 0;
}

static __always_inline int is_busy(const struct accel_trial *trial, __u64 ns)
{
	__u64 messages = 2ull * LOOK_EVERY * (trial->n_tcp + trial->n_short);

	return messages * second_ns >= BUSY_MESSAGES * ns;
}

static __always_inline int window_is_over(const struct accel_trial *trial, __u32 phase, __s64 took)
{
	if (phase == TRIAL_CHANGING)
		return took >= 0;
	if (took < WINDOW_NS)
		return 0;
	if (phase == TRIAL_SHORT)
		return trial->n_short >= SAMPLES_MIN;
	if (phase == TRIAL_BY_TCP && was_short_before(trial))
		return is_busy(trial, took); /* else nobody waits for it */
	return trial->n_tcp >= SAMPLES_MIN;
}

/* None is under way, or one of another number of connections, or nobody takes part any more. */
static __always_inline int must_begin(const struct accel_trial *trial, __u32 phase, __u32 level,
				      __u64 now)
{
	__s64 idle = now - *(volatile __u64 *)&trial->last_ns;

	if (phase == TRIAL_BY_TCP && (level > trial->level || level + 1 < trial->level))
		return 1;
	return phase == TRIAL_NONE || idle > (__s64)(STALE_S * second_ns);
}

static __always_inline void trial_step(const struct accel_stream *s, struct accel_trial *trial,
				       __u32 level, __u64 now)
{
	__u32 phase = *(volatile __u32 *)&trial->phase;
	__s64 took = now - *(volatile __u64 *)&trial->began_ns;
	union trial_key key = {.key = s->pair};
	int begins;

	if (phase == TRIAL_JUDGING)
		return;
	begins = must_begin(trial, phase, level, now);
	if (!begins && !window_is_over(trial, phase, took))
		return;
	if (phase_ends(trial, phase, TRIAL_JUDGING, now))
		trial_goes_on(key.words[0], key.words[1], (begins ? (__u64)level << 32 : 0) | phase,
			      now);
}

/* ---- what a stream does --------------------------------------------------------------------- */

enum trial_says {
	SAYS_AS_YOU_LIKE,
	SAYS_NOT_YET, /* who is on TCP stays there for now; who is short goes on */
	SAYS_TCP,     /* for good */
};

static __always_inline int look_is_due(const struct accel_stream *s)
{
	return !s->cpu || !((s->sent_messages + s->tcp_messages) & (LOOK_EVERY - 1));
}

static __always_inline int is_near(__u32 level, __u32 other)
{
	return level + 1 >= other && other + 1 >= level;
}

static __always_inline enum trial_says ask_trial(struct accel_stream *s,
						 const struct accel_pair *pair)
{
	__u32 level = trial_level(live_of(pair)), known, phase;
	__u64 now = bpf_ktime_get_ns();
	struct accel_trial *trial;

	if (!level)
		return SAYS_AS_YOU_LIKE;
	trial = trial_get(&s->pair);
	if (!trial)
		return SAYS_AS_YOU_LIKE;
	known = trial_known(trial->results, level, now);
	if (known)
		return known == TRIAL_SLOWER ? SAYS_TCP : SAYS_AS_YOU_LIKE;
	if (most_are_alone(pair))
		return SAYS_NOT_YET; /* the few others would not show anything */
	trial_step(s, trial, level, now);
	phase = *(volatile __u32 *)&trial->phase;
	if (s->is_active && is_near(level, trial->level))
		s->asked_ns = now;
	if (phase == TRIAL_BACK && s->way == WAY_SHORT)
		return SAYS_TCP;
	return phase == TRIAL_CHANGING || phase == TRIAL_SHORT ? SAYS_AS_YOU_LIKE : SAYS_NOT_YET;
}

/* Where the other end runs is known once that has looked, too; before, other connections tell. */
static __always_inline __u32 places_of(const struct accel_stream *s, struct accel_pair *pair,
				       __u32 peer_cpu)
{
	__u32 places = peer_cpu == s->cpu ? PLACES_ONE_CPU : PLACES_TWO_CPUS;

	if (!peer_cpu)
		return pair->places;
	if (pair->places != places)
		pair->places = places;
	return places;
}

/* At a look; the peer is known. */
static __noinline int look_at_trial(struct accel_stream *s)
{
	struct stream_head peer = {};
	struct accel_pair *pair;
	enum trial_says says;
	__u32 places;
	int is_first;

	if (!s)
		return SAYS_AS_YOU_LIKE;
	/* Two that take turns may be two for a moment: nothing is for good yet. */
	is_first = !s->cpu || !(s->sent_messages + s->tcp_messages);
	s->cpu = bpf_get_smp_processor_id() + 1;
	pair = bpf_map_lookup_elem(&accel_pairs, &s->pair);
	if (!pair)
		return SAYS_AS_YOU_LIKE;
	read_peer(s, &peer);
	places = places_of(s, pair, peer.cpu);
	if (places == PLACES_ONE_CPU || live_of(pair) < 2)
		return SAYS_AS_YOU_LIKE;
	if (places == PLACES_UNKNOWN)
		return SAYS_NOT_YET;
	says = ask_trial(s, pair);
	return says == SAYS_TCP && is_first ? SAYS_NOT_YET : says;
}

/* At each send of a direction that is not on TCP for good, or is measured there. */
static __always_inline enum trial_says take_part(struct accel_stream *s,
						 const struct stream_head *peer)
{
	if (peer->cookie != s->peer)
		return SAYS_AS_YOU_LIKE;
	maybe_over(s, peer);
	maybe_answer(s, peer);
	if (look_is_due(s))
		return look_at_trial(s);
	return s->held == HELD_ON_TRIAL ? SAYS_NOT_YET : SAYS_AS_YOU_LIKE;
}

/* Of a connection that is about to be made. */
static __always_inline int trial_leaves_alone(const struct accel_pair_key *key,
					      const struct accel_pair *pair)
{
	__u32 level = trial_level(live_of(pair) + 1);
	struct accel_trial *trial;

	if (!learning || !level || pair->places == PLACES_ONE_CPU)
		return 0;
	trial = bpf_map_lookup_elem(&accel_trials, key);
	if (!trial)
		return 0;
	return trial_known(trial->results, level, bpf_ktime_get_ns()) == TRIAL_SLOWER;
}

#endif
