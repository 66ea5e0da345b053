/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_TEST_SPEAKER_H
#define SOCKMESH_TEST_SPEAKER_H

/*
 * What a client may be beside itself, as options of the clients:
 *
 *   --mark N            its sockets have this mark, as ztunnel's do
 *   --source ADDR:PORT  they are bound to this address, which need not be the pod's, if it is of
 * the destination's family; port 0: any. May be given once for each family
 */
#include "endpoint.h"

struct speaker {
	int mark;
	union endpoint source4, source6;
};

/* True when it is one of the above, then its value has been taken. */
static inline bool speaker_option(struct speaker *s, const char *name, const char *value)
{
	union endpoint source;

	if (!strcmp(name, "--mark")) {
		s->mark = (int)strtol(value, NULL, 0);
		return true;
	}
	if (strcmp(name, "--source") != 0)
		return false;
	endpoint_parse(value, &source);
	*(source.any.sa_family == AF_INET ? &s->source4 : &s->source6) = source;
	return true;
}

static inline void speaker_prepare(const struct speaker *s, int fd, int family)
{
	const union endpoint *source = family == AF_INET ? &s->source4 : &s->source6;
	int on = 1;

	if (s->mark && setsockopt(fd, SOL_SOCKET, SO_MARK, &s->mark, sizeof(s->mark)) < 0)
		err(1, "SO_MARK");
	if (source->any.sa_family != family)
		return;
	/* Without the right to it, the address must be the client's own. */
	if (family == AF_INET)
		setsockopt(fd, SOL_IP, IP_TRANSPARENT, &on, sizeof(on));
	else
		setsockopt(fd, SOL_IPV6, IPV6_TRANSPARENT, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!endpoint_port(source))
		setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
	if (bind(fd, &source->any, endpoint_size(source)) < 0)
		err(1, "bind the source");
}

#endif
