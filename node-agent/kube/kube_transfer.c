/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_transfer.h"

#include "error.h"
#include "kube_client.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
	KEEPALIVE_IDLE_S = 30,
	KEEPALIVE_INTERVAL_S = 10,
	KEEPALIVE_COUNT = 3,
	UNACKED_MS = 30000, /* a peer that is gone while we send */
	IDLE_CONNECTIONS_S = 60,
};

static bool add_header(struct curl_slist **headers, const char *fmt, ...) PRINTF_LIKE(2, 3);

static bool add_header(struct curl_slist **headers, const char *fmt, ...)
{
	struct curl_slist *longer = NULL;
	char *text = NULL;
	va_list args;
	int n;

	va_start(args, fmt);
	n = vasprintf(&text, fmt, args);
	va_end(args);
	if (n < 0)
		return false;
	longer = curl_slist_append(*headers, text);
	explicit_bzero(text, (size_t)n);
	free(text);
	if (longer)
		*headers = longer;
	return longer != NULL;
}

/* Keepalive finds a peer that is gone while nothing is sent; this, how soon, and while we send. */
static int on_socket(void *arg, curl_socket_t fd, curlsocktype purpose)
{
	int count = KEEPALIVE_COUNT, unacked = UNACKED_MS;

	(void)arg;
	(void)purpose;
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacked, sizeof(unacked));
	return CURL_SOCKOPT_OK;
}

struct setter {
	CURL *easy;
	CURLcode code; /* the first failure */
};

static void set_long(struct setter *s, CURLoption option, long value)
{
	if (s->code == CURLE_OK)
		s->code = curl_easy_setopt(s->easy, option, value);
}

static void set_text(struct setter *s, CURLoption option, const char *value)
{
	if (s->code == CURLE_OK)
		s->code = curl_easy_setopt(s->easy, option, value);
}

static void set_pem(struct setter *s, CURLoption option, const struct kube_pem *pem)
{
	/* The files may be read again, into other memory, while the transfer runs. */
	struct curl_blob blob = {(void *)pem->data, pem->size, CURL_BLOB_COPY};

	if (s->code == CURLE_OK && pem->size > 0)
		s->code = curl_easy_setopt(s->easy, option, &blob);
}

static void set_connection(struct setter *s, const struct kube_credentials *c)
{
	set_long(s, CURLOPT_NOSIGNAL, 1);
	/* A name that is still being looked up must not be waited for when the request ends. */
	set_long(s, CURLOPT_QUICK_EXIT, 1);
	set_text(s, CURLOPT_PROTOCOLS_STR, "https");
	set_long(s, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
	set_long(s, CURLOPT_FOLLOWLOCATION, 0);
	set_long(s, CURLOPT_CONNECTTIMEOUT_MS, KUBE_CONNECT_MS);
	set_long(s, CURLOPT_TCP_KEEPALIVE, 1);
	set_long(s, CURLOPT_TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	set_long(s, CURLOPT_TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
	set_long(s, CURLOPT_MAXAGE_CONN, IDLE_CONNECTIONS_S);
	if (s->code == CURLE_OK)
		s->code = curl_easy_setopt(s->easy, CURLOPT_SOCKOPTFUNCTION, on_socket);
	/* An empty text, unlike none, keeps libcurl from looking at the environment. */
	set_text(s, CURLOPT_PROXY, c->proxy_url ? c->proxy_url : "");
	set_text(s, CURLOPT_NOPROXY, "");
	set_long(s, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1);
}

static void set_tls(struct setter *s, const struct kube_credentials *c)
{
	set_long(s, CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2);
	/* A session would carry an old client certificate on. */
	set_long(s, CURLOPT_SSL_SESSIONID_CACHE, 0);
	set_long(s, CURLOPT_SSL_VERIFYPEER, !c->insecure);
	set_long(s, CURLOPT_SSL_VERIFYHOST, c->insecure ? 0 : 2);
	/* The blob stands for the system's file of authorities, but not for its directory. */
	if (c->ca.size > 0)
		set_text(s, CURLOPT_CAPATH, NULL);
	set_pem(s, CURLOPT_CAINFO_BLOB, &c->ca);
	set_pem(s, CURLOPT_SSLCERT_BLOB, &c->certificate);
	set_pem(s, CURLOPT_SSLKEY_BLOB, &c->key);
}

/*
 * The name that the certificate is checked for is that of the URL. When it is not the server's own,
 * the URL gets it, and libcurl is told where to connect instead.
 */
static bool rename_server(struct kube_transfer *t, CURLU *url, const char *name)
{
	char *host = NULL, *port = NULL, *target = NULL;
	bool ok = false;

	if (curl_url_get(url, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
	    curl_url_get(url, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK &&
	    asprintf(&target, "::%s:%s", host, port) >= 0) {
		t->connect_to = curl_slist_append(NULL, target);
		free(target);
		ok = t->connect_to && add_header(&t->headers, "Host: %s:%s", host, port) &&
		     curl_url_set(url, CURLUPART_HOST, name, 0) == CURLUE_OK;
	}
	curl_free(host);
	curl_free(port);
	return ok;
}

/* The server's URL, which may have a prefix, and the path. */
static int set_url(struct setter *s, struct kube_transfer *t, const char *path,
		   const struct kube_credentials *c, struct error *err)
{
	CURLU *url = curl_url();
	char *server = NULL, *whole = NULL;
	bool ok = false;

	if (url && curl_url_set(url, CURLUPART_URL, c->server, 0) == CURLUE_OK &&
	    (!c->tls_server_name || rename_server(t, url, c->tls_server_name)) &&
	    curl_url_get(url, CURLUPART_URL, &server, 0) == CURLUE_OK) {
		int n = (int)strlen(server);

		while (n > 0 && server[n - 1] == '/')
			n--;
		ok = asprintf(&whole, "%.*s%s", n, server, path) >= 0;
	}
	if (ok) {
		set_text(s, CURLOPT_URL, whole);
		free(whole);
	}
	curl_free(server);
	curl_url_cleanup(url);
	if (t->connect_to && s->code == CURLE_OK)
		s->code = curl_easy_setopt(t->easy, CURLOPT_CONNECT_TO, t->connect_to);
	return ok ? 0 : error_set(err, EINVAL, "the server's URL and tls-server-name make no URL");
}

static int set_request(struct setter *s, struct kube_transfer *t,
		       const struct kube_transfer_spec *spec, const struct kube_credentials *c,
		       struct error *err)
{
	bool ok = add_header(&t->headers, "Accept: application/json") &&
		  /* libcurl would wait a second for the server's consent to a large body. */
		  add_header(&t->headers, "Expect:");

	if (c->token)
		ok = ok && add_header(&t->headers, "Authorization: Bearer %s", c->token);
	if (spec->content_type)
		ok = ok && add_header(&t->headers, "Content-Type: %s", spec->content_type);
	if (!ok)
		return error_set(err, ENOMEM, "headers of a request");
	set_text(s, CURLOPT_USERAGENT, "sockmesh-agent/" SOCKMESH_VERSION);
	if (spec->body) {
		set_long(s, CURLOPT_POSTFIELDSIZE, (long)spec->body_size);
		if (s->code == CURLE_OK)
			s->code = curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, spec->body);
	}
	set_text(s, CURLOPT_CUSTOMREQUEST, spec->method);
	if (s->code == CURLE_OK)
		s->code = curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, t->headers);
	return 0;
}

int kube_transfer_init(struct kube_transfer *t, const struct kube_transfer_spec *spec,
		       const struct kube_credentials *credentials, struct error *err)
{
	struct setter s = {.easy = curl_easy_init(), .code = CURLE_OK};

	*t = (struct kube_transfer){.easy = s.easy};
	if (!t->easy)
		return error_set(err, ENOMEM, "libcurl handle");
	set_connection(&s, credentials);
	set_tls(&s, credentials);
	if (set_url(&s, t, spec->path, credentials, err) < 0 ||
	    set_request(&s, t, spec, credentials, err) < 0)
		return -err->code;
	if (s.code == CURLE_OK)
		s.code = curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, t->detail);
	if (s.code != CURLE_OK)
		return error_set(err, s.code == CURLE_OUT_OF_MEMORY ? ENOMEM : EINVAL,
				 "libcurl refuses an option: %s", curl_easy_strerror(s.code));
	return 0;
}

void kube_transfer_done(struct kube_transfer *t)
{
	for (struct curl_slist *h = t->headers; h; h = h->next)
		explicit_bzero(h->data, strlen(h->data));
	curl_easy_cleanup(t->easy);
	curl_slist_free_all(t->headers);
	curl_slist_free_all(t->connect_to);
	*t = (struct kube_transfer){0};
}

static int failure_errno(const struct kube_transfer *t, CURLcode code)
{
	long os = 0;

	switch (code) {
	case CURLE_OPERATION_TIMEDOUT:
		return ETIMEDOUT;
	case CURLE_COULDNT_CONNECT:
		curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &os);
		return os > 0 ? (int)os : ECONNREFUSED;
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
		return EHOSTUNREACH;
	case CURLE_OUT_OF_MEMORY:
		return ENOMEM;
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
		return EKEYREJECTED;
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_SSL_CIPHER:
	case CURLE_WEIRD_SERVER_REPLY:
	case CURLE_UNSUPPORTED_PROTOCOL:
	case CURLE_BAD_CONTENT_ENCODING:
		return EPROTO;
	default:
		return ECONNRESET; /* cut, in one of its many forms */
	}
}

int kube_transfer_failure(const struct kube_transfer *t, CURLcode code, struct error *err)
{
	return error_set(err, failure_errno(t, code), "%s",
			 t->detail[0] ? t->detail : curl_easy_strerror(code));
}
