/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A list or a watch, cut as the input says, is taken or refused; the objects are the same as when
 * it comes in one piece, and what holds of every object holds.
 */
#include "error.h"
#include "kube_stream.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OBJECT_MAX = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sum {
	uint64_t objects, unreadable, hash;
};

static int on_object(void *arg, const json_t *object, const struct error *unreadable)
{
	struct sum *sum = arg;
	char *text = json_dumps(object, JSON_ENCODE_ANY);

	if (!json_is_object(object) || !text)
		abort();
	if (unreadable && (!unreadable->code || strlen(text) > OBJECT_MAX * 6))
		abort();
	sum->objects++;
	sum->unreadable += unreadable != NULL;
	for (const char *c = text; *c; c++)
		sum->hash = sum->hash * 31 + (unsigned char)*c;
	free(text);
	return 0;
}

static int read_parts(enum kube_stream_kind kind, const uint8_t *data, size_t size, size_t part,
		      struct sum *sum)
{
	struct kube_stream *stream;
	struct error err = {0};
	const json_t *head = NULL;
	int r;

	if (kube_stream_new(kind, OBJECT_MAX, on_object, sum, &stream, &err) < 0)
		abort();
	for (size_t at = 0; at < size; at += part)
		kube_stream_feed(stream, (const char *)data + at,
				 size - at < part ? size - at : part, &err);
	r = kube_stream_finish(stream, &head, &err);
	if (r < 0 ? err.text[0] == '\0' : (kind == KUBE_STREAM_LIST) != (head != NULL))
		abort();
	if (sum->objects != kube_stream_objects(stream) ||
	    sum->unreadable != kube_stream_unreadable(stream))
		abort();
	kube_stream_free(stream);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct sum whole = {0}, parts = {0};
	enum kube_stream_kind kind;
	int r, s;

	if (size < 2)
		return 0;
	kind = data[0] & 1 ? KUBE_STREAM_WATCH : KUBE_STREAM_LIST;
	r = read_parts(kind, data + 2, size - 2, size, &whole);
	s = read_parts(kind, data + 2, size - 2, (size_t)data[1] + 1, &parts);
	/* An endless object is given up a part sooner or later. */
	if (r == -EMSGSIZE || s == -EMSGSIZE)
		return 0;
	if (r != s || whole.objects != parts.objects || whole.hash != parts.hash)
		abort();
	return 0;
}
