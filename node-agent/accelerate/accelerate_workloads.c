/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Workloads have numbers in the kernel's maps and names everywhere else. Which is which is kept in
 * <state_dir>/accelerate.json, so that what was learned under a number outlives the agent; a number
 * in the maps that the file does not explain is nobody's, and is not given again.
 */
#include "accelerate_private.h"
#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "log.h"
#include "run_dir.h"
#include "scoped.h"
#include "write_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	FILE_MAX = 64 * 1024 * 1024,
	STATE_VERSION = 1,
	WORKLOADS_MAX = 65536,
	SWEEP_EVERY = 4096,   /* new ones */
	SAVE_DELAY_MS = 1000, /* many pods come at once */
	NAME_SIZE_MAX = 512,
	WALK_MAX = 1 << 20,
	ID_MAX = 1 << 30, /* no node gets there by counting, and counting on never wraps */
};

/* What workloads beyond the limit share: they are learned about together. */
#define OTHERS "-/(others)"

/* ---- the table ------------------------------------------------------------------------------ */

static struct accelerate_workload *find_id(const struct accelerate *a, uint32_t id)
{
	size_t low = 0, high = a->n_workloads;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (a->workloads[middle].id == id)
			return &a->workloads[middle];
		if (a->workloads[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

static struct accelerate_workload *find_name(const struct accelerate *a, const char *name)
{
	for (size_t i = 0; i < a->n_workloads; i++)
		if (!strcmp(a->workloads[i].name, name))
			return &a->workloads[i];
	return NULL;
}

/* Numbers only grow, so appending keeps the table in order. NULL without memory. */
static struct accelerate_workload *append(struct accelerate *a, const char *name, uint32_t id)
{
	struct accelerate_workload *workload;

	if (a->n_workloads == a->max_workloads) {
		size_t max = a->max_workloads ? a->max_workloads * 2 : 64;
		struct accelerate_workload *grown = reallocarray(a->workloads, max, sizeof(*grown));

		if (!grown)
			return NULL;
		a->workloads = grown;
		a->max_workloads = max;
	}
	workload = &a->workloads[a->n_workloads];
	*workload = (struct accelerate_workload){.name = strdup(name), .id = id};
	if (!workload->name)
		return NULL;
	a->n_workloads++;
	a->last_workload = id;
	return workload;
}

const char *accelerate_workload_name(const struct accelerate *a, uint32_t id)
{
	const struct accelerate_workload *workload = find_id(a, id);

	if (!id)
		return "-";
	return workload ? workload->name : NULL;
}

uint32_t accelerate_workload_id(const struct accelerate *a, const char *name)
{
	const struct accelerate_workload *workload = find_name(a, name);

	return workload ? workload->id : 0;
}

bool accelerate_workload_cleared(const struct accelerate *a, uint32_t id)
{
	const struct accelerate_workload *workload = find_id(a, id);

	return workload && workload->cleared;
}

/* ---- what refers to them -------------------------------------------------------------------- */

/* Numbers of pods, and those that the maps hold, of pods and of pairs. */
struct numbers {
	uint32_t *list;
	size_t n, max;
};

static int add_number(struct numbers *numbers, uint32_t id)
{
	if (numbers->n == numbers->max) {
		size_t max = numbers->max ? numbers->max * 2 : 256;
		uint32_t *grown = reallocarray(numbers->list, max, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		numbers->list = grown;
		numbers->max = max;
	}
	numbers->list[numbers->n++] = id;
	return 0;
}

/* Both walks are bounded: programs go on adding and removing meanwhile. */
static int add_numbers_of_pairs(struct numbers *numbers, const struct accelerate *a,
				const char *name, size_t value_size)
{
	struct accel_pair_key key;
	scoped_fd int fd = accelerate_pins_map(a, name, sizeof(key), value_size);
	uint32_t left = WALK_MAX;
	int r = fd < 0 && a->skel ? -EIO : 0; /* there is one */

	for_each_accel_key(fd, &key)
	{
		if (r || !left--)
			break;
		r = add_number(numbers, key.workload);
		if (!r)
			r = add_number(numbers, key.peer);
	}
	return r;
}

static int add_numbers_of_pods(struct numbers *numbers, const struct accelerate *a)
{
	struct accel_pod pod;
	uint64_t cookie;
	scoped_fd int fd = accelerate_pins_map(a, "accel_pods", sizeof(cookie), sizeof(pod));
	uint32_t left = WALK_MAX;
	int r = fd < 0 && a->skel ? -EIO : 0; /* there is one */

	for_each_accel_key(fd, &cookie)
	{
		if (r || !left--)
			break;
		if (!bpf_map_lookup_elem(fd, &cookie, &pod))
			r = add_number(numbers, pod.workload);
	}
	return r;
}

static int add_numbers_of_known(struct numbers *numbers, const struct accelerate *a)
{
	int r = 0;

	for (size_t i = 0; i < ACCELERATE_BUCKETS; i++)
		for (const struct accelerate_known *k = a->pods[i]; k && !r; k = k->next)
			r = add_number(numbers, k->workload);
	return r;
}

static int compare_numbers(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

/* Of the pins, not of what is loaded: with --accelerate off they may be on their way out. */
static int collect_numbers(const struct accelerate *a, struct numbers *ret)
{
	int r = add_numbers_of_pairs(ret, a, "accel_pairs", sizeof(struct accel_pair));

	if (!r)
		r = add_numbers_of_pairs(ret, a, "accel_verdicts", sizeof(struct accel_verdict));
	if (!r)
		r = add_numbers_of_pods(ret, a);
	if (!r)
		r = add_numbers_of_known(ret, a);
	if (ret->n)
		qsort(ret->list, ret->n, sizeof(*ret->list), compare_numbers);
	return r;
}

static bool in_use(const struct numbers *numbers, uint32_t id)
{
	return numbers->n && bsearch(&id, numbers->list, numbers->n, sizeof(id), compare_numbers);
}

/* ---- the file ------------------------------------------------------------------------------- */

static void path_of(const struct accelerate *a, char ret[static ACCELERATE_PATH_MAX])
{
	snprintf(ret, ACCELERATE_PATH_MAX, "%.400s/" RUN_DIR_ACCELERATE, a->cfg.state_dir);
}

static int save(const struct accelerate *a, struct error *err)
{
	scoped_json json_t *list = json_array();
	scoped_json json_t *root = NULL;
	scoped_free char *text = NULL;
	char path[ACCELERATE_PATH_MAX];

	for (size_t i = 0; list && i < a->n_workloads; i++) {
		const struct accelerate_workload *w = &a->workloads[i];

		if (json_array_append_new(list, json_pack("{s:s, s:I, s:b, s:O*}", "name", w->name,
							  "id", (json_int_t)w->id, "cleared",
							  w->cleared, "advice", w->advice)))
			return error_set(err, ENOMEM, "remember the workloads");
	}
	root = json_pack("{s:i, s:O?}", "v", STATE_VERSION, "workloads", list);
	text = root ? json_to_text(root) : NULL;
	if (!text)
		return error_set(err, ENOMEM, "remember the workloads");
	path_of(a, path);
	return write_file_atomic(path, text, strlen(text), 0600, err);
}

static void on_save(void *arg)
{
	struct accelerate *a = arg;
	struct error err = {0};

	a->save_source = NULL;
	if (save(a, &err))
		log_error(LOG_WARN, &err,
			  "what is learned about workloads will be forgotten with this agent",
			  NULL);
}

static void save_soon(struct accelerate *a)
{
	struct error err = {0};

	if (a->save_source)
		return;
	if (event_loop_add_timer(a->loop, SAVE_DELAY_MS, 0, on_save, a, &a->save_source, &err))
		log_error(LOG_WARN, &err, "cannot remember the workloads", NULL);
}

/* ---- giving numbers ------------------------------------------------------------------------- */

static void workload_done(struct accelerate_workload *workload)
{
	json_decref(workload->advice);
	free(workload->name);
}

/*
 * A pod without a controller, under a name of its own, is a workload that never comes back. What
 * nothing refers to any more is forgotten, as the next agent would; its number is not given again.
 */
static void sweep(struct accelerate *a)
{
	struct numbers numbers = {0};
	size_t n_kept = 0;

	if (!collect_numbers(a, &numbers)) {
		for (size_t i = 0; i < a->n_workloads; i++) {
			struct accelerate_workload *workload = &a->workloads[i];

			if (workload->cleared || in_use(&numbers, workload->id))
				a->workloads[n_kept++] = *workload;
			else
				workload_done(workload);
		}
		a->n_workloads = n_kept;
	}
	a->n_swept = a->n_workloads;
	free(numbers.list);
}

uint32_t accelerate_workload_number(struct accelerate *a, const char *name)
{
	const struct accelerate_workload *workload = find_name(a, name);

	if (!workload && a->n_workloads >= a->n_swept + SWEEP_EVERY)
		sweep(a);
	if (!workload && a->n_workloads >= WORKLOADS_MAX && strcmp(name, OTHERS) != 0)
		return accelerate_workload_number(a, OTHERS);
	if (!workload) {
		workload = append(a, name, a->last_workload + 1);
		if (workload && a->skel)
			save_soon(a);
	}
	return workload ? workload->id : 0;
}

int accelerate_workload_clear(struct accelerate *a, const char *name, bool cleared, json_t *advice,
			      struct error *err)
{
	uint32_t id = accelerate_workload_number(a, name);
	struct accelerate_workload *workload = find_id(a, id);
	struct accelerate_workload before;
	int r;

	if (!workload || strcmp(workload->name, name) != 0)
		return error_set(err, ENOMEM, "remember workload %s", name);
	before = *workload;
	workload->cleared = cleared;
	workload->advice = advice;
	r = save(a, err);
	if (r) {
		*workload = before;
		return r;
	}
	json_incref(advice);
	json_decref(before.advice);
	accelerate_pods_again(a, id);
	return 0;
}

/* ---- at start ------------------------------------------------------------------------------- */

/* One entry, in order; those that nothing refers to any more are left out. */
static int read_workload(struct accelerate *a, const json_t *entry, const struct numbers *numbers,
			 struct error *err)
{
	struct accelerate_workload *workload;
	const char *name = NULL;
	json_t *advice = NULL;
	bool cleared = false;
	json_int_t id = 0;
	int r = json_get_string(entry, "name", "workload ", &name, err);

	if (!r)
		r = json_get_integer(entry, "id", "workload ", 1, ID_MAX, &id, err);
	if (!r)
		r = json_get_bool(entry, "cleared", "workload ", &cleared, err);
	if (!r)
		r = json_get_object(entry, "advice", "workload ", &advice, err);
	if (r)
		return r;
	if (!name || !id || strlen(name) > NAME_SIZE_MAX || id <= a->last_workload)
		return error_set(err, EINVAL, "workload %lld: no name, or out of order",
				 (long long)id);
	if (!cleared && !in_use(numbers, (uint32_t)id))
		return 0;
	workload = append(a, name, (uint32_t)id);
	if (!workload)
		return error_set(err, ENOMEM, "remember the workloads");
	workload->cleared = cleared;
	workload->advice = json_incref(advice);
	return 0;
}

static int read_workloads(struct accelerate *a, const struct numbers *numbers, struct error *err)
{
	scoped_json json_t *root = NULL;
	scoped_free char *text = NULL;
	char path[ACCELERATE_PATH_MAX];
	json_t *list = NULL, *entry;
	json_int_t version = 0;
	size_t size, i;
	int r;

	path_of(a, path);
	r = read_file(path, FILE_MAX, &text, &size, err);
	if (!r)
		r = json_parse(text, size, path, &root, err);
	if (!r && !json_is_object(root))
		r = error_set(err, EINVAL, "%s: not a JSON object", path);
	if (!r)
		r = json_get_integer(root, "v", "", STATE_VERSION, STATE_VERSION, &version, err);
	if (!r)
		r = json_get_array(root, "workloads", "", &list, err);
	if (r)
		return r;
	json_array_foreach (list, i, entry) {
		r = json_is_object(entry) && i < WORKLOADS_MAX
			    ? read_workload(a, entry, numbers, err)
			    : error_set(err, EINVAL, "%s: workload %zu", path, i);
		if (r)
			return r;
	}
	return 0;
}

int accelerate_workloads_load(struct accelerate *a, struct error *err)
{
	struct numbers numbers = {0};
	int r = collect_numbers(a, &numbers);

	if (r) {
		free(numbers.list);
		return error_set(err, ENOMEM, "remember the workloads");
	}
	r = read_workloads(a, &numbers, err);
	/* A file that cannot be read costs what was learned, nothing else. */
	if (r && r != -ENOENT && r != -ENOMEM)
		log_error(LOG_WARN, err, "workloads are learned about anew", NULL);
	for (size_t i = numbers.n; i-- > 0;)
		if (numbers.list[i] > a->last_workload && numbers.list[i] <= ID_MAX)
			a->last_workload = numbers.list[i];
	free(numbers.list);
	a->n_swept = a->n_workloads;
	return r == -ENOMEM ? r : 0;
}

void accelerate_workloads_done(struct accelerate *a)
{
	struct error ignored = {0};

	if (a->save_source) {
		event_loop_remove(a->save_source);
		save(a, &ignored);
	}
	for (size_t i = 0; i < a->n_workloads; i++)
		workload_done(&a->workloads[i]);
	free(a->workloads);
}
