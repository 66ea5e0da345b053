/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETFILTER_ROUTES_H
#define SOCKMESH_NETFILTER_ROUTES_H

/*
 * Routing of marked packets to lo, in the pod's namespace, both families, as Istio's, so that one
 * finds the other's. TPROXY: `ip rule fwmark 1337 lookup 133`; ambient, for what answers ztunnel's
 * connections with a client's address: `ip rule fwmark 0x111/0xfff pref 32764 lookup 100`. And in
 * that table `local default dev lo`.
 */
#include <stdbool.h>

struct error;

enum netfilter_routes { NETFILTER_ROUTES_NONE, NETFILTER_ROUTES_TPROXY, NETFILTER_ROUTES_AMBIENT };

/*
 * NETFILTER_ROUTES_NONE: there is nothing to do, and nothing is missing.
 *
 * Adds what is missing, or removes what is there, of rule and route. Already there, already gone
 * and IPv6 disabled in the kernel are success. ipv6 false: IPv4 only.
 */
int netfilter_routes_set(int netns_fd, enum netfilter_routes which, bool present, bool ipv6,
			 struct error *err);

/* -ENODEV, naming it, when a rule or a route is missing. */
int netfilter_routes_verify(int netns_fd, enum netfilter_routes which, bool ipv6,
			    struct error *err);

#endif
