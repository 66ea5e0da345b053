/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The engine for nodes without nf_tables, or where everybody else uses iptables: a plan's netfilter
 * rules given to iptables-restore, per family one run whose tables are each one commit. What is in
 * the pod is always read first, so that an apply that fails goes back to it and one that changes
 * nothing runs nothing. Both backends are looked at, because an earlier agent may have had the
 * other one. iptables_text.c has the notation, iptables_run.c the programs.
 */
#include "conntrack.h"
#include "error.h"
#include "iptables_run.h"
#include "iptables_text.h"
#include "netfilter_join.h"
#include "netfilter_routes.h"
#include "netlink.h"
#include "netns.h"
#include "probe_snat.h"
#include "redirect_engine.h"
#include "scoped.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Chains without rules: notes for the agents after this one. */
#define MARK_DRAINING IPTABLES_CHAIN_PREFIX "DRAINING"
#define MARK_PASSTHROUGH                                                                           \
	IPTABLES_CHAIN_PREFIX "PASSTHROUGH"	     /* ::6 on lo is there because of us           \
						      */
#define MARK_AMBIENT IPTABLES_CHAIN_PREFIX "AMBIENT" /* routes for ambient may be there */
#define MARK_OWNER   IPTABLES_CHAIN_PREFIX "OWNER_%08x"

struct tools {
	struct iptables_programs of[IPTABLES_BACKENDS];
};

struct iptables {
	struct tools tools;
	enum iptables_backend backend;
	bool ipv6, comments;
	uint32_t instance;
	struct probe_snat *snat; /* of ambient pods, in our own namespace */
};

/* Both families of one backend in one pod. */
struct families {
	struct iptables_set of[2];
};

static void families_done(struct families *f)
{
	iptables_set_done(&f->of[0]);
	iptables_set_done(&f->of[1]);
}
#define scoped_families scoped(families_done)

static bool families_have(const struct families *f, const char *chain)
{
	return iptables_set_find(&f->of[0], chain) || iptables_set_find(&f->of[1], chain);
}

static bool families_empty(const struct families *f)
{
	return f->of[0].n == 0 && f->of[1].n == 0;
}

static const char *family_name(bool ipv6)
{
	return ipv6 ? "IPv6" : "IPv4";
}

static bool hooked(const struct iptables_set *set, const char *name)
{
	const struct iptables_chain *chain = iptables_set_find(set, name);

	return chain && chain->n_jumps > 0;
}

/* Nat is the last table to come and the first to go. */
static enum redirect_presence presence_of(const struct families *f)
{
	if (families_empty(f))
		return REDIRECT_ABSENT;
	if (families_have(f, MARK_DRAINING))
		return REDIRECT_DRAINING;
	return hooked(&f->of[0], IPTABLES_CHAIN_PREFIX "NAT_OUTPUT") ? REDIRECT_ACTIVE
								     : REDIRECT_PARTIAL;
}

/* What the kernel has of ours. *ret is to be families_done() even after an error. */
static int look(const struct tools *tools, enum iptables_backend backend, int netns_fd,
		struct families *ret, struct error *err)
{
	const struct iptables_programs *programs = &tools->of[backend];
	bool maybe[2];
	int r = 0;

	*ret = (struct families){0};
	iptables_may_be_there(backend, netns_fd, maybe);
	for (size_t i = 0; !r && i < 2; i++) {
		scoped_free char *saved = NULL;

		/* Of legacy only tables are seen, which need not be ours. */
		if (!maybe[i] || (backend == IPTABLES_LEGACY && !*programs->save[i]))
			continue;
		r = iptables_run_save(programs, i, netns_fd, &saved, err);
		if (!r)
			r = iptables_text_parse(saved, &ret->of[i], err);
	}
	return r;
}

static enum iptables_backend other_than(enum iptables_backend backend)
{
	return backend == IPTABLES_LEGACY ? IPTABLES_NFT : IPTABLES_LEGACY;
}

static int change_family(const struct iptables_programs *programs, int netns_fd, bool ipv6,
			 const struct iptables_set *from, const struct iptables_set *to,
			 struct error *err)
{
	enum iptables_order order = to->n ? IPTABLES_NAT_LAST : IPTABLES_NAT_FIRST;
	scoped_free char *text = NULL;
	int r = iptables_text_change(from, to, order, &text, err);

	if (!r && text)
		r = iptables_run_restore(programs, ipv6, netns_fd, text, err);
	return r ? error_wrap(err, "%s", family_name(ipv6)) : 0;
}

static int change(const struct tools *tools, enum iptables_backend backend, int netns_fd,
		  const struct families *from, const struct families *to, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < 2; i++)
		r = change_family(&tools->of[backend], netns_fd, i, &from->of[i], &to->of[i], err);
	return r;
}

/* After a change that failed somewhere: back to what was there, by what is there now. */
static void put_back(const struct tools *tools, enum iptables_backend backend, int netns_fd,
		     const struct families *before, struct error *err)
{
	scoped_families struct families now = {0};
	struct error why = {0};
	char text[sizeof(why.text)];
	int r = look(tools, backend, netns_fd, &now, &why);

	if (!r)
		r = change(tools, backend, netns_fd, &now, before, &why);
	snprintf(text, sizeof(text), "%s", err->text);
	if (r)
		error_set(err, err->code,
			  "%.300s; what was there before cannot be put back: %.150s", text,
			  why.text);
	else
		error_set(err, err->code, "%.400s; all that was done before it is undone", text);
}

/* ---- opening -------------------------------------------------------------------------------- */

/* Every match and target that the rules of some plan need. */
static const char probe_text[] =
	"*raw\n"
	":SOCKMESH_PROBE - [0:0]\n"
	"-I OUTPUT 1 -j SOCKMESH_PROBE\n"
	"-A SOCKMESH_PROBE -p udp -m udp --dport 53 -m owner --uid-owner 0%s -j CT --zone 1\n"
	"COMMIT\n"
	"*mangle\n"
	":SOCKMESH_PROBE - [0:0]\n"
	":SOCKMESH_PROBE_OUTPUT - [0:0]\n"
	"-I PREROUTING 1 -j SOCKMESH_PROBE\n"
	"-I OUTPUT 1 -j SOCKMESH_PROBE_OUTPUT\n"
	"-A SOCKMESH_PROBE -m conntrack --ctstate INVALID -j DROP\n"
	"-A SOCKMESH_PROBE -p tcp -m mark ! --mark 0x1 -j TPROXY --on-port 1 --on-ip %s"
	" --tproxy-mark 0x1/0xffffffff\n"
	"-A SOCKMESH_PROBE -m mark --mark 0x1 -j CONNMARK --save-mark --nfmask 0xffffffff"
	" --ctmask 0xffffffff\n"
	"-A SOCKMESH_PROBE_OUTPUT -m connmark --mark 0x1 -j MARK --set-xmark 0x1/0xffffffff\n"
	"COMMIT\n"
	"*nat\n"
	":SOCKMESH_PROBE - [0:0]\n"
	":SOCKMESH_PROBE_OUTPUT - [0:0]\n"
	"-I PREROUTING 1 -j SOCKMESH_PROBE\n"
	"-I OUTPUT 1 -j SOCKMESH_PROBE_OUTPUT\n"
	"-A SOCKMESH_PROBE -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN\n"
	"-A SOCKMESH_PROBE -p tcp -m multiport --dports 1,2 -j REDIRECT --to-ports 1\n"
	"-A SOCKMESH_PROBE_OUTPUT -p tcp -m owner --socket-exists ! --uid-owner 0 -j REDIRECT"
	" --to-ports 1\n"
	"COMMIT\n";

static int probe_family(const struct iptables_programs *programs, int netns_fd, bool ipv6,
			bool comments, struct error *err)
{
	char text[sizeof(probe_text) + 64];
	scoped_free char *saved = NULL;
	int r;

	snprintf(text, sizeof(text), probe_text, comments ? " -m comment --comment probe" : "",
		 ipv6 ? "::" : "0.0.0.0");
	r = iptables_run_restore(programs, ipv6, netns_fd, text, err);
	if (r)
		return r;
	r = iptables_run_save(programs, ipv6, netns_fd, &saved, err);
	if (!r && !strstr(saved, ":SOCKMESH_PROBE "))
		r = error_set(err, EIO, "%s does not show what %s made", programs->save[ipv6],
			      programs->restore[ipv6]);
	return r;
}

static bool kernel_has_ipv6(void)
{
	scoped_fd int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	return fd >= 0 || errno != EAFNOSUPPORT;
}

static int probe_all(const struct iptables *ipt, bool comments, struct error *err)
{
	const struct iptables_programs *programs = &ipt->tools.of[ipt->backend];
	scoped_fd int netns_fd = -1;
	int r = netns_new(&netns_fd, err);

	if (!r)
		r = probe_family(programs, netns_fd, false, comments, err);
	if (!r && ipt->ipv6)
		r = probe_family(programs, netns_fd, true, comments, err);
	return r;
}

static int probe_backend(struct iptables *ipt, enum iptables_backend backend, struct error *err)
{
	struct error ignored = {0};
	int r;

	ipt->backend = backend;
	ipt->comments = true;
	if (!*ipt->tools.of[backend].restore[0])
		return error_set(err, ENOENT, "no iptables-restore of the %s backend in PATH",
				 iptables_backend_name(backend));
	r = probe_all(ipt, true, err);
	if (r && !probe_all(ipt, false, &ignored)) {
		/* Only counters of single rules need comments. */
		ipt->comments = false;
		r = 0;
	}
	return r;
}

/* Whoever has filled the legacy tables of the node would not see rules of the other backend. */
static bool node_uses_legacy(const struct tools *tools)
{
	const struct iptables_programs *programs = &tools->of[IPTABLES_LEGACY];
	scoped_file FILE *names = fopen("/proc/self/net/ip_tables_names", "re");
	scoped_free char *saved = NULL;
	struct error ignored = {0};

	if (!names || fgetc(names) == EOF || !*programs->save[0])
		return false;
	return !iptables_run_save(programs, false, -1, &saved, &ignored) && strstr(saved, "] -A ");
}

static int choose_backend(struct iptables *ipt, const char *wanted, struct error *err)
{
	bool only_legacy = wanted && !strcmp(wanted, "legacy");
	bool only_nft = wanted && !strcmp(wanted, "nft");
	enum iptables_backend first = IPTABLES_NFT;
	struct error second = {0};
	char text[sizeof(second.text)];

	if (only_legacy || (!only_nft && node_uses_legacy(&ipt->tools)))
		first = IPTABLES_LEGACY;
	if (!probe_backend(ipt, first, err))
		return 0;
	if (only_legacy || only_nft)
		return -err->code;
	if (!probe_backend(ipt, other_than(first), &second))
		return 0;
	snprintf(text, sizeof(text), "%s", err->text);
	return error_set(err, err->code, "%.250s; %.250s", text, second.text);
}

static void find_tools(struct tools *ret)
{
	iptables_find_programs(IPTABLES_LEGACY, &ret->of[IPTABLES_LEGACY]);
	iptables_find_programs(IPTABLES_NFT, &ret->of[IPTABLES_NFT]);
}

static int iptables_open(const struct redirect_config *cfg, struct event_loop *loop,
			 void **ret_state, struct error *err)
{
	scoped_free struct iptables *ipt = calloc(1, sizeof(*ipt));
	int r;

	if (!ipt)
		return error_set(err, ENOMEM, "iptables engine");
	ipt->instance = cfg->instance;
	ipt->ipv6 = kernel_has_ipv6();
	find_tools(&ipt->tools);
	r = choose_backend(ipt, cfg->iptables, err);
	if (!r)
		r = probe_snat_open(ipt->backend == IPTABLES_LEGACY ? PROBE_SNAT_IPTABLES_LEGACY
								    : PROBE_SNAT_IPTABLES_NFT,
				    cfg, loop, &ipt->snat, err);
	if (!r)
		*ret_state = take_ptr(ipt);
	return r;
}

static void iptables_close(void *state)
{
	struct iptables *ipt = state;

	if (ipt)
		probe_snat_close(ipt->snat);
	free(ipt);
}

static const char *iptables_cannot(const struct redirect_plan *plan)
{
	return redirect_plan_needs_ebpf(plan);
}

/* Asked without an open engine, the programs are looked for again. */
static const struct tools *tools_of(const struct iptables *ipt, struct tools **ret_own)
{
	if (ipt)
		return &ipt->tools;
	*ret_own = calloc(1, sizeof(**ret_own));
	if (*ret_own)
		find_tools(*ret_own);
	return *ret_own;
}

/* ---- what the rules are to be --------------------------------------------------------------- */

static int mark_owner(const struct iptables *ipt, struct families *f, struct error *err)
{
	char name[IPTABLES_CHAIN_MAX];

	snprintf(name, sizeof(name), MARK_OWNER, ipt->instance);
	return iptables_set_add_mark(&f->of[0], name, err);
}

/* *ret is to be families_done() even after an error. */
static int render(const struct iptables *ipt, const struct nf_rules *rules, struct families *ret,
		  struct error *err)
{
	struct iptables_form form = {.comments = ipt->comments};
	int r = iptables_text_render(rules, form, &ret->of[0], err);

	form.ipv6 = true;
	if (!r && ipt->ipv6 && rules->captures_ipv6)
		r = iptables_text_render(rules, form, &ret->of[1], err);
	if (!r && rules->routes == NETFILTER_ROUTES_AMBIENT)
		r = iptables_set_add_mark(&ret->of[0], MARK_AMBIENT, err);
	return r ? r : mark_owner(ipt, ret, err);
}

static enum nf_stage stage_of(const struct redirect_pod *pod)
{
	return pod->beside_ebpf ? NF_CAPTURE_BESIDE_EBPF : NF_CAPTURE;
}

/* ---- applying ------------------------------------------------------------------------------- */

struct application {
	const struct iptables *ipt;
	const struct redirect_pod *pod;
	struct nf_rules rules;
	struct families before, other, target; /* other: of the backend that we do not use */
	bool add_passthrough, added_passthrough, set_routes;
};

static bool had_tproxy(const struct families *f)
{
	return families_have(f, IPTABLES_CHAIN_PREFIX "MANGLE_TPROXY");
}

/* Both kinds of routes of what was there, but for one that is still needed. */
static int remove_routes(int netns_fd, const struct families *had, enum netfilter_routes needed,
			 struct error *err)
{
	int r = 0;

	if (had_tproxy(had) && needed != NETFILTER_ROUTES_TPROXY)
		r = netfilter_routes_set(netns_fd, NETFILTER_ROUTES_TPROXY, false, true, err);
	if (!r && families_have(had, MARK_AMBIENT) && needed != NETFILTER_ROUTES_AMBIENT)
		r = netfilter_routes_set(netns_fd, NETFILTER_ROUTES_AMBIENT, false, true, err);
	return r;
}

static int apply_routes(struct application *a, struct error *err)
{
	struct error ignored = {0};

	/* Another engine, or an earlier apply, may have set them already. */
	a->set_routes = netfilter_routes_verify(a->pod->netns_fd, a->rules.routes,
						a->rules.captures_ipv6, &ignored) != 0;
	return netfilter_routes_set(a->pod->netns_fd, a->rules.routes, true, a->rules.captures_ipv6,
				    err);
}

/* The mark that says whose ::6 is goes in with the IPv4 rules, before ::6 itself. */
static int mark_passthrough(struct application *a, struct error *err)
{
	bool ours = families_have(&a->before, MARK_PASSTHROUGH) ||
		    families_have(&a->other, MARK_PASSTHROUGH) || a->pod->passthrough_is_ours;
	bool present = false, any_ipv6 = false;
	int r;

	if (!a->rules.wants_passthrough)
		return 0;
	r = netlink_find_passthrough_address(a->pod->netns_fd, &present, &any_ipv6, err);
	if (r)
		return r;
	a->add_passthrough = !present;
	return ours || !present ? iptables_set_add_mark(&a->target.of[0], MARK_PASSTHROUGH, err)
				: 0;
}

static void undo_surroundings(const struct application *a)
{
	struct error ignored = {0};

	if (a->set_routes)
		netfilter_routes_set(a->pod->netns_fd, a->rules.routes, false, true, &ignored);
	if (a->added_passthrough)
		netlink_set_passthrough_address(a->pod->netns_fd, false, NULL, &ignored);
}

/* What the plan before needed and this one does not. */
static int end_surroundings(const struct application *a, struct error *err)
{
	bool had_passthrough = families_have(&a->before, MARK_PASSTHROUGH) ||
			       families_have(&a->other, MARK_PASSTHROUGH);
	int fd = a->pod->netns_fd;
	int r = remove_routes(fd, &a->before, a->rules.routes, err);

	if (!r)
		r = remove_routes(fd, &a->other, a->rules.routes, err);
	if (!r && had_passthrough && !a->rules.wants_passthrough)
		r = netlink_set_passthrough_address(fd, false, NULL, err);
	return r;
}

/* IPv4, then ::6, then IPv6: its rules find the address there, and the address its mark. */
static int apply_families(struct application *a, struct error *err)
{
	const struct iptables_programs *programs = &a->ipt->tools.of[a->ipt->backend];
	int fd = a->pod->netns_fd;
	int r = change_family(programs, fd, false, &a->before.of[0], &a->target.of[0], err);

	if (!r && a->add_passthrough)
		r = netlink_set_passthrough_address(fd, true, &a->added_passthrough, err);
	return r ? r : change_family(programs, fd, true, &a->before.of[1], &a->target.of[1], err);
}

static int apply_rules(struct application *a, struct error *err)
{
	const struct tools *tools = &a->ipt->tools;
	enum iptables_backend backend = a->ipt->backend;
	const struct families nothing = {0};
	int netns_fd = a->pod->netns_fd;
	int r = apply_families(a, err);

	/* Only now: for a moment both have the pod, and nat takes the first verdict. */
	if (!r)
		r = change(tools, other_than(backend), netns_fd, &a->other, &nothing, err);
	if (r) {
		put_back(tools, backend, netns_fd, &a->before, err);
		if (!families_empty(&a->other))
			put_back(tools, other_than(backend), netns_fd, &a->other, err);
	}
	return r;
}

static int apply_application(struct application *a, struct error *err)
{
	const struct tools *tools = &a->ipt->tools;
	enum iptables_backend backend = a->ipt->backend;
	int r = render(a->ipt, &a->rules, &a->target, err);

	if (!r)
		r = look(tools, backend, a->pod->netns_fd, &a->before, err);
	if (!r)
		r = look(tools, other_than(backend), a->pod->netns_fd, &a->other, err);
	if (!r)
		r = mark_passthrough(a, err);
	if (r)
		return r;
	r = apply_routes(a, err);
	if (r) {
		undo_surroundings(a);
		return r;
	}
	netfilter_join_begin(a->pod);
	r = apply_rules(a, err);
	if (r) {
		undo_surroundings(a);
		if (families_empty(&a->before) && families_empty(&a->other))
			netfilter_join_undo(a->pod->netns_fd);
		return r;
	}
	if (presence_of(&a->before) != REDIRECT_ACTIVE && presence_of(&a->other) != REDIRECT_ACTIVE)
		netfilter_join_end(a->pod);
	return end_surroundings(a, err);
}

static int iptables_apply(void *state, const struct redirect_pod *pod, struct error *err)
{
	const struct iptables *ipt = state;
	struct application a = {.ipt = ipt, .pod = pod};
	struct error ignored;
	int r = netfilter_rules_build(pod->pod_plan, stage_of(pod), &a.rules, err);

	/* The host first: from then on kubelet is known to the pod's rules by its source only. */
	if (!r)
		r = probe_snat_pod(ipt->snat, pod, err);
	if (!r)
		r = apply_application(&a, err);
	if (r && families_empty(&a.before) && families_empty(&a.other))
		probe_snat_drop(ipt->snat, pod->cookie, &ignored);
	families_done(&a.before);
	families_done(&a.other);
	families_done(&a.target);
	netfilter_rules_done(&a.rules);
	return r;
}

/* ---- removing ------------------------------------------------------------------------------- */

/* Routes and ::6 first, so that an end cut short is still seen by the chains. */
static int remove_backend(const struct tools *tools, enum iptables_backend backend, int netns_fd,
			  struct error *err)
{
	const struct families nothing = {0};
	scoped_families struct families now = {0};
	int r = look(tools, backend, netns_fd, &now, err);

	if (!r)
		r = remove_routes(netns_fd, &now, NETFILTER_ROUTES_NONE, err);
	if (!r && families_have(&now, MARK_PASSTHROUGH))
		r = netlink_set_passthrough_address(netns_fd, false, NULL, err);
	if (!r && !families_empty(&now))
		netfilter_join_undo(netns_fd);
	return r ? r : change(tools, backend, netns_fd, &now, &nothing, err);
}

static int remove_both(const struct tools *tools, int netns_fd, struct error *err)
{
	struct error second = {0};
	int first_result = remove_backend(tools, IPTABLES_NFT, netns_fd, err);
	int second_result = remove_backend(tools, IPTABLES_LEGACY, netns_fd, &second);

	if (!first_result && second_result)
		*err = second;
	return first_result ? first_result : second_result;
}

static int iptables_remove(void *state, uint64_t cookie, int netns_fd, struct error *err)
{
	const struct iptables *ipt = state;
	int r = netns_fd < 0 ? 0 : remove_both(&ipt->tools, netns_fd, err);

	return r ? r : probe_snat_drop(ipt->snat, cookie, err);
}

/* ---- draining ------------------------------------------------------------------------------- */

/* Of a plan that is not known any more all that matters here is whether it was ztunnel's. */
static int render_drain_unknown(const struct iptables *ipt, enum nf_stage stage,
				const struct families *now, struct families *ret, struct error *err)
{
	const struct redirect_plan nothing = {.ambient = families_have(now, MARK_AMBIENT),
					      .capture_ipv6 = true};
	struct iptables_form form = {.comments = ipt->comments};
	struct nf_rules rules = {0};
	int r = netfilter_rules_build(&nothing, stage, &rules, err);

	if (!r)
		r = iptables_text_drain(&now->of[0], &rules, form, &ret->of[0], err);
	form.ipv6 = true;
	if (!r && now->of[1].n)
		r = iptables_text_drain(&now->of[1], &rules, form, &ret->of[1], err);
	netfilter_rules_done(&rules);
	return r;
}

static int render_drain(const struct iptables *ipt, const struct redirect_pod *pod,
			const struct families *now, struct families *ret, struct error *err)
{
	enum nf_stage stage = pod->leaves ? NF_DRAIN_LEAVING : NF_DRAIN;
	struct nf_rules rules = {0};
	int r;

	if (pod->pod_plan) {
		r = netfilter_rules_build(pod->pod_plan, stage, &rules, err);
		if (!r)
			r = render(ipt, &rules, ret, err);
		netfilter_rules_done(&rules);
	} else {
		r = render_drain_unknown(ipt, stage, now, ret, err);
	}
	if (!r)
		r = iptables_set_add_mark(&ret->of[0], MARK_DRAINING, err);
	if (!r && families_have(now, MARK_PASSTHROUGH))
		r = iptables_set_add_mark(&ret->of[0], MARK_PASSTHROUGH, err);
	return r;
}

static int count_captured(int netns_fd, const struct families *now, size_t *ret, struct error *err)
{
	if (families_have(now, MARK_AMBIENT))
		return conntrack_count_captured(netns_fd, AMBIENT_MARK_REPLY, AMBIENT_MARK_MASK,
						ret, err);
	return conntrack_count_captured(netns_fd, NF_MARK_TPROXY, had_tproxy(now) ? UINT32_MAX : 0,
					ret, err);
}

/* ::6 stays: the next engine has it from us. So do routes, unless it is known to need none. */
static int end_draining(const struct iptables *ipt, enum iptables_backend backend,
			const struct redirect_pod *pod, const struct families *now,
			struct error *err)
{
	const struct families nothing = {0};
	int r = 0;

	if (had_tproxy(now) && pod->plan && !pod->plan->tproxy)
		r = netfilter_routes_set(pod->netns_fd, NETFILTER_ROUTES_TPROXY, false, true, err);
	if (!r && families_have(now, MARK_AMBIENT) && pod->plan && !pod->plan->ambient)
		r = netfilter_routes_set(pod->netns_fd, NETFILTER_ROUTES_AMBIENT, false, true, err);
	if (!r && !pod->nat_goes_on)
		netfilter_join_undo(pod->netns_fd);
	return r ? r : change(&ipt->tools, backend, pod->netns_fd, now, &nothing, err);
}

/* *ret_done: nothing is left. */
static int retire_backend(const struct iptables *ipt, enum iptables_backend backend,
			  const struct redirect_pod *pod, bool *ret_done, struct error *err)
{
	scoped_families struct families now = {0}, drain = {0};
	size_t captured = 0;
	int r = look(&ipt->tools, backend, pod->netns_fd, &now, err);

	if (r || families_empty(&now)) {
		*ret_done = !r;
		return r;
	}
	*ret_done = false;
	if (!families_have(&now, MARK_DRAINING)) {
		r = render_drain(ipt, pod, &now, &drain, err);
		if (!r)
			r = change(&ipt->tools, backend, pod->netns_fd, &now, &drain, err);
		families_done(&now);
		if (!r)
			r = look(&ipt->tools, backend, pod->netns_fd, &now, err);
		if (r)
			return r;
	}
	if (pod->lingers)
		return 0;
	if (!pod->nat_goes_on)
		r = count_captured(pod->netns_fd, &now, &captured, err);
	if (r == -EOPNOTSUPP)
		return 0; /* it cannot be known, so it is kept as long as the pod */
	if (!r && captured == 0 && pod->leaves)
		r = remove_backend(&ipt->tools, backend, pod->netns_fd, err);
	else if (!r && captured == 0)
		r = end_draining(ipt, backend, pod, &now, err);
	*ret_done = !r && captured == 0;
	return r;
}

static int iptables_retire(void *state, const struct redirect_pod *pod, bool *ret_done,
			   struct error *err)
{
	const struct iptables *ipt = state;
	bool nft = false, legacy = false;
	int r = retire_backend(state, IPTABLES_NFT, pod, &nft, err);

	if (!r)
		r = retire_backend(state, IPTABLES_LEGACY, pod, &legacy, err);
	if (!r)
		r = probe_snat_drop(ipt->snat, pod->cookie, err);
	if (!r)
		*ret_done = nft && legacy;
	return r;
}

/* ---- looking -------------------------------------------------------------------------------- */

/* Of two backends, what says most about new connections. */
static enum redirect_presence stronger(enum redirect_presence a, enum redirect_presence b)
{
	static const int weight[] = {
		[REDIRECT_ABSENT] = 0,
		[REDIRECT_PARTIAL] = 1,
		[REDIRECT_DRAINING] = 2,
		[REDIRECT_ACTIVE] = 3,
	};

	return weight[a] >= weight[b] ? a : b;
}

static bool may_have_any(int netns_fd)
{
	for (enum iptables_backend b = 0; b < IPTABLES_BACKENDS; b++) {
		bool maybe[2];

		iptables_may_be_there(b, netns_fd, maybe);
		if (maybe[0] || maybe[1])
			return true;
	}
	return false;
}

typedef void (*found_fn)(const struct families *found, void *arg);

/* Calls fn with what each backend has. Finding programs may mean to ask them what they are. */
static int look_at_both(const struct iptables *ipt, int netns_fd, found_fn fn, void *arg,
			struct error *err)
{
	scoped_free struct tools *own = NULL;
	const struct tools *tools;

	if (!ipt && !may_have_any(netns_fd))
		return 0;
	tools = tools_of(ipt, &own);
	if (!tools)
		return error_set(err, ENOMEM, "iptables engine");
	for (enum iptables_backend b = 0; b < IPTABLES_BACKENDS; b++) {
		scoped_families struct families found = {0};
		int r = look(tools, b, netns_fd, &found, err);

		if (r)
			return r;
		fn(&found, arg);
	}
	return 0;
}

static void add_presence(const struct families *found, void *arg)
{
	enum redirect_presence *presence = arg;

	*presence = stronger(*presence, presence_of(found));
}

static int iptables_presence(void *state, uint64_t cookie, int netns_fd,
			     enum redirect_presence *ret, struct error *err)
{
	enum redirect_presence presence = REDIRECT_ABSENT;
	int r = look_at_both(state, netns_fd, add_presence, &presence, err);

	(void)cookie;
	if (!r)
		*ret = presence;
	return r;
}

struct chain_query {
	const char *name;
	bool found;
};

static void find_chain(const struct families *found, void *arg)
{
	struct chain_query *query = arg;

	query->found |= families_have(found, query->name);
}

static bool has_mark(const struct iptables *ipt, int netns_fd, const char *name)
{
	struct chain_query query = {.name = name};
	struct error ignored = {0};

	return netns_fd >= 0 && !look_at_both(ipt, netns_fd, find_chain, &query, &ignored) &&
	       query.found;
}

static bool iptables_owns_passthrough(void *state, uint64_t cookie, int netns_fd)
{
	(void)cookie;
	return has_mark(state, netns_fd, MARK_PASSTHROUGH);
}

static bool iptables_is_ours(const struct redirect_config *cfg, int netns_fd)
{
	char name[IPTABLES_CHAIN_MAX];

	snprintf(name, sizeof(name), MARK_OWNER, cfg->instance);
	return has_mark(NULL, netns_fd, name);
}

static int verify_families(const struct iptables *ipt, const struct families *now,
			   const struct families *wanted, struct error *err)
{
	for (size_t i = 0; i < 2; i++)
		if (iptables_text_compare(&now->of[i], &wanted->of[i], err))
			return error_wrap(err, "iptables (%s) %s",
					  iptables_backend_name(ipt->backend), family_name(i));
	return 0;
}

static int verify_rules(const struct iptables *ipt, const struct redirect_pod *pod,
			const struct nf_rules *rules, struct error *err)
{
	scoped_families struct families now = {0}, other = {0}, wanted = {0};
	int r = render(ipt, rules, &wanted, err);

	if (!r)
		r = look(&ipt->tools, ipt->backend, pod->netns_fd, &now, err);
	if (!r)
		r = look(&ipt->tools, other_than(ipt->backend), pod->netns_fd, &other, err);
	if (!r && iptables_set_find(&now.of[0], MARK_PASSTHROUGH))
		r = iptables_set_add_mark(&wanted.of[0], MARK_PASSTHROUGH, err);
	if (!r)
		r = verify_families(ipt, &now, &wanted, err);
	if (!r && !families_empty(&other))
		r = error_set(err, ENODEV, "iptables (%s) has rules as well",
			      iptables_backend_name(other_than(ipt->backend)));
	return r;
}

static int iptables_verify(void *state, const struct redirect_pod *pod, struct error *err)
{
	const struct iptables *ipt = state;
	struct nf_rules rules = {0};
	int r = netfilter_rules_build(pod->pod_plan, stage_of(pod), &rules, err);

	if (!r)
		r = verify_rules(state, pod, &rules, err);
	if (!r)
		r = netfilter_routes_verify(pod->netns_fd, rules.routes, rules.captures_ipv6, err);
	if (!r && rules.wants_passthrough)
		r = netlink_verify_passthrough_address(pod->netns_fd, err);
	netfilter_rules_done(&rules);
	return r ? r : probe_snat_verify(ipt->snat, pod, err);
}

static void add_verdicts(const struct families *found, void *arg)
{
	json_t *verdicts = arg;

	for (enum plan_rule_id id = RULE_NONE + 1; id < RULE_ID_COUNT_; id++) {
		const char *name = plan_rule_name(id);
		uint64_t packets = iptables_set_packets(&found->of[0], name) +
				   iptables_set_packets(&found->of[1], name);

		if (packets == 0)
			continue;
		packets += (uint64_t)json_integer_value(json_object_get(verdicts, name));
		json_object_set_new(verdicts, name, json_integer((json_int_t)packets));
	}
}

static json_t *iptables_pod_counters(void *state, uint64_t cookie, int netns_fd)
{
	json_t *verdicts = json_object();
	struct error ignored = {0};

	(void)cookie;
	if (!verdicts || netns_fd < 0 ||
	    look_at_both(state, netns_fd, add_verdicts, verdicts, &ignored)) {
		json_decref(verdicts);
		return NULL;
	}
	return json_pack("{s:o, s:{}}", "verdicts", verdicts, "events");
}

/* ---- uninstalling --------------------------------------------------------------------------- */

struct sweep {
	const struct redirect_config *cfg;
	const struct tools *tools;
	struct error first;
};

static void sweep_one(struct sweep *sweep, int netns_fd)
{
	struct error why = {0};

	if (remove_both(sweep->tools, netns_fd, &why) && !sweep->first.code)
		sweep->first = why;
}

static int sweep_if_ours(int netns_fd, void *arg, struct error *err)
{
	struct sweep *sweep = arg;

	(void)err;
	if (iptables_is_ours(sweep->cfg, netns_fd))
		sweep_one(sweep, netns_fd);
	return 0;
}

static int iptables_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
			      size_t n_pods, struct error *err)
{
	scoped_free struct tools *own = NULL;
	struct sweep sweep = {.cfg = cfg, .tools = tools_of(NULL, &own)};
	int r;

	if (!sweep.tools)
		return error_set(err, ENOMEM, "iptables engine");
	for (size_t i = 0; i < n_pods; i++)
		if (pods[i].netns_fd >= 0)
			sweep_one(&sweep, pods[i].netns_fd);
	r = netns_each(sweep_if_ours, &sweep, err);
	if (r && !sweep.first.code)
		sweep.first = *err;
	r = probe_snat_uninstall(PROBE_SNAT_IPTABLES_NFT, cfg, err);
	if (sweep.first.code) {
		*err = sweep.first;
		r = -err->code;
	}
	return r;
}

static int iptables_leave_host(const struct redirect_config *cfg, struct error *err)
{
	return probe_snat_uninstall(PROBE_SNAT_IPTABLES_NFT, cfg, err);
}

static enum kubelet_known iptables_kubelet(void *state, struct kubelet *ret)
{
	struct iptables *ipt = state;

	return probe_snat_kubelet(ipt->snat, ret);
}

const struct redirect_engine_ops redirect_iptables_ops = {
	.name = "iptables",
	.is_ours = iptables_is_ours,
	.cannot = iptables_cannot,
	.open = iptables_open,
	.close = iptables_close,
	.apply = iptables_apply,
	.remove = iptables_remove,
	.retire = iptables_retire,
	.presence = iptables_presence,
	.owns_passthrough = iptables_owns_passthrough,
	.verify = iptables_verify,
	.pod_counters = iptables_pod_counters,
	.kubelet = iptables_kubelet,
	.leave_host = iptables_leave_host,
	.uninstall = iptables_uninstall,
};
