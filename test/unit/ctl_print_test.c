/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl_print.h"

#include "scoped.h"
#include "test.h"

#include <stdlib.h>

static char *captured; /* what the last print() wrote */

static void capture(void (*print)(struct ctl_out *out), bool colour)
{
	size_t size;
	struct ctl_out out = {open_memstream(&captured, &size), colour};

	print(&out);
	fclose(out.file);
}

#define CHECK_ESCAPED(text, want)                                                                  \
	do {                                                                                       \
		scoped_free char *escaped_ = ctl_escape(text);                                     \
		CHECK_STR(escaped_, want);                                                         \
	} while (0)

TEST(ordinary_text_is_left_alone)
{
	CHECK_ESCAPED("default/web-1 (10.0.0.1)", "default/web-1 (10.0.0.1)");
	CHECK_ESCAPED("caf\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80",
		      "caf\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80");
	return TEST_OK;
}

TEST(control_characters_are_escaped)
{
	CHECK_ESCAPED("\x1b[31m", "\\x1b[31m");
	CHECK_ESCAPED("a\nb\r\t\x7f", "a\\x0ab\\x0d\\x09\\x7f");
	CHECK_ESCAPED("\xc2\x9b"
		      "31m",
		      "\\u009b31m"); /* CSI as one C1 character */
	return TEST_OK;
}

TEST(text_direction_and_line_separators_are_escaped)
{
	CHECK_ESCAPED("a\xe2\x80\xae"
		      "b",
		      "a\\u202eb");
	CHECK_ESCAPED("\xe2\x81\xa6\xe2\x80\xa8\xd8\x9c", "\\u2066\\u2028\\u061c");
	return TEST_OK;
}

TEST(a_backslash_cannot_pose_as_an_escape)
{
	CHECK_ESCAPED("\\x1b", "\\\\x1b");
	return TEST_OK;
}

TEST(broken_utf8_is_escaped_byte_by_byte)
{
	CHECK_ESCAPED("\xff", "\\xff");
	CHECK_ESCAPED("\x80"
		      "a",
		      "\\x80a");
	CHECK_ESCAPED("\xe4\xb8", "\\xe4\\xb8");
	CHECK_ESCAPED("\xf0"
		      "abc",
		      "\\xf0abc");
	return TEST_OK;
}

static void print_table(struct ctl_out *out)
{
	static const char *const headings[] = {"NAME", "N", "WHY"};
	struct ctl_table *table = ctl_table_new(headings, 3);

	ctl_table_cell(table, CTL_PLAIN, "caf\xc3\xa9-x");
	ctl_table_cell(table, CTL_GOOD, "%d", 1);
	ctl_table_cell(table, CTL_PLAIN, "because");
	ctl_table_cell(table, CTL_PLAIN, "a\nb");
	ctl_table_cell(table, CTL_PLAIN, "100");
	ctl_table_cell(table, CTL_PLAIN, "%s", "");
	ctl_table_print(table, out);
	ctl_table_free(table);
}

TEST(table_is_aligned_and_ends_no_line_in_blanks)
{
	capture(print_table, false);
	CHECK_STR(captured, "NAME    N    WHY\n"
			    "caf\xc3\xa9-x  1    because\n"
			    "a\\x0ab  100  -\n");
	free(captured);
	return TEST_OK;
}

TEST(colour_does_not_move_columns)
{
	capture(print_table, true);
	CHECK_HAS(captured, "caf\xc3\xa9-x  \033[32m1\033[0m    because\n");
	free(captured);
	return TEST_OK;
}

static void print_no_table(struct ctl_out *out)
{
	ctl_table_cell(NULL, CTL_PLAIN, "lost");
	ctl_table_print(NULL, out);
}

TEST(a_table_without_memory_says_so)
{
	capture(print_no_table, false);
	CHECK_HAS(captured, "no memory");
	free(captured);
	return TEST_OK;
}

static void print_counters(struct ctl_out *out)
{
	json_t *some = json_pack("{s:i, s:i}", "zero", 0, "three", 3);
	json_t *none = json_pack("{s:i}", "zero", 0);

	ctl_counters(out, "Some", some);
	ctl_counters(out, "None", none);
	ctl_counters(out, "Absent", NULL);
	json_decref(some);
	json_decref(none);
}

TEST(counters_of_zero_are_not_shown)
{
	capture(print_counters, false);
	CHECK_STR(captured, "\nSome\n  NAME   COUNT\n  three  3\n");
	free(captured);
	return TEST_OK;
}

TEST(members_of_another_type_are_the_fallback)
{
	json_t *obj = json_pack("{s:i, s:s, s:[s,i,b]}", "n", 1, "s", "x", "a", "y", 2, 1);
	scoped_free char *joined = ctl_join(json_object_get(obj, "a"));
	scoped_free char *nothing = ctl_join(NULL);

	CHECK_STR(ctl_string(obj, "n", "-"), "-");
	CHECK_STR(ctl_string(NULL, "n", "-"), "-");
	CHECK_EQ(ctl_integer(obj, "s", -1), -1);
	CHECK_EQ(ctl_integer(obj, "n", -1), 1);
	CHECK(!ctl_true(obj, "n"));
	CHECK_STR(joined, "y, 2, ?");
	CHECK(nothing && !*nothing);
	json_decref(obj);
	return TEST_OK;
}
