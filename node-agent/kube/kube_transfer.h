/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_TRANSFER_H
#define SOCKMESH_KUBE_TRANSFER_H

/* How a request becomes a libcurl transfer: URL, options, credentials, headers; and its failures.
 */
#include "kube_config.h"

#include <curl/curl.h>

struct error;

struct kube_transfer_spec {
	const char *method, *path, *content_type; /* content_type: NULL without a body */
	const void *body;			  /* must live as long as the transfer */
	size_t body_size;
};

struct kube_transfer {
	CURL *easy;
	struct curl_slist *headers, *connect_to;
	char detail[CURL_ERROR_SIZE];
};

/* Sets everything but time limits and callbacks. kube_transfer_done() also after a failure. */
int kube_transfer_init(struct kube_transfer *t, const struct kube_transfer_spec *spec,
		       const struct kube_credentials *credentials, struct error *err);
void kube_transfer_done(struct kube_transfer *t); /* not while a multi handle has it */

/* What failed, in libcurl's words, and as an errno; returns that, negative. */
int kube_transfer_failure(const struct kube_transfer *t, CURLcode code, struct error *err);

#endif
