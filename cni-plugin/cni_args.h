/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CNI_ARGS_H
#define SOCKMESH_CNI_ARGS_H

/*
 * What a runtime says in CNI_* variables: the checks that the specification asks for, and the
 * pairs in CNI_ARGS that containerd and CRI-O send. Pure; every failure is -EINVAL and names the
 * variable, which the specification wants to see in the error message.
 */
#include <stdbool.h>

struct error;

enum {
	CNI_CONTAINER_ID_MAX = 256,
	CNI_POD_NAME_MAX = 253, /* a DNS subdomain, RFC 1123 */
	CNI_POD_UID_MAX = 128,
};

/* The pod as CNI_ARGS names it; absent or empty values are NULL. Strings are owned. */
struct cni_args {
	char *pod_namespace;
	char *pod_name;
	char *pod_uid;
	char *infra_container_id;
	bool ignore_unknown;
};

/*
 * "KEY=VALUE;KEY=VALUE"; NULL and "" are no pairs. As in every plugin that uses the CNI library, a
 * key that is not known is an error unless IgnoreUnknown is true: a misspelt K8S_POD_NAMESPACE
 * must not turn a pod into something that is not Kubernetes'. *ret needs cni_args_done() after
 * success.
 */
int cni_args_parse(const char *text, struct cni_args *ret, struct error *err);
void cni_args_done(struct cni_args *args);

/* An alphanumeric, then alphanumerics, '_', '.' and '-' ("CNI_CONTAINERID" of the specification) */
int cni_container_id_check(const char *id, struct error *err);

/* 1 to 15 bytes, not "." or "..", no '/', ':' or white space. */
int cni_if_name_check(const char *name, struct error *err);

#endif
