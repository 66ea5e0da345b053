/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"

#include "test.h"

#include <errno.h>

TEST(error_set_returns_the_negative_code_and_keeps_text)
{
	struct error err = {0};

	CHECK_EQ(error_set(&err, ENOENT, "open %s", "x"), -ENOENT);
	CHECK_EQ(err.code, ENOENT);
	CHECK_STR(err.text, "open x");
	return TEST_OK;
}

TEST(error_wrap_puts_context_before)
{
	struct error err = {0};

	error_set(&err, EINVAL, "bad value 7");
	CHECK_EQ(error_wrap(&err, "pod %s", "a/b"), -EINVAL);
	CHECK_STR(err.text, "pod a/b: bad value 7");
	return TEST_OK;
}

TEST(error_wrap_cuts_the_inner_end_of_a_long_text)
{
	char filler[sizeof(((struct error *)0)->text)];
	struct error err = {0};

	memset(filler, 'x', sizeof(filler));
	filler[sizeof(filler) - 1] = '\0';
	error_set(&err, EINVAL, "%s", filler);
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
	CHECK_EQ(error_wrap(&err, "outer"), -EINVAL);
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
	CHECK(strncmp(err.text, "outer: xxx", 10) == 0);
	CHECK_EQ(error_wrap(&err, "%s", filler), -EINVAL);
	CHECK_STR(err.text, filler);
	return TEST_OK;
}

TEST(error_format_adds_the_errno_text)
{
	struct error err = {0};
	char buf[600], tiny[8];

	error_set(&err, ENOENT, "open x");
	CHECK_STR(error_format(&err, buf, sizeof(buf)), "open x: No such file or directory");
	CHECK_STR(error_format(&err, tiny, sizeof(tiny)), "open x:");
	err.code = 0;
	CHECK_STR(error_format(&err, buf, sizeof(buf)), "open x");
	return TEST_OK;
}
