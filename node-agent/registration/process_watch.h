/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_PROCESS_WATCH_H
#define SOCKMESH_PROCESS_WATCH_H

/*
 * Hears of the first program that starts in each cgroup and network namespace, through a raw
 * tracepoint and a ring buffer, so that nobody has to walk over /proc again and again while a pod's
 * sandbox is being made. A process is told once; whoever needs to know what ran before walks once,
 * after the watch has begun.
 */
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct error;
struct event_loop;
struct process_watch;

/* pid: in the initial pid namespace. 0: some were lost, look at all processes. */
typedef void (*process_watch_fn)(pid_t pid, void *arg);

/* Loads nothing yet. */
int process_watch_new(struct event_loop *loop, process_watch_fn fn, void *arg,
		      struct process_watch **ret, struct error *err);
void process_watch_free(struct process_watch *watch); /* NULL is fine */

/* Idempotent. While it is off it costs the node nothing. */
int process_watch_switch(struct process_watch *watch, bool on, struct error *err);

#endif
