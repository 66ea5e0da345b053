/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBECONFIG_PARSE_H
#define SOCKMESH_KUBECONFIG_PARSE_H

/*
 * What a kubeconfig says about its current context, as kubectl reads it: data before files, a
 * token file before a token, paths relative to the file's own directory. What we do not do (exec
 * and auth-provider plugins, passwords, impersonation, plain http) is refused, never ignored: the
 * agent would act as somebody else. Pure: files that it names are not opened here.
 */
#include <stdbool.h>
#include <stddef.h>

struct error;

/* A thing given inline, or in a file; neither: absent. */
struct kubeconfig_item {
	char *path;
	char *data; /* with a NUL behind it */
	size_t size;
};

struct kubeconfig {
	char *server; /* https://HOST[:PORT][/PREFIX], without a slash at its end */
	char *tls_server_name;
	char *proxy_url;
	bool insecure; /* the server's certificate is not checked */
	struct kubeconfig_item ca, certificate, key, token;
};

/* path: for errors and relative paths. Errors name file, field and, for wrong types, the line. */
int kubeconfig_parse(const char *text, size_t size, const char *path, struct kubeconfig *ret,
		     struct error *err);
void kubeconfig_done(struct kubeconfig *k); /* wipes what is secret */

/* An absolute https URL with a host and no user, query or fragment; *ret without its last slash. */
int kubeconfig_server(const char *url, const char *what, char **ret, struct error *err);

#endif
