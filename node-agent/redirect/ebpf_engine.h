/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_EBPF_ENGINE_H
#define SOCKMESH_EBPF_ENGINE_H

/*
 * What the files of the eBPF engine share; nothing outside of it includes this. redirect_ebpf.c is
 * the engine's surface and says in which order things happen; each other file is one concern.
 */
#include "ebpf_pins.h"
#include "ebpf_policy.h"
#include "kubelet.h"
#include "log.h"
#include "redirect_engine.h"

#include "datapath.skel.h"
#include "kubelet.skel.h"
#include "listener_lookup.skel.h"
#include "listener_scan.skel.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct event_loop;
struct event_source;

enum { POD_BUCKETS = 256 };

struct ebpf_pod { /* what the agent itself remembers of a pod; the kernel has the rest */
	struct ebpf_pod *next;
	uint64_t cookie;
	int namespace_id;
	int netns_fd; /* held where namespaces are numbered by inode; else -1 */
	struct ebpf_policy policy;
	struct ip_address *addresses; /* that are in local_addresses */
	size_t n_addresses;
	bool wants_passthrough;
	bool ambient;
	int64_t retired_at_ms; /* monotonic */
	bool rescan;	       /* its listeners are to be looked for */
};

struct doomed_policy { /* replaced, but a program on its way may still look into its sets */
	struct doomed_policy *next;
	struct ebpf *engine;
	struct event_source *source;
	struct ebpf_policy policy;
};

struct ebpf {
	const struct redirect_config *cfg;
	struct event_loop *loop;
	struct ebpf_pins pins;
	struct datapath_bpf *datapath;
	struct listener_scan_bpf *scan; /* either this one */
	struct bpf_link *scan_link;
	struct listener_lookup_bpf *lookup; /* or this one */
	struct kubelet_bpf *kubelet;	    /* NULL: the kernel cannot do ambient pods */
	uint64_t kubelet_cgroup;      /* the inode of the one that it is attached to; 0: none */
	struct kubelet kubelet_is;    /* the last that was found */
	uint64_t kubelet_start;	      /* of its process; 0: not known by one */
	int64_t kubelet_missed_at_ms; /* monotonic: the last search found none; 0: it did */
	enum kubelet_said {
		KUBELET_SAID_NOTHING,
		KUBELET_SAID_FOUND,
		KUBELET_SAID_MISSING
	} kubelet_said;
	struct ring_buffer *notices;
	struct event_source *notice_source, *monitor_source, *start_source, *rescan_source;
	struct event_source *heal_source;
	int lock_fd; /* on the pins' directory */
	int monitor_fd;
	int cgroup_fd;
	uint64_t cgroup_ino;
	uint32_t last_policy;
	int64_t rescan_at_ms; /* monotonic: when rescan_source fires */
	bool netns_by_inode;  /* see netns_numbered_by_inode() */
	bool attached;	      /* the programs on the cgroup are this agent's */
	struct doomed_policy *doomed;
	struct log_limit notice_limit[EVENT_COUNTERS];
	struct counters retired; /* of pods that have gone since the start */
	struct ebpf_pod *pods[POD_BUCKETS];
};

/*
 * Every key of a map, in *key. A key that disappears on the way makes the walk start again, and an
 * update puts its entry at the head of a bucket, before what the walk has seen: so the body neither
 * deletes from this map nor writes to it.
 */
#define for_each_map_key(fd, key)                                                                  \
	for (int end_ = bpf_map_get_next_key((fd), NULL, (key)); !end_;                            \
	     end_ = bpf_map_get_next_key((fd), (key), (key)))

/* ---- redirect_ebpf.c ---- */

/* Before load: each map of obj is the one of the same name in `with`. */
int ebpf_share_maps(struct bpf_object *obj, struct bpf_object *with, struct error *err);

/* ---- ebpf_pods.c: the pods that this agent knows, and their configuration in the kernel ---- */

struct ebpf_pod *ebpf_pods_find(struct ebpf *e, uint64_t cookie); /* NULL: not known */
struct ebpf_pod *ebpf_pods_get(struct ebpf *e, uint64_t cookie);  /* NULL: no memory */
void ebpf_pods_forget(struct ebpf *e, uint64_t cookie);
void ebpf_pods_free(struct ebpf_pod *pod);
bool ebpf_pods_config(struct ebpf *e, uint64_t cookie, struct pod_config *ret);
int ebpf_pods_config_write(struct ebpf *e, uint64_t cookie, const struct pod_config *cfg,
			   struct error *err);

/* errno of a map update: -ENOSPC, naming `what`, when the map is full. */
int ebpf_limit_error(struct error *err, const char *what);

/* ---- ebpf_netns.c: namespaces that must outlive their entries in the maps ---- */

int ebpf_netns_hold(struct ebpf *e, struct ebpf_pod *pod, int netns_fd, struct error *err);
bool ebpf_netns_gone(void *state, uint64_t cookie); /* contract in redirect.h */

/* ---- ebpf_addresses.c: which addresses are a pod's own, now and later ---- */

int ebpf_addresses_load(struct ebpf *e, struct error *err); /* what the maps hold at start */
int ebpf_addresses_apply(struct ebpf *e, struct ebpf_pod *pod, const struct redirect_pod *target,
			 struct error *err);
int ebpf_addresses_passthrough(struct ebpf *e, struct ebpf_pod *pod, int netns_fd,
			       struct error *err);
void ebpf_addresses_forget(struct ebpf *e, struct ebpf_pod *pod);
int ebpf_addresses_watch(struct ebpf *e, struct error *err);

/* ---- ebpf_ambient.c: sysctls and routes of an ambient pod's namespace ---- */

#define POD_AMBIENT_CHANGES (POD_CHANGES & ~POD_ADDED_PASSTHROUGH)
#define POD_AMBIENT_SYSCTLS (POD_AMBIENT_CHANGES & ~POD_ADDED_ROUTES)

int ebpf_ambient_enter(struct ebpf *e, const struct redirect_pod *pod, struct error *err);
/* Changes back what the pod's configuration says, as far as it is in `which`. */
int ebpf_ambient_leave(struct ebpf *e, uint64_t cookie, int netns_fd, __u32 which,
		       struct error *err);
int ebpf_ambient_undo(int netns_fd, __u32 flags, struct error *err);
int ebpf_ambient_verify(const struct redirect_pod *pod, struct error *err);
/* Is there any that ztunnel opened for a client? It needs the rule and the route to its end. */
int ebpf_ambient_has_connections(int netns_fd, bool *ret, struct error *err);

/* ---- ebpf_kubelet.c: kubelet's connections to ambient pods ---- */

int ebpf_kubelet_open(struct ebpf *e, struct error *err);	  /* needs the data path's maps */
int ebpf_kubelet_load_targets(struct ebpf *e, struct error *err); /* needs the pods' addresses */
int ebpf_kubelet_pod(struct ebpf *e, struct ebpf_pod *pod, bool ambient, struct error *err);
int ebpf_kubelet_target(struct ebpf *e, const struct ip_address *a, struct error *err);
void ebpf_kubelet_no_target(struct ebpf *e,
			    const struct ip_address *a); /* the pod has it no more */
int ebpf_kubelet_ensure(struct ebpf *e, struct error *err);
int ebpf_kubelet_verify(struct ebpf *e, struct error *err);
enum kubelet_known ebpf_kubelet_known(void *state, struct kubelet *ret);
void ebpf_kubelet_sweep(struct ebpf *e);

/* ---- ebpf_listeners.c: the proxies' inbound listeners ---- */

int ebpf_listeners_open(struct ebpf *e, struct error *err); /* needs the data path's maps */
int ebpf_listeners_scan(struct ebpf *e, uint64_t cookie, int netns_fd, struct error *err);
void ebpf_listeners_scan_in(struct ebpf *e, uint64_t cookie, unsigned delay_ms);
void ebpf_listeners_forget(struct ebpf *e, uint64_t cookie);

/* ---- ebpf_sets.c: ids, ports and prefixes of policies ---- */

int ebpf_sets_write(struct ebpf *e, const struct ebpf_policy *p, struct error *err);
void ebpf_sets_erase_later(struct ebpf *e, struct ebpf_policy *p); /* takes its contents over */
void ebpf_sets_erase_unknown(struct ebpf *e, uint32_t policy);
int ebpf_sets_erase_leftovers(struct ebpf *e, struct error *err); /* and sets last_policy */
void ebpf_sets_doomed_free(struct doomed_policy *doomed);

/* ---- ebpf_attach.c: the programs on the cgroup ---- */

int ebpf_attach_open_cgroup(struct ebpf *e, struct error *err);
int ebpf_attach_start(struct ebpf *e, bool fresh, struct error *err);
/* Ours are attached, or are now. -EAGAIN: an earlier agent's must stay, for pods but `except`. */
int ebpf_attach_ensure(struct ebpf *e, uint64_t except, struct error *err);
int ebpf_attach_allowed(struct ebpf *e, uint64_t except, struct error *err); /* looks only */
int ebpf_attach_verify(struct ebpf *e, struct error *err);
bool ebpf_attach_pod_is_live(struct ebpf *e, uint64_t cookie);	/* has an inbound program */
bool ebpf_attach_pod_is_known(struct ebpf *e, uint64_t cookie); /* or has none to be known */
void ebpf_attach_heal(void *engine);				/* an event_timer_fn */

/* ---- ebpf_notices.c: what the programs ask the agent to do or to say ---- */

int ebpf_notices_watch(struct ebpf *e, struct error *err);

/* ---- redirect_ebpf.c ---- */

int ebpf_remove(void *state, uint64_t cookie, int netns_fd, struct error *err);

/* ---- ebpf_retire.c: contracts in redirect_engine.h ---- */

bool ebpf_is_installed(const struct redirect_config *cfg, uint64_t cookie);
const char *ebpf_cannot(const struct redirect_plan *plan);
void ebpf_cannot_ambient(const struct error *why); /* from now on */
int ebpf_presence(void *state, uint64_t cookie, int netns_fd, enum redirect_presence *ret,
		  struct error *err);
bool ebpf_owns_passthrough(void *state, uint64_t cookie, int netns_fd);
int ebpf_retire(void *state, const struct redirect_pod *pod, bool *ret_done, struct error *err);

/* ---- ebpf_counters.c, ebpf_verify.c: contracts in redirect.h ---- */

const char *ebpf_event_name(unsigned event); /* enum event_counter */
json_t *ebpf_pod_counters(void *state, uint64_t cookie, int netns_fd);
json_t *ebpf_node_counters(void *state);
/* Before the pod's own are deleted: what it counted stays in the node's totals. */
void ebpf_counters_retire(struct ebpf *e, uint64_t cookie);
int ebpf_verify(void *state, const struct redirect_pod *pod, struct error *err);

#endif
