/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_EVENT_LOOP_H
#define SOCKMESH_EVENT_LOOP_H

/*
 * One thread, one epoll: descriptors and timers with a callback each. A callback may add and
 * remove any source, its own included; a removed source is never called again. Callbacks must not
 * block.
 */
#include <stdint.h>

struct error;
struct event_loop;
struct event_source;

typedef void (*event_fd_fn)(int fd, uint32_t epoll_events, void *arg);
typedef void (*event_timer_fn)(void *arg);

int event_loop_new(struct event_loop **ret, struct error *err);
void event_loop_free(
	struct event_loop *loop); /* NULL is fine; frees sources, closes no fd of theirs */

/* The fd stays the caller's. events: EPOLLIN and so on, level-triggered. */
int event_loop_add_fd(struct event_loop *loop, int fd, uint32_t events, event_fd_fn fn, void *arg,
		      struct event_source **ret, struct error *err);
int event_loop_set_events(struct event_source *source, uint32_t events, struct error *err);

/* First after delay_ms, then every period_ms; period 0 fires once and frees itself after. */
int event_loop_add_timer(struct event_loop *loop, uint64_t delay_ms, uint64_t period_ms,
			 event_timer_fn fn, void *arg, struct event_source **ret,
			 struct error *err);

void event_loop_remove(struct event_source *source); /* NULL is fine */

int event_loop_run(struct event_loop *loop, struct error *err); /* until event_loop_stop() */
void event_loop_stop(struct event_loop *loop);

#endif
