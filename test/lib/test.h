/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_TEST_H
#define SOCKMESH_TEST_H

/*
 * Unit tests: TEST(claim_as_a_name) { ...; CHECK(x == y); return TEST_OK; }. Tests register
 * themselves; test_main.c runs them in order and prints TAP. An argument selects tests by
 * substring.
 */
#include <stdio.h>
#include <string.h>

enum test_result { TEST_OK = 0, TEST_FAILED = 1, TEST_SKIP = 77 };

struct test_case {
	const char *name;
	enum test_result (*run)(void);
	struct test_case *next;
};
void test_register(struct test_case *test);

#define TEST(name_)                                                                                \
	static enum test_result test_##name_(void);                                                \
	static struct test_case case_##name_ = {#name_, test_##name_, NULL};                       \
	__attribute__((constructor)) static void register_##name_(void)                            \
	{                                                                                          \
		test_register(&case_##name_);                                                      \
	}                                                                                          \
	static enum test_result test_##name_(void)

#define CHECK(cond)                                                                                \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			printf("# %s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #cond);          \
			return TEST_FAILED;                                                        \
		}                                                                                  \
	} while (0)

#define CHECK_EQ(got, want)                                                                        \
	do {                                                                                       \
		long long got_ = (long long)(got), want_ = (long long)(want);                      \
		if (got_ != want_) {                                                               \
			printf("# %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, got_,  \
			       want_);                                                             \
			return TEST_FAILED;                                                        \
		}                                                                                  \
	} while (0)

#define CHECK_STR(got, want)                                                                       \
	do {                                                                                       \
		const char *got_ = (got), *want_ = (want);                                         \
		if (!got_ || strcmp(got_, want_) != 0) {                                           \
			printf("# %s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #got,    \
			       got_ ? got_ : "(null)", want_);                                     \
			return TEST_FAILED;                                                        \
		}                                                                                  \
	} while (0)

/* The text contains a part: for error messages. */
#define CHECK_HAS(got, part)                                                                       \
	do {                                                                                       \
		const char *got_ = (got), *part_ = (part);                                         \
		if (!got_ || !strstr(got_, part_)) {                                               \
			printf("# %s:%d: %s is \"%s\", without \"%s\"\n", __FILE__, __LINE__,      \
			       #got, got_ ? got_ : "(null)", part_);                               \
			return TEST_FAILED;                                                        \
		}                                                                                  \
	} while (0)

#endif
