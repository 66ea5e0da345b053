/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_store.h"

#include "error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Pointers to objects in order of namespace and name, as the API server lists them. */
struct table {
	void **items;
	size_t n, room;
	bool complete;
};

/* A pod that could not be read when it was first heard of. */
struct unreadable {
	char *ns, *name, *uid; /* uid may be NULL */
	bool listed;
};

struct kube_store {
	struct kube_store_config cfg;
	struct table tables[KUBE_KIND_COUNT_];
	struct unreadable *unread; /* in no order: there are none, or a few */
	size_t n_unread;
	uint64_t unreadable, refused;
};

struct key {
	const char *ns, *name;
};

static const struct {
	const char *plural;
	size_t max;
} kinds[KUBE_KIND_COUNT_] = {
	[KUBE_PODS] = {"pods", KUBE_STORE_PODS_MAX},
	[KUBE_NAMESPACES] = {"namespaces", KUBE_STORE_NAMESPACES_MAX},
};

static struct key key_of(enum kube_kind kind, const void *item)
{
	const struct kube_namespace *ns = item;
	const struct kube_pod *pod = item;

	return kind == KUBE_PODS ? (struct key){pod->ns, pod->name} : (struct key){"", ns->name};
}

static bool *listed_of(enum kube_kind kind, void *item)
{
	return kind == KUBE_PODS ? &((struct kube_pod *)item)->listed
				 : &((struct kube_namespace *)item)->listed;
}

static void item_free(enum kube_kind kind, void *item)
{
	if (kind == KUBE_PODS)
		kube_pod_free(item);
	else
		free(item);
}

/* ---- tables -------------------------------------------------------------------------------- */

static int compare(const struct key *a, const struct key *b)
{
	int order = strcmp(a->ns, b->ns);

	return order ? order : strcmp(a->name, b->name);
}

/* The first place whose key is not before this one. */
static size_t place_of(const struct kube_store *store, enum kube_kind kind, const struct key *key)
{
	const struct table *table = &store->tables[kind];
	size_t from = 0, to = table->n;

	while (from < to) {
		size_t middle = from + (to - from) / 2;
		struct key found = key_of(kind, table->items[middle]);

		if (compare(&found, key) < 0)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}

static void *find(const struct kube_store *store, enum kube_kind kind, const struct key *key,
		  size_t *ret_place)
{
	const struct table *table = &store->tables[kind];
	size_t place = place_of(store, kind, key);
	struct key found;

	*ret_place = place;
	if (place == table->n)
		return NULL;
	found = key_of(kind, table->items[place]);
	return compare(&found, key) == 0 ? table->items[place] : NULL;
}

static int make_room(struct kube_store *store, enum kube_kind kind, struct error *err)
{
	struct table *table = &store->tables[kind];
	size_t room = table->room + table->room / 2 + 16;
	void **grown;

	if (table->n == kinds[kind].max)
		return error_set(err, ENOSPC, "more than %zu %s", kinds[kind].max,
				 kinds[kind].plural);
	if (table->n < table->room)
		return 0;
	grown = reallocarray(table->items, room, sizeof(*grown));
	if (!grown)
		return error_set(err, ENOMEM, "allocate a table of %zu %s", room,
				 kinds[kind].plural);
	table->items = grown;
	table->room = room;
	return 0;
}

static void take_out(struct table *table, size_t place)
{
	table->n--;
	memmove(table->items + place, table->items + place + 1,
		(table->n - place) * sizeof(*table->items));
}

/* ---- events -------------------------------------------------------------------------------- */

static bool same_namespace(const struct kube_namespace *a, const struct kube_namespace *b)
{
	return a->selected == b->selected && a->discovered == b->discovered &&
	       a->deleting == b->deleting;
}

static void tell(const struct kube_store *store, enum kube_kind kind, const void *was,
		 const void *now)
{
	const struct kube_store_events *events = &store->cfg.events;
	uint32_t changed = 0;

	if (kind == KUBE_NAMESPACES) {
		if (events->ns && (!was || !now || !same_namespace(was, now)))
			events->ns(events->arg, was, now);
		return;
	}
	if (was && now)
		changed = kube_pod_diff(was, now);
	if (events->pod && (!was || !now || changed))
		events->pod(events->arg, was, now, changed);
}

/* ---- changes ------------------------------------------------------------------------------- */

static void remove_at(struct kube_store *store, enum kube_kind kind, size_t place)
{
	void *was = store->tables[kind].items[place];

	take_out(&store->tables[kind], place);
	tell(store, kind, was, NULL);
	item_free(kind, was);
}

/* Owns the item on success. */
static int insert(struct kube_store *store, enum kube_kind kind, size_t place, void *item,
		  struct error *err)
{
	struct table *table = &store->tables[kind];
	int r = make_room(store, kind, err);

	if (r < 0)
		return r;
	memmove(table->items + place + 1, table->items + place,
		(table->n - place) * sizeof(*table->items));
	table->items[place] = item;
	table->n++;
	tell(store, kind, NULL, item);
	return 0;
}

static bool is_same_object(enum kube_kind kind, const void *was, const void *now)
{
	const struct kube_pod *a = was, *b = now;

	/* A namespace has nothing that outlives it here: one of the same name is as good. */
	return kind == KUBE_NAMESPACES || strcmp(a->uid, b->uid) == 0;
}

static int store_item(struct kube_store *store, enum kube_kind kind, void *item, struct error *err)
{
	struct key key = key_of(kind, item);
	size_t place;
	void *was = find(store, kind, &key, &place);

	*listed_of(kind, item) = true;
	if (was && !is_same_object(kind, was, item)) {
		remove_at(store, kind, place);
		was = NULL;
	}
	if (!was)
		return insert(store, kind, place, item, err);
	store->tables[kind].items[place] = item;
	tell(store, kind, was, item);
	item_free(kind, was);
	return 0;
}

static int read_item(const struct kube_store *store, enum kube_kind kind, const json_t *object,
		     void **ret, struct error *err)
{
	struct kube_namespace *ns = NULL;
	struct kube_pod *pod = NULL;
	int r;

	if (kind == KUBE_PODS)
		r = kube_pod_read(object, &store->cfg.keep, &pod, err);
	else
		r = kube_namespace_read(object, store->cfg.keep.selectors, &ns, err);
	if (r)
		return r;
	*ret = pod ? (void *)pod : ns;
	return 0;
}

static const char *uid_of(const json_t *object)
{
	return json_string_value(json_object_get(json_object_get(object, "metadata"), "uid"));
}

/* Whether the object is another one than the item, which has its name. */
static bool is_successor(enum kube_kind kind, const void *item, const json_t *object)
{
	const struct kube_pod *pod = item;
	const char *uid = uid_of(object);

	return kind == KUBE_PODS && uid && strcmp(pod->uid, uid) != 0;
}

/* ---- pods that cannot be read --------------------------------------------------------------- */

static struct unreadable *find_unread(const struct kube_store *store, const struct key *key)
{
	for (size_t i = 0; i < store->n_unread; i++)
		if (!strcmp(store->unread[i].name, key->name) &&
		    !strcmp(store->unread[i].ns, key->ns))
			return &store->unread[i];
	return NULL;
}

static void unread_done(struct unreadable *pod)
{
	free(pod->ns);
	free(pod->name);
	free(pod->uid);
}

/* It has gone, or can be read now. */
static void drop_unread(struct kube_store *store, struct unreadable *pod)
{
	const struct kube_store_events *events = &store->cfg.events;
	struct unreadable was = *pod;

	*pod = store->unread[--store->n_unread];
	if (events->unreadable)
		events->unreadable(events->arg, was.ns, was.name, was.uid, NULL);
	unread_done(&was);
}

static bool same_uid(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

static int add_unread(struct kube_store *store, const struct key *key, const char *uid)
{
	struct unreadable *grown, *pod;

	if (store->n_unread == KUBE_STORE_PODS_MAX)
		return -ENOSPC;
	grown = reallocarray(store->unread, store->n_unread + 1, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	store->unread = grown;
	pod = &grown[store->n_unread];
	*pod = (struct unreadable){.ns = strdup(key->ns),
				   .name = strdup(key->name),
				   .uid = uid ? strdup(uid) : NULL,
				   .listed = true};
	if (!pod->ns || !pod->name || (uid && !pod->uid)) {
		unread_done(pod);
		return -ENOMEM;
	}
	store->n_unread++;
	return 0;
}

static void note_unread(struct kube_store *store, const struct key *key, const json_t *object,
			const struct error *why)
{
	const struct kube_store_events *events = &store->cfg.events;
	struct unreadable *pod = find_unread(store, key);
	const char *uid = uid_of(object);

	if (pod && same_uid(pod->uid, uid)) {
		pod->listed = true;
		return;
	}
	if (pod)
		drop_unread(store, pod);
	if (add_unread(store, key, uid) < 0)
		store->refused++;
	else if (events->unreadable)
		events->unreadable(events->arg, key->ns, key->name, uid, why);
}

static void remove_unread(struct kube_store *store, const struct key *key, const char *uid)
{
	struct unreadable *pod = find_unread(store, key);

	/* What is said of an earlier pod of this name comes too late to matter. */
	if (pod && (!uid || !pod->uid || !strcmp(uid, pod->uid)))
		drop_unread(store, pod);
}

static void now_readable(struct kube_store *store, const struct kube_pod *pod)
{
	const struct key key = {pod->ns, pod->name};
	struct unreadable *was = find_unread(store, &key);

	if (was)
		drop_unread(store, was);
}

/* It is there, whatever it says: what was known of it stays. */
static void keep_unreadable(struct kube_store *store, enum kube_kind kind, const json_t *object,
			    const struct error *why)
{
	struct error ignored = {0};
	struct key key;
	size_t place;
	void *item;

	store->unreadable++;
	if (kube_object_name(object, &key.ns, &key.name, &ignored) < 0)
		return;
	item = find(store, kind, &key, &place);
	if (item && !is_successor(kind, item, object)) {
		*listed_of(kind, item) = true;
		return;
	}
	if (item)
		remove_at(store, kind, place);
	if (kind == KUBE_PODS)
		note_unread(store, &key, object, why);
}

static bool is_elsewhere(const struct kube_store *store, enum kube_kind kind, const void *item)
{
	const struct kube_pod *pod = item;

	return kind == KUBE_PODS && store->cfg.node &&
	       (!pod->node || strcmp(pod->node, store->cfg.node) != 0);
}

int kube_store_put(struct kube_store *store, enum kube_kind kind, const json_t *object,
		   const struct error *unreadable, struct error *err)
{
	void *item = NULL;
	int r;

	if (unreadable) {
		keep_unreadable(store, kind, object, unreadable);
		return error_set(err, EINVAL, "%s", unreadable->text);
	}
	r = read_item(store, kind, object, &item, err);
	if (r == -EINVAL)
		keep_unreadable(store, kind, object, err);
	else if (r)
		store->refused++;
	if (r || !item)
		return r;
	if (is_elsewhere(store, kind, item)) {
		item_free(kind, item);
		return kube_store_remove(store, kind, object, err);
	}
	r = store_item(store, kind, item, err);
	if (!r && kind == KUBE_PODS)
		now_readable(store, item);
	if (r) {
		store->refused++;
		item_free(kind, item);
	}
	return r;
}

int kube_store_remove(struct kube_store *store, enum kube_kind kind, const json_t *object,
		      struct error *err)
{
	struct key key;
	size_t place;
	void *item;
	int r = kube_object_name(object, &key.ns, &key.name, err);

	if (r < 0) {
		store->unreadable++;
		return r;
	}
	if (kind == KUBE_PODS)
		remove_unread(store, &key, uid_of(object));
	item = find(store, kind, &key, &place);
	/* What is said of an earlier pod of this name comes too late to matter. */
	if (item && !is_successor(kind, item, object))
		remove_at(store, kind, place);
	return 0;
}

/* ---- lists --------------------------------------------------------------------------------- */

void kube_store_list_begin(struct kube_store *store, enum kube_kind kind)
{
	struct table *table = &store->tables[kind];

	for (size_t i = 0; i < table->n; i++)
		*listed_of(kind, table->items[i]) = false;
	for (size_t i = 0; kind == KUBE_PODS && i < store->n_unread; i++)
		store->unread[i].listed = false;
}

void kube_store_list_end(struct kube_store *store, enum kube_kind kind)
{
	struct table *table = &store->tables[kind];
	size_t kept = 0, n = table->n;

	/* What stays moves to the front in its order; what is gone ends up behind it. */
	for (size_t i = 0; i < n; i++) {
		void *item = table->items[i];

		if (!*listed_of(kind, item))
			continue;
		table->items[i] = table->items[kept];
		table->items[kept++] = item;
	}
	table->n = kept;
	table->complete = true;
	for (size_t i = kept; i < n; i++) {
		tell(store, kind, table->items[i], NULL);
		item_free(kind, table->items[i]);
	}
	for (size_t i = store->n_unread; kind == KUBE_PODS && i > 0; i--)
		if (!store->unread[i - 1].listed)
			drop_unread(store, &store->unread[i - 1]);
}

bool kube_store_complete(const struct kube_store *store, enum kube_kind kind)
{
	return store->tables[kind].complete;
}

/* ---- questions ----------------------------------------------------------------------------- */

const struct kube_pod *kube_store_pod(const struct kube_store *store, const char *ns,
				      const char *name)
{
	const struct key key = {ns, name};
	size_t place;

	return find(store, KUBE_PODS, &key, &place);
}

const struct kube_pod *kube_store_pod_uid(const struct kube_store *store, const char *uid)
{
	const struct table *table = &store->tables[KUBE_PODS];
	const struct kube_pod *local = NULL;
	size_t claims = 0;

	for (size_t i = 0; i < table->n; i++) {
		const struct kube_pod *pod = table->items[i];

		if (strcmp(pod->uid, uid) == 0)
			return pod;
		if (pod->local_uid && strcmp(pod->local_uid, uid) == 0) {
			local = pod;
			claims++;
		}
	}
	return claims == 1 ? local : NULL;
}

bool kube_store_pod_unreadable(const struct kube_store *store, const char *ns, const char *name)
{
	const struct key key = {ns, name};

	return find_unread(store, &key);
}

const struct kube_namespace *kube_store_namespace(const struct kube_store *store, const char *name)
{
	const struct key key = {"", name};
	size_t place;

	return find(store, KUBE_NAMESPACES, &key, &place);
}

const struct kube_pod *const *kube_store_pods(const struct kube_store *store, const char *ns,
					      size_t *ret_n)
{
	const struct table *table = &store->tables[KUBE_PODS];
	const struct kube_pod *const *pods = (const struct kube_pod *const *)table->items;
	struct key key = {ns, ""};
	size_t first, last;

	if (!ns || table->n == 0) {
		*ret_n = table->n;
		return pods;
	}
	first = place_of(store, KUBE_PODS, &key);
	for (last = first; last < table->n && strcmp(pods[last]->ns, ns) == 0; last++)
		;
	*ret_n = last - first;
	return pods + first;
}

void kube_store_count(const struct kube_store *store, struct kube_store_counts *ret)
{
	ret->pods = store->tables[KUBE_PODS].n;
	ret->namespaces = store->tables[KUBE_NAMESPACES].n;
	ret->unreadable = store->unreadable;
	ret->refused = store->refused;
}

/* ---- life ---------------------------------------------------------------------------------- */

int kube_store_new(const struct kube_store_config *cfg, struct kube_store **ret, struct error *err)
{
	struct kube_store *store = calloc(1, sizeof(*store));

	if (!store)
		return error_set(err, ENOMEM, "allocate a store");
	store->cfg = *cfg;
	*ret = store;
	return 0;
}

void kube_store_free(struct kube_store *store)
{
	if (!store)
		return;
	for (int kind = 0; kind < KUBE_KIND_COUNT_; kind++) {
		struct table *table = &store->tables[kind];

		for (size_t i = 0; i < table->n; i++)
			item_free((enum kube_kind)kind, table->items[i]);
		free(table->items);
	}
	for (size_t i = 0; i < store->n_unread; i++)
		unread_done(&store->unread[i]);
	free(store->unread);
	free(store);
}
