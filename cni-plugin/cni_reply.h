/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CNI_REPLY_H
#define SOCKMESH_CNI_REPLY_H

/* What the plugin writes to stdout. Pure; each function returns text that the caller frees. */
#include "cni_version.h"
#include "error.h"

#include <stdbool.h>

struct agent_reply;

/* A failure as CNI reports it: one line, and the field and value that it is about. */
struct cni_failure {
	enum cni_error_code code;
	char message[512];
	char details[512]; /* "" for none */
};

/* Fills *ret and returns -1, so that a verb can return it. The texts are cut where too long. */
int cni_fail(struct cni_failure *ret, enum cni_error_code code, const char *fmt, ...)
	PRINTF_LIKE(3, 4);
void cni_fail_details(struct cni_failure *failure, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* The code that a refusal by the agent becomes; during CHECK what is missing is a difference. */
enum cni_error_code cni_reply_code(const struct agent_reply *refusal, bool checking);

/* NULL only without memory. */
char *cni_reply_error(enum cni_version version, const struct cni_failure *failure);
char *cni_reply_empty_result(enum cni_version version);
char *cni_reply_version(enum cni_version asked);

#endif
