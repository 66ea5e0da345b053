/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_identity.h"

#include "error.h"
#include "json.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

struct span {
	const char *text; /* with its quotes */
	size_t size;
};

struct walk {
	const char *at, *end;
	bool is_event;
	unsigned depth;
	unsigned entered; /* steps of the way to metadata that surround the place */
	json_t *metadata;
	json_t *type;
};

static const char *const identifying[] = {"name", "namespace", "uid", "resourceVersion"};

static unsigned way_length(const struct walk *w)
{
	return w->is_event ? 2 : 1;
}

static const char *way_step(const struct walk *w)
{
	return w->is_event && w->entered == 0 ? "object" : "metadata";
}

static void skip_space(struct walk *w)
{
	while (w->at < w->end && strchr(" \t\r\n", *w->at) && *w->at)
		w->at++;
}

/* At a quote: the string. False when the text ends in it. */
static bool take_string(struct walk *w, struct span *ret)
{
	const char *start = w->at++;

	while (w->at < w->end && *w->at != '"')
		w->at += *w->at == '\\' && w->end - w->at > 1 ? 2 : 1;
	if (w->at >= w->end)
		return false;
	w->at++;
	*ret = (struct span){start, (size_t)(w->at - start)};
	return true;
}

static bool span_is(const struct span *s, const char *word)
{
	return s->size == strlen(word) + 2 && memcmp(s->text + 1, word, s->size - 2) == 0;
}

/* Takes the string value at this place, if it is one; the first of a name stays. */
static bool take_value(struct walk *w, json_t **object, const struct span *key)
{
	char name[32];
	struct span value;
	json_t *text;

	if (w->at >= w->end || *w->at != '"')
		return true;
	if (!take_string(w, &value))
		return false;
	text = json_loadb(value.text, value.size, JSON_DECODE_ANY, NULL);
	if (!text)
		return true;
	if (!*object)
		*object = json_object();
	memcpy(name, key->text + 1, key->size - 2);
	name[key->size - 2] = '\0';
	if (json_object_get(*object, name))
		json_decref(text);
	else
		json_object_set_new(*object, name, text);
	return true;
}

static bool identifies(const struct span *key)
{
	for (size_t i = 0; i < sizeof(identifying) / sizeof(*identifying); i++)
		if (span_is(key, identifying[i]))
			return true;
	return false;
}

/* At a quote. Only the names of members that are on the way, or at its end, matter. */
static bool on_string(struct walk *w)
{
	struct span key;

	if (!take_string(w, &key))
		return false;
	skip_space(w);
	if (w->depth != w->entered + 1 || w->at >= w->end || *w->at != ':')
		return true;
	w->at++;
	skip_space(w);
	if (w->entered == way_length(w))
		return identifies(&key) ? take_value(w, &w->metadata, &key) : true;
	if (w->is_event && w->entered == 0 && span_is(&key, "type"))
		return take_value(w, &w->type, &key);
	if (span_is(&key, way_step(w)) && w->at < w->end && *w->at == '{')
		w->entered++;
	return true;
}

static void walk(struct walk *w)
{
	while (w->at < w->end) {
		char c = *w->at;

		if (c == '"') {
			if (!on_string(w))
				return;
			continue;
		}
		w->at++;
		if (c == '{' || c == '[') {
			w->depth++;
		} else if (c == '}' || c == ']') {
			if (w->depth == 0)
				return;
			if (--w->depth == w->entered && w->entered > 0) {
				if (w->entered == way_length(w))
					return;
				w->entered--;
			}
		}
	}
}

static json_t *assemble(struct walk *w)
{
	json_t *object = json_pack("{s:O}", "metadata", w->metadata);

	if (!object || !w->is_event)
		return object;
	return json_pack("{s:O, s:o}", "type", json_object_get(w->type, "type"), "object", object);
}

int kube_identity_read(const char *text, size_t size, bool is_event, json_t **ret,
		       struct error *err)
{
	struct walk w = {.at = text, .end = text + size, .is_event = is_event};
	json_t *identity = NULL;
	int r = 0;

	walk(&w);
	if (!json_object_get(w.metadata, "name") || !json_object_get(w.metadata, "resourceVersion"))
		r = error_set(err, EPROTO, "no metadata.name and metadata.resourceVersion");
	else if (is_event && !w.type)
		r = error_set(err, EPROTO, "no type");
	else if (!(identity = assemble(&w)))
		r = error_set(err, ENOMEM, "identity of an object");
	json_decref(w.metadata);
	json_decref(w.type);
	if (!r)
		*ret = identity;
	return r;
}
