/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_TEST_ENDPOINT_H
#define SOCKMESH_TEST_ENDPOINT_H

/*
 * What the clients and servers of the contract test share: addresses with ports as text.
 * IPv4-mapped addresses print as IPv4, because that is what a listener's two address families have
 * in common; who cares about the difference compares the sockaddr.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { ENDPOINT_TEXT = 64 };

union endpoint {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static inline socklen_t endpoint_size(const union endpoint *e)
{
	return e->any.sa_family == AF_INET ? sizeof(e->v4) : sizeof(e->v6);
}

static inline unsigned endpoint_port(const union endpoint *e)
{
	return ntohs(e->any.sa_family == AF_INET ? e->v4.sin_port : e->v6.sin6_port);
}

static inline void endpoint_set_port(union endpoint *e, unsigned port)
{
	if (e->any.sa_family == AF_INET)
		e->v4.sin_port = htons((uint16_t)port);
	else
		e->v6.sin6_port = htons((uint16_t)port);
}

/* The address alone, "10.0.0.1" or "fd00::1". */
static inline bool endpoint_from_address(const char *text, unsigned port, union endpoint *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (inet_pton(AF_INET, text, &ret->v4.sin_addr) == 1)
		ret->any.sa_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &ret->v6.sin6_addr) == 1)
		ret->any.sa_family = AF_INET6;
	else
		return false;
	endpoint_set_port(ret, port);
	return true;
}

/* "10.0.0.1:80" or "[fd00::1]:80". */
static inline void endpoint_parse(const char *text, union endpoint *ret)
{
	char copy[ENDPOINT_TEXT];
	char *colon, *address = copy;

	snprintf(copy, sizeof(copy), "%s", text);
	colon = strrchr(copy, ':');
	if (!colon)
		errx(2, "%s has no port", text);
	*colon = '\0';
	if (*address == '[' && colon[-1] == ']') {
		colon[-1] = '\0';
		address++;
	}
	if (!endpoint_from_address(address, (unsigned)atoi(colon + 1), ret))
		errx(2, "%s is not an address with a port", text);
}

/* The IPv4 address of an AF_INET6 socket: ::ffff:a.b.c.d. */
static inline void endpoint_map(union endpoint *e)
{
	struct sockaddr_in v4 = e->v4;

	memset(e, 0, sizeof(*e));
	e->v6.sin6_family = AF_INET6;
	e->v6.sin6_port = v4.sin_port;
	e->v6.sin6_addr.s6_addr[10] = e->v6.sin6_addr.s6_addr[11] = 0xff;
	memcpy(&e->v6.sin6_addr.s6_addr[12], &v4.sin_addr, 4);
}

static inline const char *endpoint_format(const union endpoint *e, char buf[static ENDPOINT_TEXT])
{
	char address[INET6_ADDRSTRLEN] = "?";

	if (e->any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &e->v4.sin_addr, address, sizeof(address));
		snprintf(buf, ENDPOINT_TEXT, "%s:%u", address, endpoint_port(e));
	} else if (IN6_IS_ADDR_V4MAPPED(&e->v6.sin6_addr)) {
		inet_ntop(AF_INET, &e->v6.sin6_addr.s6_addr[12], address, sizeof(address));
		snprintf(buf, ENDPOINT_TEXT, "%s:%u", address, endpoint_port(e));
	} else {
		inet_ntop(AF_INET6, &e->v6.sin6_addr, address, sizeof(address));
		snprintf(buf, ENDPOINT_TEXT, "[%s]:%u", address, endpoint_port(e));
	}
	return buf;
}

/* Exactly the same socket address: family, address and port. */
static inline bool endpoint_same(const union endpoint *a, const union endpoint *b)
{
	if (a->any.sa_family != b->any.sa_family || endpoint_port(a) != endpoint_port(b))
		return false;
	return a->any.sa_family == AF_INET
		       ? a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr
		       : !memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, sizeof(a->v6.sin6_addr));
}

#endif
