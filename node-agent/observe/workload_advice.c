/* SPDX-License-Identifier: Apache-2.0 */
#include "workload_advice.h"

#include "accelerate.h"
#include "accelerate_advise.h"
#include "error.h"
#include "json.h"
#include "log.h"
#include "monotonic.h"
#include "netns.h"
#include "pod_state.h"
#include "pod_table.h"
#include "registration.h"
#include "scoped.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	RUNS_MAX = 4,	      /* at once: each costs every system call of the node a little */
	SLOTS = 4 * RUNS_MAX, /* also of verdicts that may be asked for yet */
	SECONDS_INITIAL = 60,
	/* Whoever asked for a run hears its verdict; who asks later than this wants a new one. */
	VERDICT_KEPT_MS = 30 * 1000,
};

struct advice { /* one workload's */
	struct workload_advice *owner;
	char *workload; /* NULL: the slot is free */
	struct advice_run *run;
	json_t *verdict; /* NULL: it is being watched */
	int64_t ends_ms;
};

struct workload_advice {
	struct event_loop *loop;
	const struct registration *registration;
	struct accelerate *accelerate;
	bool netns_by_inode;
	struct advice slots[SLOTS];
};

static bool is_watching(const struct advice *advice)
{
	return advice->workload && !advice->verdict;
}

static void advice_done(struct advice *advice)
{
	advice_stop(advice->run);
	json_decref(advice->verdict);
	free(advice->workload);
	*advice = (struct advice){.owner = advice->owner};
}

int workload_advice_new(struct event_loop *loop, const struct registration *registration,
			struct accelerate *accelerate, struct workload_advice **ret,
			struct error *err)
{
	struct workload_advice *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return error_set(err, ENOMEM, "prepare the adviser");
	w->loop = loop;
	w->registration = registration;
	w->accelerate = accelerate;
	for (size_t i = 0; i < SLOTS; i++)
		w->slots[i].owner = w;
	r = netns_numbered_by_inode(&w->netns_by_inode, err);
	if (r)
		free(w);
	else
		*ret = w;
	return r;
}

void workload_advice_free(struct workload_advice *w)
{
	for (size_t i = 0; w && i < SLOTS; i++)
		advice_done(&w->slots[i]);
	free(w);
}

/* ---- which pods ----------------------------------------------------------------------------- */

/* Once for each namespace: a pod may have several attachments. */
static bool can_be_watched(const struct workload_advice *w, const struct pod *pod)
{
	return pod->workload && pod->engine_plan &&
	       pod_table_redirected(registration_pods(w->registration), pod->cookie, NULL) == pod &&
	       accelerate_pod_reason(w->accelerate, pod->cookie);
}

static bool is_called(const struct pod *pod, const char *target)
{
	size_t length = strcspn(target, "/");

	return pod->ns && pod->name && strlen(pod->ns) == length &&
	       !strncmp(pod->ns, target, length) && target[length] &&
	       !strcmp(pod->name, target + length + 1);
}

/* The workload that is meant, as its pods spell it; NULL: no pod here is of it. */
static const char *workload_meant(const struct workload_advice *w, const char *target)
{
	const struct pod_table *pods = registration_pods(w->registration);
	const char *of_pod = NULL;

	for (size_t i = 0; i < pod_table_count(pods); i++) {
		const struct pod *pod = pod_table_at(pods, i);

		if (!can_be_watched(w, pod))
			continue;
		if (!strcmp(pod->workload, target))
			return pod->workload;
		if (!of_pod && is_called(pod, target))
			of_pod = pod->workload;
	}
	return of_pod;
}

/* The array is the caller's; what is in it is the table's. */
static int pods_of(const struct workload_advice *w, const char *workload, struct advice_pod **ret,
		   size_t *ret_n, struct error *err)
{
	const struct pod_table *pods = registration_pods(w->registration);
	struct advice_pod *list = calloc(pod_table_count(pods) + 1, sizeof(*list));
	size_t n = 0;

	if (!list)
		return error_set(err, ENOMEM, "list the pods of %s", workload);
	for (size_t i = 0; i < pod_table_count(pods); i++) {
		const struct pod *pod = pod_table_at(pods, i);

		if (can_be_watched(w, pod) && !strcmp(pod->workload, workload))
			list[n++] = (struct advice_pod){
				.cookie = pod->cookie,
				.netns_ino = pod->netns_ino,
				.proxy_uids = pod->engine_plan->proxy_uids.ids,
				.n_proxy_uids = pod->engine_plan->proxy_uids.n,
			};
	}
	*ret = list;
	*ret_n = n;
	return 0;
}

/* ---- runs ----------------------------------------------------------------------------------- */

static void tell_accelerator(const struct advice *advice)
{
	bool cleared = json_is_true(json_object_get(advice->verdict, "cleared"));
	struct error err = {0};

	/* Too little was seen: whatever was known of the workload before still holds. */
	if (!cleared && !json_is_true(json_object_get(advice->verdict, "refuted")))
		return;
	if (accelerate_workload_clear(advice->owner->accelerate, advice->workload, cleared,
				      advice->verdict, &err))
		log_error(LOG_WARN, &err, "the adviser's verdict will be forgotten", "workload",
			  advice->workload, NULL);
}

static void on_done(json_t *verdict, void *arg)
{
	struct advice *advice = arg;
	struct timespec now;
	char ended[TIME_TEXT_MAX];

	if (!verdict) { /* no memory; whoever asks again starts anew */
		advice_done(advice);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	advice->verdict = verdict;
	advice->ends_ms = monotonic_ms();
	json_object_set_new(verdict, "ended", json_string(pod_state_time(now.tv_sec, ended)));
	advice_stop(advice->run);
	advice->run = NULL;
	log_write(LOG_INFO, "the adviser has watched a workload", "workload", advice->workload,
		  "cleared", json_is_true(json_object_get(verdict, "cleared")) ? "yes" : "no",
		  "reason", json_string_value(json_object_get(verdict, "reason")), NULL);
	tell_accelerator(advice);
}

static struct advice *find(struct workload_advice *w, const char *workload)
{
	for (size_t i = 0; i < SLOTS; i++)
		if (w->slots[i].workload && !strcmp(w->slots[i].workload, workload))
			return &w->slots[i];
	return NULL;
}

/* A free one, or that of the oldest verdict: there are more slots than runs. */
static struct advice *free_slot(struct workload_advice *w)
{
	struct advice *oldest = NULL;

	for (size_t i = 0; i < SLOTS; i++) {
		struct advice *advice = &w->slots[i];

		if (!advice->workload)
			return advice;
		if (!is_watching(advice) && (!oldest || advice->ends_ms < oldest->ends_ms))
			oldest = advice;
	}
	if (oldest)
		advice_done(oldest);
	return oldest;
}

static unsigned count_watching(const struct workload_advice *w)
{
	unsigned n = 0;

	for (size_t i = 0; i < SLOTS; i++)
		n += is_watching(&w->slots[i]);
	return n;
}

static int start(struct workload_advice *w, const char *workload, unsigned seconds,
		 struct advice **ret, struct error *err)
{
	struct advice_request request = {
		.workload = workload, .netns_by_inode = w->netns_by_inode, .seconds = seconds};
	scoped_free struct advice_pod *list = NULL;
	struct advice *advice;
	int r;

	if (count_watching(w) >= RUNS_MAX)
		return error_set(err, EBUSY, "%d workloads are watched already", RUNS_MAX);
	r = pods_of(w, workload, &list, &request.n_pods, err);
	if (r)
		return r;
	request.pods = list;
	advice = free_slot(w);
	advice->workload = strdup(workload);
	if (!advice->workload)
		return error_set(err, ENOMEM, "watch %s", workload);
	r = advice_start(&request, w->loop, on_done, advice, &advice->run, err);
	if (r) {
		advice_done(advice);
		return r;
	}
	advice->ends_ms = monotonic_ms() + (int64_t)seconds * 1000;
	*ret = advice;
	return 0;
}

/* ---- answers -------------------------------------------------------------------------------- */

static int tell(const struct advice *advice, json_t **ret, struct error *err)
{
	scoped_json json_t *verdict =
		advice->verdict ? json_incref(advice->verdict) : advice_so_far(advice->run);
	int64_t left_ms = is_watching(advice) ? advice->ends_ms - monotonic_ms() : 0;
	scoped_json json_t *answer = NULL;

	answer = json_pack("{s:s, s:I}", "state", is_watching(advice) ? "watching" : "done", "left",
			   (json_int_t)(left_ms > 0 ? (left_ms + 999) / 1000 : 0));
	if (!verdict || !answer || json_object_update(answer, verdict))
		return error_set(err, ENOMEM, "say what the adviser sees");
	*ret = take_ptr(answer);
	return 0;
}

int workload_advice_ask(struct workload_advice *w, const char *target, unsigned seconds,
			json_t **ret, struct error *err)
{
	const char *workload = workload_meant(w, target);
	struct advice *advice = workload ? find(w, workload) : NULL;
	int r;

	if (!workload)
		return error_set(err, ENOENT,
				 "no pod of workload %s is redirected with eBPF on this node",
				 target);
	if (advice && !is_watching(advice) && monotonic_ms() - advice->ends_ms > VERDICT_KEPT_MS) {
		advice_done(advice);
		advice = NULL;
	}
	r = advice ? 0 : start(w, workload, seconds ?: SECONDS_INITIAL, &advice, err);
	return r ? r : tell(advice, ret, err);
}
