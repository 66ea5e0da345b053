/* SPDX-License-Identifier: Apache-2.0 */
#include "probe_snat.h"

#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "monotonic.h"
#include "probe_snat_private.h"
#include "redirect.h"
#include "scoped.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

/* VERIFY_PERIOD_MS: the rules are one for all pods, and every pod of a round asks for them. */
enum { VERIFY_PERIOD_MS = 5000, INOTIFY_BUFFER = 4096 };

struct probe_snat {
	const struct redirect_config *cfg;
	struct event_loop *loop;
	const struct snat_backend *backend;
	void *state;
	struct snat_list list;
	struct kubelet kubelet;
	bool knows_kubelet;
	bool stale;	/* the kernel has something else than the list says */
	bool inherited; /* an earlier agent made it, perhaps in another form */
	int64_t verified_ms;
	int inotify_fd;
	struct event_source *watch, *prune;
};

/* ---- lists ----------------------------------------------------------------------------------- */

static void list_done(struct snat_list *list)
{
	free(list->entries);
	*list = (struct snat_list){0};
}
#define scoped_list scoped(list_done)

static struct snat_entry *list_find(const struct snat_list *list, const struct ip_address *address)
{
	for (size_t i = 0; i < list->n; i++)
		if (ip_address_equal(&list->entries[i].address, address))
			return &list->entries[i];
	return NULL;
}

int snat_list_add(struct snat_list *list, const struct snat_entry *entry)
{
	struct snat_entry *grown = reallocarray(list->entries, list->n + 1, sizeof(*list->entries));

	if (!grown)
		return -ENOMEM;
	list->entries = grown;
	grown[list->n++] = *entry;
	return 0;
}

int snat_list_compare(const struct snat_list *found, const struct snat_list *want, bool ipv6,
		      struct error *err)
{
	char text[IP_ADDRESS_TEXT_MAX];
	size_t n = 0;

	for (size_t i = 0; i < want->n; i++) {
		const struct ip_address *address = &want->entries[i].address;

		if (!ipv6 && !ip_address_is_v4(address))
			continue;
		n++;
		if (!list_find(found, address))
			return error_set(err, ENODEV, "%s is missing",
					 ip_address_format(address, text));
	}
	/* Each is there once, on both sides. */
	return found->n == n ? 0 : error_set(err, ENODEV, "there are addresses of no pod of ours");
}

static bool list_has(const struct snat_list *list, const struct snat_entry *entry)
{
	const struct snat_entry *found = list_find(list, &entry->address);

	return found && found->cookie == entry->cookie;
}

/* An address that a pod before had is the new pod's. */
static int list_put(struct snat_list *list, const struct snat_entry *entry)
{
	struct snat_entry *found = list_find(list, &entry->address);

	if (!found)
		return snat_list_add(list, entry);
	found->cookie = entry->cookie;
	return 0;
}

/* What is in `a` and not in `b`. */
static int list_without(const struct snat_list *a, const struct snat_list *b, struct snat_list *ret)
{
	for (size_t i = 0; i < a->n; i++)
		if (!list_has(b, &a->entries[i]) && list_put(ret, &a->entries[i]) < 0)
			return -ENOMEM;
	return 0;
}

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "addresses of ambient pods");
}

/* ---- kubelet --------------------------------------------------------------------------------- */

static struct snat_rules rules_for(const struct probe_snat *snat, const struct kubelet *k)
{
	struct snat_rules rules = {.who = SNAT_USER, .kubelet = k};
	bool by_cgroup = k->source == KUBELET_GIVEN || k->source == KUBELET_CGROUP;

	if (by_cgroup && snat->backend->can_match_cgroup(snat->state)) {
		if (!k->cgroup_id)
			rules.who = SNAT_NOBODY;
		else if (k->level)
			rules.who = SNAT_CGROUP;
	}
	return rules;
}

static struct snat_rules rules_of(const struct probe_snat *snat)
{
	return rules_for(snat, &snat->kubelet);
}

enum kubelet_known probe_snat_kubelet(struct probe_snat *snat, struct kubelet *ret)
{
	static const enum kubelet_known known[] = {[SNAT_NOBODY] = KUBELET_KNOWN_NOT,
						   [SNAT_CGROUP] = KUBELET_KNOWN_CGROUP,
						   [SNAT_USER] = KUBELET_KNOWN_USER};
	struct error ignored = {0};

	*ret = (struct kubelet){.source = KUBELET_UNKNOWN};
	kubelet_find(snat->cfg->kubelet_cgroup, snat->cfg->cgroup_root, ret, &ignored);
	return known[rules_for(snat, ret).who];
}

static void say_who(const struct probe_snat *snat)
{
	struct snat_rules rules = rules_of(snat);
	const struct kubelet *k = &snat->kubelet;
	char uid[16];

	snprintf(uid, sizeof(uid), "%u", k->uid);
	if (rules.who == SNAT_NOBODY)
		log_write(LOG_WARN,
			  "kubelet's cgroup is not there: its probes are exempt from redirection "
			  "when it is",
			  "engine", snat->backend->name, "cgroup", k->cgroup, NULL);
	else if (rules.who == SNAT_CGROUP)
		log_write(LOG_INFO, "kubelet's probes are known by its cgroup", "engine",
			  snat->backend->name, "cgroup", k->cgroup, "why",
			  kubelet_source_words(k->source), NULL);
	else
		log_write(LOG_INFO,
			  "kubelet's probes are known by their user: every process of it on this "
			  "node reaches ambient pods directly",
			  "engine", snat->backend->name, "uid", uid, "why",
			  *k->cgroup ? "its cgroup cannot be matched here"
				     : kubelet_source_words(k->source),
			  NULL);
}

static bool same_kubelet(const struct kubelet *a, const struct kubelet *b)
{
	return a->source == b->source && a->cgroup_id == b->cgroup_id && a->level == b->level &&
	       a->uid == b->uid && !strcmp(a->cgroup, b->cgroup);
}

static void on_cgroup(int fd, uint32_t events, void *arg);

/* A service that starts again gets a new cgroup of the same name: its parent is watched. */
static void watch_cgroup(struct probe_snat *snat)
{
	struct error ignored = {0};
	char parent[PATH_MAX], *slash;

	event_loop_remove(snat->watch);
	snat->watch = NULL;
	scoped_close(&snat->inotify_fd);
	snat->inotify_fd = -1;
	if (!*snat->kubelet.cgroup || !snat->loop)
		return;
	snprintf(parent, sizeof(parent), "%s", snat->kubelet.cgroup);
	for (slash = strrchr(parent, '/'); slash && !slash[1] && slash > parent;
	     slash = strrchr(parent, '/'))
		*slash = '\0';
	if (!slash || slash == parent)
		return;
	*slash = '\0';
	snat->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	/* Without it the next round of the reconciler sees the change. */
	if (snat->inotify_fd < 0 ||
	    inotify_add_watch(snat->inotify_fd, parent, IN_CREATE | IN_DELETE | IN_ONLYDIR) < 0 ||
	    event_loop_add_fd(snat->loop, snat->inotify_fd, EPOLLIN, on_cgroup, snat, &snat->watch,
			      &ignored))
		snat->watch = NULL;
}

/* Whether it is another one than before. */
static bool find_kubelet(struct probe_snat *snat)
{
	struct kubelet now = {.source = KUBELET_UNKNOWN};
	struct error err = {0};
	bool moved;

	if (kubelet_find(snat->cfg->kubelet_cgroup, snat->cfg->cgroup_root, &now, &err))
		log_error(LOG_WARN, &err, "cannot find kubelet", NULL);
	if (snat->knows_kubelet && same_kubelet(&now, &snat->kubelet))
		return false;
	moved = !snat->knows_kubelet || strcmp(now.cgroup, snat->kubelet.cgroup) != 0;
	snat->kubelet = now;
	snat->knows_kubelet = true;
	if (moved)
		watch_cgroup(snat);
	say_who(snat);
	return true;
}

/* ---- into the kernel ------------------------------------------------------------------------- */

static int replace(struct probe_snat *snat, const struct snat_list *want, struct error *err)
{
	const struct snat_rules rules = rules_of(snat);
	int r = snat->backend->replace(snat->state, &rules, want, err);

	snat->stale = r != 0;
	snat->inherited &= r != 0;
	return r ? error_wrap(err, "kubelet's probes") : 0;
}

static int change(struct probe_snat *snat, const struct snat_list *want, struct error *err)
{
	scoped_list struct snat_list gone = {0}, come = {0};
	const struct snat_rules rules = rules_of(snat);
	struct error ignored = {0};

	if (list_without(&snat->list, want, &gone) < 0 ||
	    list_without(want, &snat->list, &come) < 0)
		return no_memory(err);
	if (gone.n == 0 && come.n == 0)
		return 0;
	/* What somebody else has changed there is no reason to fail. */
	if (want->n > 0 && snat->list.n > 0 &&
	    !snat->backend->change(snat->state, &rules, &gone, &come, &ignored))
		return 0;
	return replace(snat, want, err);
}

/* Takes over the list. */
static int become(struct probe_snat *snat, struct snat_list *want, struct error *err)
{
	bool other_kubelet = want->n > 0 && !snat->knows_kubelet && find_kubelet(snat);
	int r;

	if (snat->stale || snat->inherited || (other_kubelet && snat->list.n > 0))
		r = replace(snat, want, err);
	else
		r = change(snat, want, err);
	if (r)
		return r;
	list_done(&snat->list);
	snat->list = *want;
	*want = (struct snat_list){0};
	return 0;
}

static void on_cgroup(int fd, uint32_t events, void *arg)
{
	struct probe_snat *snat = arg;
	char buf[INOTIFY_BUFFER];
	struct error err = {0};

	(void)events;
	while (read(fd, buf, sizeof(buf)) > 0)
		;
	if (find_kubelet(snat) && snat->list.n > 0 && replace(snat, &snat->list, &err))
		log_error(LOG_WARN, &err, "cannot follow kubelet's cgroup", NULL);
}

/* ---- pods ------------------------------------------------------------------------------------ */

static bool is_captured_inbound(const struct redirect_plan *plan)
{
	for (size_t i = 0; i < plan->n_inbound; i++)
		if (plan->inbound[i].id == RULE_IN_ALL)
			return true;
	return false;
}

static bool needs_entry(const struct redirect_pod *pod, size_t i)
{
	return pod->plan && pod->plan->ambient && is_captured_inbound(pod->plan) &&
	       (pod->plan->capture_ipv6 || ip_address_is_v4(&pod->addresses[i]));
}

/* The list with this pod's entries being these. */
static int list_with(const struct probe_snat *snat, uint64_t cookie, const struct redirect_pod *pod,
		     struct snat_list *ret)
{
	for (size_t i = 0; i < snat->list.n; i++)
		if (snat->list.entries[i].cookie != cookie &&
		    list_put(ret, &snat->list.entries[i]) < 0)
			return -ENOMEM;
	for (size_t i = 0; pod && i < pod->n_addresses; i++) {
		struct snat_entry entry = {pod->addresses[i], cookie};

		if (needs_entry(pod, i) && list_put(ret, &entry) < 0)
			return -ENOMEM;
	}
	return 0;
}

static int set_pod(struct probe_snat *snat, uint64_t cookie, const struct redirect_pod *pod,
		   struct error *err)
{
	scoped_list struct snat_list want = {0};

	if (list_with(snat, cookie, pod, &want) < 0)
		return no_memory(err);
	return become(snat, &want, err);
}

int probe_snat_pod(struct probe_snat *snat, const struct redirect_pod *pod, struct error *err)
{
	return set_pod(snat, pod->cookie, pod, err);
}

int probe_snat_drop(struct probe_snat *snat, uint64_t cookie, struct error *err)
{
	return set_pod(snat, cookie, NULL, err);
}

static int verify_kernel(struct probe_snat *snat, struct error *err)
{
	const struct snat_rules rules = rules_of(snat);
	int64_t now_ms = monotonic_ms();
	int r;

	if (snat->stale)
		return error_set(err, ENODEV, "kubelet's probes: the kernel's rules are old");
	/* What was inherited is made anew as soon as the loop runs. */
	if (snat->list.n == 0 || snat->inherited ||
	    (snat->verified_ms && now_ms - snat->verified_ms < VERIFY_PERIOD_MS))
		return 0;
	if (find_kubelet(snat)) {
		snat->stale = true;
		return error_set(err, ENODEV, "kubelet's probes: kubelet is another one now");
	}
	r = snat->backend->verify(snat->state, &rules, &snat->list, err);
	if (r == -ENODEV)
		snat->stale = true;
	else if (!r)
		snat->verified_ms = now_ms;
	return r ? error_wrap(err, "kubelet's probes") : 0;
}

int probe_snat_verify(struct probe_snat *snat, const struct redirect_pod *pod, struct error *err)
{
	scoped_list struct snat_list want = {0}, gone = {0}, come = {0};
	char text[IP_ADDRESS_TEXT_MAX];

	if (list_with(snat, pod->cookie, pod, &want) < 0 ||
	    list_without(&snat->list, &want, &gone) < 0 ||
	    list_without(&want, &snat->list, &come) < 0)
		return no_memory(err);
	if (come.n)
		return error_set(err, ENODEV, "kubelet's probes: %s is not noted",
				 ip_address_format(&come.entries[0].address, text));
	if (gone.n)
		return error_set(err, ENODEV, "kubelet's probes: %s is noted, and need not be",
				 ip_address_format(&gone.entries[0].address, text));
	return want.n ? verify_kernel(snat, err) : 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

static int see_pod(const struct redirect_pod *pod, void *arg, struct error *err)
{
	(void)pod;
	(void)err;
	*(bool *)arg = true;
	return 0;
}

static bool pod_is_known(const struct redirect_config *cfg, uint64_t cookie)
{
	struct error err = {0};
	bool seen = false;
	int r = cfg->visit_pod(cfg->pods_arg, cookie, see_pod, &seen, &err);

	/* One that cannot be looked at just now is not one that is not there. */
	return seen || (r && r != -ENOENT);
}

/* By now the pods of the agent before this one are known again, as far as they live. */
static void on_prune(void *arg)
{
	struct probe_snat *snat = arg;
	scoped_list struct snat_list want = {0};
	struct error err = {0};
	int r = 0;

	snat->prune = NULL;
	for (size_t i = 0; !r && i < snat->list.n; i++)
		if (pod_is_known(snat->cfg, snat->list.entries[i].cookie))
			r = list_put(&want, &snat->list.entries[i]);
	if (!r)
		r = become(snat, &want, &err);
	else
		no_memory(&err);
	if (r)
		log_error(LOG_WARN, &err, "cannot forget addresses of pods that are gone", NULL);
}

static const struct snat_backend *backend_of(enum probe_snat_kind kind)
{
	return kind == PROBE_SNAT_NFTABLES ? &snat_nftables : &snat_iptables;
}

static int take_over(struct probe_snat *snat, struct error *err)
{
	int r = snat->backend->load(snat->state, &snat->list, &snat->inherited, err);

	if (r || (snat->list.n == 0 && !snat->inherited))
		return r;
	if (snat->cfg->visit_pod && snat->loop)
		r = event_loop_add_timer(snat->loop, 0, 0, on_prune, snat, &snat->prune, err);
	return r;
}

int probe_snat_open(enum probe_snat_kind kind, const struct redirect_config *cfg,
		    struct event_loop *loop, struct probe_snat **ret, struct error *err)
{
	struct probe_snat *snat = calloc(1, sizeof(*snat));
	int r;

	if (!snat)
		return no_memory(err);
	snat->cfg = cfg;
	snat->loop = loop;
	snat->backend = backend_of(kind);
	snat->inotify_fd = -1;
	r = snat->backend->open(cfg, kind, &snat->state, err);
	if (!r)
		r = take_over(snat, err);
	if (r) {
		probe_snat_close(snat);
		return error_wrap(err, "kubelet's probes");
	}
	*ret = snat;
	return 0;
}

void probe_snat_close(struct probe_snat *snat)
{
	if (!snat)
		return;
	event_loop_remove(snat->watch);
	event_loop_remove(snat->prune);
	scoped_close(&snat->inotify_fd);
	if (snat->state)
		snat->backend->close(snat->state);
	list_done(&snat->list);
	free(snat);
}

int probe_snat_uninstall(enum probe_snat_kind kind, const struct redirect_config *cfg,
			 struct error *err)
{
	return backend_of(kind)->uninstall(cfg, err);
}
