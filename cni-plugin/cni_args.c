/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_args.h"

#include "error.h"

#include <ctype.h>
#include <errno.h>
#include <net/if.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_MAX = 64 }; /* bytes of a bad value that an error message shows */

/* ctype.h follows the locale in theory; what the specification means is ASCII. */
static bool is_alphanumeric(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool is_identifier(const char *text, size_t size)
{
	if (size == 0 || !is_alphanumeric(text[0]))
		return false;
	for (size_t i = 1; i < size; i++)
		if (!is_alphanumeric(text[i]) && !strchr("_.-", text[i]))
			return false;
	return true;
}

int cni_container_id_check(const char *id, struct error *err)
{
	size_t size = strlen(id);

	if (size > CNI_CONTAINER_ID_MAX)
		return error_set(err, EINVAL, "CNI_CONTAINERID is %zu bytes long, more than %d",
				 size, CNI_CONTAINER_ID_MAX);
	if (!is_identifier(id, size))
		return error_set(err, EINVAL,
				 "CNI_CONTAINERID \"%.*s\" is not a letter or digit followed by "
				 "letters, digits, '_', '.' and '-'",
				 SHOWN_MAX, id);
	return 0;
}

int cni_if_name_check(const char *name, struct error *err)
{
	size_t size = strlen(name);

	if (size == 0 || size >= IFNAMSIZ)
		return error_set(err, EINVAL, "CNI_IFNAME \"%.*s\" is not 1 to %d bytes long",
				 SHOWN_MAX, name, IFNAMSIZ - 1);
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return error_set(err, EINVAL, "CNI_IFNAME \"%s\" is not an interface name", name);
	for (const char *c = name; *c; c++)
		if (*c == '/' || *c == ':' || isspace((unsigned char)*c))
			return error_set(err, EINVAL,
					 "CNI_IFNAME \"%s\" holds '/', ':' or white space", name);
	return 0;
}

/* The keys that carry an identifier: which member of struct cni_args, and how long it may be. */
static const struct pair_key {
	const char *name;
	size_t offset;
	size_t max;
} pair_keys[] = {
	{"K8S_POD_NAMESPACE", offsetof(struct cni_args, pod_namespace), CNI_POD_NAME_MAX},
	{"K8S_POD_NAME", offsetof(struct cni_args, pod_name), CNI_POD_NAME_MAX},
	{"K8S_POD_UID", offsetof(struct cni_args, pod_uid), CNI_POD_UID_MAX},
	{"K8S_POD_INFRA_CONTAINER_ID", offsetof(struct cni_args, infra_container_id),
	 CNI_CONTAINER_ID_MAX},
};

/* One pair in the text; not terminated. */
struct pair {
	const char *key, *value;
	size_t key_size, value_size;
};

static bool key_is(const struct pair *pair, const char *name)
{
	return strlen(name) == pair->key_size && memcmp(pair->key, name, pair->key_size) == 0;
}

static int shown(size_t size)
{
	return size < SHOWN_MAX ? (int)size : SHOWN_MAX;
}

/* The next pair that is not empty, or false at the end. -EINVAL in *ret_rc for one without '='. */
static bool next_pair(const char **cursor, struct pair *ret, int *ret_rc, struct error *err)
{
	const char *start = *cursor + strspn(*cursor, ";");
	size_t size = strcspn(start, ";");
	const char *equals = memchr(start, '=', size);

	*ret_rc = 0;
	*cursor = start + size;
	if (size == 0)
		return false;
	if (!equals || equals == start) {
		*ret_rc = error_set(err, EINVAL, "CNI_ARGS: \"%.*s\" is not KEY=VALUE", shown(size),
				    start);
		return false;
	}
	*ret = (struct pair){
		.key = start,
		.key_size = (size_t)(equals - start),
		.value = equals + 1,
		.value_size = size - (size_t)(equals + 1 - start),
	};
	return true;
}

static int store_identifier(const struct pair_key *key, const struct pair *pair,
			    struct cni_args *args, struct error *err)
{
	char **slot = (char **)((char *)args + key->offset);

	if (pair->value_size == 0)
		return 0;
	if (pair->value_size > key->max)
		return error_set(err, EINVAL, "CNI_ARGS: %s is %zu bytes long, more than %zu",
				 key->name, pair->value_size, key->max);
	if (!is_identifier(pair->value, pair->value_size))
		return error_set(err, EINVAL,
				 "CNI_ARGS: %s \"%.*s\" is not a letter or digit followed by "
				 "letters, digits, '_', '.' and '-'",
				 key->name, shown(pair->value_size), pair->value);
	if (*slot && (strlen(*slot) != pair->value_size ||
		      memcmp(*slot, pair->value, pair->value_size) != 0))
		return error_set(err, EINVAL, "CNI_ARGS: %s is given twice, with two values",
				 key->name);
	if (*slot)
		return 0;
	*slot = strndup(pair->value, pair->value_size);
	return *slot ? 0 : error_set(err, ENOMEM, "CNI_ARGS");
}

static char lower_case(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

/* ASCII, in any case. */
static bool value_is(const struct pair *pair, const char *word)
{
	for (size_t i = 0; i < pair->value_size; i++)
		if (!word[i] || lower_case(pair->value[i]) != word[i])
			return false;
	return !word[pair->value_size];
}

static int store_ignore_unknown(const struct pair *pair, struct cni_args *args, struct error *err)
{
	static const struct {
		const char *text;
		bool value;
	} words[] = {{"1", true}, {"true", true}, {"0", false}, {"false", false}};

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
		if (value_is(pair, words[i].text)) {
			args->ignore_unknown = words[i].value;
			return 0;
		}
	}
	return error_set(err, EINVAL, "CNI_ARGS: IgnoreUnknown \"%.*s\" is not true or false",
			 shown(pair->value_size), pair->value);
}

/* Stores one pair; *unknown becomes the first pair whose key we do not know. */
static int store_pair(const struct pair *pair, struct cni_args *args, struct pair *unknown,
		      struct error *err)
{
	if (key_is(pair, "IgnoreUnknown"))
		return store_ignore_unknown(pair, args, err);
	for (size_t i = 0; i < sizeof(pair_keys) / sizeof(*pair_keys); i++)
		if (key_is(pair, pair_keys[i].name))
			return store_identifier(&pair_keys[i], pair, args, err);
	if (!unknown->key)
		*unknown = *pair;
	return 0;
}

int cni_args_parse(const char *text, struct cni_args *ret, struct error *err)
{
	struct cni_args args = {0};
	struct pair pair, unknown = {0};
	int rc = 0;

	while (text && next_pair(&text, &pair, &rc, err)) {
		rc = store_pair(&pair, &args, &unknown, err);
		if (rc < 0)
			break;
	}
	if (rc == 0 && unknown.key && !args.ignore_unknown)
		rc = error_set(err, EINVAL,
			       "CNI_ARGS: %.*s is not known, and IgnoreUnknown not set",
			       shown(unknown.key_size), unknown.key);
	if (rc < 0) {
		cni_args_done(&args);
		return rc;
	}
	*ret = args;
	return 0;
}

void cni_args_done(struct cni_args *args)
{
	if (!args)
		return;
	free(args->pod_namespace);
	free(args->pod_name);
	free(args->pod_uid);
	free(args->infra_container_id);
	*args = (struct cni_args){0};
}
