/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Linked into build/test/sockmesh-agent-without-guards in the place of accelerate_guards.c: leaves
 * out the guards that SOCKMESH_WITHOUT_GUARD names ("order,bytes"), so that the tests can show what
 * goes wrong without each of them. A name that is none ends the process: a test that took nothing
 * away would prove nothing.
 */
#include "accelerate_abi.h"
#include "accelerate_guards.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	enum accel_guard guard;
} guards[] = {
	{"order", GUARD_ORDER},
	{"no-data", GUARD_NO_DATA},
	{"bytes", GUARD_BYTES},
	{"messages", GUARD_MESSAGES},
	{"netns", GUARD_NETNS},
	{"isn", GUARD_ISN},
	{"nonblocking", GUARD_NONBLOCKING},
	{"zerocopy", GUARD_ZEROCOPY},
	{"lowat", GUARD_LOWAT},
	{"ulp", GUARD_ULP},
	{"mptcp", GUARD_MPTCP},
	{"miss-passes", GUARD_MISS_PASSES},
	{"state", GUARD_STATE},
	{"pressure", GUARD_PRESSURE},
	{"budget", GUARD_BUDGET},
};

enum { N_GUARDS = sizeof(guards) / sizeof(guards[0]) };
_Static_assert(GUARD_ALL == (1 << N_GUARDS) - 1, "a name for every guard");

static uint32_t guard_of(const char *name, size_t length)
{
	for (size_t i = 0; i < N_GUARDS; i++)
		if (strlen(guards[i].name) == length && !strncmp(guards[i].name, name, length))
			return guards[i].guard;
	fprintf(stderr, "SOCKMESH_WITHOUT_GUARD: \"%.*s\" is no guard\n", (int)length, name);
	exit(EXIT_FAILURE);
}

uint32_t accelerate_guards(void)
{
	const char *without = getenv("SOCKMESH_WITHOUT_GUARD");
	uint32_t left = GUARD_ALL;

	while (without && *without) {
		size_t length = strcspn(without, ",");

		left &= ~guard_of(without, length);
		without += length + (without[length] == ',');
	}
	return left;
}
