/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CTL_PRINT_H
#define SOCKMESH_CTL_PRINT_H

/*
 * Text for people: labelled lines and tables with aligned columns. Everything that passes through
 * here is escaped, because names, annotations and reasons come from pods: control characters and
 * those that change the direction of text appear as \x1b or \u202e, a backslash as two.
 */
#include "error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct ctl_out {
	FILE *file;
	bool colour;
};

enum ctl_style { CTL_PLAIN, CTL_BOLD, CTL_GOOD, CTL_WARN, CTL_BAD, CTL_DIM };

/* The text made safe for a terminal; the caller frees, NULL without memory. */
char *ctl_escape(const char *text);

/* "  Label        value", one line; an empty value shows as "-". */
void ctl_field(struct ctl_out *out, const char *label, enum ctl_style style, const char *fmt, ...)
	PRINTF_LIKE(4, 5);

/* An empty line and a heading. */
void ctl_heading(struct ctl_out *out, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Cells are added row by row, left to right; memory that cannot be had is an error at the end. */
struct ctl_table;
struct ctl_table *ctl_table_new(const char *const *headings, size_t n_columns);
void ctl_table_free(struct ctl_table *table); /* NULL is fine, as in all of these */
void ctl_table_free_at(struct ctl_table **table);
void ctl_table_cell(struct ctl_table *table, enum ctl_style style, const char *fmt, ...)
	PRINTF_LIKE(3, 4);
void ctl_table_print(const struct ctl_table *table, struct ctl_out *out);

/* Members of an answer, for display: a member that is absent or of another type is the fallback. */
const char *ctl_string(const json_t *obj, const char *name, const char *fallback);
json_int_t ctl_integer(const json_t *obj, const char *name, json_int_t fallback);
bool ctl_true(const json_t *obj, const char *name);

/* The strings of an array with ", " between them; the caller frees. "" when there are none. */
char *ctl_join(const json_t *array);

/* The members of an object of numbers that are not zero, as "Label  N" lines under a heading. */
void ctl_counters(struct ctl_out *out, const char *heading, const json_t *counters);

#endif
