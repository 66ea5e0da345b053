/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include "error.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DESCRIBE_SIZE = 80 };

int json_parse(const char *text, size_t size, const char *what, json_t **ret, struct error *err)
{
	json_error_t at;
	json_t *value;

	if (!text || size == 0)
		return error_set(err, EINVAL, "%s: no JSON, the text is empty", what);
	/* jansson's reader takes one behind a number for the end of the text. */
	if (memchr(text, '\0', size))
		return error_set(err, EINVAL, "%s: a NUL byte", what);
	value = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &at);
	if (!value)
		return error_set(err, EINVAL, "%s: line %d, column %d: %s", what, at.line,
				 at.column, at.text);
	*ret = value;
	return 0;
}

/* The member, or NULL when it is absent or null. */
static json_t *member(const json_t *obj, const char *name)
{
	json_t *value = json_object_get(obj, name);

	return json_is_null(value) ? NULL : value;
}

static int wrong_type(const json_t *value, const char *name, const char *where, const char *wanted,
		      struct error *err)
{
	char found[DESCRIBE_SIZE];

	return error_set(err, EINVAL, "%s%s is %s, not %s", where, name,
			 json_describe(value, found, sizeof(found)), wanted);
}

int json_get_string(const json_t *obj, const char *name, const char *where, const char **ret,
		    struct error *err)
{
	const json_t *value = member(obj, name);

	if (!value)
		return 0;
	if (!json_is_string(value))
		return wrong_type(value, name, where, "a string", err);
	if (strlen(json_string_value(value)) != json_string_length(value))
		return error_set(err, EINVAL, "%s%s holds a NUL character", where, name);
	*ret = json_string_value(value);
	return 0;
}

int json_get_bool(const json_t *obj, const char *name, const char *where, bool *ret,
		  struct error *err)
{
	const json_t *value = member(obj, name);

	if (!value)
		return 0;
	if (!json_is_boolean(value))
		return wrong_type(value, name, where, "true or false", err);
	*ret = json_is_true(value);
	return 0;
}

int json_get_integer(const json_t *obj, const char *name, const char *where, json_int_t min,
		     json_int_t max, json_int_t *ret, struct error *err)
{
	const json_t *value = member(obj, name);
	json_int_t number;

	if (!value)
		return 0;
	if (!json_is_integer(value))
		return wrong_type(value, name, where, "an integer", err);
	number = json_integer_value(value);
	if (number < min || number > max)
		return error_set(err, EINVAL,
				 "%s%s is %" JSON_INTEGER_FORMAT ", not from %" JSON_INTEGER_FORMAT
				 " to %" JSON_INTEGER_FORMAT,
				 where, name, number, min, max);
	*ret = number;
	return 0;
}

int json_get_object(const json_t *obj, const char *name, const char *where, json_t **ret,
		    struct error *err)
{
	json_t *value = member(obj, name);

	if (!value)
		return 0;
	if (!json_is_object(value))
		return wrong_type(value, name, where, "an object", err);
	*ret = value;
	return 0;
}

int json_get_array(const json_t *obj, const char *name, const char *where, json_t **ret,
		   struct error *err)
{
	json_t *value = member(obj, name);

	if (!value)
		return 0;
	if (!json_is_array(value))
		return wrong_type(value, name, where, "an array", err);
	*ret = value;
	return 0;
}

int json_check_string_map(const json_t *obj, const char *what, struct error *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(obj))
		return wrong_type(obj, what, "", "an object of strings", err);
	json_object_foreach ((json_t *)obj, key, value) {
		char found[DESCRIBE_SIZE];

		if (!json_is_string(value))
			return error_set(err, EINVAL, "%s: \"%s\" is %s, not a string", what, key,
					 json_describe(value, found, sizeof(found)));
		if (strlen(json_string_value(value)) != json_string_length(value))
			return error_set(err, EINVAL, "%s: \"%s\" holds a NUL character", what,
					 key);
	}
	return 0;
}

struct description {
	char *buf;
	size_t size, used;
};

static int describe_part(const char *part, size_t size, void *data)
{
	struct description *d = data;
	size_t room = d->size - 1 - d->used;

	memcpy(d->buf + d->used, part, size < room ? size : room);
	d->used += size < room ? size : room;
	/* An error ends the dump: the rest of a large value is not walked. */
	return size > room ? -1 : 0;
}

const char *json_describe(const json_t *value, char *buf, size_t size)
{
	struct description d = {.buf = buf, .size = size};

	if (size == 0)
		return buf;
	if (!value) {
		static const char absent[] = "absent";

		describe_part(absent, sizeof(absent) - 1, &d);
	} else if (json_dump_callback(value, describe_part, &d,
				      JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII) < 0) {
		static const char cut[] = "...";
		size_t n = sizeof(cut) - 1 < size - 1 ? sizeof(cut) - 1 : size - 1;

		/* A dump that failed early, without memory, ends here too. */
		if (d.used + n > size - 1)
			d.used = size - 1 - n;
		memcpy(buf + d.used, cut, n);
		d.used += n;
	}
	buf[d.used] = '\0';
	return buf;
}

/* Bytes of the UTF-8 character at s (RFC 3629: shortest form, no surrogates), 0 when it is none. */
static size_t utf8_length(const unsigned char *s)
{
	static const struct {
		unsigned char first_min, first_max, second_min, second_max;
		size_t length;
	} forms[] = {
		{0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
		{0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
		{0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
		{0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
	};

	if (s[0] < 0x80)
		return 1;
	for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
		if (s[0] < forms[i].first_min || s[0] > forms[i].first_max)
			continue;
		if (s[1] < forms[i].second_min || s[1] > forms[i].second_max)
			return 0;
		for (size_t k = 2; k < forms[i].length; k++)
			if ((s[k] & 0xc0) != 0x80)
				return 0;
		return forms[i].length;
	}
	return 0;
}

json_t *json_string_lossy(const char *text)
{
	static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
	json_t *value = json_string(text);
	size_t used = 0, size = strlen(text);
	char *clean;

	if (value || size > SIZE_MAX / 3 - 1)
		return value;
	clean = malloc(size * 3 + 1);
	if (!clean)
		return NULL;
	for (const char *s = text; *s;) {
		size_t n = utf8_length((const unsigned char *)s);

		memcpy(clean + used, n ? s : replacement, n ? n : sizeof(replacement) - 1);
		used += n ? n : sizeof(replacement) - 1;
		s += n ? n : 1;
	}
	value = json_stringn(clean, used);
	free(clean);
	return value;
}

char *json_to_text(const json_t *value)
{
	return json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
}
