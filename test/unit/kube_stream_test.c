/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_stream.h"

#include "error.h"
#include "json.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

struct heard {
	char text[4096]; /* every object, one line each; "!" before one that is unreadable */
	size_t used;
	unsigned objects, unreadable;
	char why[512];
	int answer;
};

static int on_object(void *arg, const json_t *object, const struct error *unreadable)
{
	struct heard *h = arg;
	scoped_free char *text = json_to_text(object);

	h->objects++;
	h->unreadable += unreadable != NULL;
	if (unreadable)
		snprintf(h->why, sizeof(h->why), "%s", unreadable->text);
	if (h->used < sizeof(h->text))
		h->used += (size_t)snprintf(h->text + h->used, sizeof(h->text) - h->used, "%s%s\n",
					    unreadable ? "!" : "", text);
	return h->answer;
}

/* Feeds text in two parts, and takes its end; the head as text in ret_head, if that is not NULL. */
static int read_cut(enum kube_stream_kind kind, const char *text, size_t cut, struct heard *h,
		    char **ret_head, struct error *err)
{
	struct kube_stream *stream;
	const json_t *head = NULL;
	int r = kube_stream_new(kind, 0, on_object, h, &stream, err);

	if (r < 0)
		return r;
	r = kube_stream_feed(stream, text, cut, err);
	if (!r)
		r = kube_stream_feed(stream, text + cut, strlen(text + cut), err);
	if (!r)
		r = kube_stream_finish(stream, &head, err);
	if (!r && ret_head)
		*ret_head = json_to_text(head);
	kube_stream_free(stream);
	return r;
}

static int read_all(enum kube_stream_kind kind, const char *text, struct heard *h,
		    struct error *err)
{
	return read_cut(kind, text, 0, h, NULL, err);
}

static const char list[] =
	" {\"kind\" : \"PodList\",\"apiVersion\":\"v1\",\n\"metadata\":{\"resourceVersion\":\"12\","
	"\"continue\":\"a\\\"]}b\"},\"items\":[{\"a\":\"}\\\\\"} "
	",{\"b\":[{},\"\\\"{\",-1.5e3]},\r\n"
	"{\"\xc3\xa9\":\"\xf0\x9f\x90\x98\\ud83d\\udc18\"}],\"n\":12,\"t\" : true }\n";
static const char list_objects[] = "{\"a\":\"}\\\\\"}\n{\"b\":[{},\"\\\"{\",-1500.0]}\n"
				   "{\"\xc3\xa9\":\"\xf0\x9f\x90\x98\xf0\x9f\x90\x98\"}\n";
static const char list_head[] =
	"{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"12\","
	"\"continue\":\"a\\\"]}b\"},\"n\":12,\"t\":true}";

TEST(a_list_is_the_same_wherever_it_is_cut)
{
	for (size_t cut = 0; cut < sizeof(list); cut++) {
		struct heard h = {0};
		struct error err = {0};
		scoped_free char *head = NULL;

		CHECK_EQ(read_cut(KUBE_STREAM_LIST, list, cut, &h, &head, &err), 0);
		CHECK_STR(h.text, list_objects);
		CHECK_STR(head, list_head);
	}
	return TEST_OK;
}

TEST(a_list_is_the_same_byte_by_byte)
{
	struct kube_stream *stream;
	struct heard h = {0};
	struct error err = {0};
	const json_t *head;

	CHECK(!kube_stream_new(KUBE_STREAM_LIST, 0, on_object, &h, &stream, &err));
	for (size_t i = 0; i < sizeof(list) - 1; i++)
		CHECK_EQ(kube_stream_feed(stream, list + i, 1, &err), 0);
	CHECK(!kube_stream_finish(stream, &head, &err));
	CHECK_STR(h.text, list_objects);
	CHECK_EQ(kube_stream_objects(stream), 3);
	kube_stream_free(stream);
	return TEST_OK;
}

TEST(an_item_is_handed_over_as_soon_as_it_is_complete)
{
	struct kube_stream *stream;
	struct heard h = {0};
	struct error err = {0};
	static const char start[] = "{\"items\":[{\"a\":1}";

	CHECK(!kube_stream_new(KUBE_STREAM_LIST, 0, on_object, &h, &stream, &err));
	CHECK_EQ(kube_stream_feed(stream, start, sizeof(start) - 2, &err), 0);
	CHECK_EQ(h.objects, 0);
	CHECK_EQ(kube_stream_feed(stream, "}", 1, &err), 0);
	CHECK_EQ(h.objects, 1);
	kube_stream_free(stream);
	return TEST_OK;
}

TEST(metadata_may_come_after_the_items)
{
	struct heard h = {0};
	struct error err = {0};
	scoped_free char *head = NULL;
	static const char text[] =
		"{\"items\":[{\"a\":1}],\"metadata\":{\"resourceVersion\":\"7\"}}";

	CHECK_EQ(read_cut(KUBE_STREAM_LIST, text, 3, &h, &head, &err), 0);
	CHECK_STR(head, "{\"metadata\":{\"resourceVersion\":\"7\"}}");
	return TEST_OK;
}

TEST(empty_lists_of_either_form_have_no_items)
{
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_all(KUBE_STREAM_LIST, "{\"metadata\":{},\"items\":[]}", &h, &err), 0);
	CHECK_EQ(read_all(KUBE_STREAM_LIST, "{\"metadata\":{},\"items\":null}", &h, &err), 0);
	CHECK_EQ(read_all(KUBE_STREAM_LIST, "{\"items\": [ ] }", &h, &err), 0);
	CHECK_EQ(h.objects, 0);
	return TEST_OK;
}

TEST(what_is_no_list_is_refused_with_the_place)
{
	static const struct {
		const char *text, *why;
	} cases[] = {
		{"<html>", "byte 0 is 0x3c, where a list's { should be"},
		{"[{}]", "byte 0 is 0x5b"},
		{"{}", "no items"},
		{"{\"kind\":\"Status\"}", "no items"},
		{"{\"items\":{}}", "\"items\" of the list is not what"},
		{"{\"items\":\"x\"}", "\"items\" of the list is not what"},
		{"{\"items\":[1]}", "byte 10 is 0x31, where an object or ] should be"},
		{"{\"items\":[{},]}", "byte 13 is 0x5d, where an object should be"},
		{"{\"items\":[{}{}]}", "where , or ] should be"},
		{"{\"items\":[],\"items\":[]}", "\"items\" of the list is not what"},
		{"{\"items\":[],\"items\":null}", "\"items\" of the list is not what"},
		{"{\"kind\":\"a\",\"kind\":\"b\"}", "\"kind\" of the list is not what"},
		{"{\"items\":[]}}", "where nothing more should be"},
		{"{\"items\":[]} x", "where nothing more should be"},
		{"{\"items\":[],}", "where a name should be"},
		{"{items:[]}", "where a name or } should be"},
		{"{\"items\" []}", "where : should be"},
		{"{\"items\":,}", "where a value should be"},
		{"{\"metadata\":{\"a\":]},\"items\":[]}", "member \"metadata\""},
		{"{\"metadata\":nonsense,\"items\":[]}", "member \"metadata\""},
		{"{\"items\":[{\"a\":}]}", "object 1"},
		{"{\"items\":[{]}]}", "object 1"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct heard h = {0};
		struct error err = {0};

		CHECK_EQ(read_all(KUBE_STREAM_LIST, cases[i].text, &h, &err), -EPROTO);
		CHECK_HAS(err.text, cases[i].why);
	}
	return TEST_OK;
}

TEST(an_end_in_the_midst_is_a_cut_connection)
{
	for (size_t size = 0; size < sizeof(list) - 3; size++) {
		struct kube_stream *stream;
		struct heard h = {0};
		struct error err = {0};
		const json_t *head;

		CHECK(!kube_stream_new(KUBE_STREAM_LIST, 0, on_object, &h, &stream, &err));
		CHECK_EQ(kube_stream_feed(stream, list, size, &err), 0);
		CHECK_EQ(kube_stream_finish(stream, &head, &err), -ECONNRESET);
		kube_stream_free(stream);
	}
	return TEST_OK;
}

static const char events[] = "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\"}}}\n"
			     "{\"type\":\"BOOKMARK\",\"object\":{\"x\":\"{\\\"\"}}\n\n{\"type\":"
			     "\"DELETED\",\"object\":{}}";

TEST(events_are_the_same_wherever_they_are_cut)
{
	for (size_t cut = 0; cut < sizeof(events); cut++) {
		struct heard h = {0};
		struct error err = {0};

		CHECK_EQ(read_cut(KUBE_STREAM_WATCH, events, cut, &h, NULL, &err), 0);
		CHECK_EQ(h.objects, 3);
		CHECK_HAS(h.text, "{\"type\":\"BOOKMARK\",\"object\":{\"x\":\"{\\\"\"}}\n");
	}
	return TEST_OK;
}

TEST(a_watch_may_end_between_events_only)
{
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_all(KUBE_STREAM_WATCH, "", &h, &err), 0);
	CHECK_EQ(read_all(KUBE_STREAM_WATCH, "{\"a\":1} ", &h, &err), 0);
	CHECK_EQ(read_all(KUBE_STREAM_WATCH, "{\"a\":1", &h, &err), -ECONNRESET);
	CHECK_EQ(read_all(KUBE_STREAM_WATCH, "[1]", &h, &err), -EPROTO);
	CHECK_EQ(read_all(KUBE_STREAM_WATCH, "{},{}", &h, &err), -EPROTO);
	CHECK_EQ(read_all(KUBE_STREAM_WATCH, "null", &h, &err), -EPROTO);
	return TEST_OK;
}

/* An item like an API server's with `middle` in its spec; size as printf's. */
static char *list_with(const char *middle)
{
	char *text;

	if (asprintf(&text,
		     "{\"metadata\":{\"resourceVersion\":\"9\"},\"items\":["
		     "{\"metadata\":{\"name\":\"bad\",\"namespace\":\"shop\",\"uid\":\"u\","
		     "\"resourceVersion\":\"8\",\"annotations\":{\"name\":\"no\"}},\"spec\":%s},"
		     "{\"metadata\":{\"name\":\"good\"}}]}",
		     middle) < 0)
		abort();
	return text;
}

static const char bad_and_good[] =
	"!{\"metadata\":{\"name\":\"bad\",\"namespace\":\"shop\",\"uid\":\"u\","
	"\"resourceVersion\":\"8\"}}\n{\"metadata\":{\"name\":\"good\"}}\n";

TEST(an_object_that_cannot_be_held_keeps_its_identity)
{
	static const struct {
		const char *middle, *why;
	} cases[] = {
		{"{\"a\\u0000b\":1}", "NUL"},
		{"{\"a\":123456789012345678901234567890}", "too big"},
		{"{\"a\":1e999}", "overflow"},
		{"{\"a\":1,\"a\":2}", "duplicate"},
		{"\"\xff\"", "decode byte 0xff"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		scoped_free char *text = list_with(cases[i].middle);
		struct heard h = {0};
		struct error err = {0};

		CHECK_EQ(read_all(KUBE_STREAM_LIST, text, &h, &err), 0);
		CHECK_STR(h.text, bad_and_good);
		CHECK_HAS(h.why, cases[i].why);
	}
	return TEST_OK;
}

TEST(a_nul_in_a_value_is_no_reason_to_refuse_an_object)
{
	scoped_free char *text = list_with("\"a\\u0000b\"");
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_all(KUBE_STREAM_LIST, text, &h, &err), 0);
	CHECK_EQ(h.unreadable, 0);
	return TEST_OK;
}

static int read_limited(const char *text, size_t part, size_t limit, struct heard *h,
			struct error *err)
{
	struct kube_stream *stream;
	const json_t *head;
	size_t size = strlen(text);
	int r = kube_stream_new(KUBE_STREAM_LIST, limit, on_object, h, &stream, err);

	for (size_t at = 0; at < size && !r; at += part)
		r = kube_stream_feed(stream, text + at, size - at < part ? size - at : part, err);
	if (!r)
		r = kube_stream_finish(stream, &head, err);
	kube_stream_free(stream);
	return r;
}

static char *repeated(const char *before, char c, size_t n, const char *after)
{
	char *text = malloc(strlen(before) + n + strlen(after) + 1);

	if (!text)
		abort();
	sprintf(text, "%s%*s%s", before, (int)n, "", after);
	memset(text + strlen(before), c, n);
	return text;
}

TEST(an_object_over_the_limit_keeps_its_identity_however_it_arrives)
{
	static const size_t parts[] = {1, 7, 100, 100000};
	scoped_free char *string = repeated("\"", 'x', 1500, "\"");
	scoped_free char *text = list_with(string);

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		struct heard h = {0};
		struct error err = {0};

		CHECK_EQ(read_limited(text, parts[i], 1000, &h, &err), 0);
		CHECK_STR(h.text, bad_and_good);
		CHECK_HAS(h.why, "larger than 1000 bytes");
	}
	return TEST_OK;
}

TEST(the_limit_itself_is_allowed)
{
	static const char text[] = "{\"items\":[{\"a\":\"12345\"}]}";
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_limited(text, 3, 13, &h, &err), 0);
	CHECK_EQ(h.unreadable, 0);
	CHECK_EQ(read_limited(text, 3, 12, &h, &err), -EPROTO);
	CHECK_HAS(err.text, "no metadata.name");
	return TEST_OK;
}

TEST(an_object_without_an_end_ends_the_stream)
{
	scoped_free char *string = repeated("\"", 'x', 6000, "");
	scoped_free char *text = list_with(string);
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_limited(text, 100, 1000, &h, &err), -EMSGSIZE);
	CHECK_EQ(h.objects, 0);
	return TEST_OK;
}

TEST(depth_is_bounded)
{
	scoped_free char *deep = repeated("", '[', KUBE_OBJECT_DEPTH, "");
	scoped_free char *ends = repeated(deep, ']', KUBE_OBJECT_DEPTH, "");
	scoped_free char *text = list_with(ends);
	scoped_free char *very = repeated("{\"metadata\":", '[', 500000, "");
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_all(KUBE_STREAM_LIST, text, &h, &err), 0);
	CHECK_STR(h.text, bad_and_good);
	CHECK_HAS(h.why, "deeper");
	CHECK_EQ(read_all(KUBE_STREAM_LIST, very, &h, &err), -ECONNRESET);
	return TEST_OK;
}

TEST(members_of_a_list_are_bounded)
{
	scoped_free char *name = repeated("{\"", 'x', 300, "\":1}");
	scoped_free char *value = repeated("{\"x\":\"", 'x', 1100000, "\",\"items\":[]}");
	scoped_free char *endless = repeated("{\"x\":\"", 'x', 6000000, "");
	struct heard h = {0};
	struct error err = {0};

	CHECK_EQ(read_all(KUBE_STREAM_LIST, name, &h, &err), -EPROTO);
	CHECK_EQ(read_all(KUBE_STREAM_LIST, value, &h, &err), -EPROTO);
	CHECK_EQ(read_all(KUBE_STREAM_LIST, endless, &h, &err), -EMSGSIZE);
	return TEST_OK;
}

TEST(an_unreadable_event_keeps_type_and_identity)
{
	static const char text[] =
		"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"Pod\",\"metadata\":{\"name\":\"p\","
		"\"namespace\":\"n\",\"uid\":\"u\",\"resourceVersion\":\"5\"},\"x\":1,\"x\":2}}"
		"{\"type\":\"DELETED\",\"object\":{}}";
	static const char wanted[] =
		"!{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"p\",\"namespace\":"
		"\"n\",\"uid\":\"u\",\"resourceVersion\":\"5\"}}}\n"
		"{\"type\":\"DELETED\",\"object\":{}}\n";

	for (size_t cut = 0; cut < sizeof(text); cut++) {
		struct heard h = {0};
		struct error err = {0};

		CHECK_EQ(read_cut(KUBE_STREAM_WATCH, text, cut, &h, NULL, &err), 0);
		CHECK_STR(h.text, wanted);
	}
	return TEST_OK;
}

TEST(an_identity_is_taken_from_its_own_place_only)
{
	static const char *const strangers[] = {
		"{\"spec\":{\"metadata\":{\"name\":\"p\",\"resourceVersion\":\"5\"}},\"x\":1,\"x\":"
		"2}",
		"{\"metadata\":{\"labels\":{\"name\":\"p\",\"resourceVersion\":\"5\"}},\"x\":1,"
		"\"x\":2}",
		"{\"metadata\":{\"name\":7,\"resourceVersion\":\"5\"},\"x\":1,\"x\":2}",
		"{\"a\":[{\"metadata\":{\"name\":\"p\",\"resourceVersion\":\"5\"}}],\"x\":1,\"x\":"
		"2}",
		"{\"metadata\":[{\"name\":\"p\",\"resourceVersion\":\"5\"}],\"x\":1,\"x\":2}",
	};

	for (size_t i = 0; i < sizeof(strangers) / sizeof(*strangers); i++) {
		struct heard h = {0};
		struct error err = {0};
		scoped_free char *text = NULL;

		CHECK(asprintf(&text, "{\"items\":[%s]}", strangers[i]) > 0);
		CHECK_EQ(read_all(KUBE_STREAM_LIST, text, &h, &err), -EPROTO);
		CHECK_EQ(h.objects, 0);
	}
	return TEST_OK;
}

TEST(a_reader_can_stop_and_a_failure_stays)
{
	struct kube_stream *stream;
	struct heard h = {.answer = -ECANCELED};
	struct error err = {0};
	const json_t *head;

	CHECK(!kube_stream_new(KUBE_STREAM_LIST, 0, on_object, &h, &stream, &err));
	CHECK_EQ(kube_stream_feed(stream, list, sizeof(list) - 1, &err), -ECANCELED);
	CHECK_EQ(h.objects, 1);
	CHECK_EQ(kube_stream_feed(stream, "x", 1, &err), -ECANCELED);
	CHECK_EQ(kube_stream_finish(stream, &head, &err), -ECANCELED);
	kube_stream_free(stream);
	return TEST_OK;
}
