/* SPDX-License-Identifier: Apache-2.0 */
/* The promises to the caller; what peers can do to the server is test/zds's business. */
#include "zds_server.h"

#include "error.h"
#include "event_loop.h"
#include "monotonic.h"
#include "scoped.h"
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { DEADLINE_MS = 10000, CALLS_MAX = 64, PEERS_MAX = 4 };

struct call {
	int id;
	enum zds_result result;
	char text[128];
};

/* A server, what it called back, and its peers. */
struct rig {
	struct event_loop *loop;
	struct zds_server *server;
	char dir[32], path[48];
	int netns_fd;
	bool knows_netns;
	struct call calls[CALLS_MAX];
	int n_calls, n_peers_calls;
	unsigned n_ready;
	int peers[PEERS_MAX];
	bool put_again; /* from done and from on_peers */
	bool refuse_last;
};

struct put {
	struct rig *rig;
	int id;
};

static const struct zds_pod pods[] = {
	{.uid = "uid-0", .name = "pod-0", .ns = "ns", .service_account = "sa"},
	{.uid = "uid-1", .name = "pod-1", .ns = "ns", .service_account = "sa"},
	{.uid = "uid-2", .name = "pod-2", .ns = "ns", .service_account = "sa"},
};

static void on_done(void *arg, enum zds_result result, const char *text);

static int put(struct rig *rig, int pod, int id)
{
	struct put *arg = malloc(sizeof(*arg));
	struct error err = {0};
	int r;

	if (!arg)
		return -ENOMEM;
	*arg = (struct put){rig, id};
	r = zds_server_put(rig->server, &pods[pod], rig->netns_fd, on_done, arg, &err);
	if (r)
		free(arg);
	return r;
}

static int take_away(struct rig *rig, int pod, int id)
{
	struct put *arg = malloc(sizeof(*arg));
	struct error err = {0};

	if (!arg)
		return -ENOMEM;
	*arg = (struct put){rig, id};
	return zds_server_remove(rig->server, pods[pod].uid, on_done, arg, &err);
}

static void on_done(void *arg, enum zds_result result, const char *text)
{
	struct put *call = arg;
	struct rig *rig = call->rig;
	struct call *noted = &rig->calls[rig->n_calls];

	if (rig->n_calls < CALLS_MAX) {
		rig->n_calls++;
		noted->id = call->id;
		noted->result = result;
		snprintf(noted->text, sizeof(noted->text), "%s", text);
		if (rig->put_again)
			rig->refuse_last = put(rig, 0, call->id + 1) == -ESHUTDOWN;
	}
	free(call);
}

static void on_peers(void *arg, unsigned n_ready)
{
	struct rig *rig = arg;

	rig->n_peers_calls++;
	rig->n_ready = n_ready;
	if (rig->put_again)
		put(rig, 1, 100 + (int)n_ready);
}

static int open_netns(void *arg, const char *uid, int *ret_fd)
{
	struct rig *rig = arg;

	(void)uid;
	if (!rig->knows_netns)
		return -ENOENT;
	*ret_fd = fcntl(rig->netns_fd, F_DUPFD_CLOEXEC, 0);
	return *ret_fd < 0 ? -errno : 0;
}

static bool rig_open(struct rig *rig, uint32_t ack_timeout_ms)
{
	struct zds_server_config cfg = {ZDS_SERVER_DEFAULTS, .path = rig->path,
					.open_netns = open_netns, .on_peers = on_peers, .arg = rig};
	struct error err = {0};

	*rig = (struct rig){.dir = "/tmp/sockmesh-zds.XXXXXX", .peers = {-1, -1, -1, -1}};
	if (!mkdtemp(rig->dir))
		return false;
	snprintf(rig->path, sizeof(rig->path), "%s/s", rig->dir);
	cfg.ack_timeout_ms = ack_timeout_ms;
	cfg.max_accepts = 1000;
	rig->netns_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (rig->netns_fd < 0 || event_loop_new(&rig->loop, &err) ||
	    zds_server_open(&cfg, rig->loop, &rig->server, &err))
		return false;
	zds_server_start(rig->server);
	return true;
}

static void rig_close(struct rig *rig)
{
	zds_server_close(take_ptr(rig->server));
	event_loop_free(rig->loop);
	for (int i = 0; i < PEERS_MAX; i++)
		scoped_close(&rig->peers[i]);
	scoped_close(&rig->netns_fd);
	rmdir(rig->dir);
}

static void on_stop(void *arg)
{
	event_loop_stop(arg);
}

/* What is there to be done, and a moment more. */
static void turn(struct rig *rig, uint64_t ms)
{
	struct error err = {0};

	if (!event_loop_add_timer(rig->loop, ms, 0, on_stop, rig->loop, NULL, &err))
		event_loop_run(rig->loop, &err);
}

#define UNTIL(rig, cond)                                                                           \
	do {                                                                                       \
		int64_t end_ = monotonic_ms() + DEADLINE_MS;                                       \
		while (!(cond) && monotonic_ms() < end_)                                           \
			turn(rig, 1);                                                              \
		CHECK(cond);                                                                       \
	} while (0)

static bool join(struct rig *rig, int peer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", rig->path);
	rig->peers[peer] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return rig->peers[peer] >= 0 &&
	       !connect(rig->peers[peer], (struct sockaddr *)&address, sizeof(address)) &&
	       send(rig->peers[peer], "\x08\x01", 2, 0) == 2;
}

static void leave(struct rig *rig, int peer)
{
	close(take_fd(&rig->peers[peer]));
}

/* The next request for this peer: its first byte says which; 0: none in time. */
static int heard(struct rig *rig, int peer)
{
	int64_t end_ms = monotonic_ms() + DEADLINE_MS;
	char data[ZDS_REQUEST_MAX];
	ssize_t n;

	/* Without room for descriptors they are closed here. */
	while ((n = recv(rig->peers[peer], data, sizeof(data), 0)) < 0 && errno == EAGAIN &&
	       monotonic_ms() < end_ms)
		turn(rig, 1);
	return n > 0 ? data[0] : 0;
}

enum { ADD = 0x0a, DEL = 0x12, SNAPSHOT_SENT = 0x1a, KEEP = 0x2a };

static bool answer(struct rig *rig, int peer, const char *bytes, size_t size)
{
	return send(rig->peers[peer], bytes, size, MSG_NOSIGNAL) == (ssize_t)size;
}

#define HEARS(rig, peer, request) CHECK_EQ(heard(rig, peer), request)
#define ACKS(rig, peer)		  CHECK(answer(rig, peer, "\x0a\x00", 2))
#define NACKS(rig, peer)	  CHECK(answer(rig, peer, "\x0a\x04\x0a\x02no", 6))

#define CALLED(rig, nth, id_, result_)                                                             \
	do {                                                                                       \
		UNTIL(rig, (rig)->n_calls > (nth));                                                \
		CHECK_EQ((rig)->calls[nth].id, id_);                                               \
		CHECK_EQ((rig)->calls[nth].result, result_);                                       \
	} while (0)

#define READY(rig, peer, n)                                                                        \
	do {                                                                                       \
		CHECK(join(rig, peer));                                                            \
		HEARS(rig, peer, SNAPSHOT_SENT);                                                   \
		ACKS(rig, peer);                                                                   \
		UNTIL(rig, (rig)->n_ready == (n));                                                 \
	} while (0)

static long long number_of(struct rig *rig, const char *name)
{
	json_t *status = zds_server_status(rig->server);
	json_t *value = json_object_get(status, name);
	long long out;

	if (!value)
		value = json_object_get(json_object_get(status, "counters"), name);
	out = value ? json_integer_value(value) : -1;
	json_decref(status);
	return out;
}

static bool is_waiting(struct rig *rig)
{
	json_t *status = zds_server_status(rig->server);
	bool out = json_is_true(json_object_get(
		json_array_get(json_object_get(status, "connections"), 0), "waiting"));

	json_decref(status);
	return out;
}

TEST(nothing_is_called_back_from_within_a_call)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	CHECK(!put(&rig, 0, 1));
	CHECK(!take_away(&rig, 0, 2));
	CHECK_EQ(rig.n_calls, 0);
	CALLED(&rig, 0, 1, ZDS_NO_PROXY);
	CALLED(&rig, 1, 2, ZDS_NO_PROXY);
	turn(&rig, 20);
	CHECK_EQ(rig.n_calls, 2);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_callback_may_put_again_without_end_but_not_without_others)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	rig.put_again = true;
	CHECK(!put(&rig, 0, 1));
	UNTIL(&rig, rig.n_calls == CALLS_MAX);
	/* Then it ended, because nothing is put again any more. */
	for (int i = 0; i < CALLS_MAX; i++)
		CHECK_EQ(rig.calls[i].id, i + 1);
	rig_close(&rig);
	return TEST_OK;
}

TEST(when_a_ztunnel_comes_the_caller_may_put_at_once)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	CHECK(join(&rig, 0));
	HEARS(&rig, 0, SNAPSHOT_SENT);
	rig.put_again = true;
	ACKS(&rig, 0);
	HEARS(&rig, 0, ADD);
	rig.put_again = false;
	ACKS(&rig, 0);
	CALLED(&rig, 0, 101, ZDS_ACKED);
	CHECK_EQ(rig.n_peers_calls, 1);
	rig_close(&rig);
	return TEST_OK;
}

TEST(every_put_and_removal_ends_when_the_server_is_closed)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	READY(&rig, 0, 1);
	CHECK(!put(&rig, 0, 1));
	CHECK(!put(&rig, 1, 2));
	CHECK(!take_away(&rig, 2, 3));
	HEARS(&rig, 0, ADD);
	rig.put_again = true;
	zds_server_close(rig.server);
	rig.server = NULL;
	CHECK_EQ(rig.n_calls, 3);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(rig.calls[i].result, ZDS_LOST);
	CHECK(rig.refuse_last);
	CHECK_EQ(rig.n_peers_calls, 1);
	CHECK(access(rig.path, F_OK) < 0);
	rig_close(&rig);
	return TEST_OK;
}

static int open_fds(void)
{
	scoped_dir DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (dir && readdir(dir))
		n++;
	return n;
}

TEST(a_put_that_nobody_asks_about_holds_its_namespace_no_longer_either)
{
	struct rig rig;
	struct error err = {0};
	int before;

	CHECK(rig_open(&rig, 5000));
	before = open_fds();
	CHECK(!zds_server_put(rig.server, &pods[0], rig.netns_fd, NULL, NULL, &err));
	CHECK_EQ(open_fds(), before);
	CHECK(join(&rig, 0));
	HEARS(&rig, 0, KEEP);
	ACKS(&rig, 0);
	HEARS(&rig, 0, SNAPSHOT_SENT);
	ACKS(&rig, 0);
	UNTIL(&rig, rig.n_ready == 1);
	before = open_fds();
	CHECK(!zds_server_put(rig.server, &pods[1], rig.netns_fd, NULL, NULL, &err));
	CHECK_EQ(open_fds(), before + 1);
	leave(&rig, 0);
	UNTIL(&rig, rig.n_ready == 0);
	CHECK_EQ(number_of(&rig, "pending"), 0);
	CHECK_EQ(open_fds(), before - 2);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_put_in_a_snapshot_waits_for_it_and_one_before_does_not)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	CHECK(!put(&rig, 0, 1));
	CALLED(&rig, 0, 1, ZDS_NO_PROXY);
	CHECK(join(&rig, 0));
	HEARS(&rig, 0, KEEP); /* the put's descriptor is closed, and nobody knows another */
	CHECK(!put(&rig, 0, 2));
	CHECK(!put(&rig, 1, 3));
	turn(&rig, 10);
	CHECK_EQ(rig.n_calls, 1);
	CHECK_EQ(number_of(&rig, "pending"), 2);
	for (int i = 0; i < 2; i++) {
		ACKS(&rig, 0);
		HEARS(&rig, 0, ADD);
	}
	NACKS(&rig, 0);
	HEARS(&rig, 0, SNAPSHOT_SENT);
	CALLED(&rig, 1, 2, ZDS_ACKED);
	CALLED(&rig, 2, 3, ZDS_NACKED);
	CHECK_STR(rig.calls[2].text, "no");
	CHECK_STR(zds_server_refusal(rig.server, "uid-1"), "no");
	CHECK(!zds_server_refusal(rig.server, "uid-0"));
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_refusal_counts_when_nobody_else_is_going_to_answer)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	READY(&rig, 0, 1);
	CHECK(join(&rig, 1));
	HEARS(&rig, 1, SNAPSHOT_SENT);
	/* The snapshot is over but for its ack, so the new one will be given the pod too. */
	CHECK(!put(&rig, 0, 1));
	HEARS(&rig, 0, ADD);
	NACKS(&rig, 0);
	UNTIL(&rig, number_of(&rig, "nacks") == 1);
	CHECK_EQ(rig.n_calls, 0);
	ACKS(&rig, 1);
	HEARS(&rig, 1, ADD);
	ACKS(&rig, 1);
	CALLED(&rig, 0, 1, ZDS_ACKED);
	CHECK(!zds_server_refusal(rig.server, "uid-0"));
	rig_close(&rig);
	return TEST_OK;
}

TEST(what_the_newest_took_away_with_it_the_other_gets)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	rig.knows_netns = true;
	READY(&rig, 0, 1);
	READY(&rig, 1, 2);
	CHECK(!put(&rig, 0, 1));
	HEARS(&rig, 1, ADD);
	ACKS(&rig, 1);
	CALLED(&rig, 0, 1, ZDS_ACKED);
	CHECK(!put(&rig, 1, 2));
	HEARS(&rig, 1, ADD);
	leave(&rig, 1);
	HEARS(&rig, 0, ADD);
	ACKS(&rig, 0);
	HEARS(&rig, 0, ADD);
	ACKS(&rig, 0);
	CALLED(&rig, 1, 2, ZDS_ACKED);
	CHECK_EQ(rig.n_ready, 1);
	rig_close(&rig);
	return TEST_OK;
}

/* After the snapshot a Keep would end ztunnel. */
TEST(a_ready_ztunnel_is_never_asked_to_keep)
{
	struct rig rig;
	struct error err = {0};

	CHECK(rig_open(&rig, 5000));
	READY(&rig, 0, 1);
	CHECK(!zds_server_remember(rig.server, &pods[0], &err));
	CHECK(zds_server_has(rig.server, "uid-0"));
	CHECK_EQ(number_of(&rig, "skipped"), 1);
	rig.knows_netns = true;
	CHECK(!zds_server_remember(rig.server, &pods[1], &err));
	HEARS(&rig, 0, ADD);
	ACKS(&rig, 0);
	UNTIL(&rig, number_of(&rig, "acks") == 2);
	CHECK_EQ(number_of(&rig, "keeps"), 0);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_removal_waits_for_all_and_the_first_bad_answer_is_its_result)
{
	struct rig rig;

	CHECK(rig_open(&rig, 5000));
	READY(&rig, 0, 1);
	READY(&rig, 1, 2);
	CHECK(!take_away(&rig, 0, 1));
	HEARS(&rig, 0, DEL);
	HEARS(&rig, 1, DEL);
	ACKS(&rig, 0);
	turn(&rig, 10);
	CHECK_EQ(rig.n_calls, 0);
	ACKS(&rig, 1);
	CALLED(&rig, 0, 1, ZDS_ACKED);
	CHECK(!take_away(&rig, 0, 2));
	HEARS(&rig, 0, DEL);
	NACKS(&rig, 0);
	UNTIL(&rig, number_of(&rig, "nacks") == 1);
	leave(&rig, 1);
	CALLED(&rig, 1, 2, ZDS_NACKED);
	rig_close(&rig);
	return TEST_OK;
}

/* Acks what it is sent without reading it, until its buffer is full. */
static enum test_result fill(struct rig *rig)
{
	int acked = 0;

	CHECK(join(rig, 0));
	for (;;) {
		int64_t end_ms = monotonic_ms() + 200;

		while (!is_waiting(rig) && monotonic_ms() < end_ms) {
			take_away(rig, 0, 1);
			turn(rig, 1);
		}
		if (!is_waiting(rig))
			break;
		CHECK(++acked < 10000);
		ACKS(rig, 0);
		UNTIL(rig, number_of(rig, "acks") == acked);
	}
	CHECK(number_of(rig, "dels") > 10);
	return TEST_OK;
}

TEST(a_full_buffer_is_waited_for_until_the_deadline)
{
	struct rig rig;

	CHECK(rig_open(&rig, 1000));
	CHECK(fill(&rig) == TEST_OK);
	UNTIL(&rig, number_of(&rig, "timeouts") == 1);
	CHECK_EQ(number_of(&rig, "dropped"), 1);
	rig_close(&rig);
	return TEST_OK;
}

TEST(a_full_buffer_that_is_read_is_written_again)
{
	struct rig rig;

	CHECK(rig_open(&rig, 30000));
	CHECK(fill(&rig) == TEST_OK);
	HEARS(&rig, 0, SNAPSHOT_SENT);
	for (int i = 0; i < 50 && !is_waiting(&rig); i++)
		HEARS(&rig, 0, DEL);
	UNTIL(&rig, is_waiting(&rig));
	CHECK_EQ(number_of(&rig, "dropped"), 0);
	rig_close(&rig);
	return TEST_OK;
}
