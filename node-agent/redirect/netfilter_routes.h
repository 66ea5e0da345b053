/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETFILTER_ROUTES_H
#define SOCKMESH_NETFILTER_ROUTES_H

/*
 * What TPROXY needs beside rules, in the pod's namespace, both families: `ip rule fwmark 1337
 * lookup 133` and in table 133 `local default dev lo`. As Istio's, so that one finds the other's.
 */
#include <stdbool.h>

struct error;

/*
 * Adds what is missing, or removes what is there, of rule and route. Already there, already gone
 * and IPv6 disabled in the kernel are success. ipv6 false: IPv4 only.
 */
int netfilter_routes_set(int netns_fd, bool present, bool ipv6, struct error *err);

/* -ENODEV, naming it, when a rule or a route is missing. */
int netfilter_routes_verify(int netns_fd, bool ipv6, struct error *err);

#endif
