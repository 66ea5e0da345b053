/* SPDX-License-Identifier: Apache-2.0 */
#include "locked_memory.h"

#include "error.h"
#include "scoped.h"
#include "test.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOBODY = 65534 };

TEST(large_maps_are_possible_or_the_limit_is_named)
{
	struct error err = {0};
	int r;

	if (geteuid() != 0)
		return TEST_SKIP;
	r = locked_memory_check(&err);
	CHECK(r == 0 || r == -EPERM);
	if (r)
		CHECK_HAS(err.text, "RLIMIT_MEMLOCK");
	else
		CHECK(!err.text[0]);
	return TEST_OK;
}

static bool anybody_may_use_bpf(void)
{
	scoped_file FILE *file = fopen("/proc/sys/kernel/unprivileged_bpf_disabled", "re");

	return !file || fgetc(file) == '0';
}

/* In a child, because it gives its rights away. */
static int check_without_rights(void)
{
	struct rlimit limit = {.rlim_cur = 65536, .rlim_max = 65536};
	struct error err = {0};

	if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		return 2;
	return locked_memory_check(&err) || err.text[0] ? 3 : 0;
}

TEST(a_refusal_of_every_map_is_not_taken_for_a_limit)
{
	int status;
	pid_t child;

	if (geteuid() != 0 || anybody_may_use_bpf())
		return TEST_SKIP;
	child = fork();
	if (child == 0)
		_exit(check_without_rights());
	CHECK(child > 0 && waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	return TEST_OK;
}
