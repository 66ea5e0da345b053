/* SPDX-License-Identifier: Apache-2.0 */
#include "advice_verdict.h"

#include "json.h"
#include "test.h"

#include <stdio.h>
#include <string.h>

static void add(struct advice_counts *counts, enum advise_call call, const char *comm, uint32_t pid,
		uint64_t count)
{
	struct advice_row *row = &counts->rows[counts->n_rows++];

	counts->calls[call] += count;
	row->call = call;
	row->pid = pid;
	row->count = count;
	snprintf(row->comm, sizeof(row->comm), "%s", comm);
}

TEST(enough_receives_and_nothing_else_clear)
{
	struct advice_counts counts = {.sockets = 3};
	struct advice_verdict verdict;

	add(&counts, CALL_RECEIVE, "echo", 7, ADVICE_ENOUGH_CALLS);
	add(&counts, CALL_SENDFILE, "echo", 7, 5);
	add(&counts, CALL_SPLICE_TO, "echo", 7, 5);
	advice_judge(&counts, &verdict);
	CHECK(verdict.cleared && !verdict.refuted);
	CHECK_HAS(verdict.reason, "200 receive calls on 3 sockets");
	return TEST_OK;
}

TEST(too_few_receives_decide_nothing)
{
	struct advice_counts counts = {.sockets = 1};
	struct advice_verdict verdict;

	advice_judge(&counts, &verdict);
	CHECK(!verdict.cleared && !verdict.refuted);
	CHECK_HAS(verdict.reason, "no receive call");
	add(&counts, CALL_RECEIVE, "echo", 7, ADVICE_ENOUGH_CALLS - 1);
	/* Sends are not evidence of how it receives. */
	add(&counts, CALL_SENDFILE, "echo", 7, 1000);
	advice_judge(&counts, &verdict);
	CHECK(!verdict.cleared && !verdict.refuted);
	CHECK_HAS(verdict.reason, "only 199 receive calls");
	return TEST_OK;
}

TEST(each_unsafe_or_unknown_call_alone_refutes_and_is_named)
{
	for (enum advise_call call = CALL_FIRST_UNSAFE; call < ADVISE_CALLS; call++) {
		struct advice_counts counts = {.sockets = 1};
		struct advice_verdict verdict;

		add(&counts, CALL_RECEIVE, "echo", 7, 100000);
		add(&counts, call, "culprit", 8, 1);
		advice_judge(&counts, &verdict);
		CHECK(!verdict.cleared && verdict.refuted);
		CHECK_HAS(verdict.reason, "culprit: ");
		CHECK_HAS(verdict.reason, advice_call_name(call));
		CHECK_HAS(verdict.reason, "1 time");
	}
	return TEST_OK;
}

TEST(every_call_has_a_name_of_its_own_and_a_meaning)
{
	for (enum advise_call call = 0; call < ADVISE_CALLS; call++) {
		CHECK(advice_call_name(call) && advice_call_means(call));
		for (enum advise_call other = 0; other < call; other++)
			CHECK(strcmp(advice_call_name(call), advice_call_name(other)) != 0);
	}
	return TEST_OK;
}

TEST(what_has_no_row_left_still_refutes)
{
	struct advice_counts counts = {.sockets = 1};
	struct advice_verdict verdict;

	add(&counts, CALL_RECEIVE, "echo", 7, 1000);
	counts.calls[CALL_SPLICE_FROM] = 4;
	advice_judge(&counts, &verdict);
	CHECK(verdict.refuted);
	CHECK_STR(verdict.reason, "other programs: splice() out of a socket, 4 times");
	return TEST_OK;
}

TEST(many_programs_are_named_up_to_three)
{
	struct advice_counts counts = {.sockets = 1};
	struct advice_verdict verdict;

	add(&counts, CALL_FIONREAD, "one", 1, 1);
	add(&counts, CALL_FIONREAD, "two", 2, 1);
	advice_judge(&counts, &verdict);
	CHECK_STR(verdict.reason, "one, two: ioctl(FIONREAD), 2 times");
	add(&counts, CALL_FIONREAD, "three", 3, 1);
	add(&counts, CALL_FIONREAD, "four", 4, 1);
	add(&counts, CALL_FIONREAD, "five", 5, 1);
	advice_judge(&counts, &verdict);
	CHECK_STR(verdict.reason, "one, two, three and 2 more: ioctl(FIONREAD), 5 times");
	return TEST_OK;
}

TEST(a_reason_that_does_not_fit_says_that_there_is_more)
{
	struct advice_counts counts = {.sockets = 1};
	struct advice_verdict verdict;

	for (enum advise_call call = CALL_FIRST_UNSAFE; call < ADVISE_CALLS; call++)
		add(&counts, call, "fifteen-letters", 8, UINT64_MAX / 2);
	advice_judge(&counts, &verdict);
	CHECK_HAS(verdict.reason, "more, see the evidence");
	CHECK(strlen(verdict.reason) < sizeof(verdict.reason) - 1);
	return TEST_OK;
}

TEST(evidence_is_bounded_and_puts_what_is_in_the_way_first)
{
	struct advice_counts counts = {.sockets = 1};
	scoped_json json_t *verdict = NULL;
	json_t *evidence, *first;
	char comm[16];

	for (int i = 0; i < ADVISE_ROWS; i++) {
		snprintf(comm, sizeof(comm), "clean-%d", i);
		add(&counts, CALL_RECEIVE, comm, 100, 1000);
	}
	add(&counts, CALL_IO_URING, "ring", 9, 1);
	add(&counts, CALL_BLOCKING, "slow", 8, 2);
	verdict = advice_verdict_json("demo/web", 60, &counts);
	CHECK_STR(json_string_value(json_object_get(verdict, "workload")), "demo/web");
	CHECK_EQ(json_integer_value(json_object_get(verdict, "seconds")), 60);
	CHECK_EQ(json_integer_value(json_object_get(verdict, "calls")), 32003);
	CHECK(json_is_false(json_object_get(verdict, "cleared")));
	evidence = json_object_get(verdict, "evidence");
	CHECK_EQ(json_array_size(evidence), ADVISE_ROWS);
	first = json_array_get(evidence, 0);
	CHECK_STR(json_string_value(json_object_get(first, "comm")), "slow");
	CHECK_EQ(json_integer_value(json_object_get(first, "pid")), 8);
	CHECK_EQ(json_integer_value(json_object_get(first, "count")), 2);
	CHECK(json_is_true(json_object_get(first, "unsafe")));
	CHECK(json_is_false(json_object_get(first, "unknown")));
	first = json_array_get(evidence, 1);
	CHECK(json_is_false(json_object_get(first, "unsafe")));
	CHECK(json_is_true(json_object_get(first, "unknown")));
	return TEST_OK;
}

/* A process names itself; the kernel does not care for UTF-8. */
TEST(a_name_of_any_bytes_gives_valid_json)
{
	struct advice_counts counts = {.sockets = 1};
	scoped_json json_t *verdict = NULL;

	add(&counts, CALL_BLOCKING, "\xff\xfe\"\n", 8, 2);
	verdict = advice_verdict_json("demo/web", 60, &counts);
	CHECK(verdict);
	CHECK(json_is_string(json_object_get(verdict, "reason")));
	CHECK_EQ(json_array_size(json_object_get(verdict, "evidence")), 1);
	return TEST_OK;
}
