/* SPDX-License-Identifier: Apache-2.0 */
/* Answers that come later, over a real socket. Needs root, as the agent's peers do. */
#include "agent_server.h"

#include "agent_protocol.h"
#include "error.h"
#include "event_loop.h"
#include "scoped.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { PEER_TIMEOUT_MS = 50, DEADLINE_MS = 10000 };

struct rig {
	char dir[32];
	struct event_loop *loop;
	struct agent_server *server;
	struct agent_call *waiting;
	unsigned n_requests;
	enum { AT_ONCE, LATER, BEFORE_RETURNING } how;
};

static json_t *on_request(struct agent_request *req, int netns_fd, struct agent_call *call,
			  void *arg)
{
	struct rig *rig = arg;

	(void)req;
	(void)netns_fd;
	rig->n_requests++;
	if (rig->how == AT_ONCE)
		return agent_reply_ok(NULL);
	agent_call_later(call);
	if (rig->how == BEFORE_RETURNING)
		agent_call_answer(call, agent_reply_ok(NULL));
	else
		rig->waiting = call;
	event_loop_stop(rig->loop);
	return NULL;
}

static void stop_loop(void *arg)
{
	event_loop_stop(arg);
}

/* Runs the loop until something stops it, or for so long. */
static void run_for(struct rig *rig, unsigned ms)
{
	struct event_source *timer = NULL;
	struct error err = {0};

	/* Periodic, so that it does not free itself under the pointer that is removed below. */
	if (event_loop_add_timer(rig->loop, ms, ms, stop_loop, rig->loop, &timer, &err) ||
	    event_loop_run(rig->loop, &err))
		abort();
	event_loop_remove(timer);
}

static void rig_open(struct rig *rig)
{
	const struct agent_server_config cfg = {
		.run_dir = rig->dir, .max_peers = 4, .peer_timeout_ms = PEER_TIMEOUT_MS};
	struct error err = {0};

	snprintf(rig->dir, sizeof(rig->dir), "/tmp/sockmesh-XXXXXX");
	if (!mkdtemp(rig->dir) || event_loop_new(&rig->loop, &err) ||
	    agent_server_open(&cfg, rig->loop, on_request, rig, &rig->server, &err))
		abort();
}

static void rig_close(struct rig *rig)
{
	agent_server_close(rig->server);
	event_loop_free(rig->loop);
	rmdir(rig->dir);
}

static int connect_peer(const struct rig *rig)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/agent.sock", rig->dir);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		abort();
	return fd;
}

static void ask(int fd)
{
	static const char request[] = "{\"v\":1,\"op\":\"status\"}";

	if (send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) < 0)
		abort();
}

/* The answer's text, "" at the end of file, NULL when there is none yet. */
static const char *answer(int fd)
{
	static char text[256];
	ssize_t n = recv(fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	return n < 0 ? NULL : text;
}

#define OK "{\"v\":1,\"ok\":true}"

TEST(a_request_is_answered_later)
{
	struct rig rig = {.how = LATER};
	scoped_fd int peer = -1;

	rig_open(&rig);
	peer = connect_peer(&rig);
	ask(peer);
	run_for(&rig, DEADLINE_MS);
	CHECK(rig.waiting);
	/* The time in which a peer must do something is not the one in which we owe it an answer.
	 */
	run_for(&rig, 4 * PEER_TIMEOUT_MS);
	CHECK(!answer(peer));
	agent_call_answer(rig.waiting, agent_reply_ok(NULL));
	CHECK_STR(answer(peer), OK);
	/* And from now on it is the peer's turn again. */
	run_for(&rig, 4 * PEER_TIMEOUT_MS);
	CHECK_STR(answer(peer), "");
	rig_close(&rig);
	return TEST_OK;
}

TEST(the_next_request_waits_for_the_answer)
{
	struct rig rig = {.how = LATER};
	scoped_fd int peer = -1;

	rig_open(&rig);
	peer = connect_peer(&rig);
	ask(peer);
	ask(peer);
	run_for(&rig, DEADLINE_MS);
	run_for(&rig, 2 * PEER_TIMEOUT_MS);
	CHECK_EQ(rig.n_requests, 1);
	rig.how = AT_ONCE;
	agent_call_answer(rig.waiting, agent_reply_ok(NULL));
	CHECK_STR(answer(peer), OK);
	run_for(&rig, PEER_TIMEOUT_MS / 2);
	CHECK_EQ(rig.n_requests, 2);
	CHECK_STR(answer(peer), OK);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_peer_that_has_gone_gets_no_answer)
{
	struct rig rig = {.how = LATER};
	scoped_fd int other = -1;
	int peer;

	rig_open(&rig);
	peer = connect_peer(&rig);
	ask(peer);
	run_for(&rig, DEADLINE_MS);
	CHECK(rig.waiting);
	close(peer);
	run_for(&rig, 2 * PEER_TIMEOUT_MS);
	agent_call_answer(rig.waiting, agent_reply_ok(NULL));
	rig.how = AT_ONCE;
	other = connect_peer(&rig);
	ask(other);
	run_for(&rig, PEER_TIMEOUT_MS / 2);
	CHECK_STR(answer(other), OK);
	rig_close(&rig);
	return TEST_OK;
}

TEST(what_is_known_before_the_function_returns_is_answered_then)
{
	struct rig rig = {.how = BEFORE_RETURNING};
	scoped_fd int peer = -1;

	rig_open(&rig);
	peer = connect_peer(&rig);
	ask(peer);
	run_for(&rig, DEADLINE_MS);
	CHECK_STR(answer(peer), OK);
	rig_close(&rig);
	return TEST_OK;
}
