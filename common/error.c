/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int code, const char *fmt, ...)
{
	va_list args;

	err->code = code;
	va_start(args, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, args);
	va_end(args);
	return -code;
}

int error_wrap(struct error *err, const char *fmt, ...)
{
	char inner[sizeof(err->text)];
	size_t used, room;
	va_list args;
	int n;

	memcpy(inner, err->text, sizeof(inner));
	va_start(args, fmt);
	n = vsnprintf(err->text, sizeof(err->text), fmt, args);
	va_end(args);
	used = n < 0 ? 0 : (size_t)n < sizeof(err->text) ? (size_t)n : sizeof(err->text) - 1;
	/* What does not fit is the inner end; the outer context says where to look. */
	room = sizeof(err->text) - used;
	snprintf(err->text + used, room, ": %.*s", room > 2 ? (int)room - 3 : 0, inner);
	return -err->code;
}

const char *error_format(const struct error *err, char *buf, unsigned long size)
{
	if (err->code)
		snprintf(buf, size, "%s: %s", err->text, strerror(err->code));
	else
		snprintf(buf, size, "%s", err->text);
	return buf;
}
