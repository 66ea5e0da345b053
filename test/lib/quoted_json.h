/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_QUOTED_JSON_H
#define SOCKMESH_QUOTED_JSON_H

/* JSON in C texts, with ' for ": legible, and no value in a test needs either. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The caller frees. */
static inline char *quoted(const char *text)
{
	char *copy = strdup(text);

	if (!copy)
		abort();
	for (char *c = copy; *c; c++)
		if (*c == '\'')
			*c = '"';
	return copy;
}

/* A new reference; a text that is no JSON is a fault of the test. */
static inline json_t *quoted_json(const char *text)
{
	char *copy = quoted(text);
	json_error_t at;
	json_t *value = json_loads(copy, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &at);

	if (!value) {
		printf("# line %d, column %d: %s: %s\n", at.line, at.column, at.text, copy);
		abort();
	}
	free(copy);
	return value;
}

#endif
