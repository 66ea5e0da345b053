/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ZDS_SOCKET_H
#define SOCKMESH_ZDS_SOCKET_H

/*
 * The socket at which ztunnel connects, and packets on its connections: SOCK_SEQPACKET, never
 * blocking, one descriptor at most on the way out and none on the way in.
 */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

struct error;

struct zds_socket {
	int fd;
	struct sockaddr_un address;
	dev_t dev; /* of the socket's file, so that only our own is removed at the end */
	ino_t ino;
};

/*
 * Makes the directory when it is not there (its parent must be); refuses one in which others than
 * root could put a socket of theirs. A socket that a dead agent left is replaced; -EADDRINUSE:
 * somebody listens there.
 */
int zds_socket_open(const char *path, struct zds_socket *ret, struct error *err);
void zds_socket_close(struct zds_socket *socket); /* removes the file, if it still is ours */

/* fd -1: none goes along. -EAGAIN: no room; any other failure ends the connection. */
int zds_packet_send(int sock, const void *data, size_t size, int fd, struct error *err);

/*
 * -EAGAIN: nothing there. -ECONNRESET: the other end has closed, or sent an empty packet, which
 * looks the same. -EMSGSIZE: longer than `size`. -EPROTO: descriptors came with it; they have been
 * closed.
 */
int zds_packet_receive(int sock, void *buf, size_t size, size_t *ret_size, struct error *err);

#endif
