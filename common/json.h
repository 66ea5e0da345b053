/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_JSON_H
#define SOCKMESH_JSON_H

/*
 * What Sockmesh needs on top of jansson: parsing with errors that name the place, and typed member
 * access whose errors name the member, the wanted type and the value found. Pure.
 *
 * Every getter takes an object, a member name and `where` (a prefix for the error text such as
 * "runtimeConfig."; "" for none). An absent or null member leaves *ret untouched and returns 0;
 * a wrong type is -EINVAL.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct error;

#define scoped_json __attribute__((cleanup(json_decref_at)))
static inline void json_decref_at(json_t **j)
{
	json_decref(*j);
}

/* Parses exactly one JSON value (duplicate keys refused); -EINVAL says line, column and reason. */
int json_parse(const char *text, size_t size, const char *what, json_t **ret, struct error *err);

int json_get_string(const json_t *obj, const char *name, const char *where, const char **ret,
		    struct error *err); /* borrowed from obj; embedded NUL refused */
int json_get_bool(const json_t *obj, const char *name, const char *where, bool *ret,
		  struct error *err);
int json_get_integer(const json_t *obj, const char *name, const char *where, json_int_t min,
		     json_int_t max, json_int_t *ret, struct error *err);
int json_get_object(const json_t *obj, const char *name, const char *where, json_t **ret,
		    struct error *err); /* borrowed */
int json_get_array(const json_t *obj, const char *name, const char *where, json_t **ret,
		   struct error *err); /* borrowed */

/* Checks that every member of the object is a string (what names it in the error). */
int json_check_string_map(const json_t *obj, const char *what, struct error *err);

/* The value as text for an error message, at most size bytes, "..." where cut. Returns buf. */
const char *json_describe(const json_t *value, char *buf, size_t size);

/* A string value of any bytes: what is not UTF-8 becomes U+FFFD. NULL only without memory. */
json_t *json_string_lossy(const char *text);

/* Compact, keys in insertion order; the caller frees. NULL only without memory. */
char *json_to_text(const json_t *value);

#endif
