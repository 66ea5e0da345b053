/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_PROBE_SNAT_PRIVATE_H
#define SOCKMESH_PROBE_SNAT_PRIVATE_H

/* What probe_snat.c (which addresses, and whose connections) wants of nftables and of iptables. */
#include "ip_address.h"
#include "kubelet.h"
#include "probe_snat.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct redirect_config;

struct snat_entry {
	struct ip_address address;
	uint64_t cookie; /* of the pod, noted beside the address */
};

struct snat_list {
	struct snat_entry *entries; /* each address once */
	size_t n;
};

/* For who reads what is in the kernel: whatever is there, each address once. */
int snat_list_add(struct snat_list *list, const struct snat_entry *entry); /* -ENOMEM */
/* -ENODEV names the first difference. ipv6: false: of `want` IPv4 alone is wanted. */
int snat_list_compare(const struct snat_list *found, const struct snat_list *want, bool ipv6,
		      struct error *err);

enum snat_who {
	SNAT_NOBODY, /* kubelet's cgroup is given, and is not there now */
	SNAT_CGROUP, /* what processes in its cgroup open */
	SNAT_USER,   /* what processes of its user open */
};

struct snat_rules {
	enum snat_who who;
	const struct kubelet *kubelet;
};

struct snat_backend {
	const char *name;
	/* Makes nothing, and does not look yet for what the kernel can do. */
	int (*open)(const struct redirect_config *cfg, enum probe_snat_kind kind, void **ret,
		    struct error *err);
	void (*close)(void *state);
	bool (*can_match_cgroup)(void *state);

	/*
	 * What is in the kernel. Nothing is an empty list. *ret_any: there is something, be it an
	 * empty table.
	 */
	int (*load)(void *state, struct snat_list *ret, bool *ret_any, struct error *err);
	/* Makes all of it anew, whatever is there; an empty list: nothing is left. */
	int (*replace)(void *state, const struct snat_rules *rules, const struct snat_list *want,
		       struct error *err);
	/* What differs, in one transaction; what goes before what comes. Never to nothing. */
	int (*change)(void *state, const struct snat_rules *rules, const struct snat_list *gone,
		      const struct snat_list *come, struct error *err);
	/* -ENODEV names the first difference. */
	int (*verify)(void *state, const struct snat_rules *rules, const struct snat_list *want,
		      struct error *err);
	int (*uninstall)(const struct redirect_config *cfg, struct error *err);
};

extern const struct snat_backend snat_nftables, snat_iptables;

#endif
