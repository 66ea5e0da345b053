/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_prev_result.h"

#include "error.h"
#include "json.h"
#include "scoped.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- spans in a text that is known to be valid JSON --------------------------------------- */

struct span {
	const char *start, *end;
};

static const char *skip_space(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
		at++;
	return at;
}

/* Behind the string that starts at its opening quote. */
static const char *skip_string(const char *at, const char *end)
{
	for (at++; at < end && *at != '"'; at++)
		if (*at == '\\')
			at++;
	return at < end ? at + 1 : end;
}

/* Behind the value that starts here. Depth is counted, not recursed into. */
static const char *skip_value(const char *at, const char *end)
{
	size_t depth = 0;

	while (at < end) {
		if (*at == '"') {
			at = skip_string(at, end);
			if (depth == 0)
				return at;
			continue;
		}
		if (*at == '{' || *at == '[') {
			depth++;
		} else if (*at == '}' || *at == ']') {
			if (depth == 0)
				return at; /* the end of what a bare number or word stands in */
			if (--depth == 0)
				return at + 1;
		} else if (depth == 0 && strchr(", \t\r\n", *at)) {
			return at;
		}
		at++;
	}
	return end;
}

/* A key with escapes in it is what it decodes to. */
static bool key_equals(struct span key, const char *name)
{
	size_t size = (size_t)(key.end - key.start);
	scoped_json json_t *decoded = NULL;

	if (!memchr(key.start, '\\', size))
		return size == strlen(name) + 2 && memcmp(key.start + 1, name, size - 2) == 0;
	decoded = json_loadb(key.start, size, JSON_DECODE_ANY, NULL);
	return json_is_string(decoded) && strcmp(json_string_value(decoded), name) == 0;
}

/* The value of a member of the object in the text; false when there is none. */
static bool find_member(struct span object, const char *name, struct span *ret)
{
	const char *end = object.end, *at = skip_space(object.start, end);

	if (at >= end || *at != '{')
		return false;
	for (at = skip_space(at + 1, end); at < end && *at == '"'; at = skip_space(at, end)) {
		struct span key = {.start = at}, value;

		key.end = skip_string(at, end);
		at = skip_space(key.end, end);
		if (at >= end || *at != ':')
			return false;
		value.start = skip_space(at + 1, end);
		value.end = skip_value(value.start, end);
		if (key_equals(key, name)) {
			*ret = value;
			return true;
		}
		at = skip_space(value.end, end);
		if (at < end && *at == ',')
			at = skip_space(at + 1, end);
	}
	return false;
}

/* ---- the text to answer with -------------------------------------------------------------- */

static int join(struct span before, const char *middle, struct span after, char **ret,
		struct error *err)
{
	if (asprintf(ret, "%.*s%s%.*s", (int)(before.end - before.start), before.start, middle,
		     (int)(after.end - after.start), after.start) < 0)
		return error_set(err, ENOMEM, "prevResult");
	return 0;
}

/*
 * Entries of "ips" say "version" up to 0.4.0 and not from 1.0.0 on. A result that says less than
 * its new version requires cannot be passed off as one.
 */
static int check_ip_versions(const json_t *prev_result, enum cni_version version, struct error *err)
{
	json_t *ip;
	size_t i;

	if (version >= CNI_1_0_0)
		return 0;
	json_array_foreach (json_object_get(prev_result, "ips"), i, ip)
		if (!json_is_string(json_object_get(ip, "version")))
			return error_set(err, EINVAL,
					 "prevResult.ips[%zu] has no version, which cniVersion %s "
					 "requires",
					 i, cni_version_name(version));
	return 0;
}

static int answer_text(struct span result, const json_t *prev_result, enum cni_version version,
		       char **ret, struct error *err)
{
	const char *said = NULL;
	struct span value, before = {result.start, result.end}, after = {result.end, result.end};
	char middle[64];
	int rc = json_get_string(prev_result, "cniVersion", "prevResult.", &said, err);

	if (rc < 0)
		return rc;
	if (said && strcmp(said, cni_version_name(version)) == 0)
		return join(before, "", after, ret, err);
	if (said) {
		enum cni_version known;

		rc = cni_version_parse(said, &known, err);
		if (rc < 0) {
			err->code = EINVAL;
			error_wrap(err, "prevResult");
			return -EINVAL;
		}
		rc = check_ip_versions(prev_result, version, err);
		if (rc < 0)
			return rc;
	}
	if (find_member(result, "cniVersion", &value)) {
		before.end = value.start;
		after.start = value.end;
		snprintf(middle, sizeof(middle), "\"%s\"", cni_version_name(version));
	} else {
		before.end = result.start + 1;
		after.start = before.end;
		snprintf(middle, sizeof(middle), "\"cniVersion\":\"%s\"%s",
			 cni_version_name(version), json_object_size(prev_result) ? "," : "");
	}
	return join(before, middle, after, ret, err);
}

/* ---- the pod's addresses ------------------------------------------------------------------ */

/* Whether the entry's interface is one of the host's; "interface" may be absent. */
static int is_host_ip(const json_t *ip, size_t i, const json_t *interfaces, bool *ret,
		      struct error *err)
{
	const json_t *interface;
	const char *sandbox = NULL;
	char where[64];
	json_int_t index = -1;
	int rc;

	snprintf(where, sizeof(where), "prevResult.ips[%zu].", i);
	rc = json_get_integer(ip, "interface", where, -1, INT32_MAX, &index, err);
	*ret = false;
	if (rc < 0 || index < 0)
		return rc;
	interface = json_array_get(interfaces, (size_t)index);
	if (!interface)
		return error_set(err, EINVAL,
				 "%sinterface is %" JSON_INTEGER_FORMAT
				 ", but there are %zu interfaces",
				 where, index, json_array_size(interfaces));
	snprintf(where, sizeof(where), "prevResult.interfaces[%" JSON_INTEGER_FORMAT "].", index);
	if (!json_is_object(interface))
		return error_set(err, EINVAL, "%.*s is not an object", (int)strlen(where) - 1,
				 where);
	rc = json_get_string(interface, "sandbox", where, &sandbox, err);
	*ret = !sandbox || !*sandbox;
	return rc;
}

/* "ADDR/LEN" with the host bits kept. */
static int parse_address(const char *text, struct agent_address *ret, struct error *err)
{
	const char *slash = strchr(text, '/');
	char address[IP_ADDRESS_TEXT_MAX];
	unsigned long length, max;
	char *end;
	int rc;

	if (!slash || (size_t)(slash - text) >= sizeof(address))
		return error_set(err, EINVAL, "\"%.64s\" is not ADDRESS/LENGTH", text);
	memcpy(address, text, (size_t)(slash - text));
	address[slash - text] = '\0';
	rc = ip_address_parse(address, &ret->address, err);
	if (rc < 0)
		return rc;
	max = ip_address_is_v4(&ret->address) ? 32 : 128;
	length = strtoul(slash + 1, &end, 10);
	if (slash[1] < '0' || slash[1] > '9' || *end || length > max)
		return error_set(err, EINVAL, "\"%.64s\": the length is not 0 to %lu", text, max);
	ret->prefix_length = (uint8_t)length;
	return 0;
}

static int read_ip(const json_t *ip, size_t i, const json_t *interfaces,
		   struct cni_prev_result *result, struct error *err)
{
	const char *text = NULL;
	char where[64];
	bool host = false;
	int rc;

	snprintf(where, sizeof(where), "prevResult.ips[%zu].", i);
	if (!json_is_object(ip))
		return error_set(err, EINVAL, "prevResult.ips[%zu] is not an object", i);
	rc = json_get_string(ip, "address", where, &text, err);
	if (rc == 0 && !text)
		return error_set(err, EINVAL, "%saddress is missing", where);
	if (rc == 0)
		rc = is_host_ip(ip, i, interfaces, &host, err);
	if (rc < 0 || host)
		return rc;
	if (result->n_ips == CNI_PREV_RESULT_IPS_MAX)
		return error_set(err, EINVAL, "prevResult.ips has more than %d addresses",
				 CNI_PREV_RESULT_IPS_MAX);
	rc = parse_address(text, &result->ips[result->n_ips], err);
	if (rc < 0)
		return error_wrap(err, "%saddress", where);
	result->n_ips++;
	return 0;
}

static int read_ips(const json_t *prev_result, struct cni_prev_result *result, struct error *err)
{
	json_t *ips = NULL, *interfaces = NULL, *ip;
	size_t i;
	int rc = json_get_array(prev_result, "ips", "prevResult.", &ips, err);

	if (rc == 0)
		rc = json_get_array(prev_result, "interfaces", "prevResult.", &interfaces, err);
	if (rc < 0 || json_array_size(ips) == 0)
		return rc;
	result->ips = calloc(CNI_PREV_RESULT_IPS_MAX, sizeof(*result->ips));
	if (!result->ips)
		return error_set(err, ENOMEM, "prevResult.ips");
	json_array_foreach (ips, i, ip) {
		rc = read_ip(ip, i, interfaces, result, err);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int cni_prev_result_read(const char *config, size_t size, const json_t *prev_result,
			 enum cni_version version, struct cni_prev_result *ret, struct error *err)
{
	struct cni_prev_result result = {0};
	struct span span;
	int rc;

	if (!find_member((struct span){config, config + size}, "prevResult", &span) ||
	    *span.start != '{')
		return error_set(err, EINVAL, "prevResult is not an object");
	rc = read_ips(prev_result, &result, err);
	if (rc == 0)
		rc = answer_text(span, prev_result, version, &result.text, err);
	if (rc < 0) {
		cni_prev_result_done(&result);
		return rc;
	}
	*ret = result;
	return 0;
}

void cni_prev_result_done(struct cni_prev_result *result)
{
	if (!result)
		return;
	free(result->text);
	free(result->ips);
	*result = (struct cni_prev_result){0};
}
