/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REGISTRATION_PRIVATE_H
#define SOCKMESH_REGISTRATION_PRIVATE_H

/* What registration.c (requests) and recovery.c (restart, sweep) share. */
#include "log.h"
#include "registration.h"

struct registration {
	struct registration_config cfg;
	struct pod_table *table;
	char *state_path;
	size_t reconciled; /* pods of the table that this round has seen */
};

#define RECOVERED_NAME "(recovered)"

/*
 * Decides and fills mode, reason and both plans. facts NULL: what the entry says. -errno as
 * pod_policy_decide().
 */
int registration_decide(const struct registration *reg, struct pod *pod,
			const struct pod_facts *facts, int netns_fd, struct error *err);

/* Takes it out of the table and tells whoever wants to know. */
void registration_drop(struct registration *reg, struct pod *pod);

int registration_set_reason(struct pod *pod, const char *text, struct error *err);

/* The pod as the engine takes it, with the addresses of all its attachments. */
struct engine_pod {
	struct redirect_pod pod;
	struct ip_address addresses[256];
};
void registration_engine_pod(const struct registration *reg, const struct pod *pod, int netns_fd,
			     struct engine_pod *ret);

/*
 * Whatever has become of the pod, the accelerator knows it from here on: a pod of the eBPF engine
 * with the level that it may have, any other not at all.
 */
void registration_accelerate(struct registration *reg, const struct pod *pod);

/* Writes the table to the state file, but for `except` and with `extra` (each may be NULL). */
int registration_save(const struct registration *reg, const struct pod *except,
		      const struct pod *extra, struct error *err);

/* Ends the redirection of pod's namespace unless another entry holds it. netns_fd may be -1. */
int registration_release(struct registration *reg, const struct pod *pod, int netns_fd,
			 struct error *err);

/* Reads the state file, reconciles it with the kernel. */
int registration_recover(struct registration *reg, struct error *err);

#endif
