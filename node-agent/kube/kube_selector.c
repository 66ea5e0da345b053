/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_selector.h"

#include "error.h"
#include "json.h"
#include "pod_annotations.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	FIELD_MAX = 192,
	QUOTED_MAX = 80,
	LABEL_PREFIX_MAX = 253, /* a DNS subdomain */
	LABEL_NAME_MAX = 63,
};

const char kube_enablement_default[] =
	"[{\"podSelector\":{\"matchLabels\":{\"istio.io/dataplane-mode\":\"ambient\"}}},"
	"{\"podSelector\":{\"matchExpressions\":[{\"key\":\"istio.io/dataplane-mode\","
	"\"operator\":\"NotIn\",\"values\":[\"none\"]}]},"
	"\"namespaceSelector\":{\"matchLabels\":{\"istio.io/dataplane-mode\":\"ambient\"}}}]";

static const struct {
	const char *name;
	bool takes_values;
} operators[] = {
	[KUBE_IN] = {"In", true},
	[KUBE_NOT_IN] = {"NotIn", true},
	[KUBE_EXISTS] = {"Exists", false},
	[KUBE_DOES_NOT_EXIST] = {"DoesNotExist", false},
};

/* ---- labels -------------------------------------------------------------------------------- */

static bool is_alphanumeric(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/* Up to 63 letters, digits, "-", "_" and ".", the first and the last a letter or a digit. */
static bool is_label_part(const char *text, size_t n)
{
	if (n == 0 || n > LABEL_NAME_MAX || !is_alphanumeric(text[0]) ||
	    !is_alphanumeric(text[n - 1]))
		return false;
	for (size_t i = 0; i < n; i++)
		if (!is_alphanumeric(text[i]) && !strchr("-_.", text[i]))
			return false;
	return true;
}

/* RFC 1123, small letters only: parts of letters, digits and inner "-", between dots. */
static bool is_dns_subdomain(const char *text, size_t n)
{
	if (n == 0 || n > LABEL_PREFIX_MAX)
		return false;
	for (size_t i = 0; i < n; i++) {
		bool first = i == 0 || text[i - 1] == '.';
		bool last = i + 1 == n || text[i + 1] == '.';

		if (text[i] == '.' ? first || last
		    : text[i] == '-'
			    ? first || last
			    : !is_alphanumeric(text[i]) || (text[i] >= 'A' && text[i] <= 'Z'))
			return false;
	}
	return true;
}

static bool is_label_key(const char *text)
{
	const char *slash = strchr(text, '/');

	if (slash && !is_dns_subdomain(text, (size_t)(slash - text)))
		return false;
	text = slash ? slash + 1 : text;
	return is_label_part(text, strlen(text));
}

static bool is_label_value(const char *text)
{
	return !*text || is_label_part(text, strlen(text));
}

/* ---- reading ------------------------------------------------------------------------------- */

/* A field's path for an error's text, cut if it must be. Returns buf. */
static const char *path(char buf[static FIELD_MAX], const char *format, ...) PRINTF_LIKE(2, 3);
static const char *path(char buf[static FIELD_MAX], const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(buf, FIELD_MAX, format, args);
	va_end(args);
	return buf;
}

static int no_memory(const char *where, struct error *err)
{
	return error_set(err, ENOMEM, "%s: allocate a selector", where);
}

static int invalid(const char *where, const json_t *value, const char *wanted, struct error *err)
{
	char found[QUOTED_MAX];

	return error_set(err, EINVAL, "%s: %s is not %s", where,
			 json_describe(value, found, sizeof(found)), wanted);
}

/* names: NULL-terminated; a key that is not one of them is a typing error of the operator's. */
static int check_object(const json_t *value, const char *where, const char *const *names,
			struct error *err)
{
	char quoted[POD_VALUE_QUOTED_MAX];
	const char *key;
	json_t *unused;

	if (!json_is_object(value))
		return invalid(where, value, "an object", err);
	json_object_foreach ((json_t *)value, key, unused) {
		const char *const *name = names;

		while (*name && strcmp(*name, key) != 0)
			name++;
		if (!*name)
			return error_set(err, EINVAL, "%s: unknown field %s", where,
					 pod_value_quote(key, quoted));
	}
	return 0;
}

/* The string of value, or NULL: no string, or one with a NUL inside. */
static const char *plain_string(const json_t *value)
{
	const char *text = json_string_value(value);

	return text && strlen(text) == json_string_length(value) ? text : NULL;
}

static void requirement_done(struct kube_requirement *requirement)
{
	for (size_t i = 0; i < requirement->n_values; i++)
		free(requirement->values[i]);
	free(requirement->values);
	free(requirement->key);
	*requirement = (struct kube_requirement){0};
}

static int copy_value(const json_t *value, const char *where, struct kube_requirement *requirement,
		      struct error *err)
{
	const char *text = plain_string(value);
	char *copy;

	if (!text || !is_label_value(text))
		return invalid(where, value, "a label value", err);
	copy = strdup(text);
	if (!copy)
		return no_memory(where, err);
	requirement->values[requirement->n_values++] = copy;
	return 0;
}

static int read_values(const json_t *values, const char *where, struct kube_requirement *ret,
		       struct error *err)
{
	size_t n = json_array_size(values);
	int r = 0;

	if (values && !json_is_null(values) && !json_is_array(values))
		return invalid(where, values, "an array", err);
	if (!operators[ret->op].takes_values)
		return n == 0 ? 0
			      : error_set(err, EINVAL,
					  "%s: may not be given when the operator is Exists or "
					  "DoesNotExist",
					  where);
	if (n == 0)
		return error_set(err, EINVAL, "%s: must be given when the operator is In or NotIn",
				 where);
	if (n > KUBE_VALUES_MAX)
		return error_set(err, EINVAL, "%s: %zu values, at most %d are possible", where, n,
				 KUBE_VALUES_MAX);
	ret->values = calloc(n, sizeof(*ret->values));
	if (!ret->values)
		return no_memory(where, err);
	for (size_t i = 0; i < n && r == 0; i++) {
		char item[FIELD_MAX];

		path(item, "%s[%zu]", where, i);
		r = copy_value(json_array_get(values, i), item, ret, err);
	}
	return r;
}

static int read_operator(const json_t *value, const char *where, enum kube_operator *ret,
			 struct error *err)
{
	const char *text = plain_string(value);

	for (size_t i = 0; text && i < sizeof(operators) / sizeof(operators[0]); i++) {
		if (strcmp(operators[i].name, text) == 0) {
			*ret = (enum kube_operator)i;
			return 0;
		}
	}
	return invalid(where, value, "In, NotIn, Exists or DoesNotExist", err);
}

static int read_key(const json_t *value, const char *where, char **ret, struct error *err)
{
	const char *text = plain_string(value);

	if (!text || !is_label_key(text))
		return invalid(where, value, "a label's name", err);
	*ret = strdup(text);
	return *ret ? 0 : no_memory(where, err);
}

static int read_expression(const json_t *value, const char *where, struct kube_requirement *ret,
			   struct error *err)
{
	static const char *const names[] = {"key", "operator", "values", NULL};
	char field[FIELD_MAX];
	int r = check_object(value, where, names, err);

	path(field, "%s.key", where);
	if (r == 0)
		r = read_key(json_object_get(value, "key"), field, &ret->key, err);
	path(field, "%s.operator", where);
	if (r == 0)
		r = read_operator(json_object_get(value, "operator"), field, &ret->op, err);
	path(field, "%s.values", where);
	if (r == 0)
		r = read_values(json_object_get(value, "values"), field, ret, err);
	return r;
}

static int read_match_label(const char *key, const json_t *value, const char *where,
			    struct kube_requirement *ret, struct error *err)
{
	char field[FIELD_MAX], quoted[POD_VALUE_QUOTED_MAX];

	if (!is_label_key(key))
		return error_set(err, EINVAL, "%s: %s is not a label's name", where,
				 pod_value_quote(key, quoted));
	path(field, "%s.%s", where, key);
	ret->op = KUBE_IN;
	ret->key = strdup(key);
	ret->values = calloc(1, sizeof(*ret->values));
	if (!ret->key || !ret->values)
		return no_memory(where, err);
	return copy_value(value, field, ret, err);
}

static int read_match_labels(const json_t *labels, const char *where, struct kube_selector *ret,
			     struct error *err)
{
	const char *key;
	json_t *value;
	int r;

	json_object_foreach ((json_t *)labels, key, value) {
		r = read_match_label(key, value, where, &ret->requirements[ret->n++], err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_expressions(const json_t *expressions, const char *where, struct kube_selector *ret,
			    struct error *err)
{
	json_t *value;
	size_t i;
	int r;

	json_array_foreach (expressions, i, value) {
		char field[FIELD_MAX];

		path(field, "%s[%zu]", where, i);
		r = read_expression(value, field, &ret->requirements[ret->n++], err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_requirements(const json_t *value, const char *where, struct kube_selector *ret,
			     struct error *err)
{
	const json_t *labels = json_object_get(value, "matchLabels");
	const json_t *expressions = json_object_get(value, "matchExpressions");
	size_t n = json_object_size(labels) + json_array_size(expressions);
	char field[FIELD_MAX];
	int r;

	path(field, "%s.matchLabels", where);
	if (labels && !json_is_null(labels) && !json_is_object(labels))
		return invalid(field, labels, "an object", err);
	if (n > KUBE_REQUIREMENTS_MAX)
		return error_set(err, EINVAL,
				 "%s: %zu labels and expressions, at most %d are "
				 "possible",
				 where, n, KUBE_REQUIREMENTS_MAX);
	ret->requirements = calloc(n ? n : 1, sizeof(*ret->requirements));
	if (!ret->requirements)
		return no_memory(where, err);
	r = read_match_labels(labels, field, ret, err);
	path(field, "%s.matchExpressions", where);
	if (r == 0 && expressions && !json_is_null(expressions) && !json_is_array(expressions))
		return invalid(field, expressions, "an array", err);
	return r ? r : read_expressions(expressions, field, ret, err);
}

int kube_selector_read(const json_t *value, const char *where, struct kube_selector *ret,
		       struct error *err)
{
	static const char *const names[] = {"matchLabels", "matchExpressions", NULL};
	struct kube_selector selector = {0};
	int r = 0;

	if (value && !json_is_null(value)) {
		r = check_object(value, where, names, err);
		if (r == 0)
			r = read_requirements(value, where, &selector, err);
	}
	if (r < 0) {
		kube_selector_done(&selector);
		return r;
	}
	*ret = selector;
	return 0;
}

void kube_selector_done(struct kube_selector *selector)
{
	for (size_t i = 0; i < selector->n; i++)
		requirement_done(&selector->requirements[i]);
	free(selector->requirements);
	*selector = (struct kube_selector){0};
}

/* ---- lists --------------------------------------------------------------------------------- */

/* *ret is a reference of the caller's. */
static int parse_list(const char *text, const char *what, json_t **ret, struct error *err)
{
	scoped_json json_t *list = NULL;
	int r = json_parse(text, strlen(text), what, &list, err);

	if (r < 0)
		return r;
	if (!json_is_array(list))
		return invalid(what, list, "an array of selectors", err);
	if (json_array_size(list) > KUBE_SELECTORS_MAX)
		return error_set(err, EINVAL, "%s: %zu selectors, at most %d are possible", what,
				 json_array_size(list), KUBE_SELECTORS_MAX);
	*ret = json_incref(list);
	return 0;
}

static void free_enablement(struct kube_enablement *enablement, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		kube_selector_done(&enablement[i].pod);
		kube_selector_done(&enablement[i].ns);
	}
	free(enablement);
}

static void free_discovery(struct kube_selector *discovery, size_t n)
{
	for (size_t i = 0; i < n; i++)
		kube_selector_done(&discovery[i]);
	free(discovery);
}

static int read_pair(const json_t *value, const char *where, struct kube_enablement *ret,
		     struct error *err)
{
	static const char *const names[] = {"podSelector", "namespaceSelector", NULL};
	char field[FIELD_MAX];
	int r = check_object(value, where, names, err);

	path(field, "%s.podSelector", where);
	if (r == 0)
		r = kube_selector_read(json_object_get(value, "podSelector"), field, &ret->pod,
				       err);
	path(field, "%s.namespaceSelector", where);
	if (r == 0)
		r = kube_selector_read(json_object_get(value, "namespaceSelector"), field, &ret->ns,
				       err);
	return r;
}

int kube_enablement_read(const char *text, const char *what, struct kube_selectors *ret,
			 struct error *err)
{
	scoped_json json_t *list = NULL;
	struct kube_enablement *pairs;
	size_t n;
	int r = parse_list(text, what, &list, err);

	if (r < 0)
		return r;
	n = json_array_size(list);
	pairs = calloc(n ? n : 1, sizeof(*pairs));
	if (!pairs)
		return no_memory(what, err);
	for (size_t i = 0; i < n && r == 0; i++) {
		char where[FIELD_MAX];

		path(where, "%.80s: [%zu]", what, i);
		r = read_pair(json_array_get(list, i), where, &pairs[i], err);
	}
	if (r < 0) {
		free_enablement(pairs, n);
		return r;
	}
	free_enablement(ret->enablement, ret->n_enablement);
	ret->enablement = pairs;
	ret->n_enablement = n;
	return 0;
}

int kube_discovery_read(const char *text, const char *what, struct kube_selectors *ret,
			struct error *err)
{
	scoped_json json_t *list = NULL;
	struct kube_selector *selectors;
	size_t n;
	int r = parse_list(text, what, &list, err);

	if (r < 0)
		return r;
	n = json_array_size(list);
	selectors = calloc(n ? n : 1, sizeof(*selectors));
	if (!selectors)
		return no_memory(what, err);
	for (size_t i = 0; i < n && r == 0; i++) {
		char where[FIELD_MAX];

		path(where, "%.80s: [%zu]", what, i);
		r = kube_selector_read(json_array_get(list, i), where, &selectors[i], err);
	}
	if (r < 0) {
		free_discovery(selectors, n);
		return r;
	}
	free_discovery(ret->discovery, ret->n_discovery);
	ret->discovery = selectors;
	ret->n_discovery = n;
	return 0;
}

void kube_selectors_done(struct kube_selectors *selectors)
{
	free_enablement(selectors->enablement, selectors->n_enablement);
	free_discovery(selectors->discovery, selectors->n_discovery);
	*selectors = (struct kube_selectors){0};
}

/* ---- matching ------------------------------------------------------------------------------ */

static bool has_value(const struct kube_requirement *requirement, const char *value)
{
	for (size_t i = 0; i < requirement->n_values; i++)
		if (strcmp(requirement->values[i], value) == 0)
			return true;
	return false;
}

static bool requirement_holds(const struct kube_requirement *requirement, const json_t *labels)
{
	const char *value = json_string_value(json_object_get(labels, requirement->key));

	switch (requirement->op) {
	case KUBE_IN:
		return value && has_value(requirement, value);
	case KUBE_NOT_IN:
		return !value || !has_value(requirement, value);
	case KUBE_EXISTS:
		return value;
	case KUBE_DOES_NOT_EXIST:
		return !value;
	}
	return false;
}

bool kube_selector_matches(const struct kube_selector *selector, const json_t *labels)
{
	for (size_t i = 0; i < selector->n; i++)
		if (!requirement_holds(&selector->requirements[i], labels))
			return false;
	return true;
}

uint64_t kube_selectors_namespace(const struct kube_selectors *selectors, const json_t *labels)
{
	uint64_t bits = 0;

	for (size_t i = 0; i < selectors->n_enablement; i++)
		if (kube_selector_matches(&selectors->enablement[i].ns, labels))
			bits |= UINT64_C(1) << i;
	return bits;
}

bool kube_selectors_discover(const struct kube_selectors *selectors, const json_t *labels)
{
	for (size_t i = 0; i < selectors->n_discovery; i++)
		if (kube_selector_matches(&selectors->discovery[i], labels))
			return true;
	return selectors->n_discovery == 0;
}

int kube_selectors_select(const struct kube_selectors *selectors, uint64_t ns,
			  const json_t *pod_labels)
{
	for (size_t i = 0; i < selectors->n_enablement; i++)
		if (ns & (UINT64_C(1) << i) &&
		    kube_selector_matches(&selectors->enablement[i].pod, pod_labels))
			return (int)i;
	return -1;
}

bool kube_selectors_ask_pod(const struct kube_selectors *selectors, const char *key)
{
	for (size_t i = 0; i < selectors->n_enablement; i++) {
		const struct kube_selector *pod = &selectors->enablement[i].pod;

		for (size_t k = 0; k < pod->n; k++)
			if (strcmp(pod->requirements[k].key, key) == 0)
				return true;
	}
	return false;
}
