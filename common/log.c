/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include "json.h"
#include "scoped.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum {
	LINE_MAX_BYTES = 16 * 1024,
	VALUE_MAX_BYTES = 2048, /* of one value: an annotation may have 256 KiB */
	TIME_TEXT_MAX = 64,
	SECONDS_PER_MINUTE = 60,
	NS_PER_MS = 1000000,
};

static const char *const level_names[] = {
	[LOG_ERROR] = "error",
	[LOG_WARN] = "warn",
	[LOG_INFO] = "info",
	[LOG_DEBUG] = "debug",
};
static const char *const format_names[] = {[LOG_TEXT] = "text", [LOG_JSON] = "json"};

static enum log_level current_level = LOG_INFO;
static enum log_format current_format = LOG_TEXT;

int log_level_parse(const char *text, enum log_level *ret, struct error *err)
{
	for (unsigned i = 0; i < sizeof(level_names) / sizeof(*level_names); i++) {
		if (strcmp(text, level_names[i]) == 0) {
			*ret = (enum log_level)i;
			return 0;
		}
	}
	return error_set(err, EINVAL, "log level \"%s\" is not error, warn, info or debug", text);
}

int log_format_parse(const char *text, enum log_format *ret, struct error *err)
{
	for (unsigned i = 0; i < sizeof(format_names) / sizeof(*format_names); i++) {
		if (strcmp(text, format_names[i]) == 0) {
			*ret = (enum log_format)i;
			return 0;
		}
	}
	return error_set(err, EINVAL, "log format \"%s\" is not text or json", text);
}

void log_setup(enum log_level level, enum log_format format)
{
	current_level = level;
	current_format = format;
}

bool log_enabled(enum log_level level)
{
	return level <= current_level;
}

/* One write() a line, so that lines of several processes do not mix. */
static void write_line(const char *line, size_t size)
{
	while (size > 0) {
		ssize_t n = write(STDERR_FILENO, line, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return; /* nowhere left to report it */
		line += n;
		size -= (size_t)n;
	}
}

/* ---- text ---- */

/* Cuts what does not fit; one byte stays free for the newline. */
struct line {
	size_t used;
	char text[LINE_MAX_BYTES];
};

static void put(struct line *line, const char *text, size_t size)
{
	size_t room = sizeof(line->text) - 1 - line->used;

	if (size > room)
		size = room;
	memcpy(line->text + line->used, text, size);
	line->used += size;
}

static void put_string(struct line *line, const char *text)
{
	put(line, text, strlen(text));
}

static bool is_printable(unsigned char c)
{
	return c >= ' ' && c <= '~';
}

/* Printable ASCII out of any bytes: nothing that ends a line or moves a terminal's cursor. */
static void put_escaped(struct line *line, const char *text)
{
	size_t size = strnlen(text, VALUE_MAX_BYTES + 1);

	for (size_t i = 0; i < size && i < VALUE_MAX_BYTES; i++) {
		unsigned char c = (unsigned char)text[i];
		char escape[8];

		if (c == '"' || c == '\\')
			put(line, (const char[]){'\\', (char)c}, 2);
		else if (c == '\n')
			put_string(line, "\\n");
		else if (c == '\t')
			put_string(line, "\\t");
		else if (is_printable(c))
			put(line, text + i, 1);
		else
			put(line, escape, (size_t)snprintf(escape, sizeof(escape), "\\x%02x", c));
	}
	if (size > VALUE_MAX_BYTES)
		put_string(line, "...");
}

static bool needs_quotes(const char *value)
{
	for (const char *s = value; *s; s++)
		if (*s == ' ' || *s == '"' || *s == '=' || *s == '\\' ||
		    !is_printable((unsigned char)*s))
			return true;
	return *value == '\0';
}

static void put_pair(struct line *line, const char *key, const char *value)
{
	bool quoted = value && needs_quotes(value);

	put_string(line, " ");
	put_escaped(line, key);
	put_string(line, quoted ? "=\"" : "=");
	put_escaped(line, value ? value : "-");
	if (quoted)
		put_string(line, "\"");
}

static void write_text(enum log_level level, const char *msg, const char *error, va_list pairs)
{
	struct line line = {.used = 0};
	const char *key;

	put_string(&line, level_names[level]);
	put_string(&line, " ");
	put_escaped(&line, msg);
	if (error)
		put_pair(&line, "error", error);
	while ((key = va_arg(pairs, const char *)))
		put_pair(&line, key, va_arg(pairs, const char *));
	line.text[line.used++] = '\n';
	write_line(line.text, line.used);
}

/* ---- JSON ---- */

/*
 * RFC 3339 in UTC, by counting days from March 1 of year 0 in eras of 400 years: strftime() would
 * bring the C library's time zones, 110 KB, into the static plugin.
 */
static const char *time_text(char buf[static TIME_TEXT_MAX])
{
	enum { DAY_S = 86400, DAYS_TO_1970 = 719468, ERA_DAYS = 146097 };
	struct timespec now = {0};
	unsigned second, day, era_day, era_year, year_day, month;
	uint64_t days;

	clock_gettime(CLOCK_REALTIME, &now);
	second = (unsigned)(now.tv_sec % DAY_S);
	days = (uint64_t)(now.tv_sec / DAY_S) + DAYS_TO_1970;
	era_day = (unsigned)(days % ERA_DAYS);
	era_year = (era_day - era_day / 1460 + era_day / 36524 - era_day / 146096) / 365;
	year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
	month = (5 * year_day + 2) / 153; /* 0 is March */
	day = year_day - (153 * month + 2) / 5 + 1;
	snprintf(buf, TIME_TEXT_MAX, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ",
		 (unsigned)(days / ERA_DAYS) * 400 + era_year + (month >= 10),
		 month < 10 ? month + 3 : month - 9, day, second / 3600, second / 60 % 60,
		 second % 60, (unsigned)(now.tv_nsec / NS_PER_MS));
	return buf;
}

static void add(json_t *object, const char *key, const char *value)
{
	char cut[VALUE_MAX_BYTES + sizeof("...")];

	if (!value)
		value = "-";
	if (strnlen(value, VALUE_MAX_BYTES + 1) > VALUE_MAX_BYTES) {
		snprintf(cut, sizeof(cut), "%.*s...", VALUE_MAX_BYTES, value);
		value = cut;
	}
	/* A member that finds no memory is left out: the rest of the line still says something. */
	json_object_set_new(object, key, json_string_lossy(value));
}

static void write_json(enum log_level level, const char *msg, const char *error, va_list pairs)
{
	static const char no_memory[] =
		"{\"level\":\"error\",\"msg\":\"no memory to write a log line\"}\n";
	scoped_json json_t *object = json_object();
	scoped_free char *text = NULL;
	char time_buf[TIME_TEXT_MAX];
	const char *key;
	size_t size;

	add(object, "time", time_text(time_buf));
	add(object, "level", level_names[level]);
	add(object, "msg", msg);
	if (error)
		add(object, "error", error);
	while ((key = va_arg(pairs, const char *)))
		add(object, key, va_arg(pairs, const char *));
	text = json_dumps(object, JSON_COMPACT | JSON_ENSURE_ASCII);
	if (!text) {
		write_line(no_memory, sizeof(no_memory) - 1);
		return;
	}
	/* The terminator makes room for the newline: one write() without a copy. */
	size = strlen(text);
	text[size] = '\n';
	write_line(text, size + 1);
}

static void write_any(enum log_level level, const char *msg, const char *error, va_list pairs)
{
	int saved_errno = errno;

	if (current_format == LOG_JSON)
		write_json(level, msg, error, pairs);
	else
		write_text(level, msg, error, pairs);
	errno = saved_errno;
}

void log_write(enum log_level level, const char *msg, ...)
{
	va_list pairs;

	if (!log_enabled(level))
		return;
	va_start(pairs, msg);
	write_any(level, msg, NULL, pairs);
	va_end(pairs);
}

void log_error(enum log_level level, const struct error *err, const char *msg, ...)
{
	char text[sizeof(err->text) + 128];
	va_list pairs;

	if (!log_enabled(level))
		return;
	va_start(pairs, msg);
	write_any(level, msg, error_format(err, text, sizeof(text)), pairs);
	va_end(pairs);
}

bool log_limit_allow(struct log_limit *limit, unsigned *ret_suppressed)
{
	struct timespec now = {0};
	long age_s;

	clock_gettime(CLOCK_MONOTONIC, &now);
	age_s = (long)now.tv_sec - limit->window_start_s;
	if (limit->used == 0 || age_s >= SECONDS_PER_MINUTE) {
		limit->window_start_s = (long)now.tv_sec;
		limit->used = 0;
	}
	if (limit->used >= limit->per_minute) {
		limit->suppressed++;
		return false;
	}
	limit->used++;
	*ret_suppressed = limit->suppressed;
	limit->suppressed = 0;
	return true;
}
