/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl_print.h"

#include "scoped.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LABEL_COLUMNS = 14, GAP_COLUMNS = 2 };

static const char *const style_codes[] = {
	[CTL_PLAIN] = "",	 [CTL_BOLD] = "\033[1m", [CTL_GOOD] = "\033[32m",
	[CTL_WARN] = "\033[33m", [CTL_BAD] = "\033[31m", [CTL_DIM] = "\033[2m",
};

/* ---- escaping ----------------------------------------------------------------------------------
 */

/* The code point at *p and its length; a byte that starts no valid sequence stands for itself. */
static uint32_t next_code_point(const unsigned char *p, size_t *ret_length)
{
	size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 1;
	uint32_t value = length == 1 ? p[0] : p[0] & (0xffu >> (length + 1));

	for (size_t i = 1; i < length; i++) {
		if ((p[i] & 0xc0) != 0x80) {
			*ret_length = 1;
			return p[0];
		}
		value = value << 6 | (p[i] & 0x3f);
	}
	*ret_length = length;
	return value;
}

static bool is_unsafe(uint32_t c, size_t length)
{
	bool stray_byte = length == 1 && c >= 0x80;
	bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
	bool direction = c == 0x061c || c == 0x200e || c == 0x200f ||
			 (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
	bool line_break = c == 0x2028 || c == 0x2029;

	return stray_byte || control || direction || line_break;
}

char *ctl_escape(const char *text)
{
	enum { LONGEST = 6 }; /* of one input byte's share: "\u202e" for three, "\x1b" for one */
	char *escaped = malloc(strlen(text) * LONGEST + 1);
	char *end = escaped;

	if (!escaped)
		return NULL;
	for (const unsigned char *p = (const unsigned char *)text; *p;) {
		size_t length;
		uint32_t c = next_code_point(p, &length);

		if (c == '\\') {
			end = stpcpy(end, "\\\\");
		} else if (is_unsafe(c, length)) {
			end += sprintf(end, c <= 0xff && length == 1 ? "\\x%02x" : "\\u%04x", c);
		} else {
			memcpy(end, p, length);
			end += length;
		}
		p += length;
	}
	*end = '\0';
	return escaped;
}

/* Formats, then escapes. NULL without memory. */
__attribute__((format(printf, 1, 0))) static char *safe_text(const char *fmt, va_list args)
{
	scoped_free char *text = NULL;

	if (vasprintf(&text, fmt, args) < 0) {
		text = NULL;
		return NULL;
	}
	return ctl_escape(text);
}

/* Columns on a terminal, taking every code point for one. */
static size_t text_columns(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void put_styled(struct ctl_out *out, enum ctl_style style, const char *text)
{
	bool paint = out->colour && style != CTL_PLAIN;

	fprintf(out->file, "%s%s%s", paint ? style_codes[style] : "", text, paint ? "\033[0m" : "");
}

/* ---- lines -------------------------------------------------------------------------------------
 */

void ctl_field(struct ctl_out *out, const char *label, enum ctl_style style, const char *fmt, ...)
{
	scoped_free char *text = NULL;
	va_list args;

	va_start(args, fmt);
	text = safe_text(fmt, args);
	va_end(args);

	fprintf(out->file, "%-*s", LABEL_COLUMNS + GAP_COLUMNS, label);
	put_styled(out, style, !text ? "(no memory)" : *text ? text : "-");
	fputc('\n', out->file);
}

void ctl_heading(struct ctl_out *out, const char *fmt, ...)
{
	scoped_free char *text = NULL;
	va_list args;

	va_start(args, fmt);
	text = safe_text(fmt, args);
	va_end(args);

	fputc('\n', out->file);
	put_styled(out, CTL_BOLD, text ? text : "(no memory)");
	fputc('\n', out->file);
}

/* ---- tables ------------------------------------------------------------------------------------
 */

struct cell {
	char *text; /* NULL: no memory for it */
	enum ctl_style style;
};

struct ctl_table {
	size_t n_columns;
	size_t *widths;	    /* of the columns so far */
	struct cell *cells; /* the headings are the first row */
	size_t n_cells, room;
	bool incomplete;
};

static void add_cell(struct ctl_table *table, enum ctl_style style, char *text)
{
	size_t *width = &table->widths[table->n_cells % table->n_columns];
	size_t columns = text ? text_columns(text) : 0;

	if (!text)
		table->incomplete = true;
	*width = columns > *width ? columns : *width;
	if (table->n_cells == table->room) {
		size_t room = table->room ? table->room * 2 : 64;
		struct cell *cells = reallocarray(table->cells, room, sizeof(*cells));

		if (!cells) {
			table->incomplete = true;
			free(text);
			return;
		}
		table->cells = cells;
		table->room = room;
	}
	table->cells[table->n_cells++] = (struct cell){text, style};
}

struct ctl_table *ctl_table_new(const char *const *headings, size_t n_columns)
{
	struct ctl_table *table = calloc(1, sizeof(*table));

	if (!table)
		return NULL;
	table->n_columns = n_columns;
	table->widths = calloc(n_columns, sizeof(*table->widths));
	if (!table->widths) {
		free(table);
		return NULL;
	}
	for (size_t i = 0; i < n_columns; i++)
		add_cell(table, CTL_BOLD, strdup(headings[i]));
	return table;
}

void ctl_table_free(struct ctl_table *table)
{
	if (!table)
		return;
	for (size_t i = 0; i < table->n_cells; i++)
		free(table->cells[i].text);
	free(table->cells);
	free(table->widths);
	free(table);
}

void ctl_table_free_at(struct ctl_table **table)
{
	ctl_table_free(*table);
}

void ctl_table_cell(struct ctl_table *table, enum ctl_style style, const char *fmt, ...)
{
	va_list args;
	char *text;

	if (!table || table->incomplete)
		return;
	va_start(args, fmt);
	text = safe_text(fmt, args);
	va_end(args);
	if (text && !*text) {
		free(text);
		text = strdup("-");
	}
	add_cell(table, style, text);
}

void ctl_table_print(const struct ctl_table *table, struct ctl_out *out)
{
	if (!table || table->incomplete) { /* half a table could be taken for the whole one */
		fputs("(no memory for this table)\n", out->file);
		return;
	}
	for (size_t i = 0; i < table->n_cells; i++) {
		const struct cell *cell = &table->cells[i];
		size_t column = i % table->n_columns;
		size_t gap = table->widths[column] - text_columns(cell->text) + GAP_COLUMNS;

		put_styled(out, cell->style, cell->text);
		if (column == table->n_columns - 1)
			fputc('\n', out->file);
		else
			fprintf(out->file, "%*s", (int)gap, "");
	}
}

/* ---- answers -----------------------------------------------------------------------------------
 */

const char *ctl_string(const json_t *obj, const char *name, const char *fallback)
{
	const char *text = json_string_value(json_object_get(obj, name));

	return text ? text : fallback;
}

json_int_t ctl_integer(const json_t *obj, const char *name, json_int_t fallback)
{
	const json_t *value = json_object_get(obj, name);

	return json_is_integer(value) ? json_integer_value(value) : fallback;
}

bool ctl_true(const json_t *obj, const char *name)
{
	return json_is_true(json_object_get(obj, name));
}

char *ctl_join(const json_t *array)
{
	scoped_free char *joined = NULL;
	scoped_file FILE *stream = NULL;
	size_t size, i;
	json_t *item;

	stream = open_memstream(&joined, &size);
	if (!stream)
		return NULL;
	json_array_foreach (array, i, item) {
		fputs(i ? ", " : "", stream);
		if (json_is_integer(item))
			fprintf(stream, "%" JSON_INTEGER_FORMAT, json_integer_value(item));
		else
			fputs(json_is_string(item) ? json_string_value(item) : "?", stream);
	}
	if (fclose(take_ptr(stream)) != 0)
		return NULL;
	return take_ptr(joined);
}

static bool any_count(const json_t *counters)
{
	const char *name;
	json_t *value;

	json_object_foreach ((json_t *)counters, name, value)
		if (json_integer_value(value) != 0)
			return true;
	return false;
}

void ctl_counters(struct ctl_out *out, const char *heading, const json_t *counters)
{
	static const char *const headings[] = {"  NAME", "COUNT"};
	struct ctl_table *table;
	const char *name;
	json_t *value;

	if (!any_count(counters))
		return;
	table = ctl_table_new(headings, 2);
	json_object_foreach ((json_t *)counters, name, value) {
		if (json_integer_value(value) == 0)
			continue;
		ctl_table_cell(table, CTL_PLAIN, "  %s", name);
		ctl_table_cell(table, CTL_PLAIN, "%" JSON_INTEGER_FORMAT,
			       json_integer_value(value));
	}
	ctl_heading(out, "%s", heading);
	ctl_table_print(table, out);
	ctl_table_free(table);
}
