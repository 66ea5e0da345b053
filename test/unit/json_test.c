/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include "error.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <stdint.h>

static json_t *parsed(const char *text)
{
	struct error err = {0};
	json_t *value = NULL;

	return json_parse(text, strlen(text), "test", &value, &err) == 0 ? value : NULL;
}

TEST(parse_takes_any_single_value)
{
	static const char *const good[] = {"{}", "[1]", "7", "\"x\"", "null", " true \n"};

	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		scoped_json json_t *value = parsed(good[i]);

		CHECK(value);
	}
	return TEST_OK;
}

TEST(parse_refuses_and_says_where)
{
	static const struct {
		const char *text, *says;
	} rows[] = {
		{"", "empty"},
		{"{", "line 1, column"},
		{"{}\n {}", "line 2, column"},
		{"{\"a\":1,\"a\":2}", "duplicate"},
		{"{\"a\":\"\\u0000\"}", "\\u0000"},
		{"{\"a\\u0000\":1}", "\\u0000"},
		{"\"\xff\"", "unable to decode byte 0xff"},
		{"99999999999999999999", "integer"},
		{"1e999", "overflow"},
		{"NaN", "line 1"},
	};
	struct error err = {0};
	json_t *value = NULL;

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		CHECK_EQ(json_parse(rows[i].text, strlen(rows[i].text), "conf", &value, &err),
			 -EINVAL);
		CHECK(strncmp(err.text, "conf: ", 6) == 0);
		CHECK_HAS(err.text, rows[i].says);
		CHECK(!value);
	}
	CHECK_EQ(json_parse("{}\0", 3, "conf", &value, &err), -EINVAL);
	CHECK_EQ(json_parse("{\"a\0\":1}", 8, "conf", &value, &err), -EINVAL);
	CHECK_EQ(json_parse(NULL, 0, "conf", &value, &err), -EINVAL);
	return TEST_OK;
}

TEST(parse_bounds_nesting)
{
	enum { DEEP = 100000 };
	scoped_free char *text = malloc(DEEP);
	struct error err = {0};
	json_t *value = NULL;

	CHECK(text);
	memset(text, '[', DEEP);
	CHECK_EQ(json_parse(text, DEEP, "conf", &value, &err), -EINVAL);
	CHECK_HAS(err.text, "depth");
	return TEST_OK;
}

TEST(getters_take_their_type_and_leave_absent_ones_alone)
{
	scoped_json json_t *obj = parsed("{\"s\":\"x\",\"t\":true,\"f\":false,\"i\":7,"
					 "\"o\":{},\"a\":[],\"n\":null}");
	const char *s = NULL;
	json_t *o = NULL, *a = NULL;
	bool t = false, f = true;
	json_int_t i = 0;
	struct error err = {0};

	CHECK(obj);
	CHECK_EQ(json_get_string(obj, "s", "", &s, &err), 0);
	CHECK_STR(s, "x");
	CHECK_EQ(json_get_bool(obj, "t", "", &t, &err), 0);
	CHECK_EQ(json_get_bool(obj, "f", "", &f, &err), 0);
	CHECK(t && !f);
	CHECK_EQ(json_get_integer(obj, "i", "", 7, 7, &i, &err), 0);
	CHECK_EQ(i, 7);
	CHECK_EQ(json_get_object(obj, "o", "", &o, &err), 0);
	CHECK_EQ(json_get_array(obj, "a", "", &a, &err), 0);
	CHECK(json_is_object(o) && json_is_array(a));
	for (const char *const *name = (const char *const[]){"n", "absent", NULL}; *name; name++) {
		CHECK_EQ(json_get_string(obj, *name, "", &s, &err), 0);
		CHECK_EQ(json_get_bool(obj, *name, "", &t, &err), 0);
		CHECK_EQ(json_get_integer(obj, *name, "", 1, 2, &i, &err), 0);
		CHECK_EQ(json_get_object(obj, *name, "", &o, &err), 0);
		CHECK_EQ(json_get_array(obj, *name, "", &a, &err), 0);
	}
	CHECK_STR(s, "x");
	CHECK(t && i == 7 && o && a);
	return TEST_OK;
}

TEST(getters_name_member_type_and_value)
{
	scoped_json json_t *obj = parsed("{\"s\":5,\"b\":\"true\",\"i\":1.0,\"o\":[1],\"a\":{}}");
	struct error err = {0};
	const char *s = NULL;
	json_t *j = NULL;
	json_int_t i = 0;
	bool b = false;

	CHECK(obj);
	CHECK_EQ(json_get_string(obj, "s", "conf.", &s, &err), -EINVAL);
	CHECK_STR(err.text, "conf.s is 5, not a string");
	CHECK_EQ(json_get_bool(obj, "b", "", &b, &err), -EINVAL);
	CHECK_STR(err.text, "b is \"true\", not true or false");
	CHECK_EQ(json_get_integer(obj, "i", "", 0, 9, &i, &err), -EINVAL);
	CHECK_STR(err.text, "i is 1.0, not an integer");
	CHECK_EQ(json_get_integer(obj, "s", "", 6, 9, &i, &err), -EINVAL);
	CHECK_STR(err.text, "s is 5, not from 6 to 9");
	CHECK_EQ(json_get_integer(obj, "s", "", 1, 4, &i, &err), -EINVAL);
	CHECK_EQ(json_get_object(obj, "o", "", &j, &err), -EINVAL);
	CHECK_STR(err.text, "o is [1], not an object");
	CHECK_EQ(json_get_array(obj, "a", "", &j, &err), -EINVAL);
	CHECK_STR(err.text, "a is {}, not an array");
	CHECK(!s && !j && !i && !b);
	return TEST_OK;
}

TEST(strings_with_nul_are_refused)
{
	scoped_json json_t *obj = json_object();
	struct error err = {0};
	const char *s = NULL;

	json_object_set_new(obj, "s", json_stringn("a\0b", 3));
	CHECK_EQ(json_get_string(obj, "s", "", &s, &err), -EINVAL);
	CHECK_HAS(err.text, "NUL");
	CHECK_EQ(json_check_string_map(obj, "labels", &err), -EINVAL);
	CHECK_HAS(err.text, "labels: \"s\"");
	return TEST_OK;
}

TEST(string_maps_are_checked)
{
	scoped_json json_t *good = parsed("{\"a\":\"1\",\"b\":\"\"}");
	scoped_json json_t *bad = parsed("{\"a\":\"1\",\"b\":2}");
	scoped_json json_t *array = parsed("[]");
	struct error err = {0};

	CHECK_EQ(json_check_string_map(good, "labels", &err), 0);
	CHECK_EQ(json_check_string_map(bad, "labels", &err), -EINVAL);
	CHECK_STR(err.text, "labels: \"b\" is 2, not a string");
	CHECK_EQ(json_check_string_map(array, "labels", &err), -EINVAL);
	CHECK_STR(err.text, "labels is [], not an object of strings");
	return TEST_OK;
}

TEST(describe_cuts_and_stays_in_the_buffer)
{
	scoped_json json_t *value = parsed("[\"abcdefghijklmnopqrstuvwxyz\",1,2,3]");
	scoped_json json_t *text = parsed("\"a\\nb\xc3\xa9\"");
	char buf[32];

	CHECK_STR(json_describe(value, buf, 16), "[\"abcdefghij...");
	for (size_t size = 1; size < sizeof(buf); size++) {
		memset(buf, 'X', sizeof(buf));
		json_describe(value, buf, size);
		CHECK(strlen(buf) < size);
		CHECK_EQ(buf[size], 'X');
	}
	CHECK_STR(json_describe(text, buf, sizeof(buf)), "\"a\\nb\\u00E9\"");
	CHECK_STR(json_describe(NULL, buf, sizeof(buf)), "absent");
	return TEST_OK;
}

TEST(lossy_strings_replace_what_is_not_utf8)
{
	static const struct {
		const char *bytes, *want;
	} rows[] = {
		{"plain", "plain"},
		{"\xc3\xa9", "\xc3\xa9"},
		{"a\xff"
		 "b",
		 "a\xef\xbf\xbd"
		 "b"},
		{"cut\xc3", "cut\xef\xbf\xbd"},
		{"cut\xe2\x82", "cut\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* a surrogate */
		{"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},		  /* overlong */
		{"\xf0\x9f\x98\x80\xf8", "\xf0\x9f\x98\x80\xef\xbf\xbd"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		scoped_json json_t *value = json_string_lossy(rows[i].bytes);

		CHECK_STR(json_string_value(value), rows[i].want);
	}
	return TEST_OK;
}

/* Our idea of UTF-8 must be jansson's, or a string would be lost: all short byte sequences. */
TEST(lossy_strings_always_succeed)
{
	for (unsigned first = 0x80; first <= 0xff; first++) {
		for (unsigned second = 1; second <= 0xff; second++) {
			char bytes[] = {(char)first, (char)second, '\x80', '\xbf', '\0'};
			scoped_json json_t *value = json_string_lossy(bytes);

			CHECK(value);
		}
	}
	return TEST_OK;
}

TEST(text_is_compact_and_keeps_order)
{
	scoped_json json_t *value = parsed("{ \"b\": 1, \"a\": [ true, null ] }");
	scoped_free char *text = json_to_text(value);

	CHECK_STR(text, "{\"b\":1,\"a\":[true,null]}");
	return TEST_OK;
}
