/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_config.h"

#include "error.h"
#include "json.h"
#include "kubeconfig_parse.h"
#include "monotonic.h"
#include "same_text.h"
#include "write_file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { KUBECONFIG_MAX = 1 << 20, PEM_MAX = 1 << 20, TOKEN_MAX = 64 << 10 };

/* What tells one version of a file from another, also behind a symlink that moved. */
struct stamp {
	dev_t device;
	ino_t inode;
	off_t size;
	struct timespec modified, changed;
};

enum { SOURCE, CA, CERTIFICATE, KEY, TOKEN, PARTS };

struct kube_config {
	char *source; /* the kubeconfig, or NULL: in-cluster */
	struct kubeconfig k;
	struct stamp stamps[PARTS];
	int64_t looked_ms;
	uint64_t reloads;
	struct error trouble;
};

static struct kubeconfig_item *part_item(struct kubeconfig *k, int part)
{
	return part == CA	     ? &k->ca
	       : part == CERTIFICATE ? &k->certificate
	       : part == KEY	     ? &k->key
				     : &k->token;
}

static const char *part_path(struct kube_config *c, int part)
{
	return part == SOURCE ? c->source : part_item(&c->k, part)->path;
}

static void stamp_read(const char *path, struct stamp *ret)
{
	struct stat st;

	*ret = (struct stamp){0};
	if (stat(path, &st) == 0)
		*ret = (struct stamp){st.st_dev, st.st_ino, st.st_size, st.st_mtim, st.st_ctim};
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool same_stamp(const struct stamp *a, const struct stamp *b)
{
	return a->device == b->device && a->inode == b->inode && a->size == b->size &&
	       same_time(&a->modified, &b->modified) && same_time(&a->changed, &b->changed);
}

/* ---- one file ----------------------------------------------------------------------------------
 */

static void wipe(char *data, size_t size)
{
	if (data)
		explicit_bzero(data, size);
	free(data);
}

/* It goes into a header: what is not printable ASCII would let the file write other headers. */
static int check_token(char *data, size_t *size, const char *what, struct error *err)
{
	while (*size > 0 && strchr(" \t\r\n", data[*size - 1]))
		data[--*size] = '\0';
	if (*size == 0)
		return error_set(err, EINVAL, "%s: the token is empty", what);
	for (size_t i = 0; i < *size; i++)
		if (data[i] <= ' ' || data[i] > '~')
			return error_set(err, EINVAL, "%s: the token holds byte 0x%02x", what,
					 (unsigned char)data[i]);
	return 0;
}

static int check_part(int part, char *data, size_t *size, const char *what, struct error *err)
{
	if (part == TOKEN)
		return check_token(data, size, what, err);
	if (strlen(data) != *size || !strstr(data, "-----BEGIN "))
		return error_set(err, EINVAL, "%s: not PEM", what);
	return 0;
}

static const char *part_name(int part)
{
	static const char *const names[PARTS] = {
		[CA] = "certificate authority",
		[CERTIFICATE] = "client certificate",
		[KEY] = "client key",
		[TOKEN] = "token",
	};

	return names[part];
}

/* Reads the file of a part, if it has one; *ret_changed is set when its content is another one. */
static int part_read(struct kubeconfig *k, int part, bool *ret_changed, struct error *err)
{
	struct kubeconfig_item *item = part_item(k, part);
	char *data;
	size_t size;

	if (!item->path)
		return 0;
	if (read_file(item->path, part == TOKEN ? TOKEN_MAX : PEM_MAX, &data, &size, err) < 0)
		return error_wrap(err, "%s", part_name(part));
	if (check_part(part, data, &size, item->path, err) < 0) {
		wipe(data, size);
		return error_wrap(err, "%s", part_name(part));
	}
	if (item->data && item->size == size && memcmp(item->data, data, size) == 0) {
		wipe(data, size);
		return 0;
	}
	wipe(item->data, item->size);
	item->data = data;
	item->size = size;
	*ret_changed = true;
	return 0;
}

static int check_inline(struct kubeconfig *k, const char *source, struct error *err)
{
	for (int part = CA; part < PARTS; part++) {
		struct kubeconfig_item *item = part_item(k, part);

		if (!item->data || item->path)
			continue;
		if (check_part(part, item->data, &item->size, source, err) < 0)
			return error_wrap(err, "%s", part_name(part));
	}
	return 0;
}

/* Reads the kubeconfig and everything that it names: all or nothing. */
static int source_read(const char *source, struct kubeconfig *ret, struct error *err)
{
	struct kubeconfig k = {0};
	bool changed;
	char *text;
	size_t size;
	int r;

	if (read_file(source, KUBECONFIG_MAX, &text, &size, err) < 0)
		return error_wrap(err, "kubeconfig");
	r = kubeconfig_parse(text, size, source, &k, err);
	wipe(text, size);
	if (r)
		return error_wrap(err, "kubeconfig");
	r = check_inline(&k, source, err);
	for (int part = CA; part < PARTS && !r; part++)
		r = part_read(&k, part, &changed, err);
	if (r)
		kubeconfig_done(&k);
	else
		*ret = k;
	return r;
}

/* ---- refreshing --------------------------------------------------------------------------------
 */

static bool same_config(struct kubeconfig *a, struct kubeconfig *b)
{
	if (!same_text(a->server, b->server) || !same_text(a->proxy_url, b->proxy_url) ||
	    !same_text(a->tls_server_name, b->tls_server_name) || a->insecure != b->insecure)
		return false;
	for (int part = CA; part < PARTS; part++)
		if (!same_text(part_item(a, part)->data, part_item(b, part)->data))
			return false;
	return true;
}

static bool source_refresh(struct kube_config *c)
{
	struct kubeconfig k;
	bool same;

	if (source_read(c->source, &k, &c->trouble) < 0)
		return false;
	same = same_config(&c->k, &k);
	kubeconfig_done(&c->k);
	c->k = k;
	return !same;
}

static bool look(struct kube_config *c, int part, struct stamp *ret_stamp)
{
	const char *path = part_path(c, part);

	if (!path)
		return false;
	stamp_read(path, ret_stamp);
	return !same_stamp(ret_stamp, &c->stamps[part]);
}

static bool part_refresh(struct kube_config *c, int part)
{
	struct error err = {0};
	bool changed = false;

	if (part == SOURCE)
		return source_refresh(c);
	if (part_read(&c->k, part, &changed, &err) < 0)
		c->trouble = err;
	return changed;
}

bool kube_config_reread(struct kube_config *c, int64_t now_ms)
{
	memset(c->stamps, 0, sizeof(c->stamps));
	c->looked_ms = now_ms - KUBE_CONFIG_STAT_MS;
	return kube_config_refresh(c, now_ms);
}

bool kube_config_refresh(struct kube_config *c, int64_t now_ms)
{
	bool changed = false;
	bool troubled = c->trouble.code != 0;

	if (now_ms - c->looked_ms < KUBE_CONFIG_STAT_MS)
		return false;
	c->looked_ms = now_ms;
	c->trouble = (struct error){0};
	for (int part = SOURCE; part < PARTS; part++) {
		struct stamp stamp = {0};

		/* After trouble all is read again: two files that fit change one by one. */
		if (!look(c, part, &stamp) && !(troubled && part_path(c, part)))
			continue;
		changed |= part_refresh(c, part);
		/* Taken before the file was read: a write since then is seen the next time. */
		c->stamps[part] = stamp;
	}
	c->reloads += changed;
	return changed;
}

/* ---- loading -----------------------------------------------------------------------------------
 */

static int config_new(struct kubeconfig *k, const char *source, struct kube_config **ret,
		      struct error *err)
{
	struct kube_config *c = calloc(1, sizeof(*c));
	char *copy = source ? strdup(source) : NULL;

	if (!c || (source && !copy)) {
		free(c);
		free(copy);
		return error_set(err, ENOMEM, "configuration for Kubernetes");
	}
	c->source = copy;
	c->k = *k;
	*k = (struct kubeconfig){0};
	/* Read before this: what changes in between is seen at the first refresh, for all is. */
	c->looked_ms = monotonic_ms() - KUBE_CONFIG_STAT_MS;
	*ret = c;
	return 0;
}

static char *printed(const char *fmt, ...) PRINTF_LIKE(1, 2);

static char *printed(const char *fmt, ...)
{
	char *text = NULL;
	va_list args;
	int n;

	va_start(args, fmt);
	n = vasprintf(&text, fmt, args);
	va_end(args);
	return n < 0 ? NULL : text;
}

int kube_config_load_in_cluster(const char *host, const char *port, const char *dir,
				struct kube_config **ret, struct error *err)
{
	bool bare_v6 = strchr(host, ':') && *host != '[';
	char *url =
		printed("https://%s%s%s:%s", bare_v6 ? "[" : "", host, bare_v6 ? "]" : "", port);
	struct kubeconfig k = {.token.path = printed("%s/token", dir),
			       .ca.path = printed("%s/ca.crt", dir)};
	bool changed = false;
	int r;

	if (!url || !k.token.path || !k.ca.path)
		r = error_set(err, ENOMEM, "configuration for Kubernetes");
	else
		r = kubeconfig_server(url, "KUBERNETES_SERVICE_HOST and _PORT", &k.server, err);
	for (int part = CA; part < PARTS && !r; part++)
		r = part_read(&k, part, &changed, err);
	if (!r)
		r = config_new(&k, NULL, ret, err);
	free(url);
	kubeconfig_done(&k);
	return r;
}

int kube_config_load(const char *kubeconfig, struct kube_config **ret, struct error *err)
{
	const char *host = getenv("KUBERNETES_SERVICE_HOST");
	const char *port = getenv("KUBERNETES_SERVICE_PORT");
	struct kubeconfig k = {0};
	int r;

	if (!kubeconfig) {
		if (!host || !*host || !port || !*port)
			return error_set(err, ENOENT,
					 "not in a cluster: KUBERNETES_SERVICE_HOST and "
					 "KUBERNETES_SERVICE_PORT are not set, and no kubeconfig "
					 "is given");
		return kube_config_load_in_cluster(host, port, KUBE_SERVICE_ACCOUNT_DIR, ret, err);
	}
	r = source_read(kubeconfig, &k, err);
	if (!r)
		r = config_new(&k, kubeconfig, ret, err);
	kubeconfig_done(&k);
	return r;
}

void kube_config_free(struct kube_config *c)
{
	if (!c)
		return;
	kubeconfig_done(&c->k);
	free(c->source);
	free(c);
}

/* ---- what it says ------------------------------------------------------------------------------
 */

static struct kube_pem pem_of(const struct kubeconfig_item *item)
{
	return (struct kube_pem){.data = item->data, .size = item->data ? item->size : 0};
}

void kube_config_credentials(const struct kube_config *c, struct kube_credentials *ret)
{
	*ret = (struct kube_credentials){
		.server = c->k.server,
		.tls_server_name = c->k.tls_server_name,
		.proxy_url = c->k.proxy_url,
		.token = c->k.token.data,
		.ca = pem_of(&c->k.ca),
		.certificate = pem_of(&c->k.certificate),
		.key = pem_of(&c->k.key),
		.insecure = c->k.insecure,
	};
}

const struct error *kube_config_trouble(const struct kube_config *c)
{
	return c->trouble.code ? &c->trouble : NULL;
}

json_t *kube_config_status(const struct kube_config *c)
{
	/* Names of files are bytes, and a text with them may be cut anywhere. */
	return json_pack("{s:s, s:o, s:b, s:b, s:b, s:I, s:o}", "server", c->k.server, "source",
			 json_string_lossy(c->source ? c->source : "service account"), "insecure",
			 c->k.insecure, "token", c->k.token.data != NULL, "certificate",
			 c->k.certificate.data != NULL, "reloads", (json_int_t)c->reloads,
			 "trouble",
			 c->trouble.code ? json_string_lossy(c->trouble.text) : json_null());
}
