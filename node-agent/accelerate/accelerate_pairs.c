/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What is learned about pairs of workloads: reads the sums that the programs keep, judges each pair
 * with accelerate_learn(), and writes the verdicts that the programs obey. Every second while
 * something changes, less and less often while nothing does.
 */
#include "accelerate_learn.h"
#include "accelerate_private.h"
#include "accelerate_trial.h"
#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "pod_state.h"
#include "scoped.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint64_t second_ns = 1000000000;

enum {
	LOOK_BUSY_MS = 1000,
	LOOK_IDLE_MS = 10000,
	BATCH = 1024,	      /* far more than one bucket holds, which a batch must have room for */
	PAIRS_MIN = 64,	      /* a power of two */
	UNUSED_S = 24 * 3600, /* without a change for so long: dropped */
	HOARD_SHARE = 8, /* the part of the room that one workload may have when it is scarce */
	CALM_S = 60,	 /* the same, when there is no room for new ones */
	FULL_LINES_PER_MINUTE = 1,
};

struct pair {
	bool in_map; /* the last complete look found it */
	struct accel_pair_key key;
	struct accel_pair sums;
	struct accel_learned learned;
	uint64_t changed_ns; /* when the sums were last seen to differ */
};

struct accelerate_pairs {
	struct accelerate *a;
	struct event_source *timer;
	unsigned delay_ms;
	int pairs_fd, verdicts_fd, trials_fd;
	uint32_t room; /* entries of accel_pairs */

	/* Densely, in no order; and where each is, by open addressing: its number plus 1, 0: free.
	 */
	struct pair *pairs;
	size_t n_pairs, max_pairs;
	uint32_t *slots;
	size_t n_slots; /* a power of two, and at least half of them are free */

	bool adopting; /* until the first look is over */
	bool changed;  /* something did, in this look */
	struct log_limit full, failed;

	struct accel_pair_key keys[BATCH];
	struct accel_pair sums[BATCH];
};

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now = {0};

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * second_ns + (uint64_t)now.tv_nsec;
}

/* ---- the table --------------------------------------------------------------------------------
 */

static size_t hash_of(const struct accel_pair_key *key)
{
	uint64_t words[2], h;

	memcpy(words, key, sizeof(words));
	h = words[0] * 0x9e3779b97f4a7c15 ^ words[1];
	h *= 0x9e3779b97f4a7c15;
	return h >> 32;
}

static uint32_t *slot_of(const struct accelerate_pairs *p, const struct accel_pair_key *key)
{
	size_t i = hash_of(key) & (p->n_slots - 1);

	while (p->slots[i] && memcmp(&p->pairs[p->slots[i] - 1].key, key, sizeof(*key)) != 0)
		i = (i + 1) & (p->n_slots - 1);
	return &p->slots[i];
}

static void fill_slots(struct accelerate_pairs *p)
{
	memset(p->slots, 0, p->n_slots * sizeof(*p->slots));
	for (size_t i = 0; i < p->n_pairs; i++)
		*slot_of(p, &p->pairs[i].key) = (uint32_t)i + 1;
}

static int grow(struct accelerate_pairs *p)
{
	size_t max_pairs = p->max_pairs ? p->max_pairs * 2 : PAIRS_MIN;
	struct pair *pairs = reallocarray(p->pairs, max_pairs, sizeof(*pairs));
	uint32_t *slots;

	if (!pairs)
		return -ENOMEM;
	p->pairs = pairs;
	slots = reallocarray(p->slots, max_pairs * 2, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	p->slots = slots;
	p->max_pairs = max_pairs;
	p->n_slots = max_pairs * 2;
	fill_slots(p);
	return 0;
}

/* NULL without memory. Moves the others. */
static struct pair *find_or_add(struct accelerate_pairs *p, const struct accel_pair_key *key)
{
	uint32_t *slot;

	if (p->n_pairs == p->max_pairs && grow(p))
		return NULL;
	slot = slot_of(p, key);
	if (!*slot) {
		p->pairs[p->n_pairs] = (struct pair){.key = *key};
		*slot = (uint32_t)++p->n_pairs;
	}
	return &p->pairs[*slot - 1];
}

/* ---- verdicts ---------------------------------------------------------------------------------
 */

static const char *workload_text(const struct accelerate *a, uint32_t id, char *buf, size_t size)
{
	const char *name = accelerate_workload_name(a, id);

	snprintf(buf, size, "#%" PRIu32, id);
	return name ? name : buf;
}

static void tell_verdict(const struct accelerate_pairs *p, const struct pair *pair, uint64_t now)
{
	char number[2][16], port[8], minutes[24];

	snprintf(port, sizeof(port), "%u", pair->key.port);
	snprintf(minutes, sizeof(minutes), "%" PRIu64,
		 (pair->learned.until_ns - now) / (60 * second_ns));
	log_write(LOG_DEBUG, "connections between two workloads are left on TCP", "workload",
		  workload_text(p->a, pair->key.workload, number[0], sizeof(number[0])), "peer",
		  workload_text(p->a, pair->key.peer, number[1], sizeof(number[1])), "port", port,
		  "leg", accelerate_leg_name(pair->key.leg), "why",
		  accelerate_why_alone_name(pair->learned.why), "minutes", minutes, NULL);
}

static void tell_failure(struct accelerate_pairs *p, int code, const char *what)
{
	struct error err = {0};
	unsigned suppressed;
	char more[24];

	if (!log_limit_allow(&p->failed, &suppressed))
		return;
	error_set(&err, code, "%s", what);
	snprintf(more, sizeof(more), "%u", suppressed);
	log_error(LOG_WARN, &err, "learning about pairs of workloads", "suppressed", more, NULL);
}

static void write_verdict(struct accelerate_pairs *p, struct pair *pair,
			  const struct accel_verdict *verdict, uint64_t now)
{
	if (bpf_map_update_elem(p->verdicts_fd, &pair->key, verdict, BPF_ANY) == 0) {
		tell_verdict(p, pair, now);
		return;
	}
	tell_failure(p, errno, "write a verdict");
	pair->learned.until_ns = 0; /* it goes on, and so is judged again */
}

static void judge(struct accelerate_pairs *p, struct pair *pair, uint64_t now)
{
	bool was_alone = pair->learned.until_ns != 0;
	struct accel_verdict verdict;

	if (accelerate_learn(&pair->sums, now, &pair->learned, &verdict))
		write_verdict(p, pair, &verdict, now);
	else if (was_alone && !pair->learned.until_ns)
		bpf_map_delete_elem(p->verdicts_fd, &pair->key);
}

/* ---- looking ----------------------------------------------------------------------------------
 */

static void take_in(struct accelerate_pairs *p, const struct accel_pair_key *key,
		    const struct accel_pair *sums, uint64_t now)
{
	struct pair *pair = find_or_add(p, key);

	if (!pair)
		return;
	pair->in_map = true;
	if (memcmp(&pair->sums, sums, sizeof(*sums)) != 0) {
		pair->sums = *sums;
		pair->changed_ns = now;
		p->changed = true;
	}
	/* What an earlier agent saw it has judged. */
	if (p->adopting && !pair->learned.until_ns)
		pair->learned.at_verdict = *sums;
	if (p->a->cfg.learning)
		judge(p, pair, now);
}

/* Pairs that are no longer in the map are forgotten, once no verdict is left to be taken back. */
static void forget_vanished(struct accelerate_pairs *p, uint64_t now)
{
	size_t n_kept = 0;

	for (size_t i = 0; i < p->n_pairs; i++) {
		struct pair *pair = &p->pairs[i];

		if (!pair->in_map && pair->learned.until_ns)
			judge(p, pair, now);
		if (!pair->in_map && !pair->learned.until_ns)
			continue;
		if (n_kept != i)
			p->pairs[n_kept] = *pair;
		n_kept++;
	}
	if (n_kept == p->n_pairs)
		return;
	p->n_pairs = n_kept;
	fill_slots(p);
}

static void drop(struct accelerate_pairs *p, struct pair *pair)
{
	if (bpf_map_delete_elem(p->pairs_fd, &pair->key) && errno != ENOENT)
		tell_failure(p, errno, "drop a pair that is not used");
	bpf_map_delete_elem(p->trials_fd, &pair->key);
	pair->in_map = false;
}

static int oldest_first(const void *a, const void *b)
{
	const struct pair *left = *(struct pair *const *)a, *right = *(struct pair *const *)b;

	return left->changed_ns < right->changed_ns ? -1 : left->changed_ns > right->changed_ns;
}

static int by_workload(const void *a, const void *b)
{
	const struct pair *left = *(struct pair *const *)a, *right = *(struct pair *const *)b;
	uint32_t workloads[] = {left->key.workload, right->key.workload};

	return workloads[0] < workloads[1]   ? -1
	       : workloads[0] > workloads[1] ? 1
					     : oldest_first(a, b);
}

/* One that dials every port there is must not be why nothing is learned about the others. */
static size_t drop_hoarded(struct accelerate_pairs *p, struct pair **pairs, size_t n)
{
	size_t share = p->room / HOARD_SHARE, n_dropped = 0, first = 0;

	qsort(pairs, n, sizeof(struct pair *), by_workload);
	for (size_t i = 0; i < n; i++) {
		if (i + 1 < n && pairs[i + 1]->key.workload == pairs[i]->key.workload)
			continue;
		for (; i + 1 - first > share; first++, n_dropped++)
			drop(p, pairs[first]);
		first = i + 1;
	}
	return n_dropped;
}

static size_t drop_calm(struct accelerate_pairs *p, struct pair **pairs, size_t n, size_t surplus,
			uint64_t now)
{
	size_t n_dropped = 0;

	qsort(pairs, n, sizeof(struct pair *), oldest_first);
	for (size_t i = 0; i < n && n_dropped < surplus; i++) {
		if (now - pairs[i]->changed_ns < CALM_S * second_ns)
			break;
		if (!pairs[i]->in_map) /* hoarded */
			continue;
		drop(p, pairs[i]);
		n_dropped++;
	}
	return n_dropped;
}

/*
 * From three quarters on, what one workload has beyond an eighth goes, and then the calm ones that
 * were used longest ago, down to one half. Returns how many.
 */
static size_t make_room(struct accelerate_pairs *p, size_t n_in_map, uint64_t now)
{
	scoped_free struct pair **pairs = NULL;
	size_t n = 0, n_dropped;

	if (!n_in_map || n_in_map < p->room - p->room / 4)
		return 0;
	pairs = calloc(n_in_map, sizeof(struct pair *));
	if (!pairs)
		return 0;
	for (size_t i = 0; i < p->n_pairs && n < n_in_map; i++)
		if (p->pairs[i].in_map)
			pairs[n++] = &p->pairs[i];
	n_dropped = drop_hoarded(p, pairs, n);
	if (n - n_dropped > p->room / 2)
		n_dropped += drop_calm(p, pairs, n, n - n_dropped - p->room / 2, now);
	return n_dropped;
}

static size_t drop_unused(struct accelerate_pairs *p, uint64_t now)
{
	size_t n_in_map = 0;

	for (size_t i = 0; i < p->n_pairs; i++) {
		struct pair *pair = &p->pairs[i];

		if (!pair->in_map)
			continue;
		if (now - pair->changed_ns >= UNUSED_S * second_ns)
			drop(p, pair);
		else
			n_in_map++;
	}
	return n_in_map;
}

static void tell_full(struct accelerate_pairs *p)
{
	unsigned suppressed;
	char text[24];

	if (!log_limit_allow(&p->full, &suppressed))
		return;
	snprintf(text, sizeof(text), "%" PRIu32, p->room);
	log_write(LOG_WARN,
		  "nothing is learned about further pairs of workloads: there are too many at once",
		  "pairs", text, NULL);
}

static int walk(struct accelerate_pairs *p, uint64_t now)
{
	uint32_t cursor = 0, count;
	bool first = true;
	int r;

	do {
		count = BATCH;
		r = bpf_map_lookup_batch(p->pairs_fd, first ? NULL : &cursor, &cursor, p->keys,
					 p->sums, &count, NULL);
		if (r && errno != ENOENT)
			return -errno;
		for (uint32_t i = 0; i < count; i++)
			take_in(p, &p->keys[i], &p->sums[i], now);
		first = false;
	} while (!r);
	return 0;
}

void accelerate_pairs_look(struct accelerate_pairs *p, uint64_t now)
{
	size_t n_in_map;
	int r;

	p->changed = false;
	for (size_t i = 0; i < p->n_pairs; i++)
		p->pairs[i].in_map = false;
	r = walk(p, now);
	p->adopting = false;
	if (r) {
		tell_failure(p, -r, "read accel_pairs");
		return;
	}
	n_in_map = drop_unused(p, now);
	n_in_map -= make_room(p, n_in_map, now);
	if (n_in_map >= p->room)
		tell_full(p);
	forget_vanished(p, now);
}

static int set_timer(struct accelerate_pairs *p, struct error *err);

static unsigned next_delay_ms(const struct accelerate_pairs *p)
{
	if (p->changed)
		return LOOK_BUSY_MS;
	return p->delay_ms * 2 < LOOK_IDLE_MS ? p->delay_ms * 2 : LOOK_IDLE_MS;
}

static void on_timer(void *arg)
{
	struct accelerate_pairs *p = arg;
	struct error err = {0};

	p->timer = NULL;
	accelerate_pairs_look(p, now_ns(CLOCK_MONOTONIC));
	p->delay_ms = next_delay_ms(p);
	if (set_timer(p, &err))
		log_error(LOG_ERROR, &err, "learning about pairs of workloads stops", NULL);
}

static int set_timer(struct accelerate_pairs *p, struct error *err)
{
	return event_loop_add_timer(p->a->loop, p->delay_ms, 0, on_timer, p, &p->timer, err);
}

/* ---- taking over ------------------------------------------------------------------------------
 */

static int adopt_verdict(struct accelerate_pairs *p, const struct accel_pair_key *key)
{
	struct accel_verdict verdict;
	struct pair *pair;

	if (bpf_map_lookup_elem(p->verdicts_fd, key, &verdict))
		return 0;
	pair = find_or_add(p, key);
	if (!pair)
		return -ENOMEM;
	accelerate_learn_adopt(&verdict, &pair->learned);
	return 0;
}

/* Without learning nothing is left alone: what an agent with it left behind goes. */
static int adopt_verdicts(struct accelerate_pairs *p, struct error *err)
{
	struct accel_pair_key key;
	int r = 0;

	for_each_accel_key(p->verdicts_fd, &key)
	{
		r = adopt_verdict(p, &key);
		if (r)
			return error_set(err, -r, "take over what was learned");
	}
	for (size_t i = 0; !p->a->cfg.learning && i < p->n_pairs; i++) {
		bpf_map_delete_elem(p->verdicts_fd, &p->pairs[i].key);
		p->pairs[i].learned = (struct accel_learned){0};
	}
	return 0;
}

int accelerate_pairs_open(struct accelerate *a, struct accelerate_pairs **ret, struct error *err)
{
	struct accelerate_pairs *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return error_set(err, ENOMEM, "pairs of workloads");
	p->a = a;
	p->pairs_fd = bpf_map__fd(a->skel->maps.accel_pairs);
	p->verdicts_fd = bpf_map__fd(a->skel->maps.accel_verdicts);
	p->trials_fd = bpf_map__fd(a->skel->maps.accel_trials);
	p->room = bpf_map__max_entries(a->skel->maps.accel_pairs);
	p->delay_ms = LOOK_BUSY_MS;
	p->full.per_minute = p->failed.per_minute = FULL_LINES_PER_MINUTE;
	p->adopting = true;
	r = adopt_verdicts(p, err);
	if (r == 0)
		r = set_timer(p, err);
	if (r < 0) {
		accelerate_pairs_close(p);
		return r;
	}
	accelerate_pairs_look(p, now_ns(CLOCK_MONOTONIC));
	*ret = p;
	return 0;
}

void accelerate_pairs_close(struct accelerate_pairs *p)
{
	if (!p)
		return;
	event_loop_remove(p->timer);
	free(p->pairs);
	free(p->slots);
	free(p);
}

/* ---- telling ----------------------------------------------------------------------------------
 */

struct instant { /* on both clocks */
	uint64_t monotonic, realtime;
};

static const char *time_text(const struct instant *now, uint64_t ns, char buf[static TIME_TEXT_MAX])
{
	pod_state_time((int64_t)((now->realtime + (ns - now->monotonic)) / second_ns), buf);
	return buf;
}

/* {"connections","verdict","of","tcpUs","shortUs","until"} */
static json_t *result_json(const struct trial_result *result, unsigned level,
			   const struct instant *now)
{
	bool answers = trial_counts_answers(&result->tcp);
	char connections[24], until[TIME_TEXT_MAX];

	snprintf(connections, sizeof(connections),
		 level + 1 < TRIAL_LEVELS ? "%u-%u" : "%u and more", 1U << level,
		 (2U << level) - 1);
	return json_pack("{s:s, s:s, s:s, s:f, s:f, s:s}", "connections", connections, "verdict",
			 result->verdict == TRIAL_FASTER ? "faster" : "slower", "of",
			 answers ? "answer" : "exchange", "tcpUs",
			 (answers ? result->tcp.answer_ns : result->tcp.exchange_ns) / 1e3,
			 "shortUs",
			 (answers ? result->shrt.answer_ns : result->shrt.exchange_ns) / 1e3,
			 "until", time_text(now, result->until_ns, until));
}

static json_t *measured_json(const struct accel_trial *trial, const struct instant *now)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < TRIAL_LEVELS; i++)
		if (trial->results[i].verdict && trial->results[i].until_ns > now->monotonic)
			json_array_append_new(list, result_json(&trial->results[i], i, now));
	return list;
}

/* What a connection that comes now would be left alone for, and until when. */
static uint32_t why_alone(const struct pair *pair, const struct accel_trial *trial, uint64_t now,
			  uint64_t *ret_until_ns)
{
	unsigned level = trial_level((int64_t)pair->sums.live > 0 ? pair->sums.live + 1 : 1);

	*ret_until_ns = pair->learned.until_ns;
	if (pair->learned.until_ns > now)
		return pair->learned.why;
	if (!level || pair->sums.places == PLACES_ONE_CPU ||
	    trial_known(trial->results, level, now) != TRIAL_SLOWER)
		return 0;
	for (unsigned i = 0; i < TRIAL_LEVELS; i++)
		if (trial->results[i].verdict == TRIAL_SLOWER &&
		    trial->results[i].until_ns > *ret_until_ns)
			*ret_until_ns = trial->results[i].until_ns;
	return ALONE_SLOWER;
}

static json_t *pair_json(const struct accelerate_pairs *p, const struct pair *pair,
			 const struct instant *now)
{
	const struct accel_pair *sums = &pair->sums;
	struct accel_trial trial = {0};
	char number[2][16], until[TIME_TEXT_MAX] = "";
	uint64_t until_ns;
	uint32_t alone, why;

	bpf_map_lookup_elem(p->trials_fd, &pair->key, &trial);
	alone = why_alone(pair, &trial, now->monotonic, &until_ns);
	why = alone ? alone : pair->learned.why;
	return json_pack(
		"{s:s, s:s, s:i, s:s, s:s, s:s?, s:s?, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
		"s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
		"workload", workload_text(p->a, pair->key.workload, number[0], sizeof(number[0])),
		"peer", workload_text(p->a, pair->key.peer, number[1], sizeof(number[1])), "port",
		pair->key.port, "leg", accelerate_leg_name(pair->key.leg), "verdict",
		alone ? "left-alone" : "short", "why", why ? accelerate_why_alone_name(why) : NULL,
		"until", alone ? time_text(now, until_ns, until) : NULL, "trial",
		!alone && pair->learned.why != 0, "connections", (json_int_t)sums->connections,
		"closed", (json_int_t)sums->closed, "brief", (json_int_t)sums->brief, "messages",
		(json_int_t)sums->messages, "bytes", (json_int_t)sums->bytes, "tcpMessages",
		(json_int_t)sums->tcp_messages, "tcpBytes", (json_int_t)sums->tcp_bytes, "spills",
		(json_int_t)sums->spills, "turnedBlocking", (json_int_t)sums->turned_blocking,
		"leftAlone", (json_int_t)sums->left_alone, "lifeMs",
		(json_int_t)(sums->life_ns / 1000000), "repeats", (json_int_t)pair->learned.repeats,
		"live", (json_int_t)sums->live, "heldMessages", (json_int_t)sums->held_messages,
		"measured", measured_json(&trial, now));
}

json_t *accelerate_pairs_json(struct accelerate *a)
{
	json_t *list = json_array();
	struct instant now;

	if (!a->pairs)
		return list;
	now.monotonic = now_ns(CLOCK_MONOTONIC);
	accelerate_pairs_look(a->pairs, now.monotonic);
	now.realtime = now_ns(CLOCK_REALTIME);
	for (size_t i = 0; list && i < a->pairs->n_pairs; i++) {
		const struct pair *pair = &a->pairs->pairs[i];

		if (json_array_append_new(list, pair_json(a->pairs, pair, &now)) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}
