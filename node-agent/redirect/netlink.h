/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETLINK_H
#define SOCKMESH_NETLINK_H

/*
 * The addresses of pods, by rtnetlink: listed once from inside the namespace, then followed
 * through one socket in our own namespace that hears every namespace with an id there
 * (NETLINK_LISTEN_ALL_NSID, Linux 4.2). Nothing here holds a pod's namespace alive.
 */
#include "ip_address.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

/* Every address of every interface, any scope; *ret is the caller's to free. */
int netlink_list_addresses(int netns_fd, struct ip_address **ret, size_t *ret_n, struct error *err);

/*
 * Adds or removes ::6/128 on the namespace's lo, the source that Envoy's inbound passthrough binds.
 * Already there, already gone, and IPv6 disabled in the namespace are success. *ret_changed may be
 * NULL.
 */
int netlink_set_passthrough_address(int netns_fd, bool present, bool *ret_changed,
				    struct error *err);

/* Is it there, and has the namespace any IPv6 address at all? Without any, IPv6 is switched off. */
int netlink_find_passthrough_address(int netns_fd, bool *ret_present, bool *ret_any_ipv6,
				     struct error *err);

/* -ENODEV when it is missing in a namespace that has IPv6. */
int netlink_verify_passthrough_address(int netns_fd, struct error *err);

/*
 * Does anything in the namespace listen on this TCP port? By inet_diag, which looks at listening
 * sockets only. *ret is true where the kernel has no inet_diag: it cannot be ruled out.
 */
int netlink_has_listener(int netns_fd, uint16_t port, bool *ret, struct error *err);

/* The id by which our namespace knows that one; given one when it has none. */
int netlink_namespace_id(int netns_fd, int *ret_id, struct error *err);

/* Is there still a namespace that ours knows by this id? RTM_GETNSID with NETNSA_NSID, 4.20. */
int netlink_namespace_lives(int id, bool *ret, struct error *err);

/*
 * An id is given to another namespace as soon as its own has ended: that it is in use says nothing
 * of who had it before. This non-blocking socket tells of ids that are given up. Reading ends
 * without an error when nothing is left, and also when the kernel had to drop some.
 */
int netlink_ended_open(int *ret_fd, struct error *err);
void netlink_ended_read(int fd, void (*fn)(int id, void *arg), void *arg);

/* The monitor's socket, non-blocking. */
int netlink_monitor_open(int *ret_fd, struct error *err);

struct netlink_change {
	int namespace_id;
	bool added;
	struct ip_address address;
};
typedef void (*netlink_change_fn)(const struct netlink_change *change, void *arg);

/* Calls fn for each change that waits. -ENOBUFS: changes were lost, list all pods again. */
int netlink_monitor_read(int fd, netlink_change_fn fn, void *arg, struct error *err);

#endif
