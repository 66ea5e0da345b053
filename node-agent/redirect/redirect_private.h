/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_PRIVATE_H
#define SOCKMESH_REDIRECT_PRIVATE_H

/* What redirect.c (which engine) and redirect_move.c (from one to another) share. */
#include "redirect_engine.h"

#include "error.h"

struct event_loop;
struct event_source;

/* In order of preference. */
enum engine_id { ENGINE_EBPF, ENGINE_NFTABLES, ENGINE_IPTABLES, ENGINE_NONE };
_Static_assert((int)ENGINE_NONE == (int)REDIRECT_ENGINES, "a name for every engine");

struct engine {
	const struct redirect_engine_ops *ops;
	void *state;	  /* NULL: not open */
	bool failed;	  /* opening was tried */
	struct error why; /* of `failed` */
};

struct known_pod { /* what the agent itself remembers of a pod; the kernel has the rest */
	struct known_pod *next;
	uint64_t cookie;
	int namespace_id;	  /* by which our namespace knows it, until it ends */
	bool has_ended;		  /* from then on that is another one's */
	enum engine_id engine;	  /* that captures its new connections */
	unsigned draining;	  /* bits of engine_id */
	bool beside_ebpf;	  /* its rules are of that kind until eBPF has drained */
	int64_t drain_at_ms;	  /* monotonic: when to look again */
	int64_t lingers_until_ms; /* monotonic: ztunnel may still open connections to it */
	unsigned drain_delay_ms;  /* before the look after that */
	const char *reason;	  /* why not the preferred engine; static, NULL: it is */
};

enum { KNOWN_BUCKETS = 256 };

struct redirect {
	const struct redirect_config *cfg;
	struct event_loop *loop;
	struct engine engines[REDIRECT_ENGINES];
	enum engine_id preferred;
	bool forced; /* --mode names it */
	char reason[800];
	struct known_pod *pods[KNOWN_BUCKETS];
	struct event_source *drain_source;
	int ended_fd; /* tells of namespaces that end; -1: it could not be had */
	struct event_source *ended_source, *ended_timer;
	uint64_t healed, heal_failures, moves, fallbacks;
};

/* ---- redirect.c ---- */

struct known_pod *redirect_known(const struct redirect *r, uint64_t cookie); /* NULL: not known */
/* The same, or what an earlier agent left there. NULL with err set: it cannot be known. */
struct known_pod *redirect_find(struct redirect *r, const struct redirect_pod *pod,
				struct error *err);

/* Has its namespace ended, as far as its id tells? Not, when it has none. */
bool redirect_known_ended(const struct known_pod *known);

/*
 * An eBPF engine that is not preferred and has no pod any more leaves the node. Returns whether
 * nothing of that kind is left to do.
 */
bool redirect_close_unused(struct redirect *r);

/* ---- redirect_move.c ---- */

/* The pod of `known` gets engine `to`, whatever has it now. All or nothing, as apply. */
int redirect_move(struct redirect *r, struct known_pod *known, const struct redirect_pod *pod,
		  enum engine_id to, struct error *err);

/* Looks after what drains, until nothing does. */
int redirect_drain_watch(struct redirect *r, struct error *err);

/* An earlier agent moved the pod; engine `id` still drains there. */
void redirect_drain_resume(struct redirect *r, struct known_pod *known, enum engine_id id);

#endif
