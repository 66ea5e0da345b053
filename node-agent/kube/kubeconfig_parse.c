/* SPDX-License-Identifier: Apache-2.0 */
#include "kubeconfig_parse.h"

#include "error.h"
#include "scoped.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { FIELD_SIZE = 320 };

/* A mapping of the document, and what to call it in an error. */
struct mapping {
	yaml_document_t *doc;
	const yaml_node_t *node; /* NULL: it is empty */
	const char *path;	 /* of the file */
	char name[FIELD_SIZE];
};

static int wrong(const struct mapping *m, const char *field, const yaml_node_t *node,
		 const char *wanted, struct error *err)
{
	return error_set(err, EINVAL, "%s: %s%s is not %s (line %zu)", m->path, m->name, field,
			 wanted, node->start_mark.line + 1);
}

static bool is_null(const yaml_node_t *node)
{
	const char *text;

	if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
		return false;
	text = (const char *)node->data.scalar.value;
	return !*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* NULL: absent, or null. */
static const yaml_node_t *member(const struct mapping *m, const char *field)
{
	const yaml_node_pair_t *pair;

	if (!m->node)
		return NULL;
	for (pair = m->node->data.mapping.pairs.start; pair < m->node->data.mapping.pairs.top;
	     pair++) {
		const yaml_node_t *key = yaml_document_get_node(m->doc, pair->key);
		const yaml_node_t *value = yaml_document_get_node(m->doc, pair->value);

		if (key && value && key->type == YAML_SCALAR_NODE &&
		    strcmp((const char *)key->data.scalar.value, field) == 0)
			return is_null(value) ? NULL : value;
	}
	return NULL;
}

/* An absent or empty one leaves *ret as it is. Borrowed from the document. */
static int get_text(const struct mapping *m, const char *field, const char **ret, struct error *err)
{
	const yaml_node_t *node = member(m, field);

	if (!node)
		return 0;
	if (node->type != YAML_SCALAR_NODE)
		return wrong(m, field, node, "a string", err);
	if (strlen((const char *)node->data.scalar.value) != node->data.scalar.length)
		return wrong(m, field, node, "without a NUL", err);
	if (node->data.scalar.length > 0)
		*ret = (const char *)node->data.scalar.value;
	return 0;
}

static int get_bool(const struct mapping *m, const char *field, bool *ret, struct error *err)
{
	const char *text = NULL;

	if (get_text(m, field, &text, err) < 0)
		return -err->code;
	if (!text)
		return 0;
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return wrong(m, field, member(m, field), "true or false", err);
	*ret = strcmp(text, "true") == 0;
	return 0;
}

/* The mapping `inner` of the element of the sequence `list` whose name is `name`. */
static int get_named(const struct mapping *top, const char *list, const char *inner,
		     const char *name, struct mapping *ret, struct error *err)
{
	const yaml_node_t *sequence = member(top, list);
	const yaml_node_item_t *item;

	if (sequence && sequence->type != YAML_SEQUENCE_NODE)
		return wrong(top, list, sequence, "a list", err);
	snprintf(ret->name, sizeof(ret->name), "%s[%s].%s.", list, name, inner);
	ret->doc = top->doc;
	ret->path = top->path;
	for (item = sequence ? sequence->data.sequence.items.start : NULL;
	     sequence && item < sequence->data.sequence.items.top; item++) {
		struct mapping element = {.doc = top->doc, .path = top->path};
		const char *found = NULL;

		snprintf(element.name, sizeof(element.name), "%s[].", list);
		element.node = yaml_document_get_node(top->doc, *item);
		if (!element.node || element.node->type != YAML_MAPPING_NODE)
			return wrong(top, list, sequence, "a list of objects", err);
		if (get_text(&element, "name", &found, err) < 0)
			return -err->code;
		if (!found || strcmp(found, name) != 0)
			continue;
		ret->node = member(&element, inner);
		if (ret->node && ret->node->type != YAML_MAPPING_NODE)
			return wrong(&element, inner, ret->node, "an object", err);
		return 0;
	}
	return error_set(err, ENOENT, "%s: %s has no \"%s\"", top->path, list, name);
}

static int copy(const char *text, char **ret, struct error *err)
{
	char *out = text ? strdup(text) : NULL;

	if (text && !out)
		return error_set(err, ENOMEM, "kubeconfig");
	*ret = out;
	return 0;
}

/* ---- values ------------------------------------------------------------------------------------
 */

static int base64_digit(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Whole quadruples with their padding; white space (folded lines) is skipped. False: it is none. */
static bool base64_decode(const char *text, char *out, size_t *ret_size)
{
	uint32_t bits = 0;
	unsigned digits = 0, padding = 0;
	size_t size = 0;

	for (; *text; text++) {
		int digit = *text == '=' ? 0 : base64_digit(*text);

		if (strchr(" \t\r\n", *text))
			continue;
		if (digit < 0 || (padding > 0 && *text != '='))
			return false;
		padding += *text == '=';
		bits = bits << 6 | (uint32_t)digit;
		if (++digits % 4 != 0)
			continue;
		if (padding > 2)
			return false;
		out[size++] = (char)(bits >> 16);
		if (padding < 2)
			out[size++] = (char)(bits >> 8);
		if (padding < 1)
			out[size++] = (char)bits;
	}
	out[size] = '\0';
	*ret_size = size;
	return digits % 4 == 0 && size > 0;
}

static int get_data(const struct mapping *m, const char *field, struct kubeconfig_item *item,
		    struct error *err)
{
	const char *text = NULL;
	char *data;

	if (get_text(m, field, &text, err) < 0)
		return -err->code;
	if (!text)
		return 0;
	data = malloc(strlen(text) / 4 * 3 + 4);
	if (!data)
		return error_set(err, ENOMEM, "kubeconfig");
	if (!base64_decode(text, data, &item->size)) {
		free(data);
		return wrong(m, field, member(m, field), "base64", err);
	}
	item->data = data;
	return 0;
}

static int get_path(const struct mapping *m, const char *field, struct kubeconfig_item *item,
		    struct error *err)
{
	const char *text = NULL, *slash = strrchr(m->path, '/');
	int directory = slash ? (int)(slash - m->path) + 1 : 0;

	if (get_text(m, field, &text, err) < 0)
		return -err->code;
	if (!text)
		return 0;
	if (asprintf(&item->path, "%.*s%s", *text == '/' ? 0 : directory, m->path, text) < 0) {
		item->path = NULL;
		return error_set(err, ENOMEM, "kubeconfig");
	}
	return 0;
}

/* FIELD-data or, without that, FIELD. */
static int get_item(const struct mapping *m, const char *field, struct kubeconfig_item *item,
		    struct error *err)
{
	char data_field[64];

	snprintf(data_field, sizeof(data_field), "%s-data", field);
	if (get_data(m, data_field, item, err) < 0)
		return -err->code;
	return item->data ? 0 : get_path(m, field, item, err);
}

static char *url_part(CURLU *url, CURLUPart part)
{
	char *text = NULL;

	return curl_url_get(url, part, &text, 0) == CURLUE_OK ? text : NULL;
}

static bool url_has(CURLU *url, CURLUPart part)
{
	char *text = url_part(url, part);

	curl_free(text);
	return text != NULL;
}

static bool url_is_https(CURLU *url)
{
	char *scheme = url_part(url, CURLUPART_SCHEME);
	bool yes = scheme && strcasecmp(scheme, "https") == 0;

	curl_free(scheme);
	return yes;
}

static int check_server(CURLU *url, const char *text, const char *what, struct error *err)
{
	CURLUcode code = curl_url_set(url, CURLUPART_URL, text, 0);

	if (code != CURLUE_OK)
		return error_set(err, code == CURLUE_OUT_OF_MEMORY ? ENOMEM : EINVAL,
				 "%s: \"%.200s\" is no URL: %s", what, text,
				 curl_url_strerror(code));
	/* A bearer token over plain http belongs to everybody on the way. */
	if (!url_is_https(url))
		return error_set(err, EINVAL, "%s: \"%.200s\" is not https", what, text);
	if (url_has(url, CURLUPART_USER) || url_has(url, CURLUPART_PASSWORD))
		return error_set(err, EINVAL, "%s: a user or password in the URL", what);
	if (url_has(url, CURLUPART_QUERY) || url_has(url, CURLUPART_FRAGMENT))
		return error_set(err, EINVAL, "%s: \"%.200s\" has a query or fragment", what, text);
	return 0;
}

int kubeconfig_server(const char *text, const char *what, char **ret, struct error *err)
{
	CURLU *url = curl_url();
	char *whole = NULL;
	int r;

	if (!url)
		return error_set(err, ENOMEM, "%s", what);
	r = check_server(url, text, what, err);
	if (!r) {
		whole = url_part(url, CURLUPART_URL);
		r = whole ? 0 : error_set(err, ENOMEM, "%s", what);
	}
	for (size_t n = whole ? strlen(whole) : 0; n > 0 && whole[n - 1] == '/'; n--)
		whole[n - 1] = '\0';
	if (!r)
		r = copy(whole, ret, err);
	curl_free(whole);
	curl_url_cleanup(url);
	return r;
}

/* ---- the two halves of a context ----------------------------------------------------------------
 */

static int read_cluster(const struct mapping *m, struct kubeconfig *k, struct error *err)
{
	const char *server = NULL, *name = NULL, *proxy = NULL;
	char what[FIELD_SIZE + 256];

	if (get_text(m, "server", &server, err) < 0 || get_text(m, "proxy-url", &proxy, err) < 0 ||
	    get_text(m, "tls-server-name", &name, err) < 0 ||
	    get_bool(m, "insecure-skip-tls-verify", &k->insecure, err) < 0 ||
	    get_item(m, "certificate-authority", &k->ca, err) < 0)
		return -err->code;
	if (!server)
		return error_set(err, EINVAL, "%s: %sserver is missing", m->path, m->name);
	snprintf(what, sizeof(what), "%.200s: %sserver", m->path, m->name);
	if (k->insecure && (k->ca.data || k->ca.path))
		return error_set(err, EINVAL,
				 "%s: %sinsecure-skip-tls-verify and a certificate-authority "
				 "exclude each other",
				 m->path, m->name);
	if (kubeconfig_server(server, what, &k->server, err) < 0 ||
	    copy(name, &k->tls_server_name, err) < 0 || copy(proxy, &k->proxy_url, err) < 0)
		return -err->code;
	return 0;
}

static int refuse_unsupported(const struct mapping *m, struct error *err)
{
	static const struct {
		const char *field, *what;
	} refused[] = {
		{"exec", "a program that makes credentials"},
		{"auth-provider", "an authentication plugin"},
		{"username", "a password, which API servers no longer take"},
		{"password", "a password, which API servers no longer take"},
		{"as", "impersonation"},
		{"as-uid", "impersonation"},
		{"as-groups", "impersonation"},
		{"as-user-extra", "impersonation"},
	};

	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
		if (member(m, refused[i].field))
			return error_set(err, ENOTSUP,
					 "%s: %s%s: %s is not supported; use a client "
					 "certificate, a token or a token file",
					 m->path, m->name, refused[i].field, refused[i].what);
	return 0;
}

static int read_user(const struct mapping *m, struct kubeconfig *k, struct error *err)
{
	const char *token = NULL;

	if (refuse_unsupported(m, err) < 0 ||
	    get_item(m, "client-certificate", &k->certificate, err) < 0 ||
	    get_item(m, "client-key", &k->key, err) < 0 ||
	    get_path(m, "tokenFile", &k->token, err) < 0 || get_text(m, "token", &token, err) < 0)
		return -err->code;
	if (!k->certificate.data && !k->certificate.path && (k->key.data || k->key.path))
		return error_set(err, EINVAL, "%s: %sclient-key without a client-certificate",
				 m->path, m->name);
	if (!k->key.data && !k->key.path && (k->certificate.data || k->certificate.path))
		return error_set(err, EINVAL, "%s: %sclient-certificate without a client-key",
				 m->path, m->name);
	if (k->token.path || !token)
		return 0;
	k->token.size = strlen(token);
	return copy(token, &k->token.data, err);
}

static int read_document(yaml_document_t *doc, const char *path, struct kubeconfig *k,
			 struct error *err)
{
	struct mapping top = {.doc = doc, .node = yaml_document_get_root_node(doc), .path = path};
	const char *current = NULL, *cluster = NULL, *user = NULL;
	struct mapping context = {0}, part = {0};

	if (!top.node || top.node->type != YAML_MAPPING_NODE)
		return error_set(err, EINVAL, "%s: not an object", path);
	if (get_text(&top, "current-context", &current, err) < 0)
		return -err->code;
	if (!current)
		return error_set(err, EINVAL, "%s: current-context is missing", path);
	if (get_named(&top, "contexts", "context", current, &context, err) < 0 ||
	    get_text(&context, "cluster", &cluster, err) < 0 ||
	    get_text(&context, "user", &user, err) < 0)
		return -err->code;
	if (!cluster)
		return error_set(err, EINVAL, "%s: %scluster is missing", path, context.name);
	if (get_named(&top, "clusters", "cluster", cluster, &part, err) < 0 ||
	    read_cluster(&part, k, err) < 0)
		return -err->code;
	/* Without a user the server decides what anybody may do. */
	if (!user)
		return 0;
	if (get_named(&top, "users", "user", user, &part, err) < 0)
		return -err->code;
	return read_user(&part, k, err);
}

int kubeconfig_parse(const char *text, size_t size, const char *path, struct kubeconfig *ret,
		     struct error *err)
{
	struct kubeconfig k = {0};
	yaml_document_t doc;
	yaml_parser_t parser;
	int r;

	if (!yaml_parser_initialize(&parser))
		return error_set(err, ENOMEM, "%s", path);
	yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
	if (yaml_parser_load(&parser, &doc)) {
		r = read_document(&doc, path, &k, err);
		yaml_document_delete(&doc);
	} else {
		r = error_set(err, EINVAL, "%s: line %zu: %s", path, parser.problem_mark.line + 1,
			      parser.problem ? parser.problem : "not YAML");
	}
	yaml_parser_delete(&parser);
	if (r)
		kubeconfig_done(&k);
	else
		*ret = k;
	return r;
}

static void item_done(struct kubeconfig_item *item)
{
	if (item->data)
		explicit_bzero(item->data, item->size);
	free(item->data);
	free(item->path);
}

void kubeconfig_done(struct kubeconfig *k)
{
	free(k->server);
	free(k->tls_server_name);
	free(k->proxy_url);
	item_done(&k->ca);
	item_done(&k->certificate);
	item_done(&k->key);
	item_done(&k->token);
	*k = (struct kubeconfig){0};
}
