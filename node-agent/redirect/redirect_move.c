/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A pod's way from one engine to another without a gap and without breaking a connection.
 *
 * The new engine is applied first, so for a moment both have the pod. Two kinds of netfilter rules
 * are harmless to each other: nat takes the first verdict, and both say the same. eBPF has
 * rewritten a connection before netfilter sees it, so a netfilter engine beside it is applied in a
 * form that leaves connections to the proxy's own ports on lo alone, and keeps that form until eBPF
 * has drained. Then the old engine is retired: it captures nothing new, and stays for what it
 * captured as long as there is any (netfilter: translated flows; eBPF: connections on their way to
 * accept()).
 */
#include "redirect_private.h"

#include "event_loop.h"
#include "log.h"
#include "monotonic.h"
#include "netlink.h"

#include <stdlib.h>

enum { DRAIN_TICK_MS = 250, DRAIN_TICK_BUDGET_MS = 50, DRAIN_DELAY_MAX_MS = 15 * 1000 };
enum { LINGER_SLACK_MS = 1000 }; /* for ztunnel to be told, and to act upon it */

static bool is_netfilter(enum engine_id id)
{
	return id == ENGINE_NFTABLES || id == ENGINE_IPTABLES;
}

static int apply_with(struct redirect *r, enum engine_id id, const struct redirect_pod *pod,
		      struct error *err)
{
	const struct engine *engine = &r->engines[id];

	return engine->ops->apply(engine->state, pod, err);
}

static void schedule(struct known_pod *known)
{
	known->drain_delay_ms = DRAIN_TICK_MS;
	known->drain_at_ms = monotonic_ms() + DRAIN_TICK_MS;
}

/* The old engine goes back to what it did before; it may fail, and is healed later. */
static void move_back(struct redirect *r, struct known_pod *known, const struct redirect_pod *pod,
		      enum engine_id to)
{
	struct error ignored = {0};
	bool done = false;

	if (r->engines[to].ops->retire(r->engines[to].state, pod, &done, &ignored) || !done)
		redirect_drain_resume(r, known, to);
	if (is_netfilter(known->engine) && pod->beside_ebpf) {
		struct redirect_pod alone = *pod;

		alone.beside_ebpf = false;
		apply_with(r, known->engine, &alone, &ignored);
	}
}

static int retire(struct redirect *r, struct known_pod *known, enum engine_id id,
		  const struct redirect_pod *pod, struct error *err)
{
	const struct engine *engine = &r->engines[id];
	struct redirect_pod now = *pod;
	bool done = false;
	int result;

	now.nat_goes_on = is_netfilter(id) && is_netfilter(known->engine);
	now.leaves = known->engine == ENGINE_NONE;
	now.lingers = now.leaves && monotonic_ms() < known->lingers_until_ms;
	result = engine->ops->retire(engine->state, &now, &done, err);
	if (!result && done)
		known->draining &= ~(1u << id);
	return result;
}

static void drain_engine(struct redirect *r, struct known_pod *known, enum engine_id id,
			 const struct redirect_pod *pod)
{
	struct error err = {0};

	if (retire(r, known, id, pod, &err))
		log_error(LOG_WARN, &err, "cannot end what an engine kept for a pod that moved",
			  "engine", r->engines[id].ops->name, NULL);
}

/*
 * After a move that was cut short a third engine may still capture, and in a form that is not made
 * for who comes now.
 */
static void drain_others(struct redirect *r, struct known_pod *known,
			 const struct redirect_pod *pod, enum engine_id to)
{
	for (enum engine_id id = 0; id < ENGINE_NONE; id++)
		if (id != to && (known->draining & (1u << id)))
			drain_engine(r, known, id, pod);
}

int redirect_move(struct redirect *r, struct known_pod *known, const struct redirect_pod *pod,
		  enum engine_id to, struct error *err)
{
	enum engine_id from = known->engine;
	const struct engine *old = &r->engines[from];
	struct redirect_pod both = *pod;
	/* Its rules lead elsewhere: what it captures from now on would not be where it belongs. */
	bool is_other_way = old->ops->cannot(pod->plan);
	bool done = false;
	int result = 0;

	drain_others(r, known, pod, to);
	both.beside_ebpf = from == ENGINE_EBPF || to == ENGINE_EBPF;
	both.nat_goes_on = is_netfilter(from) && is_netfilter(to);
	both.passthrough_is_ours =
		old->ops->owns_passthrough &&
		old->ops->owns_passthrough(old->state, pod->cookie, pod->netns_fd);
	if (is_netfilter(from) && both.beside_ebpf && !is_other_way)
		result = apply_with(r, from, &both, err);
	if (!result)
		result = apply_with(r, to, &both, err);
	if (result) {
		move_back(r, known, &both, to);
		return error_wrap(err, "move from %s to %s", old->ops->name,
				  r->engines[to].ops->name);
	}
	known->engine = to;
	known->draining &= ~(1u << to);
	known->beside_ebpf = both.beside_ebpf && is_netfilter(to);
	r->moves++;
	/*
	 * eBPF decides in connect() or at the listener, netfilter in between: what is on its way
	 * from the one to the other now must still find the engine that was there when it began.
	 */
	if ((!both.beside_ebpf || is_other_way) && old->ops->retire(old->state, &both, &done, err))
		done = false; /* the pod is covered, and the timer tries again */
	if (!done)
		known->draining |= 1u << from;
	schedule(known);
	return redirect_drain_watch(r, err);
}

/* The engine that captures; it stays the pod's when it cannot be made to end that. */
static int release_engine(struct redirect *r, struct known_pod *known,
			  const struct redirect_pod *pod, struct error *err)
{
	enum engine_id from = known->engine;
	unsigned draining = known->draining;
	int result;

	if (from == ENGINE_NONE)
		return 0;
	known->engine = ENGINE_NONE;
	known->draining |= 1u << from;
	result = retire(r, known, from, pod, err);
	if (result) {
		known->engine = from;
		known->draining = draining;
	}
	return result;
}

/*
 * Of a pod that could not be taken over from an earlier agent only the kernel says which engine has
 * it. That is asked: a pod that is said to be out and is captured all the same has no proxy.
 */
int redirect_release(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	struct known_pod *known = redirect_find(r, pod, err);
	enum engine_id from = known ? known->engine : ENGINE_NONE;
	int result;

	if (!known)
		return -err->code;
	/* Of one that could not be taken over the plan is not known; it may be ztunnel's. */
	if (!pod->plan || pod->plan->ambient)
		known->lingers_until_ms = monotonic_ms() + REDIRECT_LINGER_MS + LINGER_SLACK_MS;
	result = release_engine(r, known, pod, err);
	if (result)
		return result;
	known->beside_ebpf = false;
	known->reason = NULL;
	drain_others(r, known, pod, from);
	schedule(known);
	return redirect_drain_watch(r, err);
}

/* ---- draining ------------------------------------------------------------------------------- */

/* eBPF is out of it: rules that made room for it get their usual form. */
static void end_beside(struct redirect *r, struct known_pod *known, const struct redirect_pod *pod)
{
	struct error err = {0};

	if (apply_with(r, known->engine, pod, &err))
		log_error(LOG_WARN, &err, "cannot finish a pod's move", "engine",
			  r->engines[known->engine].ops->name, NULL);
	else
		known->beside_ebpf = false;
}

struct drain {
	struct redirect *redirect;
	struct known_pod *known;
};

static int drain_pod(const struct redirect_pod *pod, void *arg, struct error *err)
{
	struct drain *drain = arg;
	struct known_pod *known = drain->known;

	(void)err;
	for (enum engine_id id = 0; id < ENGINE_NONE; id++)
		if (known->draining & (1u << id))
			drain_engine(drain->redirect, known, id, pod);
	if (known->beside_ebpf && !(known->draining & (1u << ENGINE_EBPF)))
		end_beside(drain->redirect, known, pod);
	return 0;
}

/* Without its namespace there is nothing left in it that could be looked after. */
static void drain_unreachable(struct redirect *r, struct known_pod *known)
{
	struct redirect_pod pod = {.cookie = known->cookie, .netns_fd = -1};

	if (known->draining & (1u << ENGINE_EBPF))
		drain_engine(r, known, ENGINE_EBPF, &pod);
	/* It may only not be to be opened just now. */
	if (known->namespace_id >= 0 && !redirect_known_ended(known))
		return;
	known->beside_ebpf = false;
	known->draining &= 1u << ENGINE_EBPF;
}

static bool is_moving(const struct known_pod *known)
{
	return known->draining || known->beside_ebpf;
}

static void look_at(struct redirect *r, struct known_pod *known, int64_t now_ms)
{
	struct drain drain = {.redirect = r, .known = known};
	struct error err = {0};

	if (known->drain_at_ms > now_ms)
		return;
	if (r->cfg->visit_pod(r->cfg->pods_arg, known->cookie, drain_pod, &drain, &err))
		drain_unreachable(r, known);
	known->drain_delay_ms = known->drain_delay_ms * 2 + 1;
	if (known->drain_delay_ms > DRAIN_DELAY_MAX_MS)
		known->drain_delay_ms = DRAIN_DELAY_MAX_MS;
	known->drain_at_ms = now_ms + known->drain_delay_ms;
}

/* Pods left when one tick has taken its time wait for the next. */
static void on_drain(void *arg)
{
	struct redirect *r = arg;
	int64_t start_ms = monotonic_ms();
	bool more = false;

	for (size_t i = 0; i < KNOWN_BUCKETS; i++) {
		struct known_pod **link = &r->pods[i], *known;

		while ((known = *link)) {
			if (is_moving(known) && monotonic_ms() - start_ms < DRAIN_TICK_BUDGET_MS)
				look_at(r, known, start_ms);
			more |= is_moving(known);
			/* It was let go, and nothing of it is left: nobody asks about it again. */
			if (known->engine == ENGINE_NONE && !is_moving(known)) {
				*link = known->next;
				free(known);
			} else {
				link = &known->next;
			}
		}
	}
	if (redirect_close_unused(r) && !more) {
		event_loop_remove(r->drain_source);
		r->drain_source = NULL;
	}
}

int redirect_drain_watch(struct redirect *r, struct error *err)
{
	if (r->drain_source)
		return 0;
	return event_loop_add_timer(r->loop, DRAIN_TICK_MS, DRAIN_TICK_MS, on_drain, r,
				    &r->drain_source, err);
}

void redirect_drain_resume(struct redirect *r, struct known_pod *known, enum engine_id id)
{
	struct error err = {0};

	known->draining |= 1u << id;
	schedule(known);
	if (redirect_drain_watch(r, &err))
		log_error(LOG_WARN, &err, "cannot look after a pod that has moved", NULL);
}
