/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_LOG_H
#define SOCKMESH_LOG_H

/*
 * Logs to stderr, one line a message: "level msg key=value" or one JSON object. Only event handlers
 * and main call this; pure modules and common/ return errors instead. The level and format are the
 * process's only mutable globals.
 */
#include "error.h"

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_format { LOG_TEXT, LOG_JSON };

/* Level names: error warn info debug; format names: text json. -EINVAL names the value. */
int log_level_parse(const char *text, enum log_level *ret, struct error *err);
int log_format_parse(const char *text, enum log_format *ret, struct error *err);
void log_setup(enum log_level level, enum log_format format);
bool log_enabled(enum log_level level);

/*
 * log_write(LOG_INFO, "pod registered", "pod", name, "reason", why, NULL): msg, then pairs of key
 * and value strings, ended by NULL. A NULL value prints as "-". Control characters and quotes are
 * escaped in both formats, so a value from a pod cannot forge a line. Text lines carry no time
 * (journald and kubelet add it); JSON lines have "time" (RFC 3339, UTC), "level", "msg".
 */
void log_write(enum log_level level, const char *msg, ...) __attribute__((sentinel));

/* One line for a failure: msg, err's text and strerror, then pairs as above. */
void log_error(enum log_level level, const struct error *err, const char *msg, ...)
	__attribute__((sentinel));

/*
 * At most `per_minute` lines a minute through one limiter; the first line let through after a
 * silence carries suppressed=N. Embed one per message site in the state of the owner.
 */
struct log_limit {
	unsigned per_minute;
	unsigned used, suppressed;
	long window_start_s;
};
bool log_limit_allow(struct log_limit *limit, unsigned *ret_suppressed);

#endif
