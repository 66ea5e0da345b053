/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_IDENTITY_H
#define SOCKMESH_KUBE_IDENTITY_H

/*
 * Who an object is, from the beginning of its text, when the whole of it cannot be parsed. The API
 * server writes metadata first, and name, namespace, uid and resourceVersion first in it. Pure.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct error;

/*
 * An object: {"metadata":{"name",...}}; is_event: {"type","object":{"metadata":{"name",...}}}.
 * -EPROTO without a name, a resourceVersion or, in an event, a type. The caller owns *ret.
 */
int kube_identity_read(const char *text, size_t size, bool is_event, json_t **ret,
		       struct error *err);

#endif
