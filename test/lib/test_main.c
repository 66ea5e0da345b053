/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdbool.h>
#include <stdlib.h>

static struct test_case *first, **last = &first;

void test_register(struct test_case *test)
{
	*last = test;
	last = &test->next;
}

static bool selected(const struct test_case *test, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strstr(test->name, argv[i]))
			return true;
	return argc < 2;
}

int main(int argc, char **argv)
{
	int n = 0, failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (struct test_case *t = first; t; t = t->next) {
		enum test_result result;

		if (!selected(t, argc, argv))
			continue;
		result = t->run();
		failed += result == TEST_FAILED;
		printf("%s %d - %s%s\n", result == TEST_FAILED ? "not ok" : "ok", ++n, t->name,
		       result == TEST_SKIP ? " # SKIP" : "");
	}
	printf("1..%d\n", n);
	return failed || !n ? EXIT_FAILURE : EXIT_SUCCESS;
}
