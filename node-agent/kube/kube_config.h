/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_CONFIG_H
#define SOCKMESH_KUBE_CONFIG_H

/*
 * Where the API server is and as whom to talk to it: from a kubeconfig, or from the service account
 * that Kubernetes mounts into a pod. Files (token, certificates, the kubeconfig itself) are read
 * again when they change. What cannot be read then, or makes no sense, is reported, and what
 * was there before stays in use: a volume that is being swapped must not cut us off.
 *
 * Nothing of the environment but KUBERNETES_SERVICE_HOST and _PORT is looked at: a proxy is used
 * only if the kubeconfig names one. Secrets are never in an error's text, and wiped when freed.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct kube_config;

#define KUBE_SERVICE_ACCOUNT_DIR "/var/run/secrets/kubernetes.io/serviceaccount"

enum { KUBE_CONFIG_STAT_MS = 2000 }; /* files are looked at no more often than that */

/* kubeconfig: the file, or NULL for in-cluster. Every file it names must be readable now. */
int kube_config_load(const char *kubeconfig, struct kube_config **ret, struct error *err);

/* dir holds token and ca.crt; host: an address or a name; an IPv6 one may have brackets. */
int kube_config_load_in_cluster(const char *host, const char *port, const char *dir,
				struct kube_config **ret, struct error *err);
void kube_config_free(struct kube_config *config); /* NULL is fine */

struct kube_pem {
	const char *data;
	size_t size; /* 0: there is none */
};

/* Borrowed until the next refresh. */
struct kube_credentials {
	const char *server;	     /* https://HOST[:PORT][/PREFIX] */
	const char *tls_server_name; /* NULL: the server's own */
	const char *proxy_url;	     /* NULL: none */
	const char *token;	     /* NULL: none */
	struct kube_pem ca;	     /* none: the system's */
	struct kube_pem certificate, key;
	bool insecure; /* warn about it */
};
void kube_config_credentials(const struct kube_config *config, struct kube_credentials *ret);

/*
 * Looks whether files changed, if the last look is KUBE_CONFIG_STAT_MS ago, and reads those. Call
 * it before each request. kube_config_reread() reads all at once: after a 401. Both return whether
 * anything is different now.
 */
bool kube_config_refresh(struct kube_config *config, int64_t now_ms);
bool kube_config_reread(struct kube_config *config, int64_t now_ms);

/* The failure of the last refresh, or NULL. */
const struct error *kube_config_trouble(const struct kube_config *config);

/* {"server","source","insecure","token","certificate","reloads","trouble"}; no secrets. */
json_t *kube_config_status(const struct kube_config *config);

#endif
