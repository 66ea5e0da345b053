/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a peer and the caller do, in any order: whatever happens, every put and removal is answered
 * exactly once, nothing is sent that would end ztunnel, and no descriptor is left open.
 *
 * The input is a list of steps, one byte each (its low half says what, its high half which pod or
 * how much); a peer's packet takes its bytes from the input too.
 */
#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "zds_server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_PEERS = 3, N_UIDS = 4, FDS_MAX = 64 };

struct peer {
	int fd;
	bool snapshot_over;
};

struct world {
	struct event_loop *loop;
	struct zds_server *server;
	struct peer peers[N_PEERS];
	int netns_fd;
	bool knows_netns;
	long n_asked, n_answered;
};

static const char *const uids[N_UIDS] = {"uid-0", "uid-1", "uid-2", "uid-3"};

static void on_done(void *arg, enum zds_result result, const char *text)
{
	struct world *world = arg;

	if (result > ZDS_LOST || !text)
		abort();
	world->n_answered++;
}

static int open_netns(void *arg, const char *uid, int *ret_fd)
{
	struct world *world = arg;

	if (strncmp(uid, "uid-", 4) != 0)
		abort();
	if (world->knows_netns)
		*ret_fd = fcntl(world->netns_fd, F_DUPFD_CLOEXEC, 0);
	return 0;
}

static void on_stop(void *arg)
{
	event_loop_stop(arg);
}

static void turn(struct world *world)
{
	struct error err = {0};

	if (event_loop_add_timer(world->loop, 0, 0, on_stop, world->loop, NULL, &err) ||
	    event_loop_run(world->loop, &err))
		abort();
}

static const char *path(void)
{
	static char text[64];

	if (!text[0])
		snprintf(text, sizeof(text), "/tmp/zds_server_fuzz.%d", (int)getpid());
	return text;
}

__attribute__((destructor)) static void remove_directory(void)
{
	rmdir(path());
}

static void connect_peer(struct peer *peer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (peer->fd >= 0)
		return;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", path());
	peer->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	peer->snapshot_over = false;
	if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		abort();
}

static void leave(struct peer *peer)
{
	if (peer->fd >= 0)
		close(peer->fd);
	peer->fd = -1;
}

/* What the server sends is what ztunnel may be sent now. */
static void check_request(struct peer *peer, const void *data, size_t size, size_t n_control)
{
	struct zds_request req;
	struct error err = {0};

	if (zds_request_decode(data, size, &req, &err))
		abort();
	if ((req.kind == ZDS_ADD) != (n_control == CMSG_LEN(sizeof(int))))
		abort();
	if (peer->snapshot_over ? req.kind == ZDS_KEEP || req.kind == ZDS_SNAPSHOT_SENT
				: req.kind == ZDS_DEL)
		abort();
	peer->snapshot_over |= req.kind == ZDS_SNAPSHOT_SENT;
	zds_request_done(&req);
}

static void hear(struct peer *peer)
{
	uint8_t data[ZDS_REQUEST_MAX];
	char control[CMSG_SPACE(4 * sizeof(int))];
	struct iovec iov = {data, sizeof(data)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
	ssize_t n;

	if (peer->fd < 0)
		return;
	msg.msg_controllen = sizeof(control);
	n = recvmsg(peer->fd, &msg, MSG_CMSG_CLOEXEC);
	if (n == 0 || (n < 0 && errno != EAGAIN)) {
		leave(peer);
		return;
	}
	if (n < 0)
		return;
	check_request(peer, data, (size_t)n,
		      msg.msg_controllen ? CMSG_FIRSTHDR(&msg)->cmsg_len : 0);
	if (msg.msg_controllen) {
		int fd;

		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
		close(fd);
	}
}

static void say(struct peer *peer, const void *data, size_t size)
{
	if (peer->fd >= 0)
		send(peer->fd, data, size, MSG_NOSIGNAL);
}

static void ask(struct world *world, unsigned what, const char *uid)
{
	struct zds_pod pod = {.uid = uid, .name = "pod", .ns = "ns", .service_account = "sa"};
	struct error err = {0};
	int r;

	switch (what) {
	case 0:
		r = zds_server_put(world->server, &pod, world->netns_fd, on_done, world, &err);
		break;
	case 1:
		r = zds_server_remove(world->server, uid, on_done, world, &err);
		break;
	default:
		if (zds_server_remember(world->server, &pod, &err))
			abort();
		return;
	}
	if (r)
		abort();
	world->n_asked++;
}

/* Returns how much of the input it took. */
static size_t step(struct world *world, const uint8_t *data, size_t size)
{
	unsigned what = data[0] & 15, which = data[0] >> 4;
	struct peer *peer = &world->peers[which % N_PEERS];
	size_t length = which / N_PEERS * 2;

	switch (what) {
	case 0:
	case 1:
	case 2:
		ask(world, what, uids[which % N_UIDS]);
		return 1;
	case 3:
		connect_peer(peer);
		return 1;
	case 4:
		leave(peer);
		return 1;
	case 5:
		say(peer, "\x08\x01", 2);
		return 1;
	case 6:
	case 7:
		hear(peer);
		return 1;
	case 8:
	case 9:
		say(peer, "\x0a\x00", 2);
		return 1;
	case 10:
		say(peer, "\x0a\x04\x0a\x02no", 6);
		return 1;
	case 11:
		world->knows_netns = which & 1;
		return 1;
	case 12:
		length = length > size - 1 ? size - 1 : length;
		say(peer, data + 1, length);
		return 1 + length;
	default:
		turn(world);
		return 1;
	}
}

static void open_world(struct world *world)
{
	char text[80];
	struct zds_server_config cfg = {ZDS_SERVER_DEFAULTS, .path = text, .open_netns = open_netns,
					.arg = world};
	struct error err = {0};

	snprintf(text, sizeof(text), "%s/s", path());
	cfg.max_accepts = 1000;
	cfg.max_queued = 3;
	world->netns_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (world->netns_fd < 0 || event_loop_new(&world->loop, &err) ||
	    zds_server_open(&cfg, world->loop, &world->server, &err))
		abort();
	zds_server_start(world->server);
}

static int open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < FDS_MAX; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct world world = {.peers = {{.fd = -1}, {.fd = -1}, {.fd = -1}}};
	int before = open_fds();

	log_setup(LOG_ERROR, LOG_TEXT);
	open_world(&world);
	while (size) {
		size_t taken = step(&world, data, size);

		data += taken;
		size -= taken;
	}
	json_decref(zds_server_status(world.server));
	zds_server_close(world.server);
	if (world.n_answered != world.n_asked)
		abort();
	event_loop_free(world.loop);
	for (int i = 0; i < N_PEERS; i++)
		leave(&world.peers[i]);
	close(world.netns_fd);
	if (open_fds() != before)
		abort();
	return 0;
}
