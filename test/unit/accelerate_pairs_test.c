/* SPDX-License-Identifier: Apache-2.0 */
/* Learning with real maps of the kernel, and a clock that the tests set. */
#include "accelerate_private.h"
#include "error.h"
#include "event_loop.h"
#include "test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const uint64_t second_ns = 1000000000;
static const uint64_t minute_ns = 60 * UINT64_C(1000000000);

struct rig {
	struct accelerate a;
	struct accelerate_pairs *pairs;
	struct event_loop *loop;
	int sums, verdicts, trials;
	uint64_t start; /* when the accelerator was opened, about */
};

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * second_ns + (uint64_t)now.tv_nsec;
}

static int make_map(struct bpf_map *map, unsigned room)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = BPF_F_NO_PREALLOC);
	int fd = bpf_map_create(BPF_MAP_TYPE_HASH, "test", bpf_map__key_size(map),
				bpf_map__value_size(map), room, &opts);

	if (fd < 0 || bpf_map__reuse_fd(map, fd)) /* it keeps a descriptor of its own */
		return -1;
	close(fd);
	return bpf_map__fd(map);
}

static bool rig_open(struct rig *rig, unsigned room, bool learning)
{
	struct error err = {0};

	*rig = (struct rig){.a.cfg.learning = learning};
	rig->a.skel = accelerate_bpf__open();
	if (!rig->a.skel || event_loop_new(&rig->loop, &err))
		return false;
	rig->a.loop = rig->loop;
	rig->sums = make_map(rig->a.skel->maps.accel_pairs, room);
	rig->verdicts = make_map(rig->a.skel->maps.accel_verdicts, room);
	rig->trials = make_map(rig->a.skel->maps.accel_trials, room);
	rig->start = monotonic_ns();
	return rig->sums >= 0 && rig->verdicts >= 0 && rig->trials >= 0;
}

static bool rig_learn(struct rig *rig)
{
	struct error err = {0};

	if (accelerate_pairs_open(&rig->a, &rig->pairs, &err)) {
		printf("# %s\n", err.text);
		return false;
	}
	rig->a.pairs = rig->pairs;
	return true;
}

static void rig_close(struct rig *rig)
{
	accelerate_pairs_close(rig->pairs);
	event_loop_free(rig->loop);
	accelerate_bpf__destroy(rig->a.skel);
}

static struct accel_pair_key key_of(unsigned i)
{
	return (struct accel_pair_key){
		.workload = 1 + i % 50, .peer = 7, .port = (uint16_t)(i / 50), .leg = LEG_NODE};
}

/* The sums of a pair after n connections of one request each. */
static int put_brief(struct rig *rig, unsigned i, uint64_t n)
{
	struct accel_pair_key key = key_of(i);
	struct accel_pair sums = {.first_ns = 1,
				  .last_ns = n,
				  .connections = n,
				  .closed = n,
				  .brief = n,
				  .messages = 2 * n,
				  .bytes = 128 * n};

	return bpf_map_update_elem(rig->sums, &key, &sums, BPF_ANY);
}

static bool is_alone(struct rig *rig, unsigned i, struct accel_verdict *ret)
{
	struct accel_pair_key key = key_of(i);

	return bpf_map_lookup_elem(rig->verdicts, &key, ret) == 0;
}

static unsigned count(int fd)
{
	struct accel_pair_key key;
	unsigned n = 0;

	for_each_accel_key(fd, &key) n++;
	return n;
}

TEST(a_verdict_is_written_and_taken_back)
{
	struct accel_verdict verdict;
	struct rig rig;
	uint64_t now;

	CHECK(rig_open(&rig, 64, true) && rig_learn(&rig));
	now = rig.start + second_ns;
	CHECK(!put_brief(&rig, 0, 15) && !put_brief(&rig, 1, 16));
	accelerate_pairs_look(rig.pairs, now);
	CHECK(!is_alone(&rig, 0, &verdict));
	CHECK(is_alone(&rig, 1, &verdict));
	CHECK_EQ(verdict.why, ALONE_BRIEF);
	CHECK_EQ(verdict.until_ns, now + 10 * minute_ns);

	now = verdict.until_ns;
	accelerate_pairs_look(rig.pairs, now - 1);
	CHECK(is_alone(&rig, 1, &verdict));
	accelerate_pairs_look(rig.pairs, now);
	CHECK(!is_alone(&rig, 1, &verdict));
	CHECK(!put_brief(&rig, 1, 20));
	accelerate_pairs_look(rig.pairs, now);
	CHECK(is_alone(&rig, 1, &verdict));
	CHECK_EQ(verdict.repeats, 1);
	rig_close(&rig);
	return TEST_OK;
}

/* Or a later connection of the pair would be left alone for good, as it were. */
TEST(the_verdict_of_a_pair_that_vanished_is_taken_back)
{
	struct accel_pair_key key = key_of(0);
	struct accel_verdict verdict;
	struct rig rig;

	CHECK(rig_open(&rig, 64, true) && rig_learn(&rig));
	CHECK(!put_brief(&rig, 0, 16));
	accelerate_pairs_look(rig.pairs, rig.start);
	CHECK(!bpf_map_delete_elem(rig.sums, &key));
	accelerate_pairs_look(rig.pairs, rig.start + minute_ns);
	CHECK(is_alone(&rig, 0, &verdict));
	accelerate_pairs_look(rig.pairs, rig.start + 11 * minute_ns);
	CHECK(!is_alone(&rig, 0, &verdict));
	rig_close(&rig);
	return TEST_OK;
}

TEST(the_next_agent_takes_over)
{
	struct accel_pair_key running = key_of(0), over = key_of(1);
	struct accel_verdict verdict = {.why = ALONE_BULK, .repeats = 2};
	struct rig rig;

	CHECK(rig_open(&rig, 64, true));
	verdict.until_ns = rig.start + minute_ns;
	CHECK(!bpf_map_update_elem(rig.verdicts, &running, &verdict, BPF_ANY));
	verdict.until_ns = rig.start - second_ns;
	CHECK(!bpf_map_update_elem(rig.verdicts, &over, &verdict, BPF_ANY));
	CHECK(!put_brief(&rig, 0, 500) && !put_brief(&rig, 2, 500));
	CHECK(rig_learn(&rig));

	CHECK(is_alone(&rig, 0, &verdict));
	CHECK_EQ(verdict.until_ns, rig.start + minute_ns);
	CHECK(!is_alone(&rig, 1, &verdict));
	/* What the earlier agent has seen is not judged again. */
	accelerate_pairs_look(rig.pairs, rig.start + second_ns);
	CHECK(!is_alone(&rig, 2, &verdict));
	CHECK(!put_brief(&rig, 2, 516));
	accelerate_pairs_look(rig.pairs, rig.start + 2 * second_ns);
	CHECK(is_alone(&rig, 2, &verdict));
	/* The trial fails, and the time goes on to double. */
	accelerate_pairs_look(rig.pairs, rig.start + minute_ns);
	CHECK(!put_brief(&rig, 0, 504));
	accelerate_pairs_look(rig.pairs, rig.start + minute_ns);
	CHECK(is_alone(&rig, 0, &verdict));
	CHECK_EQ(verdict.repeats, 3);
	rig_close(&rig);
	return TEST_OK;
}

TEST(without_learning_nothing_is_left_alone)
{
	struct accel_pair_key key = key_of(0);
	struct accel_verdict verdict = {.why = ALONE_BULK};
	struct rig rig;
	json_t *list;

	CHECK(rig_open(&rig, 64, false));
	verdict.until_ns = rig.start + minute_ns;
	CHECK(!bpf_map_update_elem(rig.verdicts, &key, &verdict, BPF_ANY));
	CHECK(rig_learn(&rig));
	CHECK_EQ(count(rig.verdicts), 0);
	CHECK(!put_brief(&rig, 0, 500));
	list = accelerate_pairs_json(&rig.a);
	CHECK_EQ(count(rig.verdicts), 0);
	CHECK_EQ(json_array_size(list), 1);
	CHECK_EQ(json_integer_value(json_object_get(json_array_get(list, 0), "closed")), 500);
	json_decref(list);
	rig_close(&rig);
	return TEST_OK;
}

TEST(pairs_that_were_not_used_for_a_day_are_dropped)
{
	struct rig rig;

	CHECK(rig_open(&rig, 64, true) && rig_learn(&rig));
	CHECK(!put_brief(&rig, 0, 1) && !put_brief(&rig, 1, 1));
	accelerate_pairs_look(rig.pairs, rig.start);
	CHECK(!put_brief(&rig, 1, 2));
	accelerate_pairs_look(rig.pairs, rig.start + 60 * minute_ns);
	accelerate_pairs_look(rig.pairs, rig.start + 24 * 60 * minute_ns - 1);
	CHECK_EQ(count(rig.sums), 2);
	accelerate_pairs_look(rig.pairs, rig.start + 24 * 60 * minute_ns);
	CHECK_EQ(count(rig.sums), 1);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_map_that_fills_up_loses_the_pairs_that_are_calm_the_oldest_first)
{
	enum { ROOM = 4000, BUSY = 1000 };
	struct accel_pair_key newest = key_of(ROOM - 1), oldest = key_of(BUSY);
	struct accel_pair sums;
	struct rig rig;
	json_t *list;

	CHECK(rig_open(&rig, ROOM, true) && rig_learn(&rig));
	for (unsigned i = 0; i < ROOM; i++) {
		CHECK(!put_brief(&rig, i, 1));
		if (i == ROOM / 2) /* the first half is a second older */
			accelerate_pairs_look(rig.pairs, rig.start);
	}
	accelerate_pairs_look(rig.pairs, rig.start + second_ns);
	CHECK_EQ(count(rig.sums), ROOM); /* all of them in use */
	for (unsigned i = 0; i < BUSY; i++)
		CHECK(!put_brief(&rig, i, 2));
	accelerate_pairs_look(rig.pairs, rig.start + 62 * second_ns);
	CHECK_EQ(count(rig.sums), ROOM / 2);
	for (unsigned i = 0; i < BUSY; i++) {
		struct accel_pair_key key = key_of(i);

		CHECK(!bpf_map_lookup_elem(rig.sums, &key, &sums));
	}
	CHECK(bpf_map_lookup_elem(rig.sums, &oldest, &sums));
	CHECK(!put_brief(&rig, ROOM - 1, 2));
	CHECK(!bpf_map_lookup_elem(rig.sums, &newest, &sums));
	list = accelerate_pairs_json(&rig.a);
	CHECK(json_array_size(list) <= ROOM / 2 + 1);
	json_decref(list);
	rig_close(&rig);
	return TEST_OK;
}

TEST(no_workload_can_keep_the_others_out)
{
	enum { ROOM = 4000, OTHERS = 100 };
	struct accel_pair_key hoard = {.workload = 99, .leg = LEG_OUT};
	struct accel_pair sums = {.first_ns = 1};
	unsigned n_hoarded = 0;
	struct rig rig;

	CHECK(rig_open(&rig, ROOM, true) && rig_learn(&rig));
	for (unsigned i = 0; i < OTHERS; i++)
		CHECK(!put_brief(&rig, i, 1));
	accelerate_pairs_look(rig.pairs, rig.start);
	for (hoard.port = 1; hoard.port < ROOM - OTHERS; hoard.port++)
		CHECK(!bpf_map_update_elem(rig.sums, &hoard, &sums, BPF_ANY));
	accelerate_pairs_look(rig.pairs, rig.start + 61 * second_ns);
	for (unsigned i = 0; i < OTHERS; i++) {
		struct accel_pair_key key = key_of(i);

		CHECK(!bpf_map_lookup_elem(rig.sums, &key, &sums));
	}
	for (hoard.port = 1; hoard.port < ROOM; hoard.port++)
		n_hoarded += !bpf_map_lookup_elem(rig.sums, &hoard, &sums);
	CHECK_EQ(n_hoarded, ROOM / 8);
	rig_close(&rig);
	return TEST_OK;
}

TEST(the_list_tells_names_sums_and_verdicts)
{
	struct rig rig;
	json_t *list, *one;

	CHECK(rig_open(&rig, 64, true) && rig_learn(&rig));
	CHECK(!put_brief(&rig, 105, 16));
	list = accelerate_pairs_json(&rig.a);
	CHECK_EQ(json_array_size(list), 1);
	one = json_array_get(list, 0);
	CHECK_STR(json_string_value(json_object_get(one, "workload")), "#6"); /* nobody named it */
	CHECK_STR(json_string_value(json_object_get(one, "leg")), "proxy-to-proxy");
	CHECK_STR(json_string_value(json_object_get(one, "verdict")), "left-alone");
	CHECK_STR(json_string_value(json_object_get(one, "why")), "brief");
	CHECK_EQ(json_string_length(json_object_get(one, "until")), strlen("2026-01-02T03:04:05Z"));
	CHECK_EQ(json_integer_value(json_object_get(one, "port")), 2);
	CHECK_EQ(json_integer_value(json_object_get(one, "bytes")), 16 * 128);
	json_decref(list);
	rig_close(&rig);
	return TEST_OK;
}

static int put_trial(struct rig *rig, unsigned i, const struct trial_result *result)
{
	struct accel_pair_key key = key_of(i);
	struct accel_trial trial = {.results[4] = *result};

	return bpf_map_update_elem(rig->trials, &key, &trial, BPF_ANY);
}

static bool says(const json_t *one, const char *verdict, const char *why)
{
	const char *found = json_string_value(json_object_get(one, "why"));

	return strcmp(json_string_value(json_object_get(one, "verdict")), verdict) == 0 &&
	       (why ? found && strcmp(found, why) == 0 : !found);
}

/* A pair with 20 connections at once, when a trial with 16 to 31 has found this. */
static json_t *tried(struct rig *rig, uint32_t places, const struct trial_result *result)
{
	struct accel_pair sums = {.first_ns = 1, .connections = 20, .live = 20, .places = places};
	struct accel_pair_key key = key_of(0);

	if (bpf_map_update_elem(rig->sums, &key, &sums, BPF_ANY) || put_trial(rig, 0, result))
		return NULL;
	return accelerate_pairs_json(&rig->a);
}

TEST(the_list_tells_what_trials_have_found)
{
	struct trial_result result = {.verdict = TRIAL_SLOWER,
				      .tcp = {210000, 120000, 300, 300},
				      .shrt = {245500, 110000, 300, 300}};
	json_t *list, *one;
	struct rig rig;

	CHECK(rig_open(&rig, 64, true) && rig_learn(&rig));
	result.until_ns = rig.start + 600 * second_ns;
	list = tried(&rig, PLACES_TWO_CPUS, &result);
	one = json_array_get(list, 0);
	CHECK(says(one, "left-alone", "slower"));
	CHECK(json_is_string(json_object_get(one, "until")));
	one = json_array_get(json_object_get(one, "measured"), 0);
	CHECK_STR(json_string_value(json_object_get(one, "connections")), "16-31");
	CHECK_STR(json_string_value(json_object_get(one, "verdict")), "slower");
	CHECK_STR(json_string_value(json_object_get(one, "of")), "exchange");
	CHECK(json_real_value(json_object_get(one, "tcpUs")) == 210.0);
	CHECK(json_real_value(json_object_get(one, "shortUs")) == 245.5);
	json_decref(list);

	/* On one CPU it does not matter. */
	list = tried(&rig, PLACES_ONE_CPU, &result);
	CHECK(says(json_array_get(list, 0), "short", NULL));
	json_decref(list);
	result.verdict = TRIAL_FASTER;
	list = tried(&rig, PLACES_TWO_CPUS, &result);
	CHECK(says(json_array_get(list, 0), "short", NULL));
	CHECK_EQ(json_array_size(json_object_get(json_array_get(list, 0), "measured")), 1);
	json_decref(list);
	/* And it comes to an end. */
	result.until_ns = rig.start - 1;
	list = tried(&rig, PLACES_TWO_CPUS, &result);
	CHECK(says(json_array_get(list, 0), "short", NULL));
	CHECK_EQ(json_array_size(json_object_get(json_array_get(list, 0), "measured")), 0);
	json_decref(list);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_trial_goes_with_its_pair)
{
	struct trial_result result = {.verdict = TRIAL_SLOWER};
	struct rig rig;

	CHECK(rig_open(&rig, 64, true) && rig_learn(&rig));
	CHECK(!put_brief(&rig, 0, 1) && !put_trial(&rig, 0, &result));
	CHECK(!put_brief(&rig, 1, 1) && !put_trial(&rig, 1, &result));
	accelerate_pairs_look(rig.pairs, rig.start);
	CHECK(!put_brief(&rig, 1, 2));
	accelerate_pairs_look(rig.pairs, rig.start + 60 * minute_ns);
	CHECK_EQ(count(rig.trials), 2);
	accelerate_pairs_look(rig.pairs, rig.start + 24 * 60 * minute_ns);
	CHECK_EQ(count(rig.trials), 1);
	rig_close(&rig);
	return TEST_OK;
}

/* What the agent's loop pays for it each second, as a figure for people. */
TEST(a_look_at_1000_pairs_is_cheap)
{
	enum { PAIRS = 1000, LOOKS = 50 };
	uint64_t began, took;
	struct rig rig;

	CHECK(rig_open(&rig, 16384, true) && rig_learn(&rig));
	for (unsigned i = 0; i < PAIRS; i++)
		CHECK(!put_brief(&rig, i, 1));
	began = monotonic_ns();
	for (unsigned i = 0; i < LOOKS; i++)
		accelerate_pairs_look(rig.pairs, rig.start + i);
	took = (monotonic_ns() - began) / LOOKS / 1000;
	printf("# a look at %d pairs takes %llu us\n", PAIRS, (unsigned long long)took);
	CHECK(took < 20000); /* ten times what it may, for slow machines and sanitizers */
	rig_close(&rig);
	return TEST_OK;
}
