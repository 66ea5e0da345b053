/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_SAME_TEXT_H
#define SOCKMESH_SAME_TEXT_H

#include <stdbool.h>
#include <string.h>

/* Two texts, each of which may be NULL; that is the same as NULL only. */
static inline bool same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

#endif
