/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_SELFTEST_NETWORK_H
#define SOCKMESH_SELFTEST_NETWORK_H

/*
 * The self-test's two scratch network namespaces, joined by a veth pair. They end, with all that is
 * in them, when their descriptors are closed: nothing has a name outside them.
 */
#include <arpa/inet.h>
#include <stdbool.h>

struct error;

/* Addresses for documentation (RFC 5737, RFC 3849), which no node routes. */
#define SELFTEST_POD_V4	 "192.0.2.1"
#define SELFTEST_PEER_V4 "192.0.2.2"
#define SELFTEST_POD_V6	 "2001:db8::1"
#define SELFTEST_PEER_V6 "2001:db8::2"

struct selftest_network {
	int pod_fd, peer_fd;
	bool ipv6; /* new namespaces of this node have it */
};

/* *ret is to be closed also after an error. */
int selftest_network_open(struct selftest_network *ret, struct error *err);
void selftest_network_close(struct selftest_network *net);

#endif
