/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The choice of an engine: once for the node, by trying, and for each pod, by what its plan needs.
 * redirect_move.c takes a pod from one engine to another.
 */
#include "redirect_private.h"

#include "cgroup.h"
#include "event_loop.h"
#include "log.h"
#include "netlink.h"
#include "netns.h"
#include "redirect_selftest.h"
#include "scoped.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

static const struct redirect_engine_ops *const engine_ops[REDIRECT_ENGINES] = {
	[ENGINE_EBPF] = &redirect_ebpf_ops,
	[ENGINE_NFTABLES] = &redirect_nftables_ops,
	[ENGINE_IPTABLES] = &redirect_iptables_ops,
};

enum { ENDED_PAUSE_MS = 200 };

#define for_each_engine(id) for (enum engine_id id = 0; (id) < ENGINE_NONE; (id)++)

/* ---- pods that are known -------------------------------------------------------------------- */

struct known_pod *redirect_known(const struct redirect *r, uint64_t cookie)
{
	struct known_pod *known = r->pods[cookie % KNOWN_BUCKETS];

	while (known && known->cookie != cookie)
		known = known->next;
	return known;
}

bool redirect_known_ended(const struct known_pod *known)
{
	struct error ignored = {0};
	bool lives = false;

	if (known->namespace_id < 0)
		return false;
	return known->has_ended ||
	       (!netlink_namespace_lives(known->namespace_id, &lives, &ignored) && !lives);
}

static int open_netns(const struct redirect *r, uint64_t cookie)
{
	struct error ignored = {0};
	int fd = -1;

	if (!r->cfg->open_netns || r->cfg->open_netns(r->cfg->pods_arg, cookie, &fd, &ignored))
		return -1;
	return fd;
}

/* Several end together, and the kernel needs a moment to clear each away. */
static void on_ended_later(void *arg)
{
	struct redirect *r = arg;

	r->ended_timer = NULL; /* it frees itself */
	r->cfg->namespaces_ended(r->cfg->pods_arg);
}

static void tell_ended(struct redirect *r)
{
	struct error ignored = {0};

	/* Who asks from time to time finds out in any case. */
	if (r->cfg->namespaces_ended && !r->ended_timer)
		event_loop_add_timer(r->loop, ENDED_PAUSE_MS, 0, on_ended_later, r, &r->ended_timer,
				     &ignored);
}

/* Its next one may have had the id before we heard of the end of the one before. */
static void on_ended(int id, void *arg)
{
	struct redirect *r = arg;

	for (size_t i = 0; i < KNOWN_BUCKETS; i++)
		for (struct known_pod *known = r->pods[i]; known; known = known->next) {
			scoped_fd int fd = -1;

			if (known->namespace_id != id || known->has_ended)
				continue;
			fd = open_netns(r, known->cookie);
			known->has_ended = fd < 0;
			if (known->has_ended)
				tell_ended(r);
		}
}

static void on_ended_ready(int fd, uint32_t events, void *arg)
{
	(void)events;
	netlink_ended_read(fd, on_ended, arg);
}

/* An id is one namespace's: who had it has ended, though that event may be lost, or be late. */
static void end_namesakes(struct redirect *r, int id)
{
	for (size_t i = 0; i < KNOWN_BUCKETS; i++)
		for (struct known_pod *known = r->pods[i]; known; known = known->next)
			if (id >= 0 && known->namespace_id == id && !known->has_ended) {
				known->has_ended = true;
				tell_ended(r);
			}
}

static struct known_pod *known_new(struct redirect *r, uint64_t cookie, int netns_fd)
{
	struct known_pod *known = calloc(1, sizeof(*known));
	struct error ignored = {0};

	if (!known)
		return NULL;
	known->cookie = cookie;
	known->engine = ENGINE_NONE;
	if (netns_fd < 0 || netlink_namespace_id(netns_fd, &known->namespace_id, &ignored))
		known->namespace_id = -1;
	/* What had this id before is to be told apart before there are two of them. */
	if (r->ended_fd >= 0)
		netlink_ended_read(r->ended_fd, on_ended, r);
	end_namesakes(r, known->namespace_id);
	known->next = r->pods[cookie % KNOWN_BUCKETS];
	r->pods[cookie % KNOWN_BUCKETS] = known;
	return known;
}

static void forget(struct redirect *r, uint64_t cookie)
{
	struct known_pod **link = &r->pods[cookie % KNOWN_BUCKETS], *known;

	while (*link && (*link)->cookie != cookie)
		link = &(*link)->next;
	known = *link;
	if (!known)
		return;
	*link = known->next;
	free(known);
}

static size_t count_pods(const struct redirect *r, enum engine_id id, bool draining)
{
	size_t n = 0;

	for (size_t i = 0; i < KNOWN_BUCKETS; i++)
		for (const struct known_pod *known = r->pods[i]; known; known = known->next)
			n += known->engine == id || (draining && (known->draining & (1u << id)));
	return n;
}

/* ---- engines -------------------------------------------------------------------------------- */

/* What the node lacks stays so; what it had too little of for a moment does not. */
static bool is_lasting(int code)
{
	switch (code) {
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOBUFS:
	case EAGAIN:
	case EINTR:
	case ETIMEDOUT:
		return false;
	default:
		return true;
	}
}

static int open_engine(struct redirect *r, enum engine_id id, struct error *err)
{
	struct engine *engine = &r->engines[id];
	int result;

	if (engine->state)
		return 0;
	if (engine->failed) {
		*err = engine->why;
		return -err->code;
	}
	result = engine_ops[id]->open(r->cfg, r->loop, &engine->state, err);
	if (result) {
		engine->state = NULL;
		engine->failed = is_lasting(err->code);
		engine->why = *err;
	}
	return result;
}

static void leave_node(struct redirect *r, enum engine_id id)
{
	struct engine *engine = &r->engines[id];
	struct error ignored = {0};

	engine->ops->close(engine->state);
	engine->state = NULL;
	if (engine->ops->is_installed)
		engine->ops->uninstall(r->cfg, NULL, 0, &ignored);
}

/* Does it redirect, and not only load? One that has pods already has shown that it does. */
static int test_engine(struct redirect *r, enum engine_id id, struct error *err)
{
	struct engine *engine = &r->engines[id];
	char cgroup[PATH_MAX] = "";
	struct selftest_result test = {0};
	struct error ignored = {0};

	if (id == ENGINE_EBPF &&
	    cgroup_attach_dir(r->cfg->cgroup_root, cgroup, sizeof(cgroup), err))
		return -err->code;
	/* Where there can be no scratch namespaces nothing is known, and pods will tell. */
	if (redirect_selftest(engine->ops, engine->state, *cgroup ? cgroup : NULL, &test,
			      &ignored) ||
	    test.passed)
		return 0;
	leave_node(r, id);
	engine->failed = true;
	error_set(&engine->why, EOPNOTSUPP, "its self-test failed: %s", test.detail);
	*err = engine->why;
	return -err->code;
}

static bool is_installed(const struct redirect *r, enum engine_id id, uint64_t cookie)
{
	const struct redirect_engine_ops *ops = engine_ops[id];

	return ops->is_installed && ops->is_installed(r->cfg, cookie);
}

static int try_engine(struct redirect *r, enum engine_id id, struct error *err)
{
	bool had_pods = is_installed(r, id, 0);
	const struct redirect_engine_ops *ops = engine_ops[id];
	struct error ignored = {0};
	int result = open_engine(r, id, err);

	if (!had_pods && !result)
		result = test_engine(r, id, err);
	else if (!had_pods && result != -EBUSY && ops->is_installed)
		ops->uninstall(r->cfg, NULL, 0, &ignored); /* directories, a mount */
	return result;
}

static void add_reason(struct redirect *r, const char *name, const struct error *why)
{
	char text[sizeof(why->text) + 64];
	size_t used = strlen(r->reason);

	snprintf(r->reason + used, sizeof(r->reason) - used, "%s%s%s%s", used ? "; " : "", name,
		 why ? ": " : "", why ? error_format(why, text, sizeof(text)) : " works here");
}

static int choose_for_node(struct redirect *r, struct error *err)
{
	struct error why = {0};

	for_each_engine (id) {
		int result = try_engine(r, id, &why);

		/* Another agent's: two of them on one node's pods would undo each other. */
		if (result == -EBUSY || result == -ENOMEM) {
			*err = why;
			return error_wrap(err, "engine %s", engine_ops[id]->name);
		}
		add_reason(r, engine_ops[id]->name, result ? &why : NULL);
		if (result)
			continue;
		r->preferred = id;
		return 0;
	}
	return error_set(err, EOPNOTSUPP, "no engine can redirect on this node: %s", r->reason);
}

static int use_forced(struct redirect *r, enum engine_id id, struct error *err)
{
	int result = try_engine(r, id, err);

	if (result)
		return error_wrap(err, "engine %s", engine_ops[id]->name);
	r->preferred = id;
	r->forced = true;
	snprintf(r->reason, sizeof(r->reason), "asked for by --mode");
	return 0;
}

/* Its pods move to the preferred engine, one by one; that it cannot be opened is said for each. */
static int open_left_engine(struct redirect *r, struct error *err)
{
	struct error why = {0};
	int result;

	if (r->preferred == ENGINE_EBPF)
		return 0;
	result = is_installed(r, ENGINE_EBPF, 0)
			 ? open_engine(r, ENGINE_EBPF, &why)
			 : r->engines[ENGINE_EBPF].ops->uninstall(r->cfg, NULL, 0, &why);
	if (result == -EBUSY) {
		*err = why;
		return error_wrap(err, "engine %s", r->engines[ENGINE_EBPF].ops->name);
	}
	return result ? 0 : redirect_drain_watch(r, err);
}

static int watch_ended(struct redirect *r, struct error *err)
{
	int result = netlink_ended_open(&r->ended_fd, err);

	return result ? result
		      : event_loop_add_fd(r->loop, r->ended_fd, EPOLLIN, on_ended_ready, r,
					  &r->ended_source, err);
}

int redirect_open(const struct redirect_config *cfg, struct event_loop *loop, struct redirect **ret,
		  struct error *err)
{
	static const enum engine_id forced[] = {[REDIRECT_EBPF] = ENGINE_EBPF,
						[REDIRECT_NFTABLES] = ENGINE_NFTABLES,
						[REDIRECT_IPTABLES] = ENGINE_IPTABLES};
	struct redirect *r = calloc(1, sizeof(*r));
	int result;

	if (!r)
		return error_set(err, ENOMEM, "open the redirect engine");
	r->cfg = cfg;
	r->loop = loop;
	r->ended_fd = -1;
	for_each_engine (id)
		r->engines[id].ops = engine_ops[id];
	result = watch_ended(r, err);
	if (result) {
		redirect_close(r);
		return result;
	}
	if (cfg->mode == REDIRECT_AUTO)
		result = choose_for_node(r, err);
	else
		result = use_forced(r, forced[cfg->mode], err);
	if (!result)
		result = open_left_engine(r, err);
	if (result) {
		redirect_close(r);
		return result;
	}
	*ret = r;
	return 0;
}

void redirect_close(struct redirect *r)
{
	if (!r)
		return;
	event_loop_remove(r->drain_source);
	event_loop_remove(r->ended_source);
	event_loop_remove(r->ended_timer);
	scoped_close(&r->ended_fd);
	for_each_engine (id)
		if (r->engines[id].state)
			engine_ops[id]->close(r->engines[id].state);
	for (size_t i = 0; i < KNOWN_BUCKETS; i++)
		while (r->pods[i])
			forget(r, r->pods[i]->cookie);
	free(r);
}

bool redirect_close_unused(struct redirect *r)
{
	if (r->preferred == ENGINE_EBPF || !r->engines[ENGINE_EBPF].state)
		return true;
	/* It may have pods that nobody could take over: they are redirected by it all the same. */
	if (count_pods(r, ENGINE_EBPF, true) || is_installed(r, ENGINE_EBPF, 0))
		return false;
	leave_node(r, ENGINE_EBPF);
	return true;
}

const char *redirect_engine(const struct redirect *r)
{
	return r->engines[r->preferred].ops->name;
}

const char *redirect_reason(const struct redirect *r)
{
	return r->reason;
}

const char *redirect_pod_engine(const struct redirect *r, uint64_t cookie)
{
	const struct known_pod *known = redirect_known(r, cookie);

	return known && known->engine != ENGINE_NONE ? r->engines[known->engine].ops->name : "none";
}

const char *redirect_pod_engine_reason(const struct redirect *r, uint64_t cookie)
{
	const struct known_pod *known = redirect_known(r, cookie);

	return known ? known->reason : NULL;
}

size_t redirect_pod_draining(const struct redirect *r, uint64_t cookie,
			     const char *ret_names[static REDIRECT_ENGINES])
{
	const struct known_pod *known = redirect_known(r, cookie);
	size_t n = 0;

	for_each_engine (id)
		if (known && (known->draining & (1u << id)))
			ret_names[n++] = engine_ops[id]->name;
	return n;
}

/* ---- which engine for a pod ----------------------------------------------------------------- */

static int choose_for_pod(struct redirect *r, const struct redirect_plan *plan, enum engine_id *ret,
			  const char **ret_reason, struct error *err)
{
	const char *why = r->engines[r->preferred].ops->cannot(plan);
	struct error last = {0};

	*ret = r->preferred;
	*ret_reason = why;
	if (!why)
		return 0;
	if (r->forced)
		return error_set(err, ENOTSUP, "--mode %s: %s", redirect_engine(r), why);
	for_each_engine (id) {
		if (id == r->preferred || engine_ops[id]->cannot(plan) || open_engine(r, id, &last))
			continue;
		*ret = id;
		return 0;
	}
	return error_set(err, ENOTSUP, "%.150s, and this node has no other engine: %.100s", why,
			 last.text);
}

/*
 * The same for a pod that has an engine already: one that --mode would not give it now stays and is
 * looked after, because without it the pod would go past its proxy.
 */
static int choose_for_known(struct redirect *r, const struct known_pod *known,
			    const struct redirect_plan *plan, enum engine_id *ret,
			    const char **ret_reason, struct error *err)
{
	int result = choose_for_pod(r, plan, ret, ret_reason, err);

	if (result != -ENOTSUP || !known || known->engine == ENGINE_NONE)
		return result;
	if (engine_ops[known->engine]->cannot(plan))
		return result;
	*ret = known->engine;
	return 0;
}

/* What an earlier agent left there; also sets what still drains. */
static int find_engine(struct redirect *r, struct known_pod *known, int netns_fd, struct error *err)
{
	for_each_engine (id) {
		struct engine *engine = &r->engines[id];
		enum redirect_presence found = REDIRECT_ABSENT;
		int result = 0;

		if (id == ENGINE_EBPF && !engine->state) {
			if (!is_installed(r, id, known->cookie))
				continue;
			*err = engine->why;
			return error_wrap(err,
					  "eBPF programs that this agent cannot change have it");
		}
		if (engine->ops->presence(engine->state, known->cookie, netns_fd, &found, err))
			return -err->code;
		if (found == REDIRECT_ABSENT)
			continue;
		result = open_engine(r, id, err);
		if (!result && found == REDIRECT_PARTIAL)
			result = engine->ops->remove(engine->state, known->cookie, netns_fd, err);
		if (result)
			return error_wrap(err, "%s, which redirects the pod", engine->ops->name);
		/* A second active one is what a move that was cut short has left. */
		if (found == REDIRECT_ACTIVE && known->engine == ENGINE_NONE)
			known->engine = id;
		else if (found != REDIRECT_PARTIAL)
			redirect_drain_resume(r, known, id);
	}
	return 0;
}

struct known_pod *redirect_find(struct redirect *r, const struct redirect_pod *pod,
				struct error *err)
{
	struct known_pod *known = redirect_known(r, pod->cookie);

	if (known)
		return known;
	known = known_new(r, pod->cookie, pod->netns_fd);
	if (!known)
		error_set(err, ENOMEM, "remember the pod");
	else if (!find_engine(r, known, pod->netns_fd, err))
		return known;
	forget(r, pod->cookie);
	return NULL;
}

static void forget_unused(struct redirect *r, const struct known_pod *known, bool was_known)
{
	if (!was_known && known->engine == ENGINE_NONE && !known->draining)
		forget(r, known->cookie);
}

static struct redirect_pod as_known(const struct known_pod *known, const struct redirect_pod *pod)
{
	struct redirect_pod now = *pod;

	now.beside_ebpf = known->beside_ebpf;
	return now;
}

int redirect_apply(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	struct known_pod *known;
	struct redirect_pod now;
	const char *reason;
	enum engine_id to;
	bool was_known = redirect_known(r, pod->cookie);
	int result;

	known = redirect_find(r, pod, err);
	if (!known)
		return -err->code;
	result = choose_for_known(r, known, pod->plan, &to, &reason, err);
	if (result) {
		forget_unused(r, known, was_known);
		return result;
	}
	now = as_known(known, pod);
	if (known->engine != ENGINE_NONE && known->engine != to) {
		result = redirect_move(r, known, pod, to, err);
	} else {
		result = r->engines[to].ops->apply(r->engines[to].state, &now, err);
		if (!result) {
			known->engine = to;
			known->draining &= ~(1u << to);
		}
	}
	if (result) {
		forget_unused(r, known, was_known);
		return result;
	}
	r->fallbacks += reason && !known->reason;
	known->reason = reason;
	return 0;
}

/* Each engine that may have something; one that fails does not keep the others from ending. */
int redirect_remove(struct redirect *r, uint64_t cookie, int netns_fd, struct error *err)
{
	const struct known_pod *known = redirect_known(r, cookie);
	struct error first = {0};

	for_each_engine (id) {
		struct engine *engine = &r->engines[id];
		struct error why = {0};
		bool maybe = !known || known->engine == id || (known->draining & (1u << id));

		if (!engine->state || !maybe)
			continue;
		if (engine->ops->remove(engine->state, cookie, netns_fd, &why) && !first.code)
			first = why;
	}
	if (first.code) {
		*err = first;
		return -err->code;
	}
	forget(r, cookie);
	return 0;
}

int redirect_verify(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	const struct known_pod *known = redirect_known(r, pod->cookie);
	struct redirect_pod now;

	if (!known || known->engine == ENGINE_NONE)
		return error_set(err, ENODEV, "no engine has the pod");
	now = as_known(known, pod);
	return r->engines[known->engine].ops->verify(r->engines[known->engine].state, &now, err);
}

int redirect_heal(struct redirect *r, const struct redirect_pod *pod, enum redirect_healing *ret,
		  struct error *ret_why, struct error *err)
{
	const struct known_pod *known = redirect_known(r, pod->cookie);
	enum redirect_healing found = REDIRECT_HEALED;
	const char *from = redirect_pod_engine(r, pod->cookie), *reason;
	enum engine_id to;
	int result = choose_for_known(r, known, pod->plan, &to, &reason, err);

	if (result)
		return result;
	if (known && known->engine != ENGINE_NONE && known->engine != to) {
		found = REDIRECT_MOVED;
	} else {
		result = redirect_verify(r, pod, ret_why);
		if (!result) {
			*ret = REDIRECT_AS_PLANNED;
			return 0;
		}
		if (result != -ENODEV) {
			*err = *ret_why;
			*ret_why = (struct error){0};
			return result;
		}
	}
	result = redirect_apply(r, pod, err);
	if (result) {
		r->heal_failures += found == REDIRECT_HEALED;
		return result;
	}
	if (found == REDIRECT_MOVED)
		error_set(ret_why, ENODEV, "%s redirects it, and %s is to", from,
			  engine_ops[to]->name);
	r->healed += found == REDIRECT_HEALED;
	*ret = found;
	return 0;
}

/* ---- restart -------------------------------------------------------------------------------- */

struct scan {
	struct redirect *redirect;
	uint64_t *cookies;
	size_t n, max;
};

static int add_cookie(struct scan *scan, uint64_t cookie, struct error *err)
{
	for (size_t i = 0; i < scan->n; i++)
		if (scan->cookies[i] == cookie)
			return 0;
	if (scan->n == scan->max) {
		size_t max = scan->max ? scan->max * 2 : 64;
		uint64_t *grown = reallocarray(scan->cookies, max, sizeof(*grown));

		if (!grown)
			return error_set(err, ENOMEM, "list the pods in the kernel");
		scan->cookies = grown;
		scan->max = max;
	}
	scan->cookies[scan->n++] = cookie;
	return 0;
}

/* Of other agents' pods, and of namespaces that cannot be looked into, nothing is ours. */
static int scan_namespace(int netns_fd, void *arg, struct error *err)
{
	struct scan *scan = arg;
	struct redirect *r = scan->redirect;
	struct known_pod *known;
	struct error ignored = {0};
	struct netns_id id;
	bool ours = false;

	for_each_engine (engine)
		ours |= r->engines[engine].ops->is_ours &&
			r->engines[engine].ops->is_ours(r->cfg, netns_fd);
	if (!ours || netns_identify(netns_fd, &id, &ignored) || redirect_known(r, id.cookie))
		return 0;
	/* Whoever may make a namespace can make it look like ours: it costs a bounded amount. */
	if (scan->n >= 2ul * r->cfg->max_pods)
		return 0;
	known = known_new(r, id.cookie, netns_fd);
	if (!known)
		return error_set(err, ENOMEM, "remember a pod");
	if (find_engine(r, known, netns_fd, &ignored) ||
	    (known->engine == ENGINE_NONE && !known->draining)) {
		forget(r, id.cookie);
		return 0;
	}
	return add_cookie(scan, id.cookie, err);
}

static int recover_ebpf(struct redirect *r, struct scan *scan, struct error *err)
{
	struct engine *engine = &r->engines[ENGINE_EBPF];
	scoped_free uint64_t *cookies = NULL;
	size_t n = 0;
	int result = engine->ops->recovered(engine->state, &cookies, &n, err);

	for (size_t i = 0; !result && i < n; i++)
		result = add_cookie(scan, cookies[i], err);
	return result;
}

/* Of engines that an earlier agent had, and that no pod needs any more. */
static void leave_host(struct redirect *r)
{
	for_each_engine (id) {
		const struct redirect_engine_ops *ops = engine_ops[id];
		struct error err = {0};

		if (ops->leave_host && !r->engines[id].state && !count_pods(r, id, true) &&
		    ops->leave_host(r->cfg, &err))
			log_error(LOG_WARN, &err, "what an engine kept on this host is not removed",
				  "engine", ops->name, NULL);
	}
}

int redirect_recovered(struct redirect *r, uint64_t **ret_cookies, size_t *ret_n, struct error *err)
{
	struct scan scan = {.redirect = r};
	int result = 0;

	if (r->engines[ENGINE_EBPF].state)
		result = recover_ebpf(r, &scan, err);
	if (!result)
		result = netns_each(scan_namespace, &scan, err);
	if (result) {
		free(scan.cookies);
		return result;
	}
	leave_host(r);
	*ret_cookies = scan.cookies;
	*ret_n = scan.n;
	return 0;
}

int redirect_adopt(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	struct known_pod *known = redirect_find(r, pod, err);
	const struct engine *engine;
	enum engine_id to;

	if (!known)
		return -err->code;
	if (known->engine == ENGINE_NONE)
		return error_set(err, ENODEV, "no engine has the pod");
	/* Only for people: that nothing can do the plan any more is said when the pod is applied.
	 */
	if (choose_for_known(r, known, pod->plan, &to, &known->reason, err))
		known->reason = NULL;
	engine = &r->engines[known->engine];
	return engine->ops->adopt ? engine->ops->adopt(engine->state, pod, err) : 0;
}

bool redirect_netns_gone(struct redirect *r, uint64_t cookie)
{
	const struct known_pod *known = redirect_known(r, cookie);
	const struct engine *ebpf = &r->engines[ENGINE_EBPF];

	if (known && known->has_ended)
		return true;
	/* What this agent cannot look into may live. */
	if (!ebpf->state && is_installed(r, ENGINE_EBPF, cookie))
		return false;
	if (ebpf->state && !ebpf->ops->netns_gone(ebpf->state, cookie))
		return false;
	if (!known || known->namespace_id < 0)
		return true;
	return redirect_known_ended(known);
}

/* ---- questions ------------------------------------------------------------------------------ */

static bool lists_address(int netns_fd, const struct ip_address *a)
{
	scoped_free struct ip_address *list = NULL;
	struct error ignored = {0};
	size_t n = 0;

	if (netlink_list_addresses(netns_fd, &list, &n, &ignored))
		return false;
	for (size_t i = 0; i < n; i++)
		if (ip_address_equal(&list[i], a))
			return true;
	return false;
}

bool redirect_address_is_local(struct redirect *r, uint64_t cookie, const struct ip_address *a)
{
	const struct known_pod *known = redirect_known(r, cookie);
	scoped_fd int fd = -1;

	if (!known || known->engine == ENGINE_NONE)
		return false;
	if (r->engines[known->engine].ops->address_is_local)
		return r->engines[known->engine].ops->address_is_local(
			r->engines[known->engine].state, cookie, a);
	fd = open_netns(r, cookie);
	return fd >= 0 && lists_address(fd, a);
}

json_t *redirect_pod_counters(struct redirect *r, uint64_t cookie)
{
	const struct known_pod *known = redirect_known(r, cookie);
	scoped_fd int fd = -1;

	if (!known || known->engine == ENGINE_NONE)
		return NULL;
	fd = open_netns(r, cookie);
	return r->engines[known->engine].ops->pod_counters(r->engines[known->engine].state, cookie,
							   fd);
}

json_t *redirect_node_counters(struct redirect *r)
{
	const struct engine *ebpf = &r->engines[ENGINE_EBPF];
	json_t *counters = ebpf->state ? ebpf->ops->node_counters(ebpf->state) : json_object();
	json_t *pods = json_object();

	if (!counters || !pods) {
		json_decref(counters);
		json_decref(pods);
		return NULL;
	}
	for_each_engine (id)
		json_object_set_new(pods, engine_ops[id]->name,
				    json_integer((json_int_t)count_pods(r, id, false)));
	json_object_set_new(counters, "engines", pods);
	json_object_set_new(counters, "healed", json_integer((json_int_t)r->healed));
	json_object_set_new(counters, "healFailures", json_integer((json_int_t)r->heal_failures));
	json_object_set_new(counters, "moves", json_integer((json_int_t)r->moves));
	json_object_set_new(counters, "fallbacks", json_integer((json_int_t)r->fallbacks));
	return counters;
}

json_t *redirect_kubelet(const struct redirect *r)
{
	const struct engine *engine = &r->engines[r->preferred];
	struct kubelet kubelet = {0};
	enum kubelet_known known = engine->ops->kubelet(engine->state, &kubelet);

	return kubelet_json(&kubelet, known);
}

bool redirect_accelerate_host(const struct redirect *r, struct accelerate_host *ret)
{
	const struct engine *engine = &r->engines[r->preferred];

	return engine->ops->accelerate_host && engine->ops->accelerate_host(engine->state, ret);
}

/* Every engine looks for what it may have left, whichever ran last. */
int redirect_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
		       size_t n_pods, struct error *err)
{
	struct error first = {0};

	for_each_engine (id) {
		struct error why = {0};

		if (engine_ops[id]->uninstall(cfg, pods, n_pods, &why) && !first.code) {
			first = why;
			error_wrap(&first, "engine %s", engine_ops[id]->name);
		}
	}
	*err = first;
	return -first.code;
}
