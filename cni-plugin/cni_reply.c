/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_reply.h"

#include "agent_protocol.h"
#include "json.h"

#include <stdarg.h>
#include <stdio.h>

int cni_fail(struct cni_failure *ret, enum cni_error_code code, const char *fmt, ...)
{
	va_list args;

	*ret = (struct cni_failure){.code = code};
	va_start(args, fmt);
	vsnprintf(ret->message, sizeof(ret->message), fmt, args);
	va_end(args);
	return -1;
}

void cni_fail_details(struct cni_failure *failure, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(failure->details, sizeof(failure->details), fmt, args);
	va_end(args);
}

enum cni_error_code cni_reply_code(const struct agent_reply *refusal, bool checking)
{
	if (refusal->retry)
		return CNI_ERROR_TRY_LATER;
	switch (refusal->code) {
	case AGENT_CODE_BAD_ANNOTATION:
		return CNI_ERROR_BAD_ANNOTATION;
	case AGENT_CODE_UNSUPPORTED:
		return CNI_ERROR_UNSUPPORTED;
	case AGENT_CODE_KERNEL:
		return checking ? CNI_ERROR_DIFFERENCE : CNI_ERROR_KERNEL;
	case AGENT_CODE_NOT_FOUND:
		return checking ? CNI_ERROR_DIFFERENCE : CNI_ERROR_OTHER;
	default:
		return CNI_ERROR_OTHER;
	}
}

/* An object with cniVersion first; NULL without memory. */
static json_t *reply_object(enum cni_version version)
{
	return json_pack("{s:s}", "cniVersion", cni_version_name(version));
}

/* One line: people read it in a pod's events. What is quoted in it may hold anything. */
static json_t *one_line(const char *text)
{
	char line[sizeof(((struct cni_failure *)NULL)->message)];

	snprintf(line, sizeof(line), "%s", text);
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return json_string_lossy(line);
}

char *cni_reply_error(enum cni_version version, const struct cni_failure *failure)
{
	scoped_json json_t *reply = reply_object(version);

	if (!reply || json_object_set_new(reply, "code", json_integer(failure->code)) < 0 ||
	    json_object_set_new(reply, "msg", one_line(failure->message)) < 0 ||
	    (failure->details[0] &&
	     json_object_set_new(reply, "details", one_line(failure->details)) < 0))
		return NULL;
	return json_to_text(reply);
}

char *cni_reply_empty_result(enum cni_version version)
{
	scoped_json json_t *reply = reply_object(version);

	return reply ? json_to_text(reply) : NULL;
}

char *cni_reply_version(enum cni_version asked)
{
	scoped_json json_t *reply = reply_object(asked);
	json_t *supported = json_array();

	if (!reply || json_object_set_new(reply, "supportedVersions", supported) < 0)
		return NULL;
	for (int v = 0; v < CNI_VERSION_COUNT_; v++)
		if (json_array_append_new(supported,
					  json_string(cni_version_name((enum cni_version)v))) < 0)
			return NULL;
	return json_to_text(reply);
}
