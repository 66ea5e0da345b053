/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_annotations.h"

#include "error.h"

#include <errno.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	ITEM_MAX = 64, /* the longest item of any list is an IPv6 prefix of 49 characters */
	PORT_MAX = 65535,
};
static const uint64_t id_max = UINT32_MAX - 1; /* (uid_t)-1 means "no id" to the kernel */

const char *pod_value_quote(const char *text, char buf[static POD_VALUE_QUOTED_MAX])
{
	static const char cut[] = "...\"";
	size_t used = 0;

	buf[used++] = '"';
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		bool plain = *c >= ' ' && *c < 0x7f;
		size_t need = plain ? 1 : 4;

		if (used + need + sizeof(cut) > POD_VALUE_QUOTED_MAX) {
			memcpy(buf + used, cut, sizeof(cut));
			return buf;
		}
		if (plain)
			buf[used++] = (char)*c;
		else
			used += (size_t)snprintf(buf + used, need + 1, "\\x%02x", *c);
	}
	buf[used++] = '"';
	buf[used] = '\0';
	return buf;
}

bool pod_value_bool(const char *text, bool *ret)
{
	static const struct {
		const char *text;
		bool value;
	} forms[] = {
		{"1", true},	  {"t", true},	    {"T", true},    {"TRUE", true},
		{"true", true},	  {"0", false},	    {"f", false},   {"F", false},
		{"FALSE", false}, {"false", false}, {"True", true}, {"False", false},
	};

	for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
		if (strcmp(text, forms[i].text) == 0) {
			*ret = forms[i].value;
			return true;
		}
	}
	return false;
}

/* ---- items --------------------------------------------------------------------------------- */

/* Decimal digits only, leading zeros allowed, as strconv.ParseUint takes them. */
static bool parse_number(const char *text, uint64_t max, uint64_t *ret)
{
	uint64_t value = 0;

	if (!*text)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		value = value * 10 + (uint64_t)(*text - '0');
		if (value > max)
			return false;
	}
	*ret = value;
	return true;
}

static bool parse_port(const char *text, void *ret)
{
	uint64_t value;

	if (!parse_number(text, PORT_MAX, &value))
		return false;
	*(uint16_t *)ret = (uint16_t)value;
	return true;
}

static bool parse_group(const char *text, void *ret)
{
	uint64_t value;

	if (!parse_number(text, id_max, &value))
		return false;
	*(uint32_t *)ret = (uint32_t)value;
	return true;
}

/* Root cannot be the proxy: every root process of the pod would bypass the capture. */
static bool parse_proxy_id(const char *text, void *ret)
{
	uint32_t id;

	if (!parse_group(text, &id) || id == 0)
		return false;
	*(uint32_t *)ret = id;
	return true;
}

/* A bare address is refused, as Istio does: "10.0.0.0" hardly ever means one host. */
static bool parse_prefix(const char *text, void *ret)
{
	struct error unused = {0};

	return strchr(text, '/') && ip_prefix_parse(text, ret, &unused) == 0;
}

/* As dev_valid_name() of the kernel, less what iptables-restore would read as something else. */
static bool parse_interface(const char *text, void *ret)
{
	size_t n = strlen(text);

	if (n == 0 || n >= IFNAMSIZ || strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
		return false;
	if (text[0] == '-' || text[n - 1] == '+' || text[strcspn(text, "\"'\\/:!*")])
		return false;
	for (const char *c = text; *c; c++)
		if (*c <= ' ' || *c >= 0x7f)
			return false;
	memcpy(ret, text, n + 1);
	return true;
}

struct item_kind {
	const char *wanted;
	size_t size;
	bool (*parse)(const char *text, void *ret);
};

static const struct item_kind port_kind = {"a port (0-65535)", sizeof(uint16_t), parse_port};
static const struct item_kind prefix_kind = {"an IP prefix (ADDRESS/LENGTH)",
					     sizeof(struct ip_prefix), parse_prefix};
static const struct item_kind proxy_id_kind = {"an id of a proxy (1-4294967294, never root's 0)",
					       sizeof(uint32_t), parse_proxy_id};
static const struct item_kind group_kind = {"a group id (0-4294967294)", sizeof(uint32_t),
					    parse_group};
static const struct item_kind interface_kind = {"an interface name (whole, no pattern)", IFNAMSIZ,
						parse_interface};

/* ---- lists --------------------------------------------------------------------------------- */

static bool is_blank(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The item between start and end without the blanks around it, cut to fit. */
static void copy_item(const char *start, const char *end, char item[static ITEM_MAX])
{
	size_t n;

	while (start < end && is_blank(*start))
		start++;
	while (start < end && is_blank(end[-1]))
		end--;
	n = (size_t)(end - start);
	if (n >= ITEM_MAX)
		n = ITEM_MAX - 1;
	memcpy(item, start, n);
	item[n] = '\0';
}

static int item_error(const char *where, const char *text, size_t number, const char *item,
		      const struct item_kind *kind, struct error *err)
{
	char value_quoted[POD_VALUE_QUOTED_MAX], item_quoted[POD_VALUE_QUOTED_MAX];

	return error_set(err, EINVAL, "%s: %s: item %zu %s is not %s", where,
			 pod_value_quote(text, value_quoted), number,
			 pod_value_quote(item, item_quoted), kind->wanted);
}

static size_t count_items(const char *text)
{
	size_t n = 1;

	if (text[strspn(text, " \t\n\v\f\r")] == '\0')
		return 0;
	for (; *text; text++)
		n += *text == ',';
	return n;
}

static int parse_items(const char *where, const char *text, const struct item_kind *kind, size_t n,
		       char *ret_items, struct error *err)
{
	const char *start = text;

	for (size_t i = 0; i < n; i++) {
		const char *end = strchrnul(start, ',');
		char item[ITEM_MAX];

		/* An item as long as the buffer was cut; no valid one is that long. */
		copy_item(start, end, item);
		if (strlen(item) == ITEM_MAX - 1 || !kind->parse(item, ret_items + i * kind->size))
			return item_error(where, text, i + 1, item, kind, err);
		start = end + 1;
	}
	return 0;
}

/* *ret_items stays as it was for an empty list. */
static int parse_list(const char *where, const char *text, const struct item_kind *kind,
		      void **ret_items, size_t *ret_n, struct error *err)
{
	size_t n = count_items(text);
	char *items;
	int r;

	if (n == 0)
		return 0;
	items = calloc(n, kind->size);
	if (!items)
		return error_set(err, ENOMEM, "%s: allocate a list of %zu items", where, n);
	r = parse_items(where, text, kind, n, items, err);
	if (r < 0) {
		free(items);
		return r;
	}
	*ret_items = items;
	*ret_n = n;
	return 0;
}

int pod_value_ports(const char *where, const char *text, struct port_list *ret, struct error *err)
{
	void *items = NULL;
	size_t n = 0;
	int r = parse_list(where, text, &port_kind, &items, &n, err);

	if (r < 0)
		return r;
	*ret = (struct port_list){.ports = items, .n = n};
	return 0;
}

int pod_value_prefixes(const char *where, const char *text, struct prefix_list *ret,
		       struct error *err)
{
	void *items = NULL;
	size_t n = 0;
	int r = parse_list(where, text, &prefix_kind, &items, &n, err);

	if (r < 0)
		return r;
	*ret = (struct prefix_list){.prefixes = items, .n = n};
	return 0;
}

static int parse_ids(const char *where, const char *text, const struct item_kind *kind,
		     struct id_list *ret, struct error *err)
{
	void *items = NULL;
	size_t n = 0;
	int r = parse_list(where, text, kind, &items, &n, err);

	if (r < 0)
		return r;
	*ret = (struct id_list){.ids = items, .n = n};
	return 0;
}

int pod_value_proxy_ids(const char *where, const char *text, struct id_list *ret, struct error *err)
{
	if (count_items(text) == 0)
		return error_set(err, EINVAL, "%s: empty, a proxy needs an id", where);
	return parse_ids(where, text, &proxy_id_kind, ret, err);
}

int pod_value_groups(const char *where, const char *text, struct id_list *ret, struct error *err)
{
	return parse_ids(where, text, &group_kind, ret, err);
}

/* Takes n names of IFNAMSIZ bytes each. */
static int copy_names(const char *items, size_t n, struct name_list *ret)
{
	struct name_list list = {.names = calloc(n, sizeof(*list.names))};

	for (; list.names && list.n < n; list.n++) {
		list.names[list.n] = strdup(items + list.n * IFNAMSIZ);
		if (!list.names[list.n])
			break;
	}
	if (list.n == n) {
		*ret = list;
		return 0;
	}
	for (size_t i = 0; i < list.n; i++)
		free(list.names[i]);
	free(list.names);
	return -ENOMEM;
}

int pod_value_interfaces(const char *where, const char *text, struct name_list *ret,
			 struct error *err)
{
	char quoted[POD_VALUE_QUOTED_MAX];
	void *items = NULL;
	size_t n = count_items(text);
	int r;

	if (n > POD_VALUE_INTERFACES_MAX)
		return error_set(err, EINVAL, "%s: %s: %zu interfaces, at most %d are possible",
				 where, pod_value_quote(text, quoted), n, POD_VALUE_INTERFACES_MAX);
	n = 0;
	r = parse_list(where, text, &interface_kind, &items, &n, err);
	if (r < 0 || n == 0)
		return r;
	if (copy_names(items, n, ret) < 0)
		r = error_set(err, ENOMEM, "%s: allocate a list of %zu names", where, n);
	free(items);
	return r;
}
