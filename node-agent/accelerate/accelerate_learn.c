/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_learn.h"

#include <stddef.h>

#define MINUTE_NS (60 * 1000000000ull)

/* How much must have been seen before a rule is asked. */
struct evidence {
	uint64_t closed;	   /* connections, for brief */
	uint64_t bulk_bytes;	   /* by TCP, for bulk at once */
	uint64_t bulk_connections; /* for bulk by average */
	uint64_t spill_connections;
	uint64_t messages; /* for not-short */
};

static const struct evidence first_time = {
	.closed = 16,
	.bulk_bytes = 16 << 20,
	.bulk_connections = 4,
	.spill_connections = 8,
	.messages = 1000,
};

static const struct evidence on_trial = {
	.closed = 4,
	.bulk_bytes = 4 << 20,
	.bulk_connections = 1,
	.spill_connections = 2,
	.messages = 250,
};

enum {
	BRIEF_WORTH = 16,	   /* messages the short way that pay for one brief connection */
	BULK_MESSAGE = 8 << 10,	   /* bytes, on average */
	BULK_CONNECTION = 1 << 20, /* bytes by TCP, on average */
};

static uint64_t percent_of(uint64_t value, uint64_t percent)
{
	return value / 100 * percent + value % 100 * percent / 100;
}

/* ---- sums since the window began --------------------------------------------------------------
 */

/* All of them only ever grow while the map's entry is the same one. */
static const size_t sums[] = {
	offsetof(struct accel_pair, connections),  offsetof(struct accel_pair, closed),
	offsetof(struct accel_pair, messages),	   offsetof(struct accel_pair, bytes),
	offsetof(struct accel_pair, tcp_messages), offsetof(struct accel_pair, tcp_bytes),
	offsetof(struct accel_pair, spills),	   offsetof(struct accel_pair, life_ns),
	offsetof(struct accel_pair, brief),	   offsetof(struct accel_pair, turned_blocking),
	offsetof(struct accel_pair, left_alone),   offsetof(struct accel_pair, held_messages),
};
enum { N_SUMS = sizeof(sums) / sizeof(*sums) };

static uint64_t sum_of(const struct accel_pair *pair, size_t i)
{
	return *(const uint64_t *)((const char *)pair + sums[i]);
}

static bool is_same_entry(const struct accel_pair *now, const struct accel_pair *then)
{
	if (now->first_ns != then->first_ns)
		return false;
	for (size_t i = 0; i < N_SUMS; i++)
		if (sum_of(now, i) < sum_of(then, i))
			return false;
	return true;
}

static struct accel_pair since(const struct accel_pair *now, const struct accel_pair *then)
{
	struct accel_pair grown = *now;

	for (size_t i = 0; i < N_SUMS; i++)
		*(uint64_t *)((char *)&grown + sums[i]) -= sum_of(then, i);
	return grown;
}

/* ---- the rules --------------------------------------------------------------------------------
 */

static bool is_brief(const struct accel_pair *w, const struct evidence *need)
{
	return w->closed >= need->closed && w->brief >= percent_of(w->closed, 70) &&
	       w->messages / BRIEF_WORTH < w->closed;
}

static bool is_bulk(const struct accel_pair *w, const struct evidence *need)
{
	if (!w->spills || w->tcp_bytes <= w->bytes ||
	    w->tcp_bytes / BULK_MESSAGE < w->tcp_messages ||
	    (w->bytes + w->tcp_bytes) / BULK_MESSAGE < w->messages + w->tcp_messages)
		return false;
	if (w->tcp_bytes > need->bulk_bytes)
		return true;
	return w->connections >= need->bulk_connections &&
	       w->tcp_bytes / BULK_CONNECTION >= w->connections;
}

static bool spills_often(const struct accel_pair *w, const struct evidence *need)
{
	uint64_t tenth = (2 * w->connections + 9) / 10; /* of the directions */
	bool costs = w->tcp_messages > percent_of(w->messages + w->tcp_messages, 25) ||
		     w->tcp_bytes > percent_of(w->bytes + w->tcp_bytes, 25);

	return w->connections >= need->spill_connections && w->spills >= tenth && costs;
}

/*
 * Without a new connection it would be the old ones' past that is judged once more. What a trial
 * has held on TCP is its own business.
 */
static bool is_not_short(const struct accel_pair *w, const struct evidence *need)
{
	uint64_t by_tcp =
		w->tcp_messages > w->held_messages ? w->tcp_messages - w->held_messages : 0;
	uint64_t all = w->messages + by_tcp;

	return w->connections > 0 && all >= need->messages && by_tcp > percent_of(all, 90);
}

static uint32_t judge(const struct accel_pair *w, const struct evidence *need)
{
	if (w->turned_blocking)
		return ALONE_TURNED_BLOCKING;
	if (is_bulk(w, need))
		return ALONE_BULK;
	if (is_brief(w, need))
		return ALONE_BRIEF;
	if (spills_often(w, need))
		return ALONE_SPILLS;
	if (is_not_short(w, need))
		return ALONE_NOT_SHORT;
	return 0;
}

/* Every rule had what it asks for; one that waits for more connections keeps the window open. */
static bool is_complete(const struct accel_pair *w)
{
	bool spills_judged = !w->spills || w->connections >= first_time.spill_connections;

	return w->closed >= first_time.closed ||
	       (w->messages + w->tcp_messages >= first_time.messages && spills_judged);
}

/* ---- verdicts ---------------------------------------------------------------------------------
 */

static uint64_t alone_ns(uint32_t why, uint32_t repeats)
{
	uint64_t ns = why == ALONE_TURNED_BLOCKING ? ACCEL_ALONE_LONGEST_NS : 10 * MINUTE_NS;

	for (uint32_t i = 0; i < repeats && ns < ACCEL_ALONE_LONGEST_NS; i++)
		ns *= 2;
	return ns < ACCEL_ALONE_LONGEST_NS ? ns : ACCEL_ALONE_LONGEST_NS;
}

/* True while the pair is left alone. When that is over, its trial begins. */
static bool is_alone(const struct accel_pair *now, uint64_t now_ns, struct accel_learned *learned)
{
	if (!learned->until_ns)
		return false;
	if (now_ns < learned->until_ns && learned->until_ns - now_ns <= ACCEL_ALONE_LONGEST_NS)
		return true;
	learned->until_ns = 0;
	learned->at_verdict = *now;
	return false;
}

bool accelerate_learn(const struct accel_pair *now, uint64_t now_ns, struct accel_learned *learned,
		      struct accel_verdict *ret)
{
	bool trial = learned->why != 0;
	struct accel_pair window;
	uint32_t why;

	if (is_alone(now, now_ns, learned))
		return false;
	if (!is_same_entry(now, &learned->at_verdict))
		learned->at_verdict = (struct accel_pair){.first_ns = now->first_ns};
	window = since(now, &learned->at_verdict);
	why = judge(&window, trial ? &on_trial : &first_time);
	if (!why) {
		if (is_complete(&window)) {
			learned->at_verdict = *now;
			learned->why = 0;
			learned->repeats = 0;
		}
		return false;
	}
	learned->repeats = trial && learned->repeats < UINT32_MAX ? learned->repeats + 1 : 0;
	learned->why = why;
	learned->until_ns = now_ns + alone_ns(why, learned->repeats);
	learned->at_verdict = *now;
	*ret = (struct accel_verdict){
		.until_ns = learned->until_ns, .why = why, .repeats = learned->repeats};
	return true;
}

void accelerate_learn_adopt(const struct accel_verdict *verdict, struct accel_learned *learned)
{
	learned->until_ns = verdict->until_ns;
	learned->why = verdict->why;
	learned->repeats = verdict->repeats;
}

/* ---- names ------------------------------------------------------------------------------------
 */

const char *accelerate_why_alone_name(uint32_t why)
{
	static const char *const names[] = {
		[ALONE_BRIEF] = "brief",	 [ALONE_BULK] = "bulk",
		[ALONE_SPILLS] = "spills",	 [ALONE_TURNED_BLOCKING] = "blocking",
		[ALONE_NOT_SHORT] = "not-short", [ALONE_SLOWER] = "slower",
	};

	return why < sizeof(names) / sizeof(*names) && names[why] ? names[why] : "unknown";
}

const char *accelerate_leg_name(uint32_t leg)
{
	static const char *const names[] = {
		[LEG_NODE] = "proxy-to-proxy",
		[LEG_OUT] = "app-to-proxy",
		[LEG_IN] = "proxy-to-app",
	};

	return leg < sizeof(names) / sizeof(*names) && names[leg] ? names[leg] : "unknown";
}
