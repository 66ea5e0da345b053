/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_learn.h"

#include "test.h"

#define SECOND_NS 1000000000ull
#define MINUTE_NS (60 * SECOND_NS)
#define KB	  1024ull
#define MB	  (1024 * KB)
#define GB	  (1024 * MB)

enum { BORN = 1000, START = 5000 };

/* What a pair has done since it was first seen, in the units of the rules. */
struct deeds {
	const char *what;
	uint32_t why; /* 0: it goes on */
	uint64_t connections, closed, brief;
	uint64_t messages, bytes, tcp_messages, tcp_bytes;
	uint64_t spills, turned_blocking;
};

static struct accel_pair pair_of(const struct deeds *d)
{
	return (struct accel_pair){.first_ns = BORN,
				   .last_ns = BORN,
				   .connections = d->connections,
				   .closed = d->closed,
				   .brief = d->brief,
				   .messages = d->messages,
				   .bytes = d->bytes,
				   .tcp_messages = d->tcp_messages,
				   .tcp_bytes = d->tcp_bytes,
				   .spills = d->spills,
				   .turned_blocking = d->turned_blocking};
}

static const struct deeds first_looks[] = {
	{.what = "nothing at all"},
	/* brief */
	{"a request per connection", ALONE_BRIEF, 16, 16, 16, 64, 4 * KB, 0, 0, 0, 0},
	{"the same, with its first message by TCP", ALONE_BRIEF, 16, 16, 16, 32, 2 * KB, 32, 2 * KB,
	 0, 0},
	{"too few to tell", 0, 15, 15, 15, 60, 4 * KB, 0, 0, 0, 0},
	{"many that are still open", 0, 500, 15, 15, 2000, 128 * KB, 0, 0, 0, 0},
	{"seven of ten are brief", ALONE_BRIEF, 100, 100, 70, 1000, 64 * KB, 0, 0, 0, 0},
	{"not quite seven of ten", 0, 100, 100, 69, 1000, 64 * KB, 0, 0, 0, 0},
	{"health checks beside one conversation", 0, 101, 100, 100, 1600, 102 * KB, 0, 0, 0, 0},
	{"the conversation is not worth them", ALONE_BRIEF, 101, 100, 100, 1599, 102 * KB, 0, 0, 0,
	 0},
	{"sessions of 20 messages", 0, 50, 50, 0, 1000, 64 * KB, 0, 0, 0, 0},
	/* long conversations */
	{"one connection, short messages, a day", 0, 1, 0, 0, 100000000, 6400 * MB, 2, 128, 0, 0},
	{"one connection that was closed", 0, 1, 1, 0, 100000000, 6400 * MB, 2, 128, 0, 0},
	{"few of them, one direction spilled", 0, 3, 0, 0, 1000000, 64 * MB, 5000, 320 * KB, 1, 0},
	{"10 of them, often spilled, late", 0, 10, 10, 0, 1000000, 64 * MB, 5000, 320 * KB, 20, 0},
	{"a slow start by TCP", 0, 4, 0, 0, 100, 6400, 899, 57536, 0, 0},
	/* bulk */
	{"one stream that spilled", ALONE_BULK, 1, 0, 0, 20, 1 * MB, 257, 16 * MB + 1, 1, 0},
	{"one stream that spilled, not yet 16 MB", 0, 1, 0, 0, 20, 1 * MB, 256, 16 * MB, 1, 0},
	{"one stream that never spilled", 0, 1, 0, 0, 160000, 10 * GB, 2, 128 * KB, 0, 0},
	{"it spilled at its end", 0, 1, 0, 0, 16000, 1 * GB, 512, 32 * MB, 1, 0},
	{"much by TCP, but short messages", 0, 1, 0, 0, 300000, 19 * MB, 400000, 25 * MB, 1, 0},
	{"files of 2 MB", ALONE_BULK, 4, 4, 0, 64, 1 * MB, 128, 8 * MB, 4, 0},
	{"three files of 2 MB", 0, 3, 3, 0, 48, 1 * MB, 96, 6 * MB, 3, 0},
	{"files of 64 KB", 0, 4, 4, 0, 4, 64 * KB, 16, 192 * KB, 4, 0},
	{"a stream beside many requests", 0, 2, 0, 0, 1000000, 64 * MB, 2048, 128 * MB, 1, 0},
	/* spills */
	{"two of 16 directions spilled", ALONE_SPILLS, 8, 0, 0, 300, 300 * KB, 200, 200 * KB, 2, 0},
	{"one of 16", 0, 8, 0, 0, 300, 300 * KB, 200, 200 * KB, 1, 0},
	{"two of 14, of 7 connections", 0, 7, 0, 0, 300, 300 * KB, 200, 200 * KB, 2, 0},
	{"the bytes show it", ALONE_SPILLS, 8, 0, 0, 900, 90 * KB, 100, 100 * KB, 4, 0},
	{"one in 20", 0, 1000, 0, 0, 3000, 300 * KB, 2000, 200 * KB, 100, 0},
	/* in the map, but on TCP */
	{"nearly all by TCP", ALONE_NOT_SHORT, 3, 0, 0, 99, 6336, 901, 57664, 0, 0},
	{"not quite nearly all", 0, 3, 0, 0, 100, 6400, 900, 57600, 0, 0},
	{"nearly all of a few", 0, 3, 0, 0, 0, 0, 999, 63936, 0, 0},
	/* blocking */
	{"a socket turned blocking", ALONE_TURNED_BLOCKING, 1, 0, 0, 9, 900, 0, 0, 0, 1},
	{"that comes first", ALONE_TURNED_BLOCKING, 99, 99, 99, 99, 999, 0, 0, 0, 1},
	/* sums at the end of what a counter holds */
	{"no rule overflows", 0, UINT64_MAX / 4, UINT64_MAX / 4, 0, UINT64_MAX / 4, UINT64_MAX / 4,
	 0, 0, 0, 0},
	{"nor does this one", ALONE_BRIEF, UINT64_MAX / 4, UINT64_MAX / 4, UINT64_MAX / 4,
	 UINT64_MAX / 4, UINT64_MAX / 4, 0, 0, 0, 0},
};

TEST(first_looks_come_to_the_verdicts_of_the_table)
{
	for (size_t i = 0; i < sizeof(first_looks) / sizeof(*first_looks); i++) {
		struct accel_pair sums = pair_of(&first_looks[i]);
		struct accel_learned learned = {0};
		struct accel_verdict verdict = {0};
		bool alone = accelerate_learn(&sums, START, &learned, &verdict);

		if (alone != (first_looks[i].why != 0) || verdict.why != first_looks[i].why) {
			printf("# %s: %s\n", first_looks[i].what,
			       alone ? accelerate_why_alone_name(verdict.why) : "goes on");
			return TEST_FAILED;
		}
	}
	return TEST_OK;
}

/* One request per connection, n more of them. */
static void add_brief(struct accel_pair *sums, uint64_t n)
{
	sums->connections += n;
	sums->closed += n;
	sums->brief += n;
	sums->messages += 4 * n;
	sums->bytes += 256 * n;
}

static void add_messages(struct accel_pair *sums, uint64_t n)
{
	sums->messages += n;
	sums->bytes += 64 * n;
}

TEST(a_verdict_says_until_when)
{
	static const struct {
		struct deeds deeds;
		uint64_t minutes;
	} cases[] = {
		{{.connections = 16, .closed = 16, .brief = 16, .messages = 64}, 10},
		{{.connections = 1, .tcp_messages = 300, .tcp_bytes = 17 * MB, .spills = 1}, 10},
		{{.connections = 1, .turned_blocking = 1}, 120},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct accel_pair sums = pair_of(&cases[i].deeds);
		struct accel_learned learned = {0};
		struct accel_verdict verdict = {0};

		CHECK(accelerate_learn(&sums, START, &learned, &verdict));
		CHECK_EQ(verdict.until_ns, START + cases[i].minutes * MINUTE_NS);
		CHECK_EQ(learned.until_ns, verdict.until_ns);
		CHECK_EQ(learned.why, verdict.why);
		CHECK_EQ(verdict.repeats, 0);
	}
	return TEST_OK;
}

TEST(nothing_new_is_said_while_a_pair_is_left_alone)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;

	add_brief(&sums, 16);
	CHECK(accelerate_learn(&sums, START, &learned, &verdict));
	sums.turned_blocking = 1; /* a connection from before */
	add_brief(&sums, 1000);
	CHECK(!accelerate_learn(&sums, learned.until_ns - 1, &learned, &verdict));
	CHECK(learned.until_ns != 0);
	/* What happened meanwhile is not held against the trial. */
	CHECK(!accelerate_learn(&sums, learned.until_ns, &learned, &verdict));
	CHECK_EQ(learned.until_ns, 0);
	CHECK(!accelerate_learn(&sums, START + 11 * MINUTE_NS, &learned, &verdict));
	return TEST_OK;
}

TEST(a_trial_takes_a_small_sample_and_each_failure_doubles_the_time)
{
	static const uint64_t minutes[] = {10, 20, 40, 80, 120, 120, 120};
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;
	uint64_t now = START;

	add_brief(&sums, 12); /* with the 4 of each trial */
	for (size_t i = 0; i < sizeof(minutes) / sizeof(*minutes); i++) {
		add_brief(&sums, 3);
		CHECK(!accelerate_learn(&sums, now, &learned, &verdict));
		add_brief(&sums, 1);
		CHECK(accelerate_learn(&sums, now, &learned, &verdict));
		CHECK_EQ(verdict.until_ns - now, minutes[i] * MINUTE_NS);
		CHECK_EQ(verdict.repeats, i);
		now = verdict.until_ns;
		CHECK(!accelerate_learn(&sums, now, &learned, &verdict));
	}
	return TEST_OK;
}

static const struct deeds trials[] = {
	{"brief, 4", ALONE_BRIEF, 4, 4, 4, 16, 1 * KB, 0, 0, 0, 0},
	{"brief, 3", 0, 3, 3, 3, 12, 1 * KB, 0, 0, 0, 0},
	{"bulk, 4 MB", ALONE_BULK, 1, 0, 0, 16, 1 * MB, 65, 4 * MB + 1, 1, 0},
	{"bulk, one file", ALONE_BULK, 1, 1, 0, 4, 256 * KB, 16, 1 * MB, 1, 0},
	{"an old stream goes on by TCP", 0, 0, 0, 0, 0, 0, 2000, 128 * MB, 0, 0},
	{"spills", ALONE_SPILLS, 2, 0, 0, 10, 1 * KB, 10, 1 * KB, 1, 0},
	{"by TCP", ALONE_NOT_SHORT, 1, 0, 0, 0, 0, 250, 16 * KB, 0, 0},
	{"by TCP, old connections only", 0, 0, 0, 0, 0, 0, 2500, 160 * KB, 0, 0},
	{"short now", 0, 1, 0, 0, 900, 56 * KB, 0, 0, 0, 0},
};

TEST(trials_come_to_the_verdicts_of_the_table)
{
	for (size_t i = 0; i < sizeof(trials) / sizeof(*trials); i++) {
		struct accel_pair sums = pair_of(&trials[i]);
		struct accel_learned learned = {.why = ALONE_BULK,
						.at_verdict = {.first_ns = BORN}};
		struct accel_verdict verdict = {0};
		bool alone = accelerate_learn(&sums, START, &learned, &verdict);

		if (alone != (trials[i].why != 0) || verdict.why != trials[i].why) {
			printf("# %s: %s\n", trials[i].what,
			       alone ? accelerate_why_alone_name(verdict.why) : "goes on");
			return TEST_FAILED;
		}
		CHECK_EQ(learned.repeats, alone ? 1 : 0);
	}
	return TEST_OK;
}

TEST(a_whole_window_without_a_fault_forgets_the_verdict)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {.why = ALONE_BULK, .repeats = 3};
	struct accel_verdict verdict;

	sums.connections = 1;
	add_messages(&sums, 999);
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(learned.repeats, 3);
	add_messages(&sums, 1);
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(learned.why, 0);
	CHECK_EQ(learned.repeats, 0);
	add_brief(&sums, 15); /* the full sample again */
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	add_brief(&sums, 1);
	CHECK(accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(verdict.until_ns, START + 10 * MINUTE_NS);
	return TEST_OK;
}

TEST(a_pair_that_changes_is_judged_by_what_it_does_now)
{
	struct accel_pair sums = {.first_ns = BORN, .connections = 16};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;

	for (int second = 0; second < 100; second++) { /* years of conversation, for an average */
		add_messages(&sums, 1000000000);
		CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	}
	sums.closed += 16;
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	add_brief(&sums, 16);
	CHECK(accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(verdict.why, ALONE_BRIEF);
	return TEST_OK;
}

/* A window waits for 8 connections where something spilled, or no look would ever see so many. */
TEST(spills_are_judged_however_often_one_looks)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;

	for (int i = 0; i < 7; i++) {
		sums.connections++;
		sums.spills++;
		sums.tcp_messages += 600;
		add_messages(&sums, 600);
		CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	}
	sums.connections++;
	CHECK(accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(verdict.why, ALONE_SPILLS);
	return TEST_OK;
}

/* Messages that a trial held on TCP say nothing about what TCP would have been needed for. */
TEST(what_a_trial_holds_is_not_what_does_not_go_short)
{
	struct accel_pair sums = {.first_ns = BORN, .connections = 16, .tcp_messages = 5000};
	struct accel_learned learned = {0}, other = {0};
	struct accel_verdict verdict;

	CHECK(accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(verdict.why, ALONE_NOT_SHORT);
	sums.held_messages = 4500;
	CHECK(!accelerate_learn(&sums, START, &other, &verdict));
	sums.held_messages = 3999;
	CHECK(accelerate_learn(&sums, START, &(struct accel_learned){0}, &verdict));
	sums.held_messages = 5001; /* read between two additions */
	CHECK(!accelerate_learn(&sums, START, &(struct accel_learned){0}, &verdict));
	return TEST_OK;
}

TEST(conversations_are_never_left_alone)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;

	/* One to 20 connections of 30 to 3,000 messages, the first few by TCP, looked at oddly. */
	for (unsigned i = 0; i < 20000; i++) {
		if (i % 7 == 0)
			sums.connections++, sums.tcp_messages += 2, sums.tcp_bytes += 128;
		add_messages(&sums, 30 + i % 2970);
		if (i % 7 == 6)
			sums.closed++, sums.life_ns += SECOND_NS;
		if (i % 3 == 0)
			CHECK(!accelerate_learn(&sums, START + i, &learned, &verdict));
	}
	return TEST_OK;
}

/* The entry was dropped and made again, or the map was replaced. */
TEST(sums_that_start_again_are_judged_from_zero)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;

	sums.connections = 1;
	add_messages(&sums, 5000);
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));

	sums = (struct accel_pair){.first_ns = START};
	add_brief(&sums, 15);
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	add_brief(&sums, 1);
	CHECK(accelerate_learn(&sums, START, &learned, &verdict));
	return TEST_OK;
}

/* Whatever went backwards, no difference is taken below zero: that would look like 2^64 spills. */
TEST(a_sum_that_shrinks_is_no_large_number)
{
	struct accel_pair sums = {.first_ns = BORN, .connections = 100, .spills = 2};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;

	add_messages(&sums, 5000);
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	sums.spills = 1;
	sums.tcp_messages += 100;
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	sums.messages = 3; /* a counter that wrapped */
	sums.turned_blocking = 0;
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	return TEST_OK;
}

TEST(a_clock_that_was_set_back_leaves_nobody_alone_for_long)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict;
	uint64_t late = 1000 * 60 * MINUTE_NS;

	add_brief(&sums, 16);
	CHECK(accelerate_learn(&sums, late, &learned, &verdict));
	CHECK(!accelerate_learn(&sums, late - 60 * MINUTE_NS, &learned, &verdict));
	CHECK(learned.until_ns != 0); /* an hour and ten minutes is what a verdict may last */
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	CHECK_EQ(learned.until_ns, 0);
	return TEST_OK;
}

TEST(the_next_agent_goes_on_where_the_last_one_was)
{
	struct accel_pair sums = {.first_ns = BORN};
	struct accel_learned learned = {0};
	struct accel_verdict verdict = {
		.until_ns = START + MINUTE_NS, .why = ALONE_BRIEF, .repeats = 1};

	accelerate_learn_adopt(&verdict, &learned);
	add_brief(&sums, 1000);
	CHECK(!accelerate_learn(&sums, START, &learned, &verdict));
	CHECK(!accelerate_learn(&sums, START + MINUTE_NS, &learned, &verdict));
	add_brief(&sums, 4);
	CHECK(accelerate_learn(&sums, START + MINUTE_NS, &learned, &verdict));
	CHECK_EQ(verdict.until_ns - START - MINUTE_NS, 40 * MINUTE_NS);
	return TEST_OK;
}

TEST(names_of_verdicts_and_legs)
{
	CHECK_STR(accelerate_why_alone_name(ALONE_BRIEF), "brief");
	CHECK_STR(accelerate_why_alone_name(ALONE_NOT_SHORT), "not-short");
	CHECK_STR(accelerate_why_alone_name(ALONE_SLOWER), "slower");
	CHECK_STR(accelerate_why_alone_name(0), "unknown");
	CHECK_STR(accelerate_why_alone_name(4000000000), "unknown");
	CHECK_STR(accelerate_leg_name(LEG_NODE), "proxy-to-proxy");
	CHECK_STR(accelerate_leg_name(LEG_OUT), "app-to-proxy");
	CHECK_STR(accelerate_leg_name(LEG_IN), "proxy-to-app");
	CHECK_STR(accelerate_leg_name(0), "unknown");
	CHECK_STR(accelerate_leg_name(LEG_COUNT_), "unknown");
	return TEST_OK;
}
