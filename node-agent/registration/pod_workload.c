/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_workload.h"

#include <stdio.h>
#include <string.h>

enum {
	LABEL_VALUE_MAX = 63,
	RANDOM_SUFFIX = 5, /* what the API server appends to a generateName */
	HASH_MIN = 6,	   /* of a pod template: a 32-bit number's digits, as letters; up to 10 */
	HASH_MAX = 10,
	CRON_MIN = 8, /* of a job of a CronJob: minutes since 1970 */
};

/* The letters that Kubernetes makes names of: no vowels, and nothing that is read as another. */
#define NAME_LETTERS  "bcdfghjklmnpqrstvwxz2456789"
#define LABEL_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

static const char *label(const struct pod_facts *pod, const char *name)
{
	const char *value = json_string_value(json_object_get(pod->labels, name));
	size_t length = value ? strlen(value) : 0;

	return length && length <= LABEL_VALUE_MAX && strspn(value, LABEL_LETTERS) == length ? value
											     : NULL;
}

/* The length of name without its last part, if that is "-" and min to max of these letters. */
static size_t without_part(const char *name, size_t length, size_t min, size_t max,
			   const char *letters)
{
	size_t n = 0;

	while (n < length && n <= max && strchr(letters, name[length - 1 - n]))
		n++;
	if (n < min || n > max || n + 1 >= length || name[length - 1 - n] != '-')
		return length;
	return length - n - 1;
}

/*
 * NAME-HASH-RANDOM is a Deployment's, NAME-MINUTES-RANDOM a CronJob's, NAME-RANDOM a ReplicaSet's,
 * a DaemonSet's or a Job's, NAME-ORDINAL a StatefulSet's.
 */
static size_t workload_length(const char *name)
{
	size_t length = strlen(name);
	size_t base = without_part(name, length, RANDOM_SUFFIX, RANDOM_SUFFIX, NAME_LETTERS);
	size_t owner;

	if (base == length)
		return without_part(name, length, 1, HASH_MAX, "0123456789");
	owner = without_part(name, base, HASH_MIN, HASH_MAX, NAME_LETTERS);
	if (owner == base)
		owner = without_part(name, base, CRON_MIN, HASH_MAX, "0123456789");
	return owner;
}

const char *pod_workload(const struct pod_facts *pod, char buf[static POD_WORKLOAD_MAX])
{
	static const char *const labels[] = {"service.istio.io/canonical-name",
					     "app.kubernetes.io/name", "app"};
	const char *ns = pod->ns && *pod->ns ? pod->ns : "-";
	const char *name = pod->name && *pod->name ? pod->name : "-";

	for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
		const char *value = label(pod, labels[i]);

		if (!value)
			continue;
		snprintf(buf, POD_WORKLOAD_MAX, "%.253s/%s", ns, value);
		return buf;
	}
	snprintf(buf, POD_WORKLOAD_MAX, "%.253s/%.*s", ns,
		 (int)(workload_length(name) < 253 ? workload_length(name) : 253), name);
	return buf;
}
