/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_STREAM_H
#define SOCKMESH_KUBE_STREAM_H

/*
 * Cuts the body of a list or a watch into objects while it arrives, so that memory is bounded by
 * one object, never by the response. Pure.
 *
 * List: each element of "items" as soon as it is complete; the other members (kind, metadata),
 * which may stand before or after the items, are there at the end. Watch: one event object
 * {"type","object"} after the other.
 *
 * An object that cannot be had (larger than the limit, nested too deep, or with something in it
 * that jansson cannot hold, such as a NUL in a member's name) does not end the stream, or the
 * owner of one pod could blind the whole node. It must not get lost either, because then it would
 * look deleted. So the callback receives what identifies it, {"metadata":{name, namespace, uid,
 * resourceVersion}}, read from its beginning, and the reason. Where even that is not there, what
 * arrives is not from an API server, and the stream fails.
 */
#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct kube_stream;

enum kube_stream_kind { KUBE_STREAM_LIST, KUBE_STREAM_WATCH };

enum {
	/*
	 * etcd takes 1.5 MiB by default. In JSON, control characters and <, > and & take six times
	 * their bytes, so an object of a pod's owner may be 9 MiB and still right.
	 */
	KUBE_OBJECT_MAX = 16 << 20,
	KUBE_OBJECT_DEPTH = 128,
};

/*
 * object is borrowed for the call. unreadable: NULL, or why only the identity is there. A negative
 * return ends the stream: kube_stream_feed() returns it.
 */
typedef int (*kube_stream_fn)(void *arg, const json_t *object, const struct error *unreadable);

/* object_max: 0 for KUBE_OBJECT_MAX. */
int kube_stream_new(enum kube_stream_kind kind, size_t object_max, kube_stream_fn fn, void *arg,
		    struct kube_stream **ret, struct error *err);
void kube_stream_free(struct kube_stream *stream); /* NULL is fine */

/* Cut anywhere. After a failure, every further call returns the same one. */
int kube_stream_feed(struct kube_stream *stream, const char *data, size_t size, struct error *err);

/*
 * The body has ended. List: *ret_head is the list without its items, borrowed. Watch: NULL.
 * -ECONNRESET when it ended in the midst of something, or before a list.
 */
int kube_stream_finish(struct kube_stream *stream, const json_t **ret_head, struct error *err);

uint64_t kube_stream_objects(const struct kube_stream *stream); /* handed over, unreadable too */
uint64_t kube_stream_unreadable(const struct kube_stream *stream);

#endif
