/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_stream.h"

#include "error.h"
#include "json.h"
#include "kube_identity.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
	NAME_MAX_SIZE = 256,	   /* of a list's members */
	MEMBER_MAX_SIZE = 1 << 20, /* of their values, but for the items */
	MEMBERS_MAX = 32,	   /* a list has four */
	IDENTITY_SIZE = 64 << 10,  /* how much of an unreadable object is kept */
	SKIP_FACTOR = 4,	   /* of the limit: an object that goes on for longer never ends */
	KEEP_ROOM = 256 << 10,	   /* a larger buffer is given back after its object */
};

/* Where in the response the next byte is, when it is not in the midst of a value. */
enum place {
	BEFORE_LIST,
	FIRST_NAME, /* or the list's end */
	NEXT_NAME,
	BEFORE_COLON,
	BEFORE_VALUE,
	AFTER_VALUE,
	FIRST_ITEM, /* or the items' end */
	NEXT_ITEM,
	AFTER_ITEM,
	AFTER_LIST,
	BEFORE_EVENT,
	PLACES,
};

/* What the value is that is being taken. */
enum taking { NOTHING, NAME, MEMBER, OBJECT };

/* A value whose text is being collected. Its end is found by counting brackets; jansson checks it.
 */
struct capture {
	char *text;
	size_t size, room, limit;
	uint64_t skipped; /* bytes of an unreadable object that were not kept */
	unsigned depth;
	bool in_string, escaped;
	bool too_large, too_deep;
};

struct kube_stream {
	enum kube_stream_kind kind;
	enum place place;
	enum taking taking;
	size_t object_max;
	kube_stream_fn fn;
	void *arg;
	struct capture capture;
	char name[NAME_MAX_SIZE]; /* of the member whose value comes next */
	bool items_seen;
	json_t *head; /* of a list: its members without the items */
	uint64_t offset, objects, unreadable;
	struct error failed; /* code != 0: and so it stays */
};

int kube_stream_new(enum kube_stream_kind kind, size_t object_max, kube_stream_fn fn, void *arg,
		    struct kube_stream **ret, struct error *err)
{
	struct kube_stream *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(err, ENOMEM, "stream of objects");
	s->kind = kind;
	s->place = kind == KUBE_STREAM_LIST ? BEFORE_LIST : BEFORE_EVENT;
	s->object_max = object_max ? object_max : KUBE_OBJECT_MAX;
	s->fn = fn;
	s->arg = arg;
	*ret = s;
	return 0;
}

void kube_stream_free(struct kube_stream *s)
{
	if (!s)
		return;
	free(s->capture.text);
	json_decref(s->head);
	free(s);
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static int unexpected(const struct kube_stream *s, char c, struct error *err)
{
	static const char *const wanted[PLACES] = {
		[BEFORE_LIST] = "a list's {",	 [FIRST_NAME] = "a name or }",
		[NEXT_NAME] = "a name",		 [BEFORE_COLON] = ":",
		[BEFORE_VALUE] = "a value",	 [AFTER_VALUE] = ", or }",
		[FIRST_ITEM] = "an object or ]", [NEXT_ITEM] = "an object",
		[AFTER_ITEM] = ", or ]",	 [AFTER_LIST] = "nothing more",
		[BEFORE_EVENT] = "an event's {",
	};

	return error_set(err, EPROTO, "byte %" PRIu64 " is 0x%02x, where %s should be", s->offset,
			 (unsigned char)c, wanted[s->place]);
}

/* ---- taking one value --------------------------------------------------------------------------
 */

static void capture_start(struct kube_stream *s, enum taking what)
{
	struct capture *c = &s->capture;

	*c = (struct capture){
		.text = c->text,
		.room = c->room,
		.limit = what == NAME	  ? NAME_MAX_SIZE
			 : what == MEMBER ? MEMBER_MAX_SIZE
					  : s->object_max,
	};
	s->taking = what;
}

static int capture_reserve(struct capture *c, size_t size, struct error *err)
{
	size_t room = c->room ? c->room : 4096;
	char *text;

	while (room < size)
		room *= 2;
	if (room == c->room)
		return 0;
	text = realloc(c->text, room);
	if (!text)
		return error_set(err, ENOMEM, "object of %zu bytes", size);
	c->text = text;
	c->room = room;
	return 0;
}

/* What is not kept is counted; the beginning, which says whose object it is, always is kept. */
static int capture_skip(struct capture *c, const char *data, size_t n, struct error *err)
{
	size_t room = c->limit < IDENTITY_SIZE ? c->limit : IDENTITY_SIZE;
	size_t keep;

	if (c->size > room) {
		c->skipped += c->size - room;
		c->size = room;
	}
	keep = n < room - c->size ? n : room - c->size;
	if (capture_reserve(c, c->size + keep, err) < 0)
		return -err->code;
	memcpy(c->text + c->size, data, keep);
	c->size += keep;
	c->skipped += n - keep;
	if (c->skipped > (uint64_t)SKIP_FACTOR * c->limit)
		return error_set(err, EMSGSIZE, "an object of more than %" PRIu64 " bytes",
				 c->skipped);
	return 0;
}

static int capture_append(struct capture *c, const char *data, size_t n, struct error *err)
{
	if (n > c->limit - c->size)
		c->too_large = true;
	if (c->too_large || c->too_deep)
		return capture_skip(c, data, n, err);
	if (capture_reserve(c, c->size + n, err) < 0)
		return -err->code;
	memcpy(c->text + c->size, data, n);
	c->size += n;
	return 0;
}

/* Up to the end of the string, or to a backslash, or to the end of the data. */
static const char *scan_string(struct capture *c, const char *p, const char *end)
{
	if (c->escaped) {
		c->escaped = false;
		return p + 1;
	}
	while (p < end && *p != '"' && *p != '\\')
		p++;
	if (p == end)
		return p;
	if (*p == '"')
		c->in_string = false;
	else
		c->escaped = true;
	return p + 1;
}

/*
 * The end of the value, exclusive; *ret_done is false when it is not in this data. A value without
 * brackets or quotes (a number, a word) ends before whatever cannot be part of one.
 */
static const char *scan_value(struct capture *c, bool fresh, const char *p, const char *end,
			      bool *ret_done)
{
	*ret_done = false;
	while (p < end) {
		if (c->in_string) {
			p = scan_string(c, p, end);
			if (!c->in_string && c->depth == 0) {
				*ret_done = true;
				return p;
			}
			continue;
		}
		if (c->depth == 0 && !fresh && (is_space(*p) || strchr(",]}:\"[{", *p))) {
			*ret_done = true;
			return p;
		}
		fresh = false;
		if (*p == '"') {
			c->in_string = true;
		} else if (*p == '{' || *p == '[') {
			if (++c->depth > KUBE_OBJECT_DEPTH)
				c->too_deep = true;
		} else if ((*p == '}' || *p == ']') && c->depth > 0 && --c->depth == 0) {
			*ret_done = true;
			return p + 1;
		}
		p++;
	}
	return p;
}

/* jansson would end a number at a NUL, so none gets to it; one in a string has to be escaped. */
static json_t *parse(const struct capture *c, struct error *err)
{
	json_error_t at;
	json_t *value = NULL;

	if (c->size == 0 || memchr(c->text, '\0', c->size)) {
		error_set(err, EPROTO, "a NUL byte");
		return NULL;
	}
	value = json_loadb(c->text, c->size,
			   JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &at);
	if (!value)
		error_set(err, EPROTO, "line %d, column %d: %s", at.line, at.column, at.text);
	return value;
}

static int take_name(struct kube_stream *s, struct error *err)
{
	scoped_json json_t *name = s->capture.too_large ? NULL : parse(&s->capture, err);

	if (!json_is_string(name) || json_string_length(name) != strlen(json_string_value(name)))
		return error_set(err, EPROTO, "byte %" PRIu64 ": no name of a member", s->offset);
	memcpy(s->name, json_string_value(name), json_string_length(name) + 1);
	s->place = BEFORE_COLON;
	return 0;
}

static int take_member(struct kube_stream *s, struct error *err)
{
	bool is_items = strcmp(s->name, "items") == 0;
	json_t *value;

	if (s->capture.too_large || s->capture.too_deep)
		return error_set(err, EPROTO, "member \"%s\" of the list is too %s", s->name,
				 s->capture.too_large ? "large" : "deep");
	value = parse(&s->capture, err);
	if (!value)
		return error_wrap(err, "member \"%s\" of the list", s->name);
	s->place = AFTER_VALUE;
	/* An empty list of Go's is null. */
	if (is_items && json_is_null(value) && !s->items_seen) {
		s->items_seen = true;
		return 0;
	}
	if (is_items || json_object_size(s->head) >= MEMBERS_MAX ||
	    json_object_get(s->head, s->name)) {
		json_decref(value);
		return error_set(err, EPROTO, "member \"%s\" of the list is not what it should be",
				 s->name);
	}
	if (json_object_set_new(s->head, s->name, value) < 0)
		return error_set(err, ENOMEM, "head of a list");
	return 0;
}

static int hand_over(struct kube_stream *s, const json_t *object, const struct error *unreadable,
		     struct error *err)
{
	int r;

	s->objects++;
	s->unreadable += unreadable != NULL;
	r = s->fn(s->arg, object, unreadable);
	return r < 0 ? error_set(err, -r, "stopped by its reader") : 0;
}

/* What the text starts with says who it is; the error in *why says why there is no more of it. */
static int hand_over_identity(struct kube_stream *s, const struct error *why, struct error *err)
{
	scoped_json json_t *identity = NULL;
	struct error unknown = {0};

	if (kube_identity_read(s->capture.text, s->capture.size, s->kind == KUBE_STREAM_WATCH,
			       &identity, &unknown) < 0)
		return error_set(err, EPROTO, "object %" PRIu64 ": %s, and %s", s->objects + 1,
				 why->text, unknown.text);
	return hand_over(s, identity, why, err);
}

static int take_object(struct kube_stream *s, struct error *err)
{
	const struct capture *c = &s->capture;
	scoped_json json_t *object = NULL;
	struct error why = {0};

	s->place = s->kind == KUBE_STREAM_LIST ? AFTER_ITEM : BEFORE_EVENT;
	if (c->too_large)
		error_set(&why, EMSGSIZE, "larger than %zu bytes", c->limit);
	else if (c->too_deep)
		error_set(&why, EMSGSIZE, "nested deeper than %d", KUBE_OBJECT_DEPTH);
	else
		object = parse(c, &why);
	return object ? hand_over(s, object, NULL, err) : hand_over_identity(s, &why, err);
}

static int capture_end(struct kube_stream *s, struct error *err)
{
	enum taking what = s->taking;
	int r;

	s->taking = NOTHING;
	if (what == NAME)
		r = take_name(s, err);
	else if (what == MEMBER)
		r = take_member(s, err);
	else
		r = take_object(s, err);
	if (s->capture.room > KEEP_ROOM) {
		free(s->capture.text);
		s->capture = (struct capture){0};
	}
	return r;
}

static int take_value(struct kube_stream *s, const char **data, const char *end, struct error *err)
{
	struct capture *c = &s->capture;
	bool done;
	bool fresh = c->size == 0 && c->skipped == 0;
	const char *stop = scan_value(c, fresh, *data, end, &done);
	size_t n = (size_t)(stop - *data);

	*data = stop;
	s->offset += n;
	if (capture_append(c, stop - n, n, err) < 0)
		return -err->code;
	return done ? capture_end(s, err) : 0;
}

/* ---- between values ----------------------------------------------------------------------------
 */

/* A value begins with this byte, which capture takes; *ret_consumed says that it was punctuation.
 */
static int before_value(struct kube_stream *s, char c, bool *ret_consumed, struct error *err)
{
	bool is_items = strcmp(s->name, "items") == 0;

	if (is_items && c == '[' && !s->items_seen) {
		s->items_seen = true;
		s->place = FIRST_ITEM;
		*ret_consumed = true;
		return 0;
	}
	if (strchr(",]}:", c))
		return unexpected(s, c, err);
	capture_start(s, MEMBER);
	return 0;
}

static int list_start(struct kube_stream *s, struct error *err)
{
	s->head = json_object();
	s->place = FIRST_NAME;
	return s->head ? 0 : error_set(err, ENOMEM, "head of a list");
}

/* Moves on over the punctuation c; *ret_consumed stays false when c begins a value. */
static int step(struct kube_stream *s, char c, bool *ret_consumed, struct error *err)
{
	enum place at = s->place;

	*ret_consumed = true;
	if (at == BEFORE_LIST && c == '{')
		return list_start(s, err);
	if ((at == FIRST_NAME || at == AFTER_VALUE) && c == '}')
		s->place = AFTER_LIST;
	else if (at == AFTER_VALUE && c == ',')
		s->place = NEXT_NAME;
	else if (at == BEFORE_COLON && c == ':')
		s->place = BEFORE_VALUE;
	else if ((at == FIRST_ITEM || at == AFTER_ITEM) && c == ']')
		s->place = AFTER_VALUE;
	else if (at == AFTER_ITEM && c == ',')
		s->place = NEXT_ITEM;
	else
		*ret_consumed = false;
	if (*ret_consumed)
		return 0;

	if (at == BEFORE_VALUE)
		return before_value(s, c, ret_consumed, err);
	if ((at == FIRST_NAME || at == NEXT_NAME) && c == '"')
		capture_start(s, NAME);
	else if ((at == FIRST_ITEM || at == NEXT_ITEM || at == BEFORE_EVENT) && c == '{')
		capture_start(s, OBJECT);
	else
		return unexpected(s, c, err);
	return 0;
}

static int feed(struct kube_stream *s, const char *data, size_t size, struct error *err)
{
	const char *end = data + size;
	int r = 0;

	while (data < end && !r) {
		bool consumed;

		if (s->taking != NOTHING) {
			r = take_value(s, &data, end, err);
			continue;
		}
		if (is_space(*data)) {
			consumed = true;
		} else {
			r = step(s, *data, &consumed, err);
		}
		data += consumed;
		s->offset += consumed;
	}
	return r;
}

int kube_stream_feed(struct kube_stream *s, const char *data, size_t size, struct error *err)
{
	if (!s->failed.code)
		feed(s, data, size, &s->failed);
	if (s->failed.code)
		*err = s->failed;
	return -s->failed.code;
}

int kube_stream_finish(struct kube_stream *s, const json_t **ret_head, struct error *err)
{
	bool whole = s->taking == NOTHING &&
		     s->place == (s->kind == KUBE_STREAM_LIST ? AFTER_LIST : BEFORE_EVENT);

	if (s->failed.code) {
		*err = s->failed;
		return -s->failed.code;
	}
	if (!whole)
		return error_set(err, ECONNRESET, "ended in the midst, after %" PRIu64 " bytes",
				 s->offset);
	if (s->kind == KUBE_STREAM_LIST && !s->items_seen)
		return error_set(err, EPROTO, "no items: not a list");
	*ret_head = s->head;
	return 0;
}

uint64_t kube_stream_objects(const struct kube_stream *s)
{
	return s->objects;
}

uint64_t kube_stream_unreadable(const struct kube_stream *s)
{
	return s->unreadable;
}
