/* SPDX-License-Identifier: Apache-2.0 */
#include "zds_socket.h"

#include "error.h"
#include "scoped.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { LISTEN_BACKLOG = 16, DIR_MODE = 0755, OTHERS_WRITE = 022 };

/* ---- the listening socket ------------------------------------------------------------------- */

/*
 * ztunnel's chart mounts this directory from the host, so it may have been made by kubelet. Who
 * may write there could give ztunnel a socket of his own, and with it the node's traffic.
 */
static int make_directory(const char *path, struct error *err)
{
	char copy[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *dir;
	struct stat st;

	snprintf(copy, sizeof(copy), "%s", path);
	dir = dirname(copy);
	if (mkdir(dir, DIR_MODE) < 0 && errno != EEXIST)
		return error_set(err, errno, "make directory %s", dir);
	if (stat(dir, &st) < 0)
		return error_set(err, errno, "stat directory %s", dir);
	if (!S_ISDIR(st.st_mode))
		return error_set(err, ENOTDIR, "%s", dir);
	if (st.st_uid != geteuid() || (st.st_mode & OTHERS_WRITE))
		return error_set(err, EPERM, "others may write to %s (owner %u, mode %o)", dir,
				 st.st_uid, (unsigned)st.st_mode & 07777);
	return 0;
}

/* Only whose listener is gone refuses a connection; then the file can go too. */
static int remove_stale(const struct sockaddr_un *address, struct error *err)
{
	const char *path = address->sun_path;
	scoped_fd int fd = -1;
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : error_set(err, errno, "stat %s", path);
	if (!S_ISSOCK(st.st_mode))
		return error_set(err, EEXIST, "%s is no socket", path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, errno, "socket");
	if (!connect(fd, (const struct sockaddr *)address, sizeof(*address)) ||
	    errno != ECONNREFUSED)
		return error_set(err, EADDRINUSE, "somebody listens on %s, another agent?", path);
	if (unlink(path) < 0 && errno != ENOENT)
		return error_set(err, errno, "remove stale %s", path);
	return 0;
}

int zds_socket_open(const char *path, struct zds_socket *ret, struct error *err)
{
	struct zds_socket out = {.fd = -1, .address = {.sun_family = AF_UNIX}};
	scoped_fd int fd = -1;
	struct stat st;
	mode_t mask;
	int r;

	if (strlen(path) >= sizeof(out.address.sun_path))
		return error_set(err, ENAMETOOLONG, "socket path %s", path);
	snprintf(out.address.sun_path, sizeof(out.address.sun_path), "%s", path);
	r = make_directory(path, err);
	if (!r)
		r = remove_stale(&out.address, err);
	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, errno, "socket");
	mask = umask(0177); /* mode 0600 from the first moment on */
	r = bind(fd, (struct sockaddr *)&out.address, sizeof(out.address));
	umask(mask);
	if (r < 0)
		return error_set(err, errno, "bind %s", path);
	if (lstat(path, &st) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
		int code = errno;

		unlink(path);
		return error_set(err, code, "listen on %s", path);
	}
	out.dev = st.st_dev;
	out.ino = st.st_ino;
	out.fd = take_fd(&fd);
	*ret = out;
	return 0;
}

void zds_socket_close(struct zds_socket *socket)
{
	struct stat st;

	if (socket->fd < 0)
		return;
	if (!lstat(socket->address.sun_path, &st) && st.st_dev == socket->dev &&
	    st.st_ino == socket->ino)
		unlink(socket->address.sun_path);
	close(take_fd(&socket->fd));
}

/* ---- packets -------------------------------------------------------------------------------- */

int zds_packet_send(int sock, const void *data, size_t size, int fd, struct error *err)
{
	struct iovec iov = {.iov_base = (void *)data, .iov_len = size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align; /* as cmsg(3) asks */
	} control = {0};
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *header;

		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		header = CMSG_FIRSTHDR(&msg);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? error_set(err, errno, "send") : 0;
}

int zds_packet_receive(int sock, void *buf, size_t size, size_t *ret_size, struct error *err)
{
	struct iovec iov = {.iov_base = buf, .iov_len = size};
	/* Without room for control data the kernel closes what would come with it, and says so. */
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	do
		n = recvmsg(sock, &msg, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_set(err, errno, "receive");
	if (msg.msg_flags & MSG_CTRUNC)
		return error_set(err, EPROTO, "a packet with file descriptors");
	if (msg.msg_flags & MSG_TRUNC)
		return error_set(err, EMSGSIZE, "a packet of more than %zu bytes", size);
	if (n == 0)
		return error_set(err, ECONNRESET, "the other end has closed");
	*ret_size = (size_t)n;
	return 0;
}
