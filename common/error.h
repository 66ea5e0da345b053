/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ERROR_H
#define SOCKMESH_ERROR_H

/*
 * The one error idiom: every function that can fail returns 0 or a negative errno and describes
 * the failure, once, where it happened, in the caller's struct error. Callers add context with
 * error_wrap() or just return. The text never ends in strerror(): whoever prints it adds that.
 */
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

struct error {
	int code; /* errno value, positive; 0 while nothing failed */
	char text[512];
};

/* Sets code (positive errno) and text, cutting a text that is too long; returns -code. */
int error_set(struct error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "outer: " before the text that is there; returns -err->code. */
int error_wrap(struct error *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* "text: strerror(code)" in a buffer of the caller; returns buf. */
const char *error_format(const struct error *err, char *buf, unsigned long size);

#endif
