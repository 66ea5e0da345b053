/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_WORKLOAD_ADVICE_H
#define SOCKMESH_WORKLOAD_ADVICE_H

/*
 * `sockmeshctl accelerate --advise`: runs the adviser (accelerate_advise.h) over the pods of a
 * workload and tells the accelerator what it found: a workload that was cleared may go the short
 * way with --accelerate full-advised, one that was refuted may not. Whoever asks starts to watch,
 * or hears how far that is; nobody waits inside the agent.
 */
#include <jansson.h>

struct accelerate;
struct error;
struct event_loop;
struct registration;
struct workload_advice;

int workload_advice_new(struct event_loop *loop, const struct registration *registration,
			struct accelerate *accelerate, struct workload_advice **ret,
			struct error *err);
void workload_advice_free(struct workload_advice *w); /* ends what runs; NULL is fine */

/*
 * target: "NAMESPACE/NAME" of a workload, or of a pod, which stands for its workload. Starts to
 * watch it for so many seconds (0: a minute), or joins in when it is being watched, or answers with
 * the verdict when it was until a moment ago: asked now and then, it says the verdict at the end.
 * *ret is a new reference: {"state":"watching"|"done","left":seconds,"ended":RFC 3339 once done,
 * ...the adviser's object (advice_verdict.h)}. -ENOENT: no pod of it is redirected by eBPF; -EBUSY:
 * four other workloads are being watched.
 */
int workload_advice_ask(struct workload_advice *w, const char *target, unsigned seconds,
			json_t **ret, struct error *err);

#endif
